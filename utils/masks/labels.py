"""Draw polygons as masks exactly as the competition does, and make labels at the network's resolution from masks."""

import cv2
import numpy as np


def draw(polygons: list[np.ndarray], size: tuple[int, int]) -> np.ndarray:
    """Draw the union of polygons, each by `cv2.fillPoly`, as the official baseline does.

    Args:
        polygons: for each one its x-y points in pixels, int32 (n, 2), which may lie outside the image. The pixels on
            its edges belong to a polygon.
        size: height H and width W of the image in pixels.

    Returns:
        The mask, bool (H, W), True inside at least one polygon; all False without polygons.

    Raises:
        cv2.error: for points of another type or shape, such as float.
    """
    mask = np.zeros(size, np.uint8)
    for points in polygons:
        cv2.fillPoly(mask, [points], 1)
    return mask.view(bool)


def draw_region(polygons: list[np.ndarray], size: tuple[int, int]) -> tuple[np.ndarray, tuple[int, int]]:
    """The mask of `draw` within its bounding box: bool (height, width), and the box's corner (top, left) in the image.

    Without polygons the mask is (0, 0). Polygons that leave the image are drawn at full size, because OpenCV clips an
    edge before it rounds, so that it could draw a clipped edge differently on a smaller canvas.
    """
    if not polygons:
        return np.zeros((0, 0), bool), (0, 0)
    points = np.concatenate(polygons)
    (left, top), (right, bottom) = points.min(0).tolist(), points.max(0).tolist()
    if left < 0 or top < 0 or right >= size[1] or bottom >= size[0]:
        left, top = max(left, 0), max(top, 0)  # the slices below end at the image's border
        return draw(polygons, size)[top : max(bottom + 1, 0), left : max(right + 1, 0)], (top, left)
    shifted = [points - np.int32([left, top]) for points in polygons]
    return draw(shifted, (bottom - top + 1, right - left + 1)), (top, left)


def coverage(
    mask: np.ndarray, corner: tuple[int, int], size: tuple[int, int], grid: tuple[int, int]
) -> tuple[np.ndarray, tuple[int, int]]:
    """The fraction of every cell of `grid` (h, w) that a mask covers, within its region.

    `mask`, bool (height, width), lies at `corner` (top, left) of an image of `size` (H, W). Returns the coverage, uint8
    (255: the whole cell), and its corner in the grid. It is exact at any scale, smaller or larger: the image is divided
    into equal cells whose borders are not rounded to pixels, so nothing shifts (nearest neighbour: half a cell).
    """
    if mask.size == 0:
        return np.zeros((0, 0), np.uint8), (0, 0)
    if size[0] % grid[0] == 0 and size[1] % grid[1] == 0:
        return _whole_pixels(mask, corner, (size[0] // grid[0], size[1] // grid[1]))
    sums = cv2.integral(mask.view(np.uint8), sdepth=cv2.CV_32F)  # exact up to 16 million pixels
    corners = []
    for start, pixels, full, cells in zip(corner, mask.shape, size, grid, strict=True):
        step = full / cells
        first, last = int(start / step), min(int(np.ceil((start + pixels) / step)), cells)
        edges = np.clip(np.arange(first, last + 1) * step - start, 0, pixels)  # of the cells, in the mask's pixels
        # between whole pixels an integral grows linearly, so this is exact for any edge
        whole = np.minimum(edges.astype(int), pixels - 1)
        share = (edges - whole).astype(np.float32)[:, None]
        sums = np.diff(sums[whole] + share * (sums[whole + 1] - sums[whole]), axis=0).T / np.float32(step)
        corners.append(first)
    return np.rint(sums * 255).astype(np.uint8), (corners[0], corners[1])


def _whole_pixels(
    mask: np.ndarray, corner: tuple[int, int], step: tuple[int, int]
) -> tuple[np.ndarray, tuple[int, int]]:
    """`coverage` where a cell has `step` (rows, columns) whole pixels: the same values in a third of the time."""
    first = [start // n for start, n in zip(corner, step, strict=True)]
    inside = [start - place * n for start, place, n in zip(corner, first, step, strict=True)]
    cells = [-(-(start + pixels) // n) for start, pixels, n in zip(inside, mask.shape, step, strict=True)]
    padded = np.zeros((cells[0] * step[0], cells[1] * step[1]), np.uint8)
    part = padded[inside[0] : inside[0] + mask.shape[0], inside[1] : inside[1] + mask.shape[1]]
    np.multiply(mask.view(np.uint8), 255, out=part)
    return cv2.resize(padded, (cells[1], cells[0]), interpolation=cv2.INTER_AREA), (first[0], first[1])


_COVERED = np.arange(256) / 255
EDGE = np.where(_COVERED < 0.5, 1 - 0.5 / (0.5 + _COVERED), 0.5 / (1.5 - _COVERED))
EDGE = np.rint(EDGE * 255).astype(np.uint8)
"""For each coverage (0 to 255), the label whose bilinear upsampling is one half exactly at the mask's edge.

Take a straight edge that covers the fraction f of a cell, between a full cell (1) and an empty one (0). Measured from
the cell's centre, it lies at f - 1/2. If the cell holds the value v ≥ 1/2, linear interpolation towards the empty
neighbour falls to 1/2 at (v - 1/2) / v, which is f - 1/2 for v = 1 / (3 - 2f), and by symmetry for v < 1/2. Without
this correction, the edge would be up to a twelfth of a cell too far outside or inside.
"""


def soft_label(
    mask: np.ndarray, corner: tuple[int, int], size: tuple[int, int], grid: tuple[int, int]
) -> tuple[np.ndarray, tuple[int, int]]:
    """The label that a network is trained on: `coverage`, corrected by EDGE so that upsampling restores the outlines.

    Same arguments and result as `coverage`.
    """
    covered, place = coverage(mask, corner, size, grid)
    return EDGE[covered], place


def nearest(
    mask: np.ndarray, corner: tuple[int, int], size: tuple[int, int], grid: tuple[int, int]
) -> tuple[np.ndarray, tuple[int, int]]:
    """The baseline's label: `cv2.INTER_NEAREST` of the whole mask, as `A.Resize` does it, within its region.

    Same arguments and result as `coverage`, values 0 and 255. Cell i takes pixel ⌊i · size / cells⌋, its upper left
    one, so labels move by half a cell. Only the official baseline uses it.
    """
    picked, corners = mask.view(np.uint8) * np.uint8(255), []
    for start, pixels, full, cells in zip(corner, mask.shape, size, grid, strict=True):
        # the reciprocal of a reciprocal, because OpenCV rounds in this way
        source = (np.arange(cells) * (1 / (cells / full))).astype(int) - start
        inside = np.flatnonzero((source >= 0) & (source < pixels))
        if not inside.size:
            return np.zeros((0, 0), np.uint8), (0, 0)
        picked = picked[source[inside]].T
        corners.append(int(inside[0]))
    return picked, (corners[0], corners[1])


def shrink(image: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """An image, uint8 (H, W[, channels]), resized to `grid` (h, w): area average if an axis shrinks, else linear."""
    height, width = image.shape[:2]
    for shape in ((min(grid[0], height), min(grid[1], width)), grid):
        if image.shape[:2] != shape:
            smaller = shape[0] <= image.shape[0] and shape[1] <= image.shape[1]
            image = cv2.resize(image, shape[::-1], interpolation=cv2.INTER_AREA if smaller else cv2.INTER_LINEAR)
    return image
