"""What several architectures share: VGG16, U-Net's encoder, atrous spatial pyramid pooling, deep supervision."""

from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional as F
from torchvision.models.segmentation.deeplabv3 import ASPP
from torchvision.models.vgg import make_layers
from torchvision.ops.misc import Conv2dNormActivation

from utils.models.base import Loss

VGG16_LAYERS = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
"""Channels and number of 3 × 3 convolutions at VGG16's five resolutions (Simonyan, Zisserman 2015, table 1, D)."""


class VGG16(nn.Module):
    """VGG16 without its classifier, or with its fc6 and fc7 as convolutions; tensors are named as in torchvision.

    width scales every number of channels. batch_norm: after each convolution of `features`. fc_dilation: None leaves
    fc6 and fc7 out; a number adds them, fc6 (7 × 7) dilated by it and padded so that maps keep their size.
    `features` holds the five poolings too, which a family may replace at `pools`.
    """

    def __init__(self, width: float = 1.0, batch_norm: bool = False, fc_dilation: int | None = None):
        super().__init__()
        self.channels = [int(channels * width) for channels, _ in VGG16_LAYERS]
        plan = [[c] * number + ["M"] for c, (_, number) in zip(self.channels, VGG16_LAYERS, strict=True)]
        self.features = make_layers([layer for stage in plan for layer in stage], batch_norm)
        self.pools = [i for i, layer in enumerate(self.features) if isinstance(layer, nn.MaxPool2d)]
        if fc_dilation is not None:
            self.fc_channels = int(4096 * width)
            fc6 = nn.Conv2d(self.channels[-1], self.fc_channels, 7, padding=3 * fc_dilation, dilation=fc_dilation)
            self.classifier = nn.ModuleDict({"0": fc6, "3": nn.Conv2d(self.fc_channels, self.fc_channels, 1)})
        initialise(self)

    def dilate_last_stage(self) -> None:
        """Dilate the convolutions after the fourth pooling by 2, which makes up for that pooling's lost stride."""
        for layer in self.features[self.pools[3] :]:
            if isinstance(layer, nn.Conv2d):
                layer.dilation = layer.padding = (2, 2)

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        """The maps after each of the five poolings: (N, channels[i], H / 2^(i+1), W / 2^(i+1)), if VGG16's own."""
        maps = [image]
        for last, pool in pairwise([-1, *self.pools]):
            maps.append(self.features[last + 1 : pool + 1](maps[-1]))
        return maps[1:]

    def fully_connected(self, maps: torch.Tensor) -> torch.Tensor:
        """fc6 and fc7 with ReLU and dropout: pool5 (N, 512, h, w) to (N, 4096, h, w)."""
        for layer in self.classifier.values():
            maps = F.dropout(F.relu(layer(maps)), 0.5, self.training)
        return maps


def convolve_twice(inputs: int, outputs: int, norm: bool = True, size: int = 3) -> nn.Sequential:
    """Two convolutions that keep the map's size, each with ReLU, and with batch norm before it if `norm`."""
    layer = nn.BatchNorm2d if norm else None
    return nn.Sequential(*(Conv2dNormActivation(c, outputs, size, norm_layer=layer) for c in (inputs, outputs)))


class UNetEncoder(nn.ModuleList):
    """U-Net's contracting path: two convolutions per level, with max pooling between the levels."""

    def __init__(self, widths: Sequence[int], norm: bool = True):
        super().__init__(convolve_twice(a, b, norm) for a, b in zip((3, *widths), widths, strict=False))

    def forward(self, maps: torch.Tensor) -> list[torch.Tensor]:
        """Image (N, 3, H, W) to one map per level, (N, widths[i], H / 2^i, W / 2^i)."""
        levels = []
        for number, convolutions in enumerate(self):
            maps = convolutions(F.max_pool2d(maps, 2) if number else maps)
            levels.append(maps)
        return levels


def atrous_pyramid(inputs: int, channels: int = 256, dropout: float = 0.0) -> ASPP:
    """Atrous spatial pyramid pooling (ASPP) with image-level features (Chen et al. 2017, section 3.3), torchvision's.

    A 1 × 1 convolution, 3 × 3 ones at rates 6, 12 and 18 (for output stride 16) and the mean over the image, `channels`
    each, are concatenated and reduced to `channels`: (N, inputs, h, w) to (N, channels, h, w). torchvision ends with a
    dropout of 0.5, which the paper does not have.
    """
    pyramid = ASPP(inputs, (6, 12, 18), channels)
    pyramid.project[-1].p = dropout
    return pyramid


class EncoderHead(nn.Sequential):
    """Layers one after the other, named by the arguments, and bilinear upsampling to the image's size.

    Where one gives several maps, as encoders do, the last of them go on.
    """

    def __init__(self, **layers: nn.Module):
        super().__init__(OrderedDict(layers))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Float (N, 3, H, W), H and W multiples of the encoder's stride, to logits (N, classes, H, W)."""
        maps = image
        for layer in self:
            maps = layer(maps)
            maps = maps if isinstance(maps, torch.Tensor) else maps[-1]
        return upsample_to(maps, image)


def initialise(module: nn.Module) -> None:
    """He et al. 2015: convolutions that keep the variance through ReLUs, biases zero."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def upsample_to(maps: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """`maps` resized bilinearly to the height and width of `like`."""
    return F.interpolate(maps, like.shape[-2:], mode="bilinear", align_corners=False)


def deep_supervision(outputs: list[torch.Tensor], label: torch.Tensor, loss: Loss) -> torch.Tensor:
    """The mean of `loss` over logits of several scales, each resized bilinearly to the label's size."""
    return torch.stack([loss(upsample_to(logits, label), label) for logits in outputs]).mean()


def halved_supervision(outputs: Sequence[torch.Tensor], label: torch.Tensor, loss: Loss) -> torch.Tensor:
    """The weighted mean of `loss` over logits of several scales, the finest first, each with half the weight before it.

    Labels are averaged down to each scale, where nnU-Net, whose labels are hard, takes the nearest.
    """
    losses = [loss(logits, F.adaptive_avg_pool2d(label, logits.shape[-2:])) for logits in outputs]
    weights = [0.5**number for number in range(len(losses))]
    return sum(weight * value for weight, value in zip(weights, losses, strict=True)) / sum(weights)
