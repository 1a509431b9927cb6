"""Sparse maps: only the values inside a box per class, for cached soft labels and stored probabilities."""

from dataclasses import dataclass

import cv2
import numpy as np

Patch = tuple[np.ndarray, tuple[int, int]]
"""The part of a class's map that is not zero (height, width), and that part's corner (top, left)."""
Patches = list[Patch]
"""One patch for each class."""


@dataclass(frozen=True)
class SparseMaps:
    """Maps of all classes on one grid, uint8 or uint16, each class only inside its bounding box.

    grid: (h, w) of the whole map. boxes: int32 (classes, 4), one row per class: top, left, height, width; all 0 for a
    class that is zero everywhere. values: 1-D, the contents of the boxes row by row, class after class.
    Raises ValueError if boxes and values do not fit together.
    """

    grid: tuple[int, int]
    boxes: np.ndarray
    values: np.ndarray

    def __post_init__(self) -> None:
        """Raise ValueError if values do not fit the boxes, or boxes the grid, as in a damaged file."""
        boxes = np.asarray(self.boxes)
        if boxes.ndim != 2 or boxes.shape[1] != 4 or boxes.dtype.kind not in "iu" or len(self.grid) != 2:
            raise ValueError(f"boxes {boxes.dtype} {boxes.shape} on grid {self.grid}: the file is damaged")
        if self.values.dtype.kind != "u" or self.values.ndim != 1:
            raise ValueError(f"values {self.values.dtype} {self.values.shape}: the file is damaged")
        if (boxes < 0).any() or (boxes[:, :2].astype(np.int64) + boxes[:, 2:] > self.grid).any():
            raise ValueError(f"a box lies outside the grid {self.grid}: the file is damaged")
        sizes = self.boxes[:, 2].astype(np.int64) * self.boxes[:, 3]
        if sizes.sum() != self.values.size:
            raise ValueError(f"boxes hold {sizes.sum()} values, found {self.values.size}: the file is damaged")

    @classmethod
    def from_patches(cls, grid: tuple[int, int], patches: Patches) -> "SparseMaps":
        """From one (patch (height, width), corner (top, left)) per class."""
        boxes = [(*corner, *patch.shape) if patch.size else (0, 0, 0, 0) for patch, corner in patches]
        dtype = patches[0][0].dtype if patches else np.uint8
        values = np.concatenate([np.zeros(0, dtype), *(patch.ravel() for patch, _ in patches)])
        return cls(grid, np.array(boxes, np.int32).reshape(-1, 4), values)

    @classmethod
    def from_dense(cls, maps: np.ndarray, floor: int = 0) -> "SparseMaps":
        """From (classes, h, w); each box is the smallest with all values above `floor`; values outside are lost."""
        patches = []
        for plane in maps:
            above = plane > floor
            ys, xs = np.flatnonzero(above.any(1)), np.flatnonzero(above.any(0))
            top, left = (int(ys[0]), int(xs[0])) if ys.size else (0, 0)
            patches.append((plane[top : ys[-1] + 1, left : xs[-1] + 1] if ys.size else plane[:0, :0], (top, left)))
        return cls.from_patches(maps.shape[1:], patches)

    def patches(self) -> Patches:
        """One (view (height, width), corner (top, left)) per class."""
        ends = np.cumsum(self.boxes[:, 2].astype(np.int64) * self.boxes[:, 3])
        return [
            (self.values[end - height * width : end].reshape(height, width), (top, left))
            for (top, left, height, width), end in zip(self.boxes.tolist(), ends.tolist(), strict=True)
        ]

    def dense(self) -> np.ndarray:
        """The whole maps, (classes, h, w)."""
        maps = np.zeros((len(self.boxes), *self.grid), self.values.dtype)
        for plane, (patch, (top, left)) in zip(maps, self.patches(), strict=True):
            plane[top : top + patch.shape[0], left : left + patch.shape[1]] = patch
        return maps

    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays that `np.savez` writes to a file; `from_arrays` restores the maps from them."""
        return {"grid": np.array(self.grid, np.int32), "boxes": self.boxes, "values": self.values}

    @classmethod
    def from_arrays(cls, arrays: dict[str, np.ndarray]) -> "SparseMaps":
        """The inverse of `arrays`."""
        return cls(tuple(arrays["grid"].tolist()), arrays["boxes"], arrays["values"])


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
