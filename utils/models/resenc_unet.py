"""The residual-encoder U-Net of nnU-Net: plain residual blocks, instance norm, a light decoder, deep supervision."""

from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional as F

from utils.models.base import Loss, ModelError, PaddedModel
from utils.models.blocks import halved_supervision
from utils.registry import register_model

CHANNELS = (32, 64, 128, 256, 512, 512, 512, 512)
BLOCKS = (1, 3, 4, 6, 6, 6, 6, 6)
"""Channels and residual blocks of each level, as nnU-Net plans its presets ResEnc M to XL for two dimensions."""
SLOPE = 0.01


class ResEncUNet(nn.Module):
    """nnU-Net's residual encoder U-Net (Isensee et al. 2021 and 2024, "nnU-Net revisited"), in two dimensions.

    An encoder of residual blocks (two 3 × 3 convolutions with instance norm and leaky ReLU), strides in place of
    pooling; a decoder of one convolution per level after a 2 × 2 transposed convolution; logits at every level but the
    coarsest. levels: how often the maps are halved, plus one. The authors' package dynamic-network-architectures 0.4.4
    gives the same logits; its 140.07 M parameters for 29 classes include 14,877 of the coarsest level's logits.
    """

    def __init__(self, classes: int, width: float = 1.0, levels: int = 8):
        super().__init__()
        widths = [max(1, round(width * channels)) for channels in CHANNELS[:levels]]
        self.stem = convolve(3, widths[0])
        before = [widths[0], *widths]
        self.down = nn.ModuleList(
            nn.Sequential(
                ResidualBlock(before[level], here, 2 if level else 1),
                *(ResidualBlock(here, here) for _ in range(BLOCKS[level] - 1)),
            )
            for level, here in enumerate(widths)
        )
        steps = list(pairwise(reversed(widths)))
        self.up = nn.ModuleList(nn.ConvTranspose2d(below, here, 2, 2) for below, here in steps)
        self.merge = nn.ModuleList(convolve(2 * here, here) for _, here in steps)
        trained = steps[1:] or steps  # as in nnU-Net, the coarsest scale's logits are not trained
        self.heads = nn.ModuleList(nn.Conv2d(here, classes, 1) for _, here in trained)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.kaiming_normal_(layer.weight, SLOPE)
                nn.init.zeros_(layer.bias) if layer.bias is not None else None
        for block in (block for level in self.down for block in level):
            nn.init.zeros_(block.body[-1].weight)  # every block begins as its skip

    def _scales(self, image: torch.Tensor) -> list[torch.Tensor]:
        """Decoder maps, the coarsest first."""
        skips = [self.stem(image)]
        for level in self.down:
            skips.append(level(skips[-1]))
        maps, scales = skips.pop(), []
        for up, merge in zip(self.up, self.merge, strict=True):
            maps = merge(torch.cat([up(maps), skips.pop()], 1))
            scales.append(maps)
        return scales

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Float (N, 3, H, W), H and W multiples of 2^(levels - 1), to logits (N, classes, H, W)."""
        return self.heads[-1](self._scales(image)[-1])

    def training_loss(self, image: torch.Tensor, label: torch.Tensor, loss: Loss) -> torch.Tensor:
        """The weighted mean of `loss` at each scale: weight 1 at full size, half of it at each coarser one."""
        trained = zip(reversed(self.heads), reversed(self._scales(image)), strict=False)
        return halved_supervision([head(maps) for head, maps in trained], label, loss)


class ResidualBlock(nn.Module):
    """Two 3 × 3 convolutions added to their input, which is averaged and projected where stride or channels change."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1):
        super().__init__()
        self.body = nn.Sequential(
            *convolve(inputs, outputs, stride), nn.Conv2d(outputs, outputs, 3, padding=1), norm(outputs)
        )
        self.skip = nn.Sequential()
        if stride > 1:
            self.skip.append(nn.AvgPool2d(stride))
        if inputs != outputs:
            self.skip.extend([nn.Conv2d(inputs, outputs, 1, bias=False), norm(outputs)])

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """(N, inputs, h, w) to (N, outputs, h / stride, w / stride)."""
        return F.leaky_relu(self.skip(maps) + self.body(maps), SLOPE)


def convolve(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    """3 × 3 convolution, instance norm, leaky ReLU."""
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1), norm(outputs), nn.LeakyReLU(SLOPE, inplace=True))


def norm(channels: int) -> nn.InstanceNorm2d:
    """Instance norm with learnt scale and offset."""
    return nn.InstanceNorm2d(channels, affine=True)


@register_model("resenc_unet", family="U-Net and pyramids")
def build(classes: int, width: float = 1.0, levels: int = 8) -> PaddedModel:
    """The residual-encoder U-Net, trained from scratch; `width` and `levels` make it smaller, for small machines."""
    if not 2 <= levels <= len(CHANNELS):
        raise ModelError(f"levels of resenc_unet: expected 2 to {len(CHANNELS)}, found {levels}")
    return PaddedModel(ResEncUNet(classes, width, levels), 2**levels)  # instance norm needs 2 × 2 pixels at least
