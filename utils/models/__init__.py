"""The registry of architectures: one name each, all trained and used alike."""

import inspect
from collections.abc import Callable

from utils.errors import unknown
from utils.models import (
    cam,
    deconvnet,
    deeplab,
    dilatednet,
    fcdensenet,
    fcn,
    hrnet,
    mask2former,
    mobilevit,
    presets,
    segnet,
    smp,
    swin_unet,
    unet,
    unet3p,
    unetpp,
)
from utils.models.base import ModelError, PaddedModel

__all__ = ["ModelError", "build_model", "list_models"]

_BUILDERS: dict[str, Callable[..., PaddedModel]] = {
    **dict.fromkeys(smp.DECODERS, smp.build),
    **dict.fromkeys(fcn.NETWORKS, fcn.build),
    **dict.fromkeys(fcn.STRIDES, fcn.build_vgg),
    **dict.fromkeys(deconvnet.NETWORKS, deconvnet.build),
    **dict.fromkeys(segnet.NETWORKS, segnet.build),
    **dict.fromkeys(fcdensenet.NETWORKS, fcdensenet.build),
    **dict.fromkeys(dilatednet.NETWORKS, dilatednet.build),
    **dict.fromkeys(deeplab.ENCODERS, deeplab.build),
    **dict.fromkeys(deeplab.TORCHVISION, deeplab.build_resnet),
    **dict.fromkeys(unet.NETWORKS, unet.build),
    **dict.fromkeys(unetpp.NETWORKS, unetpp.build),
    **dict.fromkeys(unet3p.NETWORKS, unet3p.build),
    **dict.fromkeys(hrnet.NETWORKS, hrnet.build),
    **dict.fromkeys(presets.PAIRS, presets.build),
    **dict.fromkeys(mobilevit.NETWORKS, mobilevit.build),
    **dict.fromkeys(swin_unet.NETWORKS, swin_unet.build),
    **dict.fromkeys(mask2former.NETWORKS, mask2former.build),
    **dict.fromkeys(cam.NETWORKS, cam.build),
}


def list_models() -> list[str]:
    """The names that `build_model` knows."""
    return sorted(_BUILDERS)


def build_model(
    name: str, classes: int = 29, encoder: str | None = None, encoder_weights: str | None = None, **options
) -> PaddedModel:
    """A network of the architecture `name`: float (N, 3, H, W) to logits (N, classes, H, W), at any H and W.

    encoder: where the architecture has a choice; None is its default. encoder_weights: "imagenet", the path of a
    .safetensors or .pth file, or None for random weights. `options` are the architecture's own, such as
    decoder_channels; "" and None leave an option at its default. Raises ModelError, which lists what can be used, for
    an unknown name, encoder or option, a combination that can't work, or weights that can't be had.
    """
    if name not in _BUILDERS:
        raise ModelError(unknown("architecture", name, list_models()))
    build = _BUILDERS[name]
    known = inspect.signature(build).parameters
    if "options" not in known:
        options = {k: v for k, v in options.items() if k in known or k != "image_size"}  # most take any size
        for option in options.keys() - known.keys():
            raise ModelError(unknown(f"option of {name}", option, [k for k in known if k not in ("name", "classes")]))
    return build(name, classes=classes, encoder=encoder or None, encoder_weights=encoder_weights or None, **options)
