"""DilatedNet (Yu, Koltun 2016): a dilated VGG16 front end and a context module of growing dilations."""

from itertools import pairwise

import torch
from torch import nn

from utils.files import unknown
from utils.models.base import Loss, ModelError, PaddedModel
from utils.models.blocks import VGG16, upsample_to
from utils.models.pretrained import load_encoder
from utils.registry import register_model

DILATIONS = (1, 1, 2, 4, 8, 16, 1)
"""Of the context module's 3 × 3 convolutions; a 1 × 1 convolution follows (Yu, Koltun 2016, table 1)."""
CONTEXTS = {"basic": (1, 1, 1, 1, 1, 1, 1), "large": (2, 2, 4, 8, 16, 32, 32)}
"""Channels after each of them, as multiples of the number of classes."""


class ContextModule(nn.Module):
    """Class scores in, class scores out, each pixel having seen 67 × 67 of them (Yu, Koltun 2016, section 3).

    Every layer starts as the identity: it copies its input's channels, with a little noise (equations 4 and 5). ReLU
    follows all but the last. Paper: about 64 · classes² parameters for "basic" (section 3), here exactly, and biases.
    """

    def __init__(self, classes: int, multiples: tuple[int, ...]):
        super().__init__()
        channels = [classes, *(m * classes for m in multiples), classes]
        self.layers = nn.ModuleList(
            identity_convolution(inputs, outputs, rate, classes)
            for (inputs, outputs), rate in zip(pairwise(channels), (*DILATIONS, 0), strict=True)
        )

    def forward(self, scores: torch.Tensor) -> torch.Tensor:
        """(N, classes, h, w) to the same."""
        for layer in self.layers[:-1]:
            scores = torch.relu(layer(scores))
        return self.layers[-1](scores)


def identity_convolution(inputs: int, outputs: int, rate: int, classes: int) -> nn.Conv2d:
    """A 3 × 3 convolution dilated by `rate`, or a 1 × 1 convolution for rate 0, that starts as the identity.

    Output channel b becomes the mean of the input channels a of its class: ⌊aC/in⌋ = ⌊bC/out⌋, weight C/out.
    """
    layer = nn.Conv2d(inputs, outputs, 3 if rate else 1, padding=rate, dilation=max(rate, 1))
    nn.init.normal_(layer.weight, std=0.001 * classes / outputs)
    nn.init.zeros_(layer.bias)
    own = torch.arange(inputs) * classes // inputs == (torch.arange(outputs) * classes // outputs)[:, None]
    middle = layer.kernel_size[0] // 2
    layer.weight.data[:, :, middle, middle] += own * classes / outputs
    return layer


class DilatedNet(nn.Module):
    """VGG16 without its last two poolings, dilated by 2 and 4 instead, then the context module (Yu, Koltun 2016).

    Scores at an eighth of the image are upsampled bilinearly. No total is given in the paper; here 134.4 M for 21
    classes, VGG16's 134.3 M of them. The paper trains the front end alone, then the context module with it; here both
    at once, the front end's scores as an auxiliary output. Maps are padded with zeros, not the image by reflection.
    """

    def __init__(self, classes: int, context: str = "basic", width: float = 1.0):
        super().__init__()
        self.encoder = VGG16(width, fc_dilation=4)
        for i in self.encoder.pools[3:]:
            self.encoder.features[i] = nn.Identity()
        self.encoder.dilate_last_stage()
        self.score = nn.Conv2d(self.encoder.fc_channels, classes, 1)
        self.context = ContextModule(classes, CONTEXTS[context])

    def front_end(self, image: torch.Tensor) -> torch.Tensor:
        """Scores (N, classes, H/8, W/8) before the context module."""
        return self.score(self.encoder.fully_connected(self.encoder(image)[-1]))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Logits (N, classes, H, W); H and W multiples of 8."""
        return upsample_to(self.context(self.front_end(image)), image)

    def training_loss(self, image: torch.Tensor, label: torch.Tensor, loss: Loss) -> torch.Tensor:
        """The loss after the context module plus the front end's own, so that ReLUs find scores to pass on."""
        scores = self.front_end(image)
        return sum(loss(upsample_to(s, image), label) for s in (self.context(scores), scores))


@register_model("dilatednet", family="dilated")
def build(classes: int, encoder_weights: str | None, context: str = "basic", width: float = 1.0) -> PaddedModel:
    """DilatedNet on VGG16. `context` is "basic" or "large"; `width` scales VGG16's channels, for small machines.

    encoder_weights: "imagenet" or a file of torchvision's VGG16, fully connected layers included; these need width 1.
    """
    if context not in CONTEXTS:
        raise ModelError(unknown("context of dilatednet", context, CONTEXTS))
    return load_encoder(PaddedModel(DilatedNet(classes, context, width), 8), encoder_weights, "vgg16")
