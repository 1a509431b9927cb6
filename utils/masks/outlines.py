"""Polygons of masks: the way back from pixels to annotations."""

import cv2
import numpy as np


def outline(mask: np.ndarray, corner: tuple[int, int] = (0, 0)) -> list[np.ndarray]:
    """Polygons which, drawn by `utils.masks.labels.draw`, give exactly the mask.

    A connected piece without holes is one polygon. A piece with holes is cut through each hole into polygons without,
    because polygons of the competition have none; together, they cover the same pixels.

    Args:
        mask: bool (h, w), True inside.
        corner: top and left of the mask in the image, in pixels.

    Returns:
        int32 (n, 2) x-y points in the image's pixels, n ≥ 3 (points of tiny pieces are repeated); [] for an empty mask.
    """
    top, left = corner
    pixels = np.ascontiguousarray(mask).view(np.uint8)
    contours, tree = cv2.findContours(pixels, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    polygons, pieces = [], None
    for number, contour in enumerate(contours):
        _, _, hole, around = tree[0][number]
        if around >= 0:  # the border of a hole; its piece is handled with its outer border
            continue
        points = contour[:, 0]
        if hole < 0:
            repeated = np.resize(points, (max(len(points), 3), 2))
            polygons.append(repeated.astype(np.int32) + np.int32([left, top]))
            continue
        if pieces is None:
            _, pieces = cv2.connectedComponents(pixels, connectivity=8)
        x, y, width, height = cv2.boundingRect(contour)
        piece = pieces[y : y + height, x : x + width] == pieces[points[0][1], points[0][0]]
        hole_x, _, hole_width, _ = cv2.boundingRect(contours[hole])
        cut = hole_x + hole_width // 2 - x
        polygons += outline(piece[:, :cut], (top + y, left + x)) + outline(piece[:, cut:], (top + y, left + x + cut))
    return polygons
