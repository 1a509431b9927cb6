"""Find the connected pieces of masks by their runs, without their pixels."""

import numpy as np

from utils.masks.rle import Runs


def find_pieces(runs: Runs, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The connected pieces of a mask (starts, ends) of an image of `size`; pixels touch at sides and corners.

    Returns starts and ends (cut at the ends of rows), the number of each run's piece, and each piece's area in pixels,
    all int64.
    """
    starts, ends, _ = cut_rows(runs, size[1])
    row = starts // size[1]
    shifted = starts + row  # a free column after each row, so that its last pixel does not touch the next row's first
    piece = label_runs(shifted, shifted + ends - starts, size[1] + 1, corners=True)
    return starts, ends, piece, np.bincount(piece, weights=ends - starts).astype(np.int64)


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
