"""Boxes of one-stage detectors: anchors, their matching with the truth, offsets, and fast non-maximum suppression.

A box is left, top, right, bottom in pixels of the network's input, where pixel i reaches from i to i + 1.
"""

import math
from collections.abc import Sequence

import torch
from torchvision.ops import box_convert, box_iou

BACKGROUND, NEUTRAL = -1, -2
"""What `match` says of anchors without an object: to be learnt as background, and to be left out of the loss."""
VARIANCES = (0.1, 0.2)
"""Units of the offsets of centres and of the logarithms of sizes (SSD, Liu et al. 2016, in the authors' code)."""
LARGEST_LOG = math.log(1000 / 16)
"""Limit of a size's logarithm, torchvision's: an untrained network must not make infinite boxes."""


def anchors(
    sizes: Sequence[tuple[int, int]], height: int, width: int, sides: Sequence[float], ratios: Sequence[float]
) -> torch.Tensor:
    """The anchors of all levels, float (A, 4), in the order level, row, column, ratio.

    sizes: rows and columns of each level's map, for an image of `height` × `width` pixels. sides: pixels, of each
    level's square anchor. ratios: width / height of the anchors at each place, all of the same area.
    """
    root = torch.tensor(ratios).sqrt()
    levels = []
    for (rows, columns), side in zip(sizes, sides, strict=True):
        y, x = (torch.arange(rows) + 0.5) * (height / rows), (torch.arange(columns) + 0.5) * (width / columns)
        centre = torch.stack([x.expand(rows, -1), y[:, None].expand(-1, columns)], -1)[:, :, None]
        half = side * torch.stack([root, 1 / root], -1) / 2
        levels.append(torch.cat([centre - half, centre + half], -1).reshape(-1, 4))
    return torch.cat(levels)


def encode(boxes: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """The offsets (…, 4) that lead from the anchors `places` (…, 4) to `boxes` (…, 4): what a network learns."""
    box, place = (box_convert(b, "xyxy", "cxcywh") for b in (boxes, places))
    centre = (box[..., :2] - place[..., :2]) / (VARIANCES[0] * place[..., 2:])
    return torch.cat([centre, (box[..., 2:] / place[..., 2:]).log() / VARIANCES[1]], -1)


def decode(offsets: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """The boxes (…, 4) at `offsets` (…, 4) from the anchors `places` (A, 4); the inverse of `encode`."""
    place = box_convert(places, "xyxy", "cxcywh")
    centre = place[..., :2] + offsets[..., :2] * VARIANCES[0] * place[..., 2:]
    half = place[..., 2:] * (offsets[..., 2:] * VARIANCES[1]).clamp(max=LARGEST_LOG).exp() / 2
    return torch.cat([centre - half, centre + half], -1)


def match(boxes: torch.Tensor, places: torch.Tensor, positive: float = 0.5, negative: float = 0.4) -> torch.Tensor:
    """For each anchor of `places` (A, 4), the number of its box in `boxes` (K, 4), BACKGROUND or NEUTRAL; int64 (A,).

    An anchor belongs to the box that it overlaps most, if their IoU is at least `positive`; below `negative` it is
    background. Besides, every box has one anchor for itself, whatever their IoU: the pair that overlaps most comes
    first, then the best of the boxes and anchors that are left.
    """
    found = torch.full((len(places),), BACKGROUND, device=places.device)
    if not len(boxes):
        return found
    overlaps = box_iou(boxes, places)
    best, number = overlaps.max(0)
    found = torch.where(best >= positive, number, torch.where(best < negative, found, NEUTRAL))
    for _ in range(min(len(boxes), len(places))):
        pair = overlaps.argmax()
        box, place = pair // len(places), pair % len(places)
        found[place] = box
        overlaps[box], overlaps[:, place] = -1, -1
    return found


def overlaps_of(boxes: torch.Tensor) -> torch.Tensor:
    """The IoU (…, T, T) of each two of the boxes (…, T, 4); 0 for two empty ones."""
    a, b = boxes[..., :, None, :], boxes[..., None, :, :]
    shared = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(min=0).prod(-1)
    area = (boxes[..., 2:] - boxes[..., :2]).clamp(min=0).prod(-1)
    return shared / (area[..., :, None] + area[..., None, :] - shared).clamp(min=1e-9)


def fast_nms(boxes: torch.Tensor, iou: float = 0.5) -> torch.Tensor:
    """Which boxes stay, bool (…, T), of (…, T, 4) with the highest score first (Bolya et al. 2019, section 4.1).

    A box goes if its IoU with any box before it is above `iou`; unlike plain suppression, one that goes itself counts
    too, so that all decisions are made at once.
    """
    return overlaps_of(boxes).triu(1).amax(-2) <= iou
