"""Tidy predicted masks at full size: largest piece, filled holes, no tiny pieces; on runs, without decoding pixels."""

from collections.abc import Callable, Sequence

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from utils.errors import Problems, unknown
from utils.masks import rle
from utils.masks.rle import Runs

Size = tuple[int, int]


def largest(runs: Runs, size: Size) -> Runs:
    """Only the largest piece of a mask; pixels that touch at a corner belong together."""
    starts, ends, piece, areas = pieces(runs, size)
    return _joined(starts, ends, piece == areas.argmax()) if len(areas) > 1 else runs


def min_area(runs: Runs, size: Size, pixels: int) -> Runs:
    """Without the pieces that have fewer than `pixels` pixels."""
    starts, ends, piece, areas = pieces(runs, size)
    return _joined(starts, ends, (areas >= pixels)[piece]) if len(areas) else runs


def fill_holes(runs: Runs, size: Size) -> Runs:
    """With everything set that the mask encloses: from where no way leads out except across corners of pixels."""
    width = size[1]
    starts, ends = _rows(runs, width)
    if not len(starts):
        return runs
    row = starts // width
    wide = width + 2  # a column on each side, and a row above and below the mask, which are all outside
    top, bottom = row[0] - 1, row[-1] + 1
    begin = (row - top) * wide + starts - row * width + 1
    finish = begin + ends - starts
    borders = np.arange(bottom - top + 2) * wide  # where rows begin
    free = _rows((np.append(0, finish), np.append(begin, borders[-1])), wide)
    piece = _label(*free, wide, corners=False)
    hole = piece != piece[0]
    if not hole.any():
        return runs
    row = free[0][hole] // wide
    offset = (top * width - 1) + row * (width - wide)
    filled = free[0][hole] + offset, free[1][hole] + offset
    return rle.majority([starts, filled[0]], [ends, filled[1]], 1)


STEPS = {"largest": largest, "fill_holes": fill_holes, "min_area": min_area}
"""Steps by name; `min_area` is written with its number of pixels, such as "min_area 200"."""


def build_postprocess(steps: Sequence[str]) -> Callable[[list[str], Size], list[str]]:
    """A function (RLE of each class, size (H, W)) -> RLE of each class that applies `steps` one after the other.

    Raises Problems for unknown steps, with the nearest names, and for a wrong number.
    """
    problems, parts = [], []
    for step in steps:
        name, _, number = str(step).partition(" ")
        if name not in STEPS:
            problems.append(unknown("step of postprocess", name, STEPS))
        elif (name == "min_area") != number.isdecimal():
            problems.append(f"postprocess step {step!r}: expected one of largest, fill_holes, 'min_area 200' (pixels)")
        else:
            parts.append((STEPS[name], (int(number),) if number else ()))
    if problems:
        raise Problems("these parameters can't be used:", problems)

    def tidy(masks: list[str], size: Size) -> list[str]:
        if not parts:
            return masks
        made = []
        for mask in masks:
            runs = rle.parse(mask)
            for part, numbers in parts:
                runs = part(runs, size, *numbers)
            made.append(runs)
        return rle.to_strings(made)

    return tidy


def pieces(runs: Runs, size: Size) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The connected pieces of a mask (starts, ends) of an image of `size`; pixels touch at sides and corners.

    Returns starts and ends (cut at the ends of rows), the number of each run's piece, and each piece's area in pixels,
    all int64.
    """
    starts, ends = _rows(runs, size[1])
    row = starts // size[1]
    shifted = starts + row  # a free column after each row, so that its last pixel does not touch the next row's first
    piece = _label(shifted, shifted + ends - starts, size[1] + 1, corners=True)
    return starts, ends, piece, np.bincount(piece, weights=ends - starts).astype(np.int64)


def _label(starts: np.ndarray, ends: np.ndarray, width: int, corners: bool) -> np.ndarray:
    """The number of the connected piece of each run; runs lie within rows of `width` and are sorted."""
    reach = int(corners)
    first = np.searchsorted(ends, starts + width - reach, side="right")  # in the next row, the first run that a run
    last = np.searchsorted(starts, ends + width + reach, side="left")  # touches, and the first behind those it touches
    counts = np.maximum(last - first, 0)
    above = np.repeat(np.arange(len(starts)), counts)
    below = np.arange(len(above)) - np.repeat(np.cumsum(counts) - counts, counts) + np.repeat(first, counts)
    graph = coo_array((np.ones(len(above), bool), (above, below)), shape=(len(starts),) * 2)
    return connected_components(graph, directed=False)[1] if len(starts) else np.zeros(0, np.int64)


def _rows(runs: Runs, width: int) -> Runs:
    """The runs, cut where a row ends."""
    starts, ends = runs
    first, last = starts // width, (ends - 1) // width
    counts = last - first + 1
    number = np.repeat(np.arange(len(starts)), counts)
    row = np.arange(len(number)) - np.repeat(np.cumsum(counts) - counts, counts) + first[number]
    return np.maximum(starts[number], row * width), np.minimum(ends[number], (row + 1) * width)


def _joined(starts: np.ndarray, ends: np.ndarray, keep: np.ndarray) -> Runs:
    return rle.merge(starts[keep], ends[keep])
