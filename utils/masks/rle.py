"""Read and write masks as run-length strings (RLE).

The competition's RLE lists the runs of a mask, row by row, as "start length start length …", the first pixel being 1.
An empty mask is "", an empty field in a CSV, which pandas reads as NaN; NaN and None are accepted as empty, too.
In this module, a mask is two int64 arrays (starts, ends): sorted, disjoint intervals of the flattened image, counted
from 0, each end exclusive.
"""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from utils.masks import digits

Runs = tuple[np.ndarray, np.ndarray]
"""(starts, ends) of a mask's intervals."""

LARGEST = 2**40
"""Largest start or length of a run, so that all masks of a submission, one after another, fit on one int64 axis."""


def parse(rle: str | float | None) -> Runs:
    """The intervals (starts, ends), int64, of one RLE string; runs that touch are merged.

    Raises ValueError with the text of `problem`.
    """
    starts, ends, _, wrong = parse_column([rle])
    if wrong:
        raise ValueError(problem(rle))
    return starts, ends


def problem(rle: object) -> str:
    """What is wrong with a string that `parse_column` refuses, in words.

    That is one of: it is no text, it has other characters than digits and blanks, an odd count of numbers, a start or
    length below 1 or above 2⁴⁰, or runs that are unsorted or overlap.
    """
    if not isinstance(rle, str):
        return f"an RLE is text such as '12 3 40 5', found {type(rle).__name__} {rle!r}"
    if rle.encode().translate(None, b"0123456789 "):
        word = next(w for w in rle.split(" ") if w and not (w.isascii() and w.isdigit()))
        return f"{word[:40]!r} is not a positive whole number; an RLE reads 'start length start length …'"
    numbers, _ = digits.read(rle.encode())
    if len(numbers) % 2:
        return f"{len(numbers)} numbers; an RLE holds pairs of start and length, so their count is even"
    starts, lengths = numbers[::2], numbers[1::2]
    for name, values in (("start", starts), ("length", lengths)):
        wrong = np.flatnonzero((values < 1) | (values > LARGEST))
        if wrong.size:
            return f"run {wrong[0] + 1} has {name} {values[wrong[0]]}; starts and lengths are 1 … 2⁴⁰"
    i = int(np.argmax(starts[1:] < (starts + lengths)[:-1]))
    how = "overlaps" if starts[i + 1] >= starts[i] else "comes before"
    return f"run {i + 2} (start {starts[i + 1]}) {how} run {i + 1} (start {starts[i]})"


def parse_column(rles: Sequence[str | float | None]) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[int]]:
    """The intervals of many masks at once: (starts, ends, row, wrong).

    `row` (int64, ascending) is the number of the mask that each interval belongs to. `wrong` lists the numbers of the
    masks that `parse` would refuse; their intervals are left out. 8,352 masks take about a tenth of a second.
    """
    texts = [rle if isinstance(rle, str) else "" if _is_empty(rle) else "x" for rle in rles]
    joined = " ".join(texts).encode()
    wrong: list[int] = []
    characters = np.frombuffer(joined, np.uint8)
    if ((characters - np.uint8(ord("0")) > 9) & (characters != ord(" "))).any():  # below "0" it wraps around
        wrong = [i for i, text in enumerate(texts) if text.encode().translate(None, b"0123456789 ")]
        for i in wrong:
            texts[i] = ""
        joined = " ".join(texts).encode()
    numbers, ends = digits.read(joined)
    last = np.cumsum([0, *(len(text) + 1 for text in texts)])[1:] - 1
    counts = np.diff(np.searchsorted(ends, last, side="right"), prepend=0)
    odd = counts % 2 == 1
    if odd.any():
        numbers, wrong = numbers[~np.repeat(odd, counts)], wrong + np.flatnonzero(odd).tolist()
        counts[odd] = 0
    row = np.repeat(np.arange(len(texts)), counts // 2)
    starts, lengths = numbers[::2] - 1, numbers[1::2]
    ends = starts + lengths
    bad = (starts < 0) | (lengths < 1) | (np.maximum(starts, lengths) > LARGEST)
    bad[1:] |= (starts[1:] < ends[:-1]) & (row[1:] == row[:-1])
    if bad.any():
        found = np.unique(row[bad])
        keep = ~np.isin(row, found)
        starts, ends, row, wrong = starts[keep], ends[keep], row[keep], wrong + found.tolist()
    touching = (starts[1:] == ends[:-1]) & (row[1:] == row[:-1])
    if touching.any():
        first, last = np.append(True, ~touching), np.append(~touching, True)
        starts, ends, row = starts[first], ends[last], row[first]
    return starts, ends, row, sorted(wrong)


def to_string(starts: np.ndarray, ends: np.ndarray) -> str:
    """The RLE string of sorted, disjoint intervals; "" where there are none."""
    return to_strings([(starts, ends)])[0]


def write_column(starts: np.ndarray, ends: np.ndarray, offsets: np.ndarray) -> list[str]:
    """The RLE strings of many masks; mask i has the runs from offsets[i] to offsets[i + 1], see `utils.masks.masks`."""
    if not len(starts):
        return [""] * (len(offsets) - 1)
    if len(starts) > 2**19 and len(offsets) > 2:  # beyond the processor's caches, one by one is faster
        return [to_string(starts[i:j], ends[i:j]) for i, j in pairwise(offsets)]
    numbers = np.empty(2 * len(starts), np.int64)
    numbers[::2] = starts
    numbers[1::2] = ends
    numbers[1::2] -= starts
    numbers[::2] += 1
    return digits.write(numbers, (2 * np.diff(offsets)).tolist())


def to_strings(masks: Sequence[Runs]) -> list[str]:
    """`to_string` of many masks at once."""
    counts = [2 * len(starts) for starts, _ in masks]
    numbers = np.empty(sum(counts), np.int64)
    if not numbers.size:
        return [""] * len(masks)
    if numbers.size > 2**20 and len(masks) > 1:  # beyond the processor's caches, one by one is faster
        return [to_string(*mask) for mask in masks]
    numbers[::2] = np.concatenate([starts for starts, _ in masks])
    numbers[1::2] = np.concatenate([ends for _, ends in masks])
    numbers[1::2] -= numbers[::2]
    numbers[::2] += 1
    return digits.write(numbers, counts)


def encode(mask: np.ndarray) -> str:
    """The RLE string of a mask, "" for an empty one.

    Args:
        mask: bool (H, W), True inside the mask.

    Returns:
        "start length start length …", row by row, the first pixel being 1; the same text as the official baseline's.

    Raises:
        ValueError: for another dtype or another number of dimensions.
    """
    check_mask(mask)
    rows = np.flatnonzero(mask.any(axis=1))
    if not rows.size:
        return ""
    top, bottom = rows[0], rows[-1] + 1
    flat = mask[top:bottom].ravel()
    edges = np.flatnonzero(np.diff(flat, prepend=False, append=False)) + top * mask.shape[1]
    return to_string(edges[::2], edges[1::2])


def decode(rle: str | float | None, size: tuple[int, int]) -> np.ndarray:
    """The mask of an RLE string.

    Args:
        rle: "start length start length …", row by row, the first pixel being 1; "", None or NaN for an empty mask.
        size: height H and width W of the image in pixels.

    Returns:
        The mask, bool (H, W), True inside.

    Raises:
        ValueError: for malformed text (see `problem`), and for a run that ends after the image's last pixel.
    """
    starts, ends = parse(rle)
    height, width = size
    if ends.size and ends[-1] > height * width:
        raise ValueError(past_the_end(ends[-1], size))
    return fill(starts, ends, size)


def past_the_end(pixel: int, size: tuple[int, int]) -> str:
    """What is wrong with a mask whose last run ends at `pixel`, behind those of an image of `size` (H, W)."""
    image = f"the end of an image of {size[0]} rows × {size[1]} columns ({size[0] * size[1]} pixels)"
    return f"the last run ends at pixel {pixel}, past {image}; was it made for another image size?"


def mask_region(rle: str | float | None, size: tuple[int, int]) -> tuple[np.ndarray, tuple[int, int]]:
    """The mask within its bounding box only: bool (height, width), and the box's corner (top, left) in the image.

    `size` is the image's (H, W). An empty mask gives shape (0, 0). Raises ValueError for malformed text; a run past the
    image's last pixel is not noticed.
    """
    starts, ends = parse(rle)
    if not starts.size:
        return np.zeros((0, 0), bool), (0, 0)
    width = size[1]
    top, bottom = int(starts[0] // width), int((ends[-1] - 1) // width) + 1
    rows = fill(starts - top * width, ends - top * width, (bottom - top, width))
    columns = np.flatnonzero(rows.any(axis=0))
    left = int(columns[0])
    return rows[:, left : int(columns[-1]) + 1], (top, left)


def region_runs(mask: np.ndarray, corner: tuple[int, int], size: tuple[int, int]) -> Runs:
    """Intervals, in an image of `size` (H, W), of a bool (h, w) mask at `corner` (top, left).

    They are sorted and disjoint; from row to row they may touch (`merge` joins them). Raises ValueError if `mask` is no
    bool mask or does not fit into the image.
    """
    check_mask(mask)
    rows, columns = mask.shape
    check_fits("mask", (*corner, corner[0] + rows, corner[1] + columns), size)
    width = size[1]
    flat = np.zeros(1 + rows * (columns + 1), dtype=bool)  # False before the first pixel and after each row
    flat[1:].reshape(rows, columns + 1)[:, :columns] = mask
    edges = np.flatnonzero(flat[1:] != flat[:-1])
    edges += edges // (columns + 1) * (width - columns - 1) + (corner[0] * width + corner[1])
    return edges[::2], edges[1::2]


def area(rle: str | float | None) -> int:
    """Number of pixels set. Raises ValueError for malformed text."""
    starts, ends = parse(rle)
    return int((ends - starts).sum())


def difference(rle_a: str | float | None, rle_b: str | float | None) -> str:
    """The RLE string of the pixels that are set in the first mask and not in the second."""
    a, b = parse(rle_a), parse(rle_b)
    starts, ends = np.append(0, b[1]), np.append(b[0], LARGEST)  # what lies outside the second mask
    keep = starts < ends
    return to_string(*majority([a[0], starts[keep]], [a[1], ends[keep]], 2))


def overlap(a: Runs, b: Runs) -> np.ndarray:
    """For each interval of `a`, how many of its pixels lie in `b` (int64)."""
    starts, ends = b
    before = np.concatenate([[0], np.cumsum(ends - starts)])  # pixels of b before its i-th interval
    starts = np.append(starts, 2**62)  # past every query

    def covered(x: np.ndarray) -> np.ndarray:
        i = np.searchsorted(ends, x)
        return before[i] + np.maximum(x - starts[i], 0)

    return covered(a[1]) - covered(a[0])


def majority(starts: Sequence[np.ndarray], ends: Sequence[np.ndarray], min_votes: int) -> Runs:
    """The intervals covered by at least `min_votes` masks, given each mask's starts and ends."""
    # one key per edge: twice its position, plus 1 where a run begins; at one position, ends sort before beginnings
    edges = np.concatenate([*(2 * s + 1 for s in starts), *(2 * e for e in ends)])
    edges.sort(kind="stable")  # uses that parts are sorted; ten times faster than the default
    inside = np.cumsum((edges & 1) * 2 - 1) >= min_votes
    change = np.flatnonzero(np.diff(inside, prepend=False))
    position = edges[change] >> 1
    return merge(position[::2], position[1::2])


def merge(starts: np.ndarray, ends: np.ndarray) -> Runs:
    """Join intervals that touch; the intervals are sorted and disjoint."""
    apart = starts[1:] != ends[:-1]
    if apart.all():
        return starts, ends
    return starts[np.append(True, apart)], ends[np.append(apart, True)]


def check_mask(mask: np.ndarray) -> None:
    """Raise ValueError unless `mask` is a bool array of two dimensions."""
    if not isinstance(mask, np.ndarray) or mask.dtype != bool or mask.ndim != 2:
        found = f"{mask.dtype} {mask.shape}" if isinstance(mask, np.ndarray) else type(mask).__name__
        raise ValueError(f"expected a bool (H, W) array, found {found}; threshold scores first (scores > 0.5)")


def check_fits(name: str, box: tuple[int, int, int, int], size: tuple[int, int]) -> None:
    """Raise ValueError unless a box (top, left, bottom, right), the last two exclusive, lies in an image of `size`."""
    if not (0 <= box[0] <= box[2] <= size[0] and 0 <= box[1] <= box[3] <= size[1]):
        raise ValueError(f"{name} (top, left, bottom, right) = {tuple(map(int, box))} does not fit {tuple(size)}")


def on_one_axis(columns: Sequence[Sequence[str | float | None]], first: int = 0) -> tuple[list[list[np.ndarray]], int]:
    """(starts, ends, row) of each column, the i-th mask moved by i · stride, so that masks do not overlap; and stride.

    Raises ValueError for a malformed mask, with its number counted from `first`.
    """
    parsed = []
    for column in columns:
        *intervals, wrong = parse_column(column)
        if wrong:
            raise ValueError(f"mask {first + wrong[0]}: {problem(column[wrong[0]])}")
        parsed.append(intervals)
    stride = 1 + max((int(ends.max()) for _, ends, _ in parsed if ends.size), default=0)
    for starts, ends, row in parsed:
        starts += row * stride
        ends += row * stride
    return parsed, stride


def fill(starts: np.ndarray, ends: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bool (H, W) with the intervals set."""
    mask = np.zeros(size[0] * size[1], dtype=bool)
    for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
        mask[start:end] = True
    return mask.reshape(size)


def _is_empty(rle: object) -> bool:
    return rle is None or (isinstance(rle, float) and np.isnan(rle))
