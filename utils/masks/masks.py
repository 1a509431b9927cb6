"""Masks: the runs of each class of an image, on which Dice, votes and differences are computed without pixels.

Inside the program, masks are always of this type; text (`utils.masks.rle`) is only in submissions.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from utils.masks import rle
from utils.masks.rle import Runs

Size = tuple[int, int]
"""Height H and width W of an image in pixels."""


@dataclass(frozen=True, eq=False)
class Masks:
    """The full-size masks of an image's classes, or of the rows of a submission.

    A run is an interval of the flattened image: row by row, counted from 0, the end exclusive. The runs of a mask are
    sorted and do not touch.

    starts, ends: int64 (runs,), of all masks, one after the other. offsets: int64 (masks + 1,); mask i has the runs
    from offsets[i] to offsets[i + 1]. size: (H, W) of the image; for masks of several images two int arrays (masks,),
    the heights and the widths; None where it is unknown.
    """

    starts: np.ndarray
    ends: np.ndarray
    offsets: np.ndarray
    size: Any = None

    @classmethod
    def from_runs(cls, runs: Sequence[Runs], size: Any = None) -> "Masks":
        """From the starts and ends (int64) of each mask; they are sorted and do not overlap or touch."""
        none = np.empty(0, np.int64)
        starts, ends = (np.concatenate([none, *(mask[i] for mask in runs)]) for i in (0, 1))
        return cls(starts, ends, np.cumsum([0, *(len(mask[0]) for mask in runs)]), size)

    @classmethod
    def from_regions(cls, regions: Sequence[tuple[np.ndarray, tuple[int, int]]], size: Size) -> "Masks":
        """From one bool (h, w) array per mask and its corner (top, left) in the image; all is False around it.

        Raises ValueError for an array that is not bool and 2-D or does not fit into the image.
        """
        return cls.from_runs([rle.merge(*rle.region_runs(mask, corner, size)) for mask, corner in regions], size)

    @classmethod
    def from_texts(cls, texts: Sequence[str | float | None], size: Any = None) -> "Masks":
        """From RLE as it is in submissions (see `utils.masks.rle`), such as a column of a CSV.

        Raises ValueError for the first malformed mask, with its number, counted from 0, and for a run past the end of
        the image, if its size is known.
        """
        starts, ends, row, wrong = rle.parse_column(texts)
        if wrong:
            raise ValueError(f"mask {wrong[0]}: {rle.problem(texts[wrong[0]])}")
        if size is not None:
            height, width = (np.broadcast_to(side, len(texts)) for side in size)
            past = np.flatnonzero(ends > (height * width)[row])
            if past.size:
                i = row[past[0]]
                raise ValueError(f"mask {i}: {rle.past_the_end(ends[past[0]], (height[i], width[i]))}")
        return cls(starts, ends, np.searchsorted(row, np.arange(len(texts) + 1)), size)

    @classmethod
    def empty(cls, count: int, size: Any = None) -> "Masks":
        """So many empty masks."""
        return cls.from_runs([(np.empty(0, np.int64),) * 2] * count, size)

    def __len__(self) -> int:
        """The number of masks."""
        return len(self.offsets) - 1

    def __getitem__(self, number: int) -> Runs:
        """The runs (starts, ends) of one mask."""
        part = slice(*self.offsets[range(len(self))[number] :][:2])
        return self.starts[part], self.ends[part]

    def __iter__(self) -> Iterator[Runs]:
        """The runs of each mask."""
        return (self[number] for number in range(len(self)))

    @property
    def row(self) -> np.ndarray:
        """The number of the mask that each run belongs to, int64 (runs,)."""
        return np.repeat(np.arange(len(self)), np.diff(self.offsets))

    @property
    def areas(self) -> np.ndarray:
        """The number of pixels of each mask, int64 (masks,)."""
        return self._sums(self.ends - self.starts)

    def select(self, numbers: Sequence[int] | slice) -> "Masks":
        """Some of the masks, by their numbers, in this order."""
        numbers = np.arange(len(self))[numbers]
        first, counts = self.offsets[numbers], np.diff(self.offsets)[numbers]
        offsets = np.cumsum(np.append(0, counts))
        runs = np.arange(offsets[-1]) + np.repeat(first - offsets[:-1], counts)
        size = self.size
        if size is not None and np.ndim(size[0]):
            size = tuple(side[numbers] for side in size)
        return Masks(self.starts[runs], self.ends[runs], offsets, size)

    def texts(self) -> list[str]:
        """Each mask as RLE, "" for an empty one."""
        return rle.write_column(self.starts, self.ends, self.offsets)

    def region(self, number: int) -> tuple[np.ndarray, tuple[int, int]]:
        """One mask within its bounding box: bool (height, width), and the box's corner (top, left) in the image.

        An empty mask gives shape (0, 0). The image's size must be known.
        """
        starts, ends = self[number]
        if not len(starts):
            return np.zeros((0, 0), bool), (0, 0)
        width = self.size[1]
        top, bottom = int(starts[0] // width), int((ends[-1] - 1) // width) + 1
        rows = rle.fill(starts - top * width, ends - top * width, (bottom - top, width))
        columns = np.flatnonzero(rows.any(axis=0))
        left = int(columns[0])
        return rows[:, left : int(columns[-1]) + 1], (top, left)

    def dense(self, number: int) -> np.ndarray:
        """One mask as bool (H, W); the image's size must be known."""
        return rle.fill(*self[number], self.size)

    def intersections(self, other: "Masks") -> np.ndarray:
        """The number of pixels that each mask shares with the one of the same number in `other`, int64 (masks,)."""
        stride = _stride([self, other])
        return self._sums(rle.overlap(self.on_axis(stride), other.on_axis(stride)))

    def same(self, other: "Masks") -> np.ndarray:
        """Whether each mask has the same pixels as the one of the same number in `other`, bool (masks,)."""
        shared = self.intersections(other)
        return (shared == self.areas) & (shared == other.areas)

    def difference(self, other: "Masks") -> "Masks":
        """The pixels of each mask that the one of the same number in `other` lacks."""
        return majority([self, other], [1, -1], 0)

    def on_axis(self, stride: int) -> Runs:
        """All runs on one axis, mask i moved by i · stride, which is beyond the end of every mask."""
        shift = self.row * stride
        return self.starts + shift, self.ends + shift

    def _sums(self, values: np.ndarray) -> np.ndarray:
        """The sum of a value of each run over the runs of each mask."""
        return np.diff(np.append(0, np.cumsum(values))[self.offsets])


def majority(masks: Sequence[Masks], weights: Sequence[float], limit: float) -> Masks:
    """The pixels at which the weights of those `masks` that have them sum to more than `limit`, which is at least 0.

    Each has as many masks as the others, of the same images. Their union is that of weights 1 and limit 0.
    """
    count, stride = len(masks[0]), _stride(masks)
    # one key per edge: its position, then (in `bits` bits) the mask that ends or, in the upper half, begins there
    bits = (2 * len(masks) - 1).bit_length()
    axes = [each.on_axis(stride) for each in masks]
    keys = [(ends << bits) + i for i, (_, ends) in enumerate(axes)]
    keys += [(starts << bits) + i for i, (starts, _) in enumerate(axes, len(masks))]
    edges = np.concatenate(keys)
    edges.sort(kind="stable")  # uses that parts are sorted; ten times faster than the default
    steps = np.concatenate([-np.asarray(weights), weights])[edges & ((1 << bits) - 1)]
    place = edges >> bits
    last = np.flatnonzero(np.diff(place, append=-1))  # of the edges at one position
    inside = np.cumsum(steps)[last] > limit
    position = place[last][np.flatnonzero(np.diff(inside, prepend=False))]
    starts, ends = position[::2], position[1::2]
    offsets = np.searchsorted(starts, np.arange(count + 1) * stride)
    shift = np.repeat(np.arange(count) * stride, np.diff(offsets))
    return Masks(starts - shift, ends - shift, offsets, masks[0].size)


def _stride(masks: Sequence[Masks]) -> int:
    """More than the end of any run."""
    return 1 + max((int(each.ends.max()) for each in masks if each.ends.size), default=0)
