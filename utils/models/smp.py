"""The decoders of segmentation-models-pytorch with its own and timm's encoders."""

import inspect
from typing import Any

import segmentation_models_pytorch as smp
import timm
from segmentation_models_pytorch.encoders import get_encoder
from torch import nn

from utils.files import unknown
from utils.models.additions import DeeplySupervised, WithMetadata
from utils.models.base import ModelError, PaddedModel, check_options
from utils.models.pretrained import check_hub, load_state, normalisation, read_state
from utils.registry import register_model

SET_HERE = ("encoder_name", "encoder_weights", "in_channels", "classes", "kwargs")
"""Arguments of smp's decoders that are not options."""
DEFAULT_ENCODER = "tu-mobilenetv3_small_100"
"""Small, so that every decoder can be tried on a CPU; two decoders need another one:"""
DEFAULT_ENCODERS = {"segformer": "mit_b0", "dpt": "tu-vit_tiny_patch16_224.augreg_in21k"}
DILATED = ("deeplabv3", "deeplabv3plus", "pan")
"""Decoders that ask the encoder for an output stride below 32, which these timm families can't give:"""
UNDILATED = ("tu-hrnet", "tu-swin", "tu-pvt", "tu-maxvit", "tu-convnext", "tu-mobilevit", "mit_b", "tu-efficientvit")
NEEDS_IMAGE_SIZE = ("tu-swin", "tu-maxvit", "tu-maxxvit", "tu-coatnet")
ANY_IMAGE_SIZE = ("tu-swin_",)
"""Of these, those that accept other sizes too; the size given only decides in which stages windows are shifted."""
MULTIPLES = {"pan": 128}  # its pyramid halves a sixteenth of the input three times
NOT_WITH_MIT = ("unetplusplus", "linknet", "dpt")
NORMALISED_AS = {
    "dpn": "dpn68",
    "inceptionresnetv2": "inception_resnet_v2",
    "inceptionv4": "inception_v4",
    "xception": "legacy_xception",
    "timm-tf_efficientnet_lite": "tf_efficientnet_lite0",
}
"""smp's encoders that do not expect ImageNet's normalisation, by the beginnings of their names, and a timm model that
expects the same. smp keeps the values on the hub only, and weights from a file must not need a connection."""


@register_model("unet", "unetplusplus", "linknet", "manet", "fpn", family="U-Net and pyramids")
@register_model("deeplabv3", "deeplabv3plus", "pspnet", "pan", family="dilated")
@register_model("segformer", "upernet", "dpt", family="transformer, modern")
def build(
    name: str,
    classes: int,
    encoder: str | None,
    encoder_weights: str | None,
    image_size: int | None = None,
    deep_supervision: bool = False,
    metadata: bool = False,
    **options,
) -> PaddedModel:
    """An smp decoder on an encoder. `image_size` matters to encoders built for one size (Swin, MaxViT).

    `options` are the decoder's own (`decoder_channels`, …). deep_supervision: see `models.additions`.
    metadata: the person's sex, age, height and weight as an auxiliary input, see `models.additions`. Raises ModelError
    for an unknown option or encoder, a pair that does not work, and weights that can't be loaded.
    """
    encoder = encoder or DEFAULT_ENCODERS.get(name, DEFAULT_ENCODER)
    check_encoder(name, encoder)
    decoder = smp.MODEL_ARCHITECTURES_MAPPING[name]
    known = [p for p in inspect.signature(decoder).parameters if p not in SET_HERE]
    check_options(name, options, [*known, "deep_supervision", "metadata"])
    settings, multiple = encoder_options(encoder, encoder_weights, image_size)
    options |= settings
    if name == "dpt":
        options["dynamic_img_size"] = True
    weights = encoder_weights if encoder_weights == "imagenet" else None
    try:
        network = decoder(encoder_name=encoder, encoder_weights=weights, classes=classes, **options)
    except (ValueError, KeyError, TypeError, RuntimeError, NotImplementedError, AssertionError) as error:
        raise ModelError(
            f"{name} with encoder {encoder} can't be built: {error}. Try one of {', '.join(suggestions(name))}"
        ) from error
    model = fill_encoder(PaddedModel(network, MULTIPLES.get(name, multiple)), encoder, encoder_weights)
    if metadata:
        if name == "dpt":
            raise ModelError("metadata: dpt's encoder gives no features that could be scaled; choose another decoder")
        model.network, model.takes_person = WithMetadata(network), True
    if deep_supervision:
        model.network = DeeplySupervised(model.network, classes, max(model.multiple, 64))
    return model


def encoder_options(encoder: str, encoder_weights: str | None, image_size: int | None) -> tuple[dict[str, Any], int]:
    """The options that smp makes this encoder with, and what the sides of its images must be a multiple of.

    Raises ModelError for an encoder built for one size without `image_size`, and for "imagenet" out of reach.
    """
    if encoder_weights == "imagenet":
        check_hub(*hub_source(encoder))
    if not encoder.startswith(NEEDS_IMAGE_SIZE):
        return {}, 32
    if not image_size:
        raise ModelError(f"encoder {encoder} is built for one image size: give image_size")
    if encoder.startswith(ANY_IMAGE_SIZE):
        return {"img_size": image_size, "strict_img_size": False}, 32
    return {"img_size": image_size}, image_size


def build_encoder(
    name: str, encoder: str | None, encoder_weights: str | None, image_size: int | None
) -> tuple[nn.Module, str, int]:
    """An encoder of smp or timm on its own, for a decoder `name` that smp has not; its name, and `encoder_options`'
    multiple. `fill_encoder` then takes weights from a file or package. Raises ModelError as `build` does."""
    encoder = encoder or DEFAULT_ENCODER
    check_encoder(name, encoder)
    settings, multiple = encoder_options(encoder, encoder_weights, image_size)
    weights = encoder_weights if encoder_weights == "imagenet" else None
    return get_encoder(encoder, weights=weights, **settings), encoder, multiple


def fill_encoder(model: PaddedModel, encoder: str, encoder_weights: str | None) -> PaddedModel:
    """Load weights from a file or package into `model.network.encoder`, set their normalisation, return the model.

    "imagenet" weights are there already: smp loads them where it makes the encoder.
    """
    if encoder_weights and encoder_weights != "imagenet":
        load_state(model.network.encoder, read_state(encoder_weights, encoder), encoder_weights)
    if encoder_weights:
        model.mean, model.std = normalisation(timm_name(encoder))
    return model


def timm_name(encoder: str) -> str:
    """The timm model whose normalisation an encoder's weights have; "" for ImageNet's."""
    if encoder.startswith("tu-"):
        return encoder.removeprefix("tu-")
    return next((model for start, model in NORMALISED_AS.items() if encoder.startswith(start)), "")


def check_encoder(name: str, encoder: str) -> None:
    """Raise ModelError for an unknown encoder or one that can't feed decoder `name`, with encoders that can."""
    if encoder.startswith("tu-"):
        if not timm.is_model(encoder.removeprefix("tu-")):
            raise ModelError(unknown("timm encoder", encoder, [f"tu-{m}" for m in timm.list_models()]))
    elif encoder not in smp.encoders.encoders:
        raise ModelError(unknown("encoder", encoder, [*smp.encoders.encoders, "or tu-<any timm model>"]))
    mit, plain = encoder.startswith("mit_b"), encoder.startswith("tu-vit")
    clashes = {
        "needs an encoder that can be dilated": name in DILATED and encoder.startswith(UNDILATED),
        "needs features at half resolution, which mit encoders lack": name in NOT_WITH_MIT and mit,
        "works with timm's plain vision transformers only": name == "dpt" and not plain,
        "needs a pyramid of features, which a plain vision transformer lacks": name != "dpt" and plain,
    }
    clash = next((text for text, applies in clashes.items() if applies), "")
    if clash:
        raise ModelError(f"{name} {clash}; {encoder} can't be used. Try one of {', '.join(suggestions(name))}")


def suggestions(name: str) -> list[str]:
    """A few encoders, small to large, known to work with decoder `name`."""
    if name == "dpt":
        return ["tu-vit_tiny_patch16_224.augreg_in21k", "tu-vit_base_patch16_224.augreg_in21k"]
    always = ["tu-mobilenetv3_small_100", "mobilenet_v2", "resnet18", "resnet34", "efficientnet-b3", "vgg19_bn"]
    return always if name in DILATED else [*always, "tu-hrnet_w48", "tu-convnext_base"]


def hub_source(encoder: str) -> tuple[str, str | None]:
    """Repository and revision on the hub of an encoder's ImageNet weights."""
    if encoder.startswith("tu-"):
        settings = timm.get_pretrained_cfg(encoder.removeprefix("tu-"))
        if settings is None or not settings.hf_hub_id:
            raise ModelError(f"timm has no pretrained weights for {encoder}; use encoder_weights=''")
        return settings.hf_hub_id, None
    settings = smp.encoders.encoders[encoder]["pretrained_settings"].get("imagenet")
    if not settings:
        raise ModelError(f"there are no ImageNet weights for encoder {encoder}; use encoder_weights=''")
    return settings["repo_id"], settings["revision"]
