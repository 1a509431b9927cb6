"""Measure masks by their runs: areas, centroids and separate pieces, without decoding to pixels."""

import numpy as np

from utils.masks.masks import Masks
from utils.masks.pieces import find_pieces

ROWS_AT_A_TIME = 256
"""Masks that are measured together; this limits the memory."""


def measure(masks: Masks) -> dict[str, np.ndarray]:
    """Area (pixels), centroid x and y (pixels, NaN if empty), pieces and smaller of masks of known sizes.

    pieces: groups of pixels that touch, also by their corners. smaller: area of all pieces but the largest.
    """
    portions = range(0, max(len(masks), 1), ROWS_AT_A_TIME)
    parts = [_measure(masks.select(slice(i, i + ROWS_AT_A_TIME))) for i in portions]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _measure(masks: Masks) -> dict[str, np.ndarray]:
    found = find_pieces(masks)
    width = np.broadcast_to(masks.size[1], len(masks))[found.row]
    y, pixels = found.starts // width, found.ends - found.starts

    def total(values: np.ndarray) -> np.ndarray:
        return np.bincount(found.row, values, len(masks))

    area = total(pixels)
    with np.errstate(invalid="ignore"):
        x_mean = total(pixels * (found.starts + found.ends - 1 - 2 * y * width) / 2) / area
        y_mean = total(pixels * y) / area
    largest = np.zeros(len(masks))
    np.maximum.at(largest, found.mask, found.area)
    pieces = np.bincount(found.mask, minlength=len(masks))
    return {"area": area, "x": x_mean, "y": y_mean, "pieces": pieces, "smaller": area - largest}
