"""Losses by name for overlapping classes, on logits and soft labels, or sums of them; and the loss of a batch."""

import inspect
from typing import Any

import torch
from segmentation_models_pytorch.losses import FocalLoss, LovaszLoss, TverskyLoss
from torch import nn

from utils.data.loader import dense_labels, network_input
from utils.device import Precision
from utils.files import Problems
from utils.models.base import Loss, PaddedModel
from utils.registry import build_part, register_loss

BLOCK = {"cpu": 2**18, "cuda": 2**24}
"""Values of a map that are worked on at a time: on a CPU, all that is made from them stays in its cache."""

FACTORS = 64
"""Numbers from 0.5 to 1 whose product float32 holds: at least 2⁻⁶⁴."""

register_loss("focal")(FocalLoss(mode="multilabel", gamma=2.0))  # Lin et al. 2017
# α = 0.3 on false positives, β = 0.7 on false negatives (Salehi et al. 2017)
register_loss("tversky")(TverskyLoss(mode="multilabel", from_logits=True, alpha=0.3, beta=0.7))


class BceDice(nn.Module):
    """bce · binary cross-entropy + dice · Dice loss, with their gradient in closed form: one pass over the maps each.

    Cross-entropy is the mean over pixels and classes. The Dice loss is 1 - 2 Σ min(p, y) / Σ (p + y) per class over the
    batch, 0 for a class that the batch lacks, and its mean over the classes: smp's `DiceLoss` for soft labels.
    Logits of any floating type and either order in memory; sums and the result are float32.
    """

    def __init__(self, bce: float, dice: float):
        super().__init__()
        self.bce, self.dice = bce, dice

    def forward(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The scalar loss; both (N, classes, H, W), labels in [0, 1]."""
        return _BceDice.apply(logits, labels, self.bce, self.dice)


class _BceDice(torch.autograd.Function):
    """Both maps are read as a matrix whose rows lie one after the other in memory, block by block.

    In channels_last order a row is a pixel and a column a class; else a row is one class of one image.
    """

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, labels: torch.Tensor, bce: float, dice: float) -> torch.Tensor:
        shape, by_pixel = logits.shape, _is_channels_last(logits)
        x, y = _matrix(logits, by_pixel), _matrix(labels, by_pixel)
        probabilities = torch.empty(x.shape, dtype=torch.float32, device=x.device)
        entropy = torch.zeros((), device=x.device)
        sums = torch.zeros(3, x.shape[1] if by_pixel else x.shape[0], device=x.device)  # Σ min(p, y), Σ p, Σ y
        for part in _blocks(x):
            logit, label = x[part].float(), y[part].float()
            p = torch.sigmoid(logit, out=probabilities[part])
            entropy += logit.clamp(min=0).addcmul_(logit, label, value=-1).sum() - _sum_of_logs(torch.maximum(p, 1 - p))
            for total, maps in zip(sums, (torch.minimum(p, label), p, label), strict=True):
                if by_pixel:
                    total += maps.sum(0)
                else:
                    total[part] = maps.sum(1)
        shared, size = (s if by_pixel else s.view(shape[:2]).sum(0) for s in (sums[0], sums[1] + sums[2]))
        present = ((sums[2] if by_pixel else sums[2].view(shape[:2]).sum(0)) > 0).float()
        size = size.clamp_min(1e-7)
        weight = dice / shape[1] * present
        ctx.save_for_backward(probabilities, y, -2 * weight / size, 2 * weight * shared / size**2)
        ctx.settings = shape, by_pixel, logits.dtype, bce / x.numel()
        return bce * entropy / x.numel() + (weight * (1 - 2 * shared / size)).sum()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        probabilities, y, of_shared, of_size = ctx.saved_tensors
        shape, by_pixel, dtype, of_entropy = ctx.settings
        of_shared, of_size = of_shared * gradient, of_size * gradient
        if not by_pixel:
            of_shared, of_size = (of_class.repeat(shape[0])[:, None] for of_class in (of_shared, of_size))
        made = torch.empty(probabilities.shape, dtype=dtype, device=probabilities.device)
        for part in _blocks(made):
            p, label = probabilities[part], y[part].float()
            rows = slice(None) if by_pixel else part
            slope = torch.addcmul(of_size[rows], (p < label).float(), of_shared[rows])  # of the Dice loss, by p
            slope.mul_(torch.addcmul(p, p, p, value=-1))
            made[part] = slope.add_((p - label).mul_(of_entropy * gradient))
        made = made.view(shape[0], *shape[2:], shape[1]).permute(0, 3, 1, 2) if by_pixel else made.view(shape)
        return made, None, None, None


def _sum_of_logs(values: torch.Tensor) -> torch.Tensor:
    """Σ log of values from 0.5 to 1, with one logarithm for each product of FACTORS of them."""
    values, rest = values.flatten(), values.numel() % FACTORS
    products = values[: values.numel() - rest].view(FACTORS, -1).prod(0)
    return products.log().sum() + values[values.numel() - rest :].log().sum()


def _is_channels_last(maps: torch.Tensor) -> bool:
    return maps.is_contiguous(memory_format=torch.channels_last) and not maps.is_contiguous()


def _matrix(maps: torch.Tensor, by_pixel: bool) -> torch.Tensor:
    maps = maps.detach()
    return maps.permute(0, 2, 3, 1).reshape(-1, maps.shape[1]) if by_pixel else maps.reshape(-1, maps[0, 0].numel())


def _blocks(matrix: torch.Tensor) -> list[slice]:
    """Slices of rows."""
    rows = max(BLOCK.get(matrix.device.type, BLOCK["cuda"]) // matrix.shape[1], 1)
    return [slice(first, first + rows) for first in range(0, len(matrix), rows)]


register_loss("bce")(BceDice(1.0, 0.0))
register_loss("dice")(BceDice(0.0, 1.0))
register_loss("bce_dice")(BceDice(1.0, 1.0))


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


def build_loss(text: str) -> BceDice | WeightedSum:
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
    if not all(isinstance(loss, BceDice) for loss in losses):
        return WeightedSum(weights, losses)
    terms = list(zip(weights, losses, strict=True))
    return BceDice(sum(w * loss.bce for w, loss in terms), sum(w * loss.dice for w, loss in terms))


def _positive(weight: str, text: str) -> float:
    try:
        if 0 < (number := float(weight or 1)) < float("inf"):
            return number
    except ValueError:
        pass
    raise Problems(f"loss {text!r} can't be read", [f"{weight!r} is no positive number; expected 0.7*bce + 0.3*dice"])


class TrainingError(RuntimeError):
    """Training can't go on; the message says where it stopped and what to try."""


class NonFiniteLossError(TrainingError):
    """The loss of a batch is NaN or infinite. loss: it. epoch, step: where, both from 0."""

    def __init__(self, loss: float, epoch: int, step: int):
        super().__init__(f"the loss became {loss} in epoch {epoch + 1}, batch {step + 1}")
        self.loss, self.epoch, self.step = loss, epoch, step


def batch_loss(model: PaddedModel, loss: Loss, batch: dict[str, Any], precision: Precision) -> torch.Tensor:
    """The scalar loss of a batch of `training_loader` that is on the network's device.

    Raises TrainingError for logits of another shape than the labels.
    """

    def checked(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        if logits.shape != labels.shape:
            shapes = f"logits {tuple(logits.shape)} for labels {tuple(labels.shape)}"
            raise TrainingError(f"the network gave {shapes}; expected the same shape, (N, classes, H, W)")
        return loss(logits if isinstance(loss, BceDice) else logits.float(), labels)  # BceDice computes in float32

    image = network_input(batch, model.mean, model.std, model.takes_person, precision.layout)
    return model.training_loss(image, dense_labels(batch, precision.layout), checked)
