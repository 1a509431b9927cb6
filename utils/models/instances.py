"""Instances, objects with a box, a class, a score and a mask each: from labels, and back to one map per class."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

import cv2
import numpy as np
import torch

SMALLEST = 4
"""Pixels of the smallest piece of a class that is an instance: augmentation leaves crumbs, which teach nothing."""


@dataclass(frozen=True)
class Instances:
    """The K instances of one image, all on one device.

    boxes: float (K, 4), left, top, right, bottom in pixels of the network's input, where pixel i reaches from i to
    i + 1. labels: int64 (K,), the class from 0. scores: float (K,) in [0, 1]; 1 in a truth. masks: float (K, H, W) in
    [0, 1], of the whole image.
    """

    boxes: torch.Tensor
    labels: torch.Tensor
    scores: torch.Tensor
    masks: torch.Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, which: torch.Tensor) -> "Instances":
        """Those that `which` picks: bool (K,), or their numbers in any order."""
        return Instances(self.boxes[which], self.labels[which], self.scores[which], self.masks[which])

    def to(self, device: torch.device | str) -> "Instances":
        """The same on another device."""
        return Instances(*(getattr(self, field.name).to(device) for field in fields(self)))

    def crop(self, height: int, width: int) -> "Instances":
        """Those that reach into the image's first `height` rows and `width` columns, cut off there."""
        limits = self.boxes.new_tensor([width, height, width, height])
        boxes = self.boxes.clamp(min=0).minimum(limits)
        inside = (boxes[:, 2:] > boxes[:, :2]).all(1)
        return Instances(boxes, self.labels, self.scores, self.masks[:, :height, :width]).take(inside)


def targets(label: torch.Tensor) -> list[Instances]:
    """The instances in each image's label, which an instance model learns.

    label: float (N, classes, H, W) in [0, 1]. A connected piece (8 neighbours) of at least SMALLEST pixels above 0.5 is
    an instance: a bone is one, nuclei that lie apart are one each. Its mask is the soft label of the piece. Everything
    stays on the label's device but for the pieces, which are found on the CPU, within the classes' boxes.
    """
    found = []
    for maps in label:
        inside = maps > 0.5
        present = inside.flatten(1).any(1).nonzero()[:, 0]
        masks, labels = [maps[:0]], [present[:0]]
        for number, pieces in enumerate(_pieces(maps[present], inside[present])):
            masks.append(pieces)
            labels.append(present[number].expand(len(pieces)))
        masks, labels = torch.cat(masks), torch.cat(labels)
        found.append(Instances(boxes_of(masks > 0.5), labels, masks.new_ones(len(masks)), masks))
    return found


def instances_of(logits: torch.Tensor) -> list[Instances]:
    """The instances in a semantic network's logits, float (N, classes, H, W): connected pieces of probability above
    0.5, as in `targets`, scored by their mean probability, with the highest score first."""
    found = []
    for each in targets(logits.float().sigmoid()):
        inside = each.masks > 0.5
        scores = (each.masks * inside).sum((1, 2)) / inside.sum((1, 2)).clamp(min=1)
        scored = Instances(each.boxes, each.labels, scores, each.masks)
        found.append(scored.take(scores.argsort(descending=True)))
    return found


def class_logits(found: Sequence[Instances], classes: int) -> torch.Tensor:
    """Logits (N, classes, H, W) of each class's probability: the maximum over its instances of mask × score.

    The maximum, because the instances of a class are alternatives: the second-best guess at a bone adds nothing to the
    best one. A class without instances gets the logit of 1e-6.
    """
    union = [each.masks.new_zeros(classes, *each.masks.shape[1:], dtype=torch.float32) for each in found]
    for maps, each in zip(union, found, strict=True):
        for label, score, mask in zip(each.labels.tolist(), each.scores, each.masks, strict=True):
            maps[label] = torch.maximum(maps[label], mask * score)
    return torch.stack(union).logit(eps=1e-6)


def boxes_of(masks: torch.Tensor) -> torch.Tensor:
    """The bounding boxes, float (K, 4) as in Instances, of bool (K, H, W), none of them empty."""
    edges = []
    for lines in (masks.any(1), masks.any(2)):  # columns, rows
        length = lines.shape[1]
        first = lines.float().argmax(1)
        edges += [first, length - lines.flip(1).float().argmax(1)]
    left, right, top, bottom = edges
    return torch.stack([left, top, right, bottom], 1).float()


def _pieces(soft: torch.Tensor, inside: torch.Tensor) -> Iterator[torch.Tensor]:
    """The soft labels (pieces, H, W) of the pieces of each class, from soft (K, H, W) and bool (K, H, W)."""
    height, width = soft.shape[1:]
    limits = torch.tensor([0, 0, width, height])
    grow = torch.tensor([-1, -1, 1, 1])  # a soft label ends within a pixel of those above 0.5
    boxes = (boxes_of(inside).long().cpu() + grow).clamp(min=0).minimum(limits).tolist()
    parts = [mask[top:bottom, left:right] for mask, (left, top, right, bottom) in zip(inside, boxes, strict=True)]
    flat = torch.cat([part.flatten() for part in parts]).cpu().numpy().view(np.uint8) if parts else []  # one transfer
    for maps, part, (left, top, right, bottom) in zip(soft, parts, boxes, strict=True):
        crop, flat = flat[: part.numel()].reshape(part.shape), flat[part.numel() :]
        count, numbers, sizes, _ = cv2.connectedComponentsWithStats(crop)
        large = [n for n in range(1, count) if sizes[n, cv2.CC_STAT_AREA] >= SMALLEST]
        if count == 2 and large:
            yield maps[None]
            continue
        pieces = maps.new_zeros(len(large), height, width)
        for piece, number in zip(pieces, large, strict=True):
            near = cv2.dilate((numbers == number).astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
            kept = torch.from_numpy(near & ((numbers == number) | (numbers == 0))).to(maps.device)
            piece[top:bottom, left:right] = maps[top:bottom, left:right] * kept
        yield pieces
