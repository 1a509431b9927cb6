"""Measure masks by their runs: areas, centroids and separate pieces, without decoding to pixels."""

from collections.abc import Sequence

import numpy as np

from utils.masks import rle
from utils.masks.pieces import cut_rows, label_runs

ROWS_AT_A_TIME = 256
"""Masks that are measured together; this limits the memory."""


def measure(rles: Sequence[str], heights: Sequence[int], widths: Sequence[int]) -> dict[str, np.ndarray]:
    """Area (pixels), centroid x and y (pixels, NaN if empty), pieces and smaller of well-formed masks, from their runs.

    pieces: groups of pixels that touch, also by their corners. smaller: area of all pieces but the largest.
    """
    heights, widths = np.asarray(heights, np.int64), np.asarray(widths, np.int64)
    parts = [
        _measure(rles[i : i + ROWS_AT_A_TIME], heights[i : i + ROWS_AT_A_TIME], widths[i : i + ROWS_AT_A_TIME])
        for i in range(0, max(len(rles), 1), ROWS_AT_A_TIME)
    ]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _measure(rles: Sequence[str], heights: np.ndarray, widths: np.ndarray) -> dict[str, np.ndarray]:
    starts, ends, row, _ = rle.parse_column(rles)
    starts, ends, run = cut_rows((starts, ends), widths[row])
    row = row[run]
    y = starts // widths[row]
    begin, end = starts - y * widths[row], ends - y * widths[row]

    def total(values: np.ndarray) -> np.ndarray:
        return np.bincount(row, values, len(rles))

    area = total(end - begin)
    with np.errstate(invalid="ignore"):
        x_mean, y_mean = total((end - begin) * (begin + end - 1) / 2) / area, total((end - begin) * y) / area
    # all masks on one axis, with a free row after each mask and a free column after each row
    height, width = heights.max(initial=0) + 1, widths.max(initial=0) + 1
    line = (row * height + y) * width
    piece = label_runs(line + begin, line + end, width, corners=True)
    of_piece = np.zeros(piece.max(initial=-1) + 1, np.int64)
    of_piece[piece] = row
    areas = np.bincount(piece, end - begin, len(of_piece))
    largest = np.zeros(len(rles))
    np.maximum.at(largest, of_piece, areas)
    pieces = np.bincount(of_piece, minlength=len(rles))
    return {"area": area, "x": x_mean, "y": y_mean, "pieces": pieces, "smaller": area - largest}
