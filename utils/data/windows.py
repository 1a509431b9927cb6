"""Squares around some classes, such as the smallest ones, at which a model looks more closely."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from utils.masks import upsampling
from utils.masks.masks import Masks
from utils.masks.sparse import Patches, SparseMaps, moments


def middle(patches: Patches, numbers: Sequence[int]) -> np.ndarray | None:
    """The centre of mass (x, y) of the classes with these numbers, pixels; None where none of them is there."""
    chosen = [patches[number] for number in numbers]
    return moments(chosen)[0] if any(patch.any() for patch, _ in chosen) else None


def corner_around(regions: SparseMaps, numbers: Sequence[int], grid: tuple[int, int], side: int) -> tuple[int, int]:
    """The corner (top, left) of the square of `side` pixels whose middle is nearest to that of some classes.

    regions: labels or probabilities at any resolution; without any of the classes (given by their `numbers`), the
    middle of the image is taken. grid: (h, w) of the whole image from which the square is cut; it lies inside.
    """
    place, scale = middle(regions.patches(), numbers), np.array(grid) / regions.grid
    centre = np.array(grid) / 2 if place is None else (place[::-1] + 0.5) * scale
    top, left = np.clip(np.rint(centre - side / 2), 0, np.array(grid) - side).astype(int)
    return int(top), int(left)


@dataclass(frozen=True)
class Windows:
    """Squares, one for each image, at which a model looks that refines some classes of another model.

    numbers: of these classes. grid: (h, w) of the whole images. side: of the squares, pixels of the grid. corners:
    (top, left) of each image's square, by image_name.
    """

    numbers: Sequence[int]
    grid: tuple[int, int]
    side: int
    corners: Mapping[str, tuple[int, int]]

    def cut(self, name: str, image: np.ndarray) -> np.ndarray:
        """The part of an image (h, w[, 3]) that lies in its square; a view."""
        top, left = self.corners[name]
        return image[top : top + self.side, left : left + self.side]

    def masks(self, name: str, scores: np.ndarray, size: tuple[int, int], threshold: float) -> Masks:
        """The full-size mask of each refined class, from float32 scores (classes, side, side) of the image's square.

        Beyond the square the scores count as 0, which must lie below the threshold. size: the image's (H, W).
        """
        corner = self.corners[name]
        box = upsampling.reach(corner, (self.side, self.side), self.grid, size)
        regions = []
        for plane in scores[list(self.numbers)]:
            inside = upsampling.upsample_region(plane, corner, self.grid, size, box) > threshold
            regions.append((inside, box[:2]))
        return Masks.from_regions(regions, size)
