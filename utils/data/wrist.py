"""Find the wrist in the labels of a hand, bend it sideways, and cut squares around it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from utils.data.competition import HAND_BONES
from utils.masks import rle, upsampling
from utils.masks.sparse import Patches, SparseMaps

CARPALS, FOREARM = HAND_BONES[19:27], HAND_BONES[27:]
LIMIT = np.radians(45)
"""No wrist is bent further than this, its own bend included; it is about as far as wrists go."""


@dataclass(frozen=True)
class Wrist:
    """Where the wrist is, in pixel-centre coordinates (x, y).

    centre: of the carpals. axis: unit vector from the forearm to the carpals. reach: half the carpals' length along the
    axis, pixels. bend: angle between axis and hand, radians, positive if the hand turns clockwise on screen.
    """

    centre: np.ndarray
    axis: np.ndarray
    reach: float
    bend: float


def has_wrist(classes: Sequence[str]) -> bool:
    """Whether these are classes of a hand with its wrist: Radius, Ulna and the eight carpals are among them."""
    return set(CARPALS) | set(FOREARM) <= set(classes)


def find_wrist(patches: Patches, classes: Sequence[str]) -> Wrist | None:
    """The wrist of the hand whose labels these are, one patch per class; None if its bones are not all there."""
    if not has_wrist(classes):
        return None
    carpals, arm = ([patches[classes.index(name)] for name in names] for names in (CARPALS, FOREARM))
    rest = [patch for patch, name in zip(patches, classes, strict=True) if name not in CARPALS + FOREARM]
    if not all(patch.any() for patch, _ in [*carpals, *arm]):
        return None
    centre, spread = moments(carpals)
    axis = centre - moments(arm)[0]
    axis = axis / max(np.linalg.norm(axis), 1e-6)
    outwards = moments(rest)[0] - centre if any(patch.any() for patch, _ in rest) else axis
    bend = np.arctan2(axis[0] * outwards[1] - axis[1] * outwards[0], axis @ outwards)
    return Wrist(centre, axis, float(np.sqrt(3 * axis @ spread @ axis)), float(bend))


def carpal_numbers(classes: Sequence[str]) -> list[int]:
    """The places of the eight carpals among the classes."""
    return [classes.index(name) for name in CARPALS]


def carpal_corner(regions: SparseMaps, classes: Sequence[str], grid: tuple[int, int], side: int) -> tuple[int, int]:
    """The corner (top, left) of the square of `side` pixels whose middle is nearest to the centre of the carpals.

    regions: their labels or probabilities at any resolution; without any, the middle of the image is taken. grid: (h,
    w) of the whole image from which the square is cut; it lies inside.
    """
    patches = regions.patches()
    carpals = [patches[number] for number in carpal_numbers(classes)]
    scale = np.array(grid) / regions.grid
    centre = np.array(grid) / 2
    if any(patch.any() for patch, _ in carpals):
        centre = (moments(carpals)[0][::-1] + 0.5) * scale
    top, left = np.clip(np.rint(centre - side / 2), 0, np.array(grid) - side).astype(int)
    return int(top), int(left)


@dataclass(frozen=True)
class Windows:
    """Squares around the carpals, one for each image, at which a wrist stage looks.

    classes: of the scores. grid: (h, w) of the whole images. side: of the squares, pixels of the grid. corners: (top,
    left) of each image's square, by image_name.
    """

    classes: Sequence[str]
    grid: tuple[int, int]
    side: int
    corners: Mapping[str, tuple[int, int]]

    def cut(self, name: str, image: np.ndarray) -> np.ndarray:
        """The part of an image (h, w[, 3]) that lies in its square; a view."""
        top, left = self.corners[name]
        return image[top : top + self.side, left : left + self.side]

    def masks(self, name: str, scores: np.ndarray, size: tuple[int, int], threshold: float) -> list[str]:
        """The full-size RLE of each carpal, from float32 scores (classes, side, side) of the image's square.

        Beyond the square the scores count as 0, which must lie below the threshold. size: the image's (H, W).
        """
        corner = self.corners[name]
        box = upsampling.reach(corner, (self.side, self.side), self.grid, size)
        runs = []
        for plane in scores[carpal_numbers(self.classes)]:
            inside = upsampling.upsample_region(plane, corner, self.grid, size, box) > threshold
            runs.append(upsampling.region_runs(inside, box[:2], size))
        return rle.to_strings(runs)


def moments(patches: Patches) -> tuple[np.ndarray, np.ndarray]:
    """Centre of mass (x, y) and covariance, float64 (2, 2), of the labels of some classes together; pixels."""
    total, first, second = 0.0, np.zeros(2), np.zeros((2, 2))
    for patch, (top, left) in patches:
        if not patch.size:
            continue
        m = cv2.moments(np.ascontiguousarray(patch))
        if m["m00"]:
            mean = np.array([m["m10"], m["m01"]]) / m["m00"]
            own = np.array([[m["mu20"], m["mu11"]], [m["mu11"], m["mu02"]]])
            place = mean + np.array([left, top])
            total, first = total + m["m00"], first + m["m00"] * place
            second += own + m["m00"] * np.outer(place, place)
    centre = first / max(total, 1e-6)
    return centre, second / max(total, 1e-6) - np.outer(centre, centre)


@dataclass(frozen=True)
class Bend:
    """A bend of the wrist by `angle` radians (positive turns the hand clockwise on screen against the forearm).

    share: which part of it the forearm turns, in the other direction; the hand turns by the rest.
    """

    wrist: Wrist
    angle: float
    share: float

    def sources(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The old positions that the new positions x, y (float32, any shape) show.

        Everything turns about the wrist's centre: the forearm by one angle, the hand by another, and between them the
        angle changes smoothly. The zone of the change is as long as the carpals, and longer beside them, in proportion
        to the distance from the axis. So up to LIMIT nothing is torn or folded: areas shrink to 0.4 at most.
        """
        (cx, cy), middle = self.wrist.centre, self.angle * (0.5 - self.share)
        ux, uy = rotation(middle) @ self.wrist.axis
        dx, dy = x - np.float32(cx), y - np.float32(cy)
        along, beside = dx * np.float32(ux) + dy * np.float32(uy), dy * np.float32(ux) - dx * np.float32(uy)
        reach = max(self.wrist.reach, 1.0)  # of the few pixels in a thumbnail, there may be one carpal, or none
        place = np.clip(along / np.sqrt(np.float32(reach**2) + beside * beside), -1, 1)
        slope = np.float32(0.75) - np.float32(0.25) * place * place
        step = np.float32(0.5) + place * slope  # 0 to 1, smooth at both ends
        turned = np.float32(-self.angle) * (step - np.float32(self.share))
        sine, cosine = np.sin(turned), np.cos(turned)
        return np.float32(cx) + cosine * dx - sine * dy, np.float32(cy) + sine * dx + cosine * dy


def draw_bend(wrist: Wrist, degrees: float, rng: np.random.Generator) -> Bend:
    """A random bend by up to `degrees` in both directions, such that the wrist is bent by at most LIMIT afterwards."""
    most = max(LIMIT, abs(wrist.bend))
    angle = np.clip(np.radians(rng.uniform(-degrees, degrees)), -most - wrist.bend, most - wrist.bend)
    return Bend(wrist, float(angle), float(rng.uniform()))


def rotation(angle: float) -> np.ndarray:
    """The matrix, float64 (2, 2), that turns (x, y) by `angle` radians, clockwise on screen."""
    return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
