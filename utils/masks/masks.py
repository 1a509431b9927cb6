"""Masks: the runs of each class of an image, on which Dice, votes and differences are computed without pixels.

Inside the program, masks are always of this type; text (`utils.masks.rle`) is only in submissions.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from utils.masks import rle

Size = tuple[int, int]
"""Height H and width W of an image in pixels."""
Runs = tuple[np.ndarray, np.ndarray]
"""Starts and ends of a mask's runs."""


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
        """From the sorted starts and ends (int64) of each mask; runs that touch are joined."""
        none = np.empty(0, np.int64)
        starts, ends = (np.concatenate([none, *(mask[i] for mask in runs)]) for i in (0, 1))
        row = np.repeat(np.arange(len(runs)), [len(mask[0]) for mask in runs])
        return cls.from_sorted(starts, ends, row, len(runs), size)

    @classmethod
    def from_regions(cls, regions: Sequence[tuple[np.ndarray, tuple[int, int]]], size: Size) -> "Masks":
        """From one bool (h, w) array per mask and its corner (top, left) in the image; all is False around it.

        Raises ValueError for an array that is not bool and 2-D or does not fit into the image.
        """
        return cls.from_runs([region_runs(mask, corner, size) for mask, corner in regions], size)

    @classmethod
    def from_dense(cls, masks: Sequence[np.ndarray]) -> "Masks":
        """From at least one bool (H, W) array. Raises ValueError for other arrays."""
        return cls.from_regions([(mask, (0, 0)) for mask in masks], np.shape(masks[0]))

    @classmethod
    def from_sorted(cls, starts: np.ndarray, ends: np.ndarray, row: np.ndarray, count: int, size: Any) -> "Masks":
        """From the sorted runs of `count` masks, int64, each with its mask's number; those that touch are joined."""
        apart = (starts[1:] != ends[:-1]) | (row[1:] != row[:-1])
        first, last = np.append(True, apart)[: len(row)], np.append(apart, True)[: len(row)]
        return cls(starts[first], ends[last], np.searchsorted(row[first], np.arange(count + 1)), size)

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray], size: Size) -> "Masks":
        """The inverse of `arrays`. Raises ValueError for a damaged file."""
        starts, ends, offsets = (arrays[name].astype(np.int64) for name in ("starts", "ends", "offsets"))
        masks = cls(starts, ends, offsets, size)
        if starts.ndim != 1 or starts.shape != ends.shape or offsets.ndim != 1 or not len(offsets):
            raise ValueError(f"runs of shapes {starts.shape}, {ends.shape} and {offsets.shape}: the file is damaged")
        if offsets[0] != 0 or offsets[-1] != len(starts) or (np.diff(offsets) < 0).any():
            raise ValueError(f"{len(starts)} runs do not belong to the masks: the file is damaged")
        later = masks.row[1:] == masks.row[:-1]
        if (starts >= ends).any() or (starts[1:] < ends[:-1])[later].any() or ends.max(initial=0) > size[0] * size[1]:
            raise ValueError(f"runs that are no masks of {size[0]} × {size[1]} pixels: the file is damaged")
        return masks

    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays that `np.savez` writes to a file, as small as the image allows; see `from_arrays`."""
        dtype = np.min_scalar_type(self.size[0] * self.size[1])
        return {"starts": self.starts.astype(dtype), "ends": self.ends.astype(dtype), "offsets": self.offsets}

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
        return cls.from_sorted(starts, ends, row, len(texts), size)

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
        return self._sums(_overlap(self.on_axis(stride), other.on_axis(stride)))

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


def region_runs(mask: np.ndarray, corner: tuple[int, int], size: tuple[int, int]) -> Runs:
    """Intervals, in an image of `size` (H, W), of a bool (h, w) mask at `corner` (top, left).

    They are sorted; from row to row they may touch (`Masks.from_runs` joins them). Raises ValueError if `mask` is no
    bool mask or does not fit into the image.
    """
    rle.check_mask(mask)
    rows, columns = mask.shape
    check_fits("mask", (*corner, corner[0] + rows, corner[1] + columns), size)
    width = size[1]
    flat = np.zeros(1 + rows * (columns + 1), dtype=bool)  # False before the first pixel and after each row
    flat[1:].reshape(rows, columns + 1)[:, :columns] = mask
    edges = np.flatnonzero(flat[1:] != flat[:-1])
    edges += edges // (columns + 1) * (width - columns - 1) + (corner[0] * width + corner[1])
    return edges[::2], edges[1::2]


def check_fits(name: str, box: tuple[int, int, int, int], size: tuple[int, int]) -> None:
    """Raise ValueError unless a box (top, left, bottom, right), the last two exclusive, lies in an image of `size`."""
    if not (0 <= box[0] <= box[2] <= size[0] and 0 <= box[1] <= box[3] <= size[1]):
        raise ValueError(f"{name} (top, left, bottom, right) = {tuple(map(int, box))} does not fit {tuple(size)}")


def _overlap(a: Runs, b: Runs) -> np.ndarray:
    """For each run of `a`, how many of its pixels lie in `b` (int64)."""
    starts, ends = b
    before = np.concatenate([[0], np.cumsum(ends - starts)])  # pixels of b before its i-th interval
    starts = np.append(starts, 2**62)  # past every query

    def covered(x: np.ndarray) -> np.ndarray:
        i = np.searchsorted(ends, x)
        return before[i] + np.maximum(x - starts[i], 0)

    return covered(a[1]) - covered(a[0])
