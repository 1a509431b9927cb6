"""Tidy predicted masks at full size: largest piece, filled holes, no tiny pieces; on runs, without decoding pixels."""

from collections.abc import Callable, Sequence

import numpy as np

from utils.files import Problems, unknown
from utils.masks import rle
from utils.masks.pieces import cut_rows, find_pieces, label_runs
from utils.masks.rle import Runs

Size = tuple[int, int]


def largest(runs: Runs, size: Size) -> Runs:
    """Only the largest piece of a mask; pixels that touch at a corner belong together."""
    starts, ends, piece, areas = find_pieces(runs, size)
    return _joined(starts, ends, piece == areas.argmax()) if len(areas) > 1 else runs


def min_area(runs: Runs, size: Size, pixels: int) -> Runs:
    """Without the pieces that have fewer than `pixels` pixels."""
    starts, ends, piece, areas = find_pieces(runs, size)
    return _joined(starts, ends, (areas >= pixels)[piece]) if len(areas) else runs


def fill_holes(runs: Runs, size: Size) -> Runs:
    """With everything set that the mask encloses: from where no way leads out except across corners of pixels."""
    width = size[1]
    starts, ends, _ = cut_rows(runs, width)
    if not len(starts):
        return runs
    row = starts // width
    wide = width + 2  # a column on each side, and a row above and below the mask, which are all outside
    top, bottom = row[0] - 1, row[-1] + 1
    begin = (row - top) * wide + starts - row * width + 1
    finish = begin + ends - starts
    borders = np.arange(bottom - top + 2) * wide  # where rows begin
    *free, _ = cut_rows((np.append(0, finish), np.append(begin, borders[-1])), wide)
    piece = label_runs(*free, wide, corners=False)
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


def _joined(starts: np.ndarray, ends: np.ndarray, keep: np.ndarray) -> Runs:
    return rle.merge(starts[keep], ends[keep])
