"""Compute the distance between the outlines of two masks, HD95, from full-size RLE."""

from collections.abc import Sequence

import cv2
import numpy as np
from scipy.spatial import KDTree

from utils.masks import rle

CROSS = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))


def hd95(rles_a: Sequence[str], rles_b: Sequence[str], size: tuple[int, int]) -> np.ndarray:
    """The 95th percentile of the Hausdorff distance in pixels, float64 (pairs,), of pairs of full-size RLE masks.

    Of the distances from each outline pixel of one mask to the nearest outline pixel of the other, the 95th percentile
    is taken (linear interpolation); of the two directions, the larger value counts, as in MONAI. Outline pixels are
    those with a 4-neighbour outside the mask; outside the image is outside the mask. 0 where both masks are empty; the
    image's diagonal, the largest possible distance, where one is. `size`: the image's (H, W). Raises ValueError for a
    malformed mask.
    """
    return np.array([_hd95(outline(a, size), outline(b, size), size) for a, b in zip(rles_a, rles_b, strict=True)])


def outline(text: str, size: tuple[int, int]) -> np.ndarray:
    """The outline pixels, int64 (n, 2) of row and column, of a full-size RLE mask; see `hd95`."""
    mask, corner = rle.mask_region(text, size)
    if not mask.size:
        return np.empty((0, 2), np.int64)
    solid = mask.view(np.uint8)
    inner = cv2.erode(solid, CROSS, borderType=cv2.BORDER_CONSTANT, borderValue=0)
    return np.argwhere(solid > inner) + corner


def _hd95(a: np.ndarray, b: np.ndarray, size: tuple[int, int]) -> float:
    if not len(a) or not len(b):
        return float(np.hypot(*size)) if len(a) or len(b) else 0.0
    # nearest neighbours of outline pixels: the cost grows with the outlines, not with the distance between the masks
    # From 1 on: SciPy steps from a coordinate of 0 to the next larger number, which is denormal. Where those count as
    # zero (`utils.device.tune_process`), it never gets on, and the process dies of a full stack.
    a, b = a + 1, b + 1
    return max(np.percentile(KDTree(other).query(one)[0], 95) for one, other in ((a, b), (b, a)))
