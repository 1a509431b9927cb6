"""Tidy predicted masks at full size: largest piece, filled holes, no tiny pieces; on runs, without decoding pixels."""

from collections.abc import Callable, Sequence

import numpy as np

from utils.files import Problems, unknown
from utils.masks.masks import Masks
from utils.masks.pieces import Pieces, cut_rows, find_pieces, label_runs


def largest(masks: Masks) -> Masks:
    """Only the largest piece of each mask; pixels that touch at a corner belong together."""
    pieces = find_pieces(masks)
    order = np.lexsort((-pieces.area, pieces.mask))  # of equal ones, the first comes first
    return _kept(masks, pieces, order[np.flatnonzero(np.diff(pieces.mask[order], prepend=-1))])


def min_area(masks: Masks, pixels: int) -> Masks:
    """Without the pieces that have fewer than `pixels` pixels."""
    pieces = find_pieces(masks)
    return _kept(masks, pieces, np.flatnonzero(pieces.area >= pixels))


def fill_holes(masks: Masks) -> Masks:
    """With everything set that a mask encloses: from where no way leads out except across corners of pixels."""
    width = masks.size[1]
    starts, ends, run = cut_rows((masks.starts, masks.ends), width)
    if not len(starts):
        return masks
    row, y = masks.row[run], starts // width
    # all masks below each other, with free rows between them and a free column on each side, which are all outside
    first = np.flatnonzero(np.diff(row, prepend=-1))
    last = np.append(first[1:], len(row)) - 1
    lines = np.cumsum(np.append(1, y[last] - y[first] + 2))
    shift, wide = lines[:-1] - y[first], width + 2
    begin = (y + np.repeat(shift, last - first + 1)) * wide + starts - y * width + 1
    finish = begin + ends - starts
    *free, _ = cut_rows((np.append(0, finish), np.append(begin, lines[-1] * wide)), wide)
    piece = label_runs(*free, wide, corners=False)
    hole = piece != piece[0]
    begin, finish = np.append(begin, free[0][hole]), np.append(finish, free[1][hole])
    order = np.argsort(begin)
    begin, finish = begin[order], finish[order]
    line = begin // wide
    number = np.searchsorted(lines, line, side="right") - 1
    starts = (line - shift[number]) * width + begin - line * wide - 1
    return Masks.from_sorted(starts, starts + finish - begin, row[first][number], len(masks), masks.size)


STEPS = {"largest": largest, "fill_holes": fill_holes, "min_area": min_area}
"""Steps by name; `min_area` is written with its number of pixels, such as "min_area 200"."""


def build_postprocess(steps: Sequence[str]) -> Callable[[Masks], Masks]:
    """A function that applies `steps` one after the other to the masks of an image.

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

    def tidy(masks: Masks) -> Masks:
        for part, numbers in parts:
            masks = part(masks, *numbers)
        return masks

    return tidy


def _kept(masks: Masks, pieces: Pieces, numbers: np.ndarray) -> Masks:
    """The masks with those of their pieces that have these numbers."""
    keep = np.isin(pieces.piece, numbers)
    return Masks.from_sorted(pieces.starts[keep], pieces.ends[keep], pieces.row[keep], len(masks), masks.size)
