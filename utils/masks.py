"""Polygons to masks exactly as the competition draws them, and masks to network resolution as area coverage."""

import cv2
import numpy as np


def draw(polygons: list[np.ndarray], size: tuple[int, int]) -> np.ndarray:
    """Union of the polygons, bool (H, W): `cv2.fillPoly` of each on whole-pixel points, as the baseline does."""
    mask = np.zeros(size, np.uint8)
    for points in polygons:
        cv2.fillPoly(mask, [points], 1)
    return mask.view(bool)


def draw_region(polygons: list[np.ndarray], size: tuple[int, int]) -> tuple[np.ndarray, tuple[int, int]]:
    """The same mask within its bounding box only: bool (height, width) and the box's corner (top, left) in the image.

    No polygon gives a (0, 0) mask. Polygons that leave the image are drawn at full size, because OpenCV clips an edge
    before it rounds, so that a shifted canvas could draw the cut differently.
    """
    if not polygons:
        return np.zeros((0, 0), bool), (0, 0)
    points = np.concatenate(polygons)
    (left, top), (right, bottom) = points.min(0), points.max(0)
    if left < 0 or top < 0 or right >= size[1] or bottom >= size[0]:
        left, top = max(int(left), 0), max(int(top), 0)
        right, bottom = min(int(right), size[1] - 1), min(int(bottom), size[0] - 1)
        return draw(polygons, size)[top : bottom + 1, left : right + 1], (top, left)
    corner = np.array([left, top], np.int32)
    shifted = [p - corner for p in polygons]
    return draw(shifted, (int(bottom - top) + 1, int(right - left) + 1)), (int(top), int(left))


def cell_sums(values: np.ndarray, start: int, size: int, cells: int) -> tuple[np.ndarray, int]:
    """Mean of each grid cell along the first axis, cells that `values` does not reach left out: (cells, …), first cell.

    `values` float32 (n, …) are the pixels from `start` on, all others are 0. `size` pixels are divided into `cells`
    equal intervals; cell i covers [i · size / cells, (i + 1) · size / cells), whole pixels or not.
    """
    step = size / cells
    first, last = int(start / step), min(int(np.ceil((start + len(values)) / step)), cells)
    edges = np.clip(np.arange(first, last + 1) * step - start, 0, len(values))
    whole = edges.astype(int)
    sums = np.concatenate([np.zeros_like(values[:1]), np.cumsum(values, axis=0)])
    parts = (edges - whole).astype(np.float32)[:, None] * values[np.minimum(whole, len(values) - 1)]
    return np.diff(sums[whole] + parts, axis=0) / np.float32(step), first


def coverage(
    mask: np.ndarray, corner: tuple[int, int], size: tuple[int, int], grid: tuple[int, int]
) -> tuple[np.ndarray, tuple[int, int]]:
    """The soft label of a mask: the fraction of every cell of `grid` (h, w) that it covers, within its region.

    `mask` bool (height, width) lies at `corner` (top, left) of a `size` (H, W) image. Returns uint8 coverage
    (255 = the whole cell) and its corner in the grid. Half-pixel exact at any scale, down or up: cell borders are
    where the image's borders say, not rounded to pixels, so nothing shifts (nearest-neighbour shifts half a step).
    """
    if mask.size == 0:
        return np.zeros((0, 0), np.uint8), (0, 0)
    rows, top = cell_sums(mask.astype(np.float32), corner[0], size[0], grid[0])
    columns, left = cell_sums(rows.T, corner[1], size[1], grid[1])
    return np.rint(columns.T * 255).astype(np.uint8), (top, left)


def nearest(
    mask: np.ndarray, corner: tuple[int, int], size: tuple[int, int], grid: tuple[int, int]
) -> tuple[np.ndarray, tuple[int, int]]:
    """The baseline's label: `cv2.INTER_NEAREST` of the whole mask, as `A.Resize` does it, within its region.

    Same arguments and result as `coverage`, values 0 and 255. Cell i takes pixel ⌊i · size / cells⌋, its upper left
    one, so labels move by half a source step. Only the official baseline uses it.
    """
    # the reciprocal of a reciprocal, because OpenCV rounds so
    pixels = [
        (np.arange(n) * (1 / (n / full))).astype(int) - start for n, full, start in zip(grid, size, corner, strict=True)
    ]
    cells = [np.flatnonzero((p >= 0) & (p < length)) for p, length in zip(pixels, mask.shape, strict=True)]
    if not (len(cells[0]) and len(cells[1])):
        return np.zeros((0, 0), np.uint8), (0, 0)
    picked = mask[np.ix_(pixels[0][cells[0]], pixels[1][cells[1]])]
    return picked.astype(np.uint8) * 255, (int(cells[0][0]), int(cells[1][0]))


def shrink(image: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """An image (H, W[, channels]) at `grid` (h, w): area average along an axis that shrinks, linear where it grows."""
    height, width = image.shape[:2]
    for shape in ((min(grid[0], height), min(grid[1], width)), grid):
        if image.shape[:2] != shape:
            smaller = shape[0] <= image.shape[0] and shape[1] <= image.shape[1]
            image = cv2.resize(image, shape[::-1], interpolation=cv2.INTER_AREA if smaller else cv2.INTER_LINEAR)
    return image
