"""The losses of YOLACT: classes, boxes and masks of anchors, and a segmentation beside them."""

from typing import NamedTuple

import torch
from torch.nn import functional as F

from utils.models.boxes import BACKGROUND, encode, match
from utils.models.instances import Instances, targets

BOX_WEIGHT, MASK_WEIGHT, SEGMENTATION_WEIGHT = 1.5, 6.125, 1.0
NEGATIVES = 3
"""Background anchors in the loss for each that has an object."""
MASKS_LEARNT = 100
"""Anchors of an image whose masks are learnt in one step, drawn at random where more have an object."""


class Found(NamedTuple):
    """What the network says of a batch, in float32.

    offsets (N, A, 4) from the anchors `places` (A, 4), classes (N, A, classes + 1) as logits with the background last,
    coefficients (N, A, k) from -1 to 1, prototypes (N, k, h, w) at a quarter of the image's size, segmentation: logits
    (N, classes, H / 8, W / 8).
    """

    offsets: torch.Tensor
    classes: torch.Tensor
    coefficients: torch.Tensor
    prototypes: torch.Tensor
    segmentation: torch.Tensor
    places: torch.Tensor


def inside(boxes: torch.Tensor, shape: tuple[int, int], size: tuple[int, int]) -> torch.Tensor:
    """Which pixels of maps of `shape` lie in each box, or one pixel beside it: bool (…, h, w) of boxes (…, 4).

    size: height and width of the image that the boxes lie in.
    """
    (rows, columns), (height, width) = shape, size
    left, top, right, bottom = boxes[..., None].unbind(-2)
    x = torch.arange(columns, device=boxes.device) * (width / columns)
    y = torch.arange(rows, device=boxes.device) * (height / rows)
    across = (x >= left - width / columns) & (x < right + width / columns)
    down = (y >= top - height / rows) & (y < bottom + height / rows)
    return down[..., :, None] & across[..., None, :]


def losses(found: Found, label: torch.Tensor) -> dict[str, torch.Tensor]:
    """The weighted losses classes, boxes, masks and segmentation of float (N, classes, H, W) labels, each a scalar.

    The first three are sums over anchors divided by the number of those that have an object, in the whole batch.
    """
    size = label.shape[-2:]
    truth = targets(label)
    matched = torch.stack([match(each.boxes, found.places) for each in truth])
    positive = matched >= 0
    boxes, masks = found.offsets.new_zeros(2)
    classes = torch.where(positive, 0, found.classes.shape[2] - 1)
    for number, each in enumerate(truth):
        which = positive[number].nonzero()[:, 0]
        of_which = matched[number][which]
        classes[number, which] = each.labels[of_which]
        offsets = encode(each.boxes[of_which], found.places[which])
        boxes = boxes + F.smooth_l1_loss(found.offsets[number, which], offsets, reduction="sum")
        drawn = torch.randperm(len(which), device=which.device)[:MASKS_LEARNT]
        sampled = len(which) / max(len(drawn), 1)
        masks = masks + sampled * mask_loss(
            found.coefficients[number, which[drawn]], found.prototypes[number], each, of_which[drawn], size
        )
    coverage = F.adaptive_avg_pool2d(label, found.segmentation.shape[-2:])
    segmentation = F.binary_cross_entropy_with_logits(found.segmentation, coverage) * label.shape[1]
    counted = positive | hard_negatives(found.classes, matched)
    entropy = F.cross_entropy(found.classes[counted], classes[counted], reduction="sum")
    objects = positive.sum().clamp(min=1)
    return {
        "classes": entropy / objects,
        "boxes": BOX_WEIGHT * boxes / objects,
        "masks": MASK_WEIGHT * masks / objects,
        "segmentation": SEGMENTATION_WEIGHT * segmentation,
    }


def hard_negatives(classes: torch.Tensor, matched: torch.Tensor) -> torch.Tensor:
    """The background anchors that are learnt, bool (N, A): in each image, those that look least like background.

    classes: logits (N, A, classes + 1). matched: (N, A), see `boxes.match`.
    """
    background = matched == BACKGROUND
    surprise = -classes.detach().log_softmax(-1)[..., -1]
    rank = surprise.masked_fill(~background, -1).argsort(1, descending=True).argsort(1)
    return background & (rank < NEGATIVES * (matched >= 0).sum(1, keepdim=True))


def mask_loss(
    coefficients: torch.Tensor, prototypes: torch.Tensor, truth: Instances, which: torch.Tensor, size: tuple[int, int]
) -> torch.Tensor:
    """Sum over P anchors of the mean cross-entropy of their masks within their true boxes.

    coefficients (P, k); prototypes (k, h, w); which: number (P,) of each anchor's instance in `truth`; size: height and
    width of the image.
    """
    shape = prototypes.shape[1:]
    goal = F.adaptive_avg_pool2d(truth.masks, shape)[which]
    logits = torch.einsum("pk,khw->phw", coefficients, prototypes)
    entropy = F.binary_cross_entropy_with_logits(logits, goal, reduction="none")
    entropy = (entropy * inside(truth.boxes, shape, size)[which]).sum((1, 2))
    sides = (truth.boxes[:, 2:] - truth.boxes[:, :2])[which]
    return (entropy / sides.prod(1) * (size[0] / shape[0]) * (size[1] / shape[1])).sum()
