"""The registry of architectures: one name each, all trained and used alike."""

import inspect
from collections.abc import Callable

from utils.models import fcn, smp
from utils.models.base import ModelError, PaddedModel, unknown

__all__ = ["ModelError", "build_model", "list_models"]

_BUILDERS: dict[str, Callable[..., PaddedModel]] = {
    **dict.fromkeys(smp.DECODERS, smp.build),
    **dict.fromkeys(fcn.NETWORKS, fcn.build),
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
        raise unknown("architecture", name, list_models())
    build = _BUILDERS[name]
    known = inspect.signature(build).parameters
    if "options" not in known:
        options = {k: v for k, v in options.items() if k != "image_size"}  # only encoders of a fixed size use it
        if options:
            raise unknown(f"option of {name}", next(iter(options)), [k for k in known if k not in ("name", "classes")])
    return build(name, classes=classes, encoder=encoder or None, encoder_weights=encoder_weights or None, **options)
