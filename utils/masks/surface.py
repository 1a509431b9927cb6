"""Compute the distance between the outlines of two masks, HD95 and its mean, at full size."""

from typing import NamedTuple

import cv2
import numpy as np
from scipy.spatial import KDTree

from utils.masks.masks import Masks

CROSS = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))


class Distances(NamedTuple):
    """Distances between the outlines of pairs of masks in pixels, float64 (pairs,), as MONAI defines them.

    Both are taken of the distances from each outline pixel of one mask to the nearest outline pixel of the other.

    hd95: the 95th percentile (linear interpolation) of the Hausdorff distance: of the two directions, the larger value
        counts (`compute_hausdorff_distance(percentile=95)`).
    msd: the mean surface distance: the mean over the outline pixels of both masks together
        (`compute_average_surface_distance(symmetric=True)`; the ASSD of Heimann et al., Comparison and evaluation of
        methods for liver segmentation from CT datasets, 2009).
    """

    hd95: np.ndarray
    msd: np.ndarray


def surface_distances(a: Masks, b: Masks) -> Distances:
    """The distances between the outlines of each mask of `a` and the one of the same number in `b`.

    Outline pixels are those with a 4-neighbour outside the mask; outside the image is outside the mask. 0 where both
    masks are empty; the image's diagonal, the largest possible distance, where one is.
    """
    pairs = [_distances(_border(a, number), _border(b, number), a.size) for number in range(len(a))]
    return Distances(*np.reshape(pairs, (-1, 2)).T)


def _border(masks: Masks, number: int) -> np.ndarray:
    """The outline pixels, int64 (n, 2) of row and column, of one mask; see `surface_distances`."""
    mask, corner = masks.region(number)
    if not mask.size:
        return np.empty((0, 2), np.int64)
    solid = mask.view(np.uint8)
    inner = cv2.erode(solid, CROSS, borderType=cv2.BORDER_CONSTANT, borderValue=0)
    return np.argwhere(solid > inner) + corner


def _distances(a: np.ndarray, b: np.ndarray, size: tuple[int, int]) -> tuple[float, float]:
    """HD95 and mean distance of two outlines."""
    if not len(a) or not len(b):
        return (float(np.hypot(*size)) if len(a) or len(b) else 0.0,) * 2
    # nearest neighbours of outline pixels: the cost grows with the outlines, not with the distance between the masks
    ways = [KDTree(other).query(one)[0] for one, other in ((a, b), (b, a))]
    return max(np.percentile(way, 95) for way in ways), np.concatenate(ways).mean()
