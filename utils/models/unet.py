"""U-Net as its paper draws it, and descendants: residual units, attention gates, nnU-Net's residual encoder."""

from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional as F
from torchvision.ops.misc import Conv2dNormActivation

from utils.models.base import Loss, ModelError, PaddedModel
from utils.models.blocks import (
    UNetEncoder,
    convolve_twice,
    deep_supervision,
    halved_supervision,
    initialise,
    upsample_to,
)
from utils.registry import register_model

WIDTHS = (64, 128, 256, 512, 1024)


def scaled(width: float) -> list[int]:
    """WIDTHS, times `width`."""
    return [max(1, round(width * channels)) for channels in WIDTHS]


class UNet(nn.Module):
    """U-Net (Ronneberger, Fischer, Brox 2015, figure 1): 31.0 M parameters for the paper's 2 classes.

    Two 3 × 3 convolutions with ReLU per level, max pooling down, 2 × 2 transposed convolutions up, skips concatenated,
    dropout at the end of the contracting path (section 3.1), no batch norm, He's initialisation (section 3). One
    difference: the paper's convolutions are unpadded and turn 572 × 572 into 388 × 388; these are padded, so that
    logits have the image's size and skips need no cropping. Three input channels instead of one add 1,152 parameters.
    The paper prints no count; 31.0 M is what its figure adds up to.
    """

    def __init__(self, classes: int, width: float = 1.0):
        super().__init__()
        widths = scaled(width)
        self.down = UNetEncoder(widths, norm=False)
        levels = list(pairwise(reversed(widths)))
        self.up = nn.ModuleList(nn.ConvTranspose2d(below, here, 2, 2) for below, here in levels)
        self.merge = nn.ModuleList(convolve_twice(2 * here, here, norm=False) for _, here in levels)
        self.dropout = nn.Dropout(0.5)
        self.head = nn.Conv2d(widths[0], classes, 1)
        initialise(self)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Float (N, 3, H, W), H and W multiples of 16, to logits (N, classes, H, W)."""
        skips = self.down(image)
        maps = self.dropout(skips.pop())
        for up, merge in zip(self.up, self.merge, strict=True):
            maps = merge(torch.cat([skips.pop(), up(maps)], 1))
        return self.head(maps)


class ResidualUNet(nn.Module):
    """Deep Residual U-Net (Zhang, Liu, Wang 2018, "Road Extraction by Deep Residual U-Net", table I): 7.8 M parameters.

    Pre-activated residual units in place of U-Net's pairs of convolutions, strides in place of pooling, three levels
    and a bridge. The paper's 7.8 M are its table's fifteen convolutions alone, which fits its "identity mapping" only
    without the 1 × 1 projections that many reimplementations add (8.2 M): see `ResidualUnit`.
    """

    def __init__(self, classes: int, width: float = 1.0):
        super().__init__()
        one, two, three, four = scaled(width)[:4]
        self.stem = nn.Conv2d(3, one, 3, padding=1, bias=False)
        self.first = preactivated(one, one)
        self.down = nn.ModuleList(ResidualUnit(a, b, 2) for a, b in ((one, two), (two, three), (three, four)))
        self.up = nn.ModuleList(ResidualUnit(a + b, b, 1) for a, b in ((four, three), (three, two), (two, one)))
        self.head = nn.Conv2d(one, classes, 1)
        initialise(self)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Float (N, 3, H, W), H and W multiples of 8, to logits (N, classes, H, W)."""
        skips = [self.first(self.stem(image)) + keep_identity(image, self.stem.out_channels, 1)]
        for unit in self.down:
            skips.append(unit(skips[-1]))
        maps = skips.pop()
        for unit in self.up:
            skip = skips.pop()
            maps = unit(torch.cat([skip, upsample_to(maps, skip)], 1))
        return self.head(maps)


class ResidualUnit(nn.Module):
    """BN, ReLU, 3 × 3 convolution, twice, added to the input as it is (He et al. 2016, "Identity mappings").

    Where channels or stride change, an identity needs no weights: it drops every other pixel and fills up with zero
    channels (He et al. 2015, option A); where a decoder's concatenation narrows, it is the skip, which comes first.
    """

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.outputs, self.stride = outputs, stride
        self.body = nn.Sequential(*preactivated(inputs, outputs, stride), *preactivated(outputs, outputs))

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """(N, inputs, h, w) to (N, outputs, h / stride, w / stride)."""
        return self.body(maps) + keep_identity(maps, self.outputs, self.stride)


def preactivated(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    """Batch norm, ReLU, 3 × 3 convolution."""
    conv = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
    return nn.Sequential(nn.BatchNorm2d(inputs), nn.ReLU(inplace=True), conv)


def keep_identity(maps: torch.Tensor, channels: int, stride: int) -> torch.Tensor:
    """Every `stride`-th pixel of `maps`, cut or filled with zeros to `channels` channels."""
    maps = maps[:, :channels, ::stride, ::stride]
    return F.pad(maps, (0, 0, 0, 0, 0, channels - maps.shape[1]))


class AttentionUNet(nn.Module):
    """Attention U-Net (Oktay et al. 2018), in two dimensions: 34.9 M parameters.

    The paper segments volumes: its 6.4 M are 3 × 3 × 3 kernels on 16 to 256 channels and have no counterpart for
    images. With U-Net's own 64 to 1024 channels, batch norm and a 3 × 3 convolution after each upsampling, the
    two-dimensional network is commonly listed with 34.9 M (here 35.0). As in the paper, gates stand on all skips but
    the first, whose features are too low-level, and every scale of the decoder is supervised.
    """

    def __init__(self, classes: int, width: float = 1.0):
        super().__init__()
        widths = scaled(width)
        self.down = UNetEncoder(widths)
        levels = list(pairwise(reversed(widths)))
        self.up = nn.ModuleList(Conv2dNormActivation(below, here) for below, here in levels)
        self.gates = nn.ModuleList(AttentionGate(here, below) for below, here in levels[:-1])
        self.merge = nn.ModuleList(convolve_twice(2 * here, here) for _, here in levels)
        self.heads = nn.ModuleList(nn.Conv2d(here, classes, 1) for _, here in levels)
        initialise(self)

    def _scales(self, image: torch.Tensor) -> list[torch.Tensor]:
        """Logits from an eighth of the image's size to all of it."""
        skips, scales = self.down(image), []
        maps = skips.pop()
        for level, (up, merge, head) in enumerate(zip(self.up, self.merge, self.heads, strict=True)):
            skip = skips.pop()
            gated = self.gates[level](skip, maps) if level < len(self.gates) else skip
            maps = merge(torch.cat([gated, up(upsample_to(maps, skip))], 1))
            scales.append(head(maps))
        return scales

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Float (N, 3, H, W), H and W multiples of 16, to logits (N, classes, H, W)."""
        return self._scales(image)[-1]

    def training_loss(self, image: torch.Tensor, label: torch.Tensor, loss: Loss) -> torch.Tensor:
        """The mean of `loss` over the decoder's four scales."""
        return deep_supervision(self._scales(image), label, loss)


class AttentionGate(nn.Module):
    """Additive attention on a skip x, gated by a coarser map g: x · σ(ψ · ReLU(Wₓx + W_g g)), equations 1 and 2.

    It is computed on g's grid, with x averaged down to it, and the coefficients are upsampled bilinearly. The paper
    leaves the inner channels open; here they are half of the skip's.
    """

    def __init__(self, skip: int, gating: int):
        super().__init__()
        self.skip = nn.Conv2d(skip, skip // 2, 1, bias=False)
        self.gating = nn.Conv2d(gating, skip // 2, 1)
        self.psi = nn.Conv2d(skip // 2, 1, 1)

    def forward(self, skip: torch.Tensor, gating: torch.Tensor) -> torch.Tensor:
        """(N, skip, h, w) weighted by (N, gating, h / 2, w / 2)."""
        joint = F.relu(self.skip(F.avg_pool2d(skip, 2)) + self.gating(gating))
        return skip * upsample_to(self.psi(joint).sigmoid(), skip)


NETWORKS = {"unet_paper": (UNet, 16), "residual_unet": (ResidualUNet, 8), "attention_unet": (AttentionUNet, 16)}
"""The class and the number that heights and widths must be multiples of."""


@register_model(*NETWORKS, family="U-Net and pyramids")
def build(name: str, classes: int, width: float = 1.0) -> PaddedModel:
    """One of NETWORKS, trained from scratch. `width` scales the channels (64 to 1024), for small machines."""
    network, multiple = NETWORKS[name]
    return PaddedModel(network(classes, width), multiple)


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
def build_resenc(classes: int, width: float = 1.0, levels: int = 8) -> PaddedModel:
    """The residual-encoder U-Net, trained from scratch; `width` and `levels` make it smaller, for small machines."""
    if not 2 <= levels <= len(CHANNELS):
        raise ModelError(f"levels of resenc_unet: expected 2 to {len(CHANNELS)}, found {levels}")
    return PaddedModel(ResEncUNet(classes, width, levels), 2**levels)  # instance norm needs 2 × 2 pixels at least
