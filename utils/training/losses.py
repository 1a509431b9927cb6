"""Losses by name for overlapping classes, on logits and soft labels: one, or a sum such as "0.7*bce + 0.3*dice"."""

import difflib
from collections.abc import Callable

import torch
from segmentation_models_pytorch.losses import DiceLoss, FocalLoss, LovaszLoss, TverskyLoss
from torch import nn
from torch.nn import functional as F

from utils.models.base import Loss


class Lovasz(nn.Module):
    """Lovász hinge per image; it is defined on hard labels, so soft ones are cut at 0.5."""

    def __init__(self):
        super().__init__()
        self.loss = LovaszLoss(mode="multilabel", per_image=True)

    def forward(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Mean over images."""
        return self.loss(logits, (labels > 0.5).to(logits.dtype))


LOSSES: dict[str, Callable[[], Loss]] = {
    "bce": lambda: F.binary_cross_entropy_with_logits,
    "dice": lambda: DiceLoss(mode="multilabel", from_logits=True),
    "focal": lambda: FocalLoss(mode="multilabel", gamma=2.0),
    "tversky": lambda: TverskyLoss(mode="multilabel", from_logits=True, alpha=0.3, beta=0.7),
    "lovasz": Lovasz,
}
"""bce: binary cross-entropy, the mean over pixels and classes. dice: 1 - Dice per class over the batch. focal: γ = 2
(Lin et al. 2017). tversky: α = 0.3 on false positives, β = 0.7 on false negatives (Salehi et al. 2017).
lovasz: the IoU's convex surrogate (Berman et al. 2018)."""


class WeightedSum(nn.Module):
    """Σ weight · loss. Logits float (N, classes, H, W), labels float in [0, 1] of the same shape, to a scalar."""

    def __init__(self, terms: list[tuple[float, str]]):
        super().__init__()
        self.weights = [weight for weight, _ in terms]
        self.losses = [LOSSES[name]() for _, name in terms]

    def forward(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The scalar loss, in float32 whatever the precision of the logits."""
        logits = logits.float()
        return sum(weight * loss(logits, labels) for weight, loss in zip(self.weights, self.losses, strict=True))


def build_loss(name: str) -> WeightedSum:
    """The loss called `name`: one of LOSSES, "bce_dice" (their plain sum), or a sum such as "bce + 0.5*lovasz".

    Raises ValueError naming the part that is not understood and the names there are.
    """
    terms = []
    for part in ("bce + dice" if name == "bce_dice" else name).split("+"):
        weight, _, loss = part.strip().rpartition("*")
        try:
            factor = float(weight) if weight else 1.0
        except ValueError:
            factor = float("nan")
        if loss.strip() not in LOSSES or not 0 < factor < float("inf"):
            known = ["bce_dice", *LOSSES]
            near = difflib.get_close_matches(loss.strip(), known, n=1, cutoff=0)
            raise ValueError(
                f"loss {name!r}: can't read {part.strip()!r}, did you mean {''.join(near)!r}? Expected one of "
                f"{', '.join(known)}, or a sum such as '0.7*bce + 0.3*dice'"
            )
        terms.append((factor, loss.strip()))
    return WeightedSum(terms)
