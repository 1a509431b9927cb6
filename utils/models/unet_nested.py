"""U-Nets that join more than two scales: U-Net++ with its nested skips, U-Net 3+ with all scales at every level."""

import torch
from torch import nn
from torch.nn import functional as F
from torchvision.ops.misc import Conv2dNormActivation

from utils.models.base import Loss, ModelError, PaddedModel
from utils.models.blocks import UNetEncoder, convolve_twice, deep_supervision, initialise, upsample_to
from utils.models.unet import WIDTHS
from utils.registry import register_model

NARROW = (32, 64, 128, 256, 512)
"""Channels of U-Net++'s levels."""


class UNetPlusPlus(nn.Module):
    """U-Net++ (Zhou et al. 2018, figure 1; 2020): 9.04 M parameters (the paper's count) for one class.

    Node x[i][j] at depth i gets all nodes x[i][0 … j-1] beside it and the upsampled x[i+1][j-1] below it. The outputs
    L1 … L4 are read from x[0][1] … x[0][4]; all four are trained (deep supervision), so that inference may stop at a
    smaller one. `prune` is the output that `forward` gives, and nodes that it does not need are not computed: L1, L2
    and L3 take 0.1, 0.5 and 2.2 M of the parameters. A checkpoint fits every `prune`.

    Batch norm after each convolution is added, as in most implementations, and the upsampling is a 2 × 2 transposed
    convolution. Bilinear upsampling instead would give 9.2 M.
    """

    def __init__(self, classes: int, prune: int):
        super().__init__()
        self.prune, depth = prune, len(NARROW)
        self.nodes, self.up = nn.ModuleDict(), nn.ModuleDict()
        for j in range(depth):
            for i in range(depth - j):
                above = NARROW[i - 1] if i else 3
                first, second = convolve_twice((j + 1) * NARROW[i] if j else above, NARROW[i])
                self.nodes[f"{i}_{j}"] = nn.Sequential(*first, *second)
                if j:
                    self.up[f"{i}_{j}"] = nn.ConvTranspose2d(NARROW[i + 1], NARROW[i], 2, 2)
        self.heads = nn.ModuleList(nn.Conv2d(NARROW[0], classes, 1) for _ in NARROW[1:])

    def _outputs(self, image: torch.Tensor, last: int) -> list[torch.Tensor]:
        """The maps x[0][1] … x[0][last]; no node below that pyramid is computed."""
        x: dict[tuple[int, int], torch.Tensor] = {}
        for i in range(last + 1):
            x[i, 0] = self.nodes[f"{i}_0"](F.max_pool2d(x[i - 1, 0], 2) if i else image)
        for j in range(1, last + 1):
            for i in range(last + 1 - j):
                beside = [x[i, k] for k in range(j)]
                x[i, j] = self.nodes[f"{i}_{j}"](torch.cat([*beside, self.up[f"{i}_{j}"](x[i + 1, j - 1])], 1))
        return [x[0, j] for j in range(1, last + 1)]

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Float (N, 3, H, W), H and W multiples of 16, to the logits (N, classes, H, W) of output L`prune`."""
        return self.heads[self.prune - 1](self._outputs(image, self.prune)[-1])

    def training_loss(self, image: torch.Tensor, label: torch.Tensor, loss: Loss) -> torch.Tensor:
        """The mean of `loss` over all four outputs, whatever `prune` is."""
        outputs = self._outputs(image, len(self.heads))
        return deep_supervision([head(maps) for head, maps in zip(self.heads, outputs, strict=True)], label, loss)


@register_model("unetplusplus_paper", family="U-Net and pyramids")
def build_unetpp(classes: int, prune: int = 4) -> PaddedModel:
    """U-Net++ from scratch; smp's `unetplusplus` has the same decoder on a pretrained encoder. prune: 1 to 4."""
    if prune not in (1, 2, 3, 4):
        raise ModelError(f"unetplusplus_paper: prune is the output to predict with, 1 to 4; found {prune!r}")
    return PaddedModel(UNetPlusPlus(classes, prune), 16)


SHARE = 64
"""Channels that each of the five scales contributes to a decoder level (section 2.1)."""
ABSENT = -20.0
"""Logit of a class that the classifier rules out: a probability of 2e-9."""


class UNet3Plus(nn.Module):
    """U-Net 3+ (Huang et al. 2020): 26.97 M parameters (table 1), for one class and without the heads for training.

    Decoder level i joins, with 64 channels each, the encoder's levels above it (max-pooled), its own, and the levels
    below (decoder levels, and the encoder's last, upsampled bilinearly), and mixes the 320 channels (section 2.1). All
    five levels give logits that are trained (2.2).

    The classification-guided module (2.3) stops a class from being drawn into images that lack it. The paper has one
    organ, hence one yes or no; here every class has its own, as several bones may be there or not: dropout, a 1 × 1
    convolution and the maximum over the image, trained with binary cross-entropy on whether any pixel carries the
    class. The paper multiplies the segmentation by that yes or no; on logits a factor of 0 would mean a probability of
    one half, so that `forward` gives the logit -20 instead. In training mode it does not, as a hard decision has no
    gradient.
    """

    def __init__(self, classes: int):
        super().__init__()
        self.down = UNetEncoder(WIDTHS)
        levels, mixed = len(WIDTHS), len(WIDTHS) * SHARE
        self.shares, self.mix = nn.ModuleList(), nn.ModuleList()
        for level in range(levels - 1):
            sources = [*WIDTHS[: level + 1], *[mixed] * (levels - level - 2), WIDTHS[-1]]
            self.shares.append(nn.ModuleList(Conv2dNormActivation(channels, SHARE) for channels in sources))
            self.mix.append(Conv2dNormActivation(mixed, mixed))
        self.present = nn.Sequential(nn.Dropout(0.5), nn.Conv2d(WIDTHS[-1], classes, 1), nn.AdaptiveMaxPool2d(1))
        side = [*[mixed] * (levels - 2), WIDTHS[-1]]
        self.side_heads = nn.ModuleList(nn.Conv2d(channels, classes, 3, padding=1) for channels in side)
        self.head = nn.Conv2d(mixed, classes, 3, padding=1)
        initialise(self)

    def _levels(self, image: torch.Tensor) -> list[torch.Tensor]:
        """The decoder's four maps, the finest first, and the encoder's last."""
        encoded = self.down(image)
        decoded = {len(encoded) - 1: encoded[-1]}
        for level in reversed(range(len(self.shares))):
            above = [F.max_pool2d(encoded[k], 2 ** (level - k)) for k in range(level + 1)]
            below = [upsample_to(decoded[k], encoded[level]) for k in range(level + 1, len(encoded))]
            shares = [share(maps) for share, maps in zip(self.shares[level], above + below, strict=True)]
            decoded[level] = self.mix[level](torch.cat(shares, 1))
        return [decoded[level] for level in sorted(decoded)]

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Float (N, 3, H, W), H and W multiples of 16, to logits (N, classes, H, W)."""
        levels = self._levels(image)
        logits = self.head(levels[0])
        if self.training:
            return logits
        return torch.where(self.present(levels[-1]) > 0, logits, logits.clamp(max=ABSENT))

    def training_loss(self, image: torch.Tensor, label: torch.Tensor, loss: Loss) -> torch.Tensor:
        """The mean of `loss` over the five levels, plus the cross-entropy of which classes are there."""
        levels = self._levels(image)
        sides = [head(maps) for head, maps in zip(self.side_heads, levels[1:], strict=True)]
        there = (label.amax((2, 3), keepdim=True) > 0.5).float()
        classification = F.binary_cross_entropy_with_logits(self.present(levels[-1]).float(), there)
        return deep_supervision([self.head(levels[0]), *sides], label, loss) + classification


@register_model("unet3plus", family="U-Net and pyramids")
def build_unet3p(classes: int) -> PaddedModel:
    """U-Net 3+, trained from scratch."""
    return PaddedModel(UNet3Plus(classes), 16)
