"""U-Net as its paper draws it, and two descendants: residual units, and attention gates on the skips."""

from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional as F
from torchvision.ops.misc import Conv2dNormActivation

from utils.models.base import Loss, PaddedModel
from utils.models.blocks import UNetEncoder, convolve_twice, deep_supervision, initialise, upsample_to
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
