"""Measure masks by their runs: areas, centroids and separate pieces, without decoding to pixels."""

from collections.abc import Sequence

import numpy as np

from utils.masks import rle

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
    # cut runs at the right border of the image: one interval [begin, end) of line y of mask `row`
    first = starts // widths[row]
    lines = (ends - 1) // widths[row] - first + 1
    run = np.repeat(np.arange(len(starts)), lines)
    row, width = row[run], widths[row[run]]
    y = first[run] + np.arange(len(run)) - np.repeat(np.cumsum(lines) - lines, lines)
    begin, end = np.maximum(starts[run] - y * width, 0), np.minimum(ends[run] - y * width, width)

    def total(values: np.ndarray) -> np.ndarray:
        return np.bincount(row, values, len(rles))

    area = total(end - begin)
    with np.errstate(invalid="ignore"):
        x_mean, y_mean = total((end - begin) * (begin + end - 1) / 2) / area, total((end - begin) * y) / area
    piece = _connected(row, y, begin, end, heights.max(initial=0), widths.max(initial=0))
    of_piece = np.zeros(piece.max(initial=-1) + 1, np.int64)
    of_piece[piece] = row
    areas = np.bincount(piece, end - begin, len(of_piece))
    largest = np.zeros(len(rles))
    np.maximum.at(largest, of_piece, areas)
    pieces = np.bincount(of_piece, minlength=len(rles))
    return {"area": area, "x": x_mean, "y": y_mean, "pieces": pieces, "smaller": area - largest}


def _connected(
    row: np.ndarray, y: np.ndarray, begin: np.ndarray, end: np.ndarray, height: int, width: int
) -> np.ndarray:
    """The number of the piece that each interval belongs to; intervals are ordered by mask, line and column."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    # all masks on one axis, with an empty line after each mask and two empty pixels after each line
    line = (row * (height + 1) + y) * (width + 2)
    begin, end = begin + line, end + line
    low = np.searchsorted(end, begin + width + 1, side="right")  # in the next line, intervals from `low` to `high`
    high = np.searchsorted(begin, end + width + 3, side="left")  # touch this one
    count = np.maximum(high - low, 0)
    above = np.repeat(np.arange(len(row)), count)
    below = np.arange(len(above)) - np.repeat(np.cumsum(count) - count, count) + low[above]
    touching = coo_array((np.ones(len(above), bool), (above, below)), shape=(len(row), len(row)))
    return connected_components(touching, directed=False)[1]
