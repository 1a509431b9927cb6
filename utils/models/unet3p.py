"""U-Net 3+: every decoder level uses all scales; deep supervision; a classifier that removes absent classes."""

import torch
from torch import nn
from torch.nn import functional as F
from torchvision.ops.misc import Conv2dNormActivation

from utils.models.base import Loss, PaddedModel
from utils.models.blocks import UNetEncoder, deep_supervision, initialise, upsample_to
from utils.models.unet import WIDTHS
from utils.registry import register_model

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
def build(classes: int) -> PaddedModel:
    """U-Net 3+, trained from scratch."""
    return PaddedModel(UNet3Plus(classes), 16)
