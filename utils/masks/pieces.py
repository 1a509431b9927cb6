"""Find the connected pieces of masks by their runs, without their pixels."""

from typing import NamedTuple

import numpy as np

from utils.masks.masks import Masks, Runs


class Pieces(NamedTuple):
    """The connected pieces of masks; pixels that touch at a corner belong together. All int64.

    starts, ends, row: the masks' runs, cut at the ends of rows, and the number of each one's mask. piece: the number of
    each run's piece. area: pixels of each piece. mask: the number of each piece's mask.
    """

    starts: np.ndarray
    ends: np.ndarray
    row: np.ndarray
    piece: np.ndarray
    area: np.ndarray
    mask: np.ndarray


def find_pieces(masks: Masks) -> Pieces:
    """The pieces of masks of known sizes, in the order of their first pixels."""
    heights, widths = (np.broadcast_to(side, len(masks)) for side in masks.size)
    starts, ends, run = cut_rows((masks.starts, masks.ends), widths[masks.row])
    row = masks.row[run]
    # all masks below each other, with a free row after each mask and a free column after each row
    height, width = heights.max(initial=0) + 1, widths.max(initial=0) + 1
    y = starts // widths[row]
    begin = (row * height + y) * width + starts - y * widths[row]
    piece = label_runs(begin, begin + ends - starts, width, corners=True)
    first = np.unique(piece, return_index=True)[1]
    return Pieces(starts, ends, row, piece, np.bincount(piece, ends - starts).astype(np.int64), row[first])


def cut_rows(runs: Runs, width: int | np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The runs, cut where a row ends: starts, ends and the number of the run that each part comes from (int64).

    width: columns of the image, or of each run's image.
    """
    starts, ends = runs
    first, last = starts // width, (ends - 1) // width
    counts = last - first + 1
    run = np.repeat(np.arange(len(starts)), counts)
    row = np.arange(len(run)) - np.repeat(np.cumsum(counts) - counts, counts) + first[run]
    width = np.broadcast_to(width, len(starts))[run]
    return np.maximum(starts[run], row * width), np.minimum(ends[run], (row + 1) * width), run


def label_runs(starts: np.ndarray, ends: np.ndarray, width: int, corners: bool) -> np.ndarray:
    """The number, from 0, of the connected piece of each run; runs lie within rows of `width` and are sorted.

    corners: whether pixels that touch only at a corner belong together. The last column must then be free in every row.
    """
    from scipy.sparse import coo_array  # here, because only some commands on submissions need it, and all start at once
    from scipy.sparse.csgraph import connected_components

    reach = int(corners)
    first = np.searchsorted(ends, starts + width - reach, side="right")  # in the next row, the first run that a run
    last = np.searchsorted(starts, ends + width + reach, side="left")  # touches, and the first behind those it touches
    counts = np.maximum(last - first, 0)
    above = np.repeat(np.arange(len(starts)), counts)
    below = np.arange(len(above)) - np.repeat(np.cumsum(counts) - counts, counts) + first[above]
    graph = coo_array((np.ones(len(above), bool), (above, below)), shape=(len(starts),) * 2)
    return connected_components(graph, directed=False)[1] if len(starts) else np.zeros(0, np.int64)
