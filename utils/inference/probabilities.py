"""The probability store: a fold model's probabilities for each image, in one small file per image."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from utils.data.records import Prediction
from utils.data.windows import Windows
from utils.files import delete_temporary, open_arrays, read_json, replacing, shown, write_json
from utils.masks.sparse import SparseMaps
from utils.masks.upsampling import upsample_region

FORMAT = 1
LEVELS = 4095
"""Probabilities are stored as whole multiples of 1 / LEVELS. 255 would be enough for the outline of a bone, but not if
two fold models are sure and disagree: then a difference below 0.001 can decide."""
LARGEST_SIDE = 2**16
"""Pixels; larger sizes come from a damaged file, and masks of that size would fill the memory."""
FLOOR = 0.005
"""A class's region is the box around all its probabilities above this."""


@dataclass(frozen=True)
class Stored:
    """One image's probabilities at network resolution, uint16 multiples of 1 / LEVELS, 0 outside each class's region.

    size: the full size (H, W). detail: further probabilities, on a finer grid, that are added to the others at full
    size; None without any, see `inference.refinement`.
    """

    regions: SparseMaps
    size: tuple[int, int]
    detail: SparseMaps | None = None

    @property
    def layers(self) -> list[SparseMaps]:
        """The maps whose upsampled sum is the probability."""
        return [self.regions] if self.detail is None else [self.regions, self.detail]

    def finest(self) -> Iterator[np.ndarray]:
        """Each class's probabilities times LEVELS, 2-D, on the finer grid if it has a detail; around it, all are 0."""
        details = self.layers[-1].patches()
        for (patch, corner), (added, (top, left)) in zip(self.regions.patches(), details, strict=True):
            if self.detail is not None and added.size:
                whole = 0, 0, *self.detail.grid
                patch = upsample_region(patch.astype(np.float32), corner, self.regions.grid, self.detail.grid, whole)
                patch[top : top + added.shape[0], left : left + added.shape[1]] += added
            yield patch


class ProbabilityStore:
    """A folder with one compressed .npz file per image, and store.json, which says how the probabilities were made."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)

    def begin(self, source: dict) -> None:
        """Prepare for writing probabilities that are made from `source` (JSON values: weights, TTA, data, …).

        Files that were made from the same source, in an interrupted run, are kept; files from another source, and what
        a killed process left unfinished, are deleted.
        """
        for unfinished in self.folder.glob(".*.part.npz"):
            unfinished.unlink()
        path = self.folder / "store.json"
        delete_temporary(self.folder)
        source = {"format": FORMAT, **source}
        if not path.exists() or read_json(path) != source:
            for old in self.folder.glob("*.npz"):
                old.unlink()
            write_json(path, source)

    def windows(self, names: Sequence[str]) -> Windows | None:
        """The parts of the images that the network has to see; None for whole images."""
        return None

    def path(self, image_name: str) -> Path:
        """The file of one image."""
        return self.folder / f"{image_name}.npz"

    def names(self) -> list[str]:
        """The stored images, sorted."""
        return sorted(path.name.removesuffix(".npz") for path in self.folder.glob("*.npz"))

    def write(self, image_name: str, probabilities: np.ndarray, size: tuple[int, int]) -> None:
        """Store float32 (classes, h, w) probabilities in [0, 1] of an image of full size (H, W); ValueError for NaN."""
        self._save(image_name, quantised(image_name, probabilities), size)

    def _save(self, image_name: str, regions: SparseMaps, size: tuple[int, int]) -> None:
        with replacing(self.path(image_name)) as temporary:
            np.savez_compressed(temporary, size=np.array(size), **regions.arrays())

    def read(self, image_name: str) -> Stored:
        """One image's probabilities. Raises FileNotFoundError or ValueError naming the file and what to do."""
        path = self.path(image_name)
        try:
            with open_arrays(path) as arrays:
                stored = Stored(SparseMaps.from_arrays(arrays), tuple(arrays["size"].tolist()))
                height, width = stored.size
                if not (0 < height <= LARGEST_SIDE and 0 < width <= LARGEST_SIDE):
                    raise ValueError(f"the image's size is {stored.size}, expected 1 to {LARGEST_SIDE}")
                return stored
        except FileNotFoundError:
            raise FileNotFoundError(
                f"{shown(path)}: not stored; run {Prediction.notebook} for this fold model again"
            ) from None
        except ValueError as error:
            raise ValueError(f"{error}; delete it and run {Prediction.notebook} again") from error


def quantised(image_name: str, probabilities: np.ndarray) -> SparseMaps:
    """Float32 (classes, h, w) probabilities in [0, 1] as uint16 multiples of 1 / LEVELS; ValueError for NaN."""
    codes = np.empty(probabilities.shape, np.uint16)
    for plane, of_class in zip(probabilities, codes, strict=True):  # one by one: all at 2048² take 0.5 GB a copy
        if not np.isfinite(plane).all():
            raise ValueError(f"{image_name}: the probabilities hold NaN or infinity; is the checkpoint damaged?")
        np.rint(plane * LEVELS, out=of_class, casting="unsafe")
    return SparseMaps.from_dense(codes, floor=round(FLOOR * LEVELS))
