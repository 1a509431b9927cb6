"""Losses by name for overlapping classes, on logits and soft labels: one, or a sum such as "0.7*bce + 0.3*dice"."""

import inspect

import torch
from segmentation_models_pytorch.losses import DiceLoss, FocalLoss, LovaszLoss, TverskyLoss
from torch import nn
from torch.nn import functional as F

from utils.errors import Problems
from utils.registry import build_part, register_loss

register_loss("bce")(F.binary_cross_entropy_with_logits)  # the mean over pixels and classes
register_loss("dice")(DiceLoss(mode="multilabel", from_logits=True))  # 1 - Dice of each class over the batch
register_loss("focal")(FocalLoss(mode="multilabel", gamma=2.0))  # Lin et al. 2017
# α = 0.3 on false positives, β = 0.7 on false negatives (Salehi et al. 2017)
register_loss("tversky")(TverskyLoss(mode="multilabel", from_logits=True, alpha=0.3, beta=0.7))


@register_loss("lovasz")
class Lovasz(LovaszLoss):
    """Lovász hinge per image (Berman et al. 2018); it is defined on hard labels, so soft ones are cut at 0.5."""

    def __init__(self):
        super().__init__(mode="multilabel", per_image=True)

    def forward(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Mean over images."""
        return super().forward(logits, (labels > 0.5).to(logits.dtype))


class WeightedSum(nn.Module):
    """Σ weight · loss. Logits float (N, classes, H, W), labels float in [0, 1] of the same shape, to a scalar."""

    def __init__(self, weights: list[float], losses: list):
        super().__init__()
        self.weights, self.losses = weights, losses

    def forward(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The scalar loss."""
        return sum(weight * loss(logits, labels) for weight, loss in zip(self.weights, self.losses, strict=True))


register_loss("bce_dice")(WeightedSum([1.0, 1.0], [build_part("loss", "bce"), build_part("loss", "dice")]))


def build_loss(text: str) -> WeightedSum:
    """The loss that a text names.

    Args:
        text: a registered name (bce, dice, bce_dice: their sum, focal, tversky, lovasz, or a plugin's), or a sum such
            as "bce + 0.5*lovasz".

    Returns:
        A callable `loss(logits, labels) -> scalar`; both float (N, classes, H, W), labels in [0, 1].

    Raises:
        UnknownPart: a name that no loss has; the message gives the nearest ones.
        Problems: a weight that is no positive number.
    """
    weights, losses = [], []
    for term in text.split("+"):
        weight, _, name = (part.strip() for part in term.rpartition("*"))
        weights.append(_positive(weight, text))
        loss = build_part("loss", name)
        losses.append(loss() if inspect.isclass(loss) else loss)
    return WeightedSum(weights, losses)


def _positive(weight: str, text: str) -> float:
    try:
        if 0 < (number := float(weight or 1)) < float("inf"):
            return number
    except ValueError:
        pass
    raise Problems(f"loss {text!r} can't be read", [f"{weight!r} is no positive number; expected 0.7*bce + 0.3*dice"])
