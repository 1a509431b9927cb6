"""Move image and labels together: flip, cut, and one resampling for rotation, scale, shift, elastic field and bend."""

from dataclasses import dataclass

import cv2
import numpy as np

from utils.hand.bend import Joint
from utils.masks.sparse import Patch, Patches

ELASTIC_GRID = 6
"""Control points of the elastic field along each side; so few that a bend is as wide as a palm, not as a bone."""
COARSE = 8
"""Only every so many rows and columns are looked at to find about where a bone goes."""
LIMIT = np.radians(45)
"""No joint is bent further than this, its own bend included; it is about as far as hands go."""


def transform_matrix(grid: tuple[int, int], angle: float, scale: float, shift: tuple[float, float]) -> np.ndarray:
    """Turn by `angle` degrees (counter-clockwise on screen) and scale about the centre of `grid` (h, w), then move by
    `shift` (x, y) pixels: float64 (2, 3) mapping old to new pixel-centre coordinates."""
    matrix = cv2.getRotationMatrix2D(((grid[1] - 1) / 2, (grid[0] - 1) / 2), angle, scale)
    matrix[:, 2] += shift
    return matrix


def flip(image: np.ndarray, patches: Patches) -> tuple[np.ndarray, Patches]:
    """Mirror left to right, without interpolation."""
    width = image.shape[1]
    return image[:, ::-1], [(p[:, ::-1], (top, width - left - p.shape[1])) for p, (top, left) in patches]


def cut(image: np.ndarray, patches: Patches, corner: tuple[int, int], side: int) -> tuple[np.ndarray, Patches]:
    """The square of `side` pixels at `corner` (top, left) of image and labels; it lies inside the image."""
    top, left = corner
    inside = []
    for patch, (y, x) in patches:
        rows, columns = slice(max(top - y, 0), max(top + side - y, 0)), slice(max(left - x, 0), max(left + side - x, 0))
        part = patch[rows, columns]
        inside.append((part, (max(y - top, 0), max(x - left, 0)) if part.size else (0, 0)))
    return image[top : top + side, left : left + side], inside


def draw_corner(
    grid: tuple[int, int], side: int, rng: np.random.Generator, centre: np.ndarray | None = None
) -> tuple[int, int]:
    """The corner (top, left) of a random square of `side` pixels in an image of size `grid` (h, w).

    centre: the position (x, y) that the square's centre is at most a quarter of its side away from, along each axis, as
    far as the image reaches; None for a square anywhere.
    """
    room = np.array(grid) - side
    if centre is None:
        top, left = rng.integers(room + 1)
    else:
        wanted = np.array(centre[::-1]) + rng.uniform(-0.25, 0.25, 2) * side - side / 2
        top, left = np.clip(np.rint(wanted), 0, room)
    return int(top), int(left)


def affine(
    image: np.ndarray, patches: Patches, matrix: np.ndarray, grid: tuple[int, int] = ()
) -> tuple[np.ndarray, Patches]:
    """Apply a matrix of `transform_matrix` with bilinear interpolation; outside the image all is black and unlabelled.

    grid: (h, w) of the result, () for the image's. Each class is transformed only inside the box around its transformed
    corners, so 29 classes take little more time than the image. OpenCV rounds source positions to 1/32 pixel.
    """
    grid = grid or image.shape[:2]
    moved = cv2.warpAffine(np.ascontiguousarray(image), matrix, grid[::-1], flags=cv2.INTER_LINEAR)
    return moved, [_affine_patch(patch, corner, matrix, grid) for patch, corner in patches]


def _affine_patch(patch: np.ndarray, corner: tuple[int, int], matrix: np.ndarray, grid: tuple[int, int]) -> Patch:
    if patch.size == 0:
        return patch, (0, 0)
    (top, left), (height, width) = corner, patch.shape
    corners = np.array([(x, y, 1.0) for x in (left - 1, left + width) for y in (top - 1, top + height)])
    reached = corners @ matrix.T
    new_left, new_top = np.clip(np.floor(reached.min(0)).astype(int), 0, (grid[1], grid[0]))
    new_right, new_bottom = np.clip(np.ceil(reached.max(0)).astype(int) + 1, 0, (grid[1], grid[0]))
    if new_right <= new_left or new_bottom <= new_top:
        return patch[:0, :0], (0, 0)
    local = matrix.copy()
    local[:, 2] += matrix[:, :2] @ (left, top) - (new_left, new_top)
    size = (int(new_right - new_left), int(new_bottom - new_top))
    moved = cv2.warpAffine(np.ascontiguousarray(patch), local, size, flags=cv2.INTER_LINEAR)
    return moved, (int(new_top), int(new_left))


@dataclass(frozen=True)
class Bend:
    """A bend about a joint's pivot by `angle` radians (positive turns what the axis points at clockwise on screen).

    share: which part of it the near side turns, in the other direction; the far side turns by the rest.
    """

    joint: Joint
    angle: float
    share: float

    def sources(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The old positions that the new positions x, y (float32, any shape) show.

        Everything turns about the pivot: the near side by one angle, the far side by another, and between them the
        angle changes smoothly. The zone of the change is as long as the joint, and longer beside it, in proportion to
        the distance from the axis. So up to LIMIT nothing is torn or folded: areas shrink to 0.4 at most.
        """
        (cx, cy), middle = self.joint.pivot, self.angle * (0.5 - self.share)
        sine, cosine = np.sin(middle), np.cos(middle)
        ux, uy = np.array([[cosine, -sine], [sine, cosine]]) @ self.joint.axis
        dx, dy = x - np.float32(cx), y - np.float32(cy)
        along, beside = dx * np.float32(ux) + dy * np.float32(uy), dy * np.float32(ux) - dx * np.float32(uy)
        reach = max(self.joint.reach, 1.0)  # of the few pixels in a thumbnail, the joint may have one, or none
        place = np.clip(along / np.sqrt(np.float32(reach**2) + beside * beside), -1, 1)
        slope = np.float32(0.75) - np.float32(0.25) * place * place
        step = np.float32(0.5) + place * slope  # 0 to 1, smooth at both ends
        turned = np.float32(-self.angle) * (step - np.float32(self.share))
        sine, cosine = np.sin(turned), np.cos(turned)
        return np.float32(cx) + cosine * dx - sine * dy, np.float32(cy) + sine * dx + cosine * dy


def draw_bend(joint: Joint, degrees: float, rng: np.random.Generator) -> Bend:
    """A random bend by up to `degrees` in both directions, such that the joint is bent by at most LIMIT afterwards."""
    most = max(LIMIT, abs(joint.bend))
    angle = np.clip(np.radians(rng.uniform(-degrees, degrees)), -most - joint.bend, most - joint.bend)
    return Bend(joint, float(angle), float(rng.uniform()))


def draw_field(grid: tuple[int, int], amount: float, rng: np.random.Generator) -> np.ndarray:
    """A smooth random displacement, float32 (h, w, 2), in pixels (x, y).

    Its standard deviation at the control points is `amount` times the shorter side of `grid` (h, w).
    """
    points = rng.normal(0.0, amount * min(grid), (ELASTIC_GRID, ELASTIC_GRID, 2)).astype(np.float32)
    return cv2.resize(points, grid[::-1], interpolation=cv2.INTER_CUBIC)


def warp(
    image: np.ndarray,
    patches: Patches,
    matrix: np.ndarray,
    field: np.ndarray | None = None,
    bend: Bend | None = None,
    grid: tuple[int, int] = (),
) -> tuple[np.ndarray, Patches]:
    """Apply an affine matrix, an elastic field and a bend together, in one bilinear resampling of image and labels.

    The new pixel p shows the old position bend(matrix⁻¹(p) + field(p)). grid: (h, w) of the result and of the field, ()
    for the image's.
    """
    grid = grid or image.shape[:2]
    inverse = cv2.invertAffineTransform(matrix).astype(np.float32)
    x, y = np.arange(grid[1], dtype=np.float32), np.arange(grid[0], dtype=np.float32)
    source_x = inverse[0, 0] * x + (inverse[0, 1] * y + inverse[0, 2])[:, None]
    source_y = inverse[1, 0] * x + (inverse[1, 1] * y + inverse[1, 2])[:, None]
    if field is not None:
        source_x, source_y = source_x + field[..., 0], source_y + field[..., 1]
    if bend is not None:
        source_x, source_y = bend.sources(source_x, source_y)
    moved = cv2.remap(np.ascontiguousarray(image), source_x, source_y, cv2.INTER_LINEAR)
    coarse = [source[::COARSE, ::COARSE] for source in (source_x, source_y)]
    slack = 2 * max(np.abs(np.diff(source, axis=axis)).max(initial=0) for source in coarse for axis in (0, 1))
    return moved, [_warp_patch(*patch, (source_x, source_y), coarse, float(slack)) for patch in patches]


def _warp_patch(
    patch: np.ndarray,
    corner: tuple[int, int],
    sources: tuple[np.ndarray, np.ndarray],
    coarse: list[np.ndarray],
    slack: float,
) -> Patch:
    """One class through the map `sources` (x, y); `coarse` is every COARSE-th of it, between which lies `slack`."""
    nowhere = patch[:0, :0], (0, 0)
    if patch.size == 0:
        return nowhere
    (top, left), (height, width) = corner, patch.shape

    def shown_in(x: np.ndarray, y: np.ndarray, margin: float) -> tuple[np.ndarray, np.ndarray]:
        """The rows and columns in which positions lie in the patch or less than `margin` pixels beside it."""
        inside = (x > left - margin) & (x < left + width - 1 + margin)
        inside &= (y > top - margin) & (y < top + height - 1 + margin)
        return np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))

    rows, columns = shown_in(*coarse, 1 + slack)
    if not len(rows):
        return nowhere
    y, x = max(rows[0] - 1, 0) * COARSE, max(columns[0] - 1, 0) * COARSE
    near = slice(y, (rows[-1] + 1) * COARSE), slice(x, (columns[-1] + 1) * COARSE)
    rows, columns = shown_in(sources[0][near], sources[1][near], 1)
    if not len(rows):
        return nowhere
    y, x = y + int(rows[0]), x + int(columns[0])
    box = slice(y, y + int(np.ptp(rows)) + 1), slice(x, x + int(np.ptp(columns)) + 1)
    moved = cv2.remap(np.ascontiguousarray(patch), sources[0][box] - left, sources[1][box] - top, cv2.INTER_LINEAR)
    return moved, (y, x)
