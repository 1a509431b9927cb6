"""Cache each image and its labels at the network's resolution, in one small .npz file per image."""

import gc
import hashlib
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from filelock import FileLock

from utils.data.competition import DataError, read_annotation
from utils.data.people import person_values
from utils.files import cores, delete_temporary, open_arrays, replacing
from utils.masks.labels import coverage, draw_region, nearest, shrink, soft_label
from utils.masks.masks import Masks
from utils.masks.sparse import SparseMaps

FORMAT = 2
"""To be raised by hand when an entry made from the same files has other bytes; then all files are made again. A test
compares an entry with the bytes that each number stands for."""

RESAMPLE = {"soft": soft_label, "coverage": coverage, "nearest": nearest}
"""Ways to bring masks to the network's resolution. All models use `soft`; the official baseline uses `nearest`, which
shifts the labels by half a pixel of the network; `coverage` without correction is there for comparison."""


@dataclass(frozen=True)
class Entry:
    """One cached image. image: uint8 (h, w), or (h, w, 3) RGB for a coloured one. size: (H, W) of the original.

    label: soft labels of each class at (h, w). truth: full-size masks. Both are None in the test split.
    """

    image: np.ndarray
    size: tuple[int, int]
    label: SparseMaps | None
    truth: Masks | None


def read_image(path: str | Path) -> np.ndarray:
    """An image as uint8 (H, W) if it is grey (or its three channels are equal), else (H, W, 3) RGB; or a DataError.

    The grey values of a 16-bit image are scaled so that its largest becomes 255: often only 12 of the bits are used.
    """
    image = cv2.imread(str(path), cv2.IMREAD_ANYCOLOR | cv2.IMREAD_ANYDEPTH)
    if image is None:
        raise DataError(f"{path}: OpenCV can't decode it", ["expected a PNG; copy the file again"])
    if image.dtype != np.uint8:
        image = cv2.convertScaleAbs(image, alpha=255 / max(int(image.max()), 1))
    if image.ndim == 2:
        return image
    blue, green, red = cv2.split(image)
    return blue if np.array_equal(blue, green) and np.array_equal(green, red) else cv2.merge((red, green, blue))


def make_entry(image: str, annotation: str, classes: list[str], grid: tuple[int, int], labels: str = "soft") -> Entry:
    """Decode one image and, unless `annotation` is "", draw its full-size masks and their labels on `grid` (h, w).

    labels: a key of RESAMPLE. Raises DataError for an image or annotation that can't be used.
    """
    pixels = read_image(image)
    size = pixels.shape[:2]
    small = shrink(pixels, grid)
    if not annotation:
        return Entry(small, size, None, None)
    polygons = read_annotation(annotation, classes, size)
    drawn = [draw_region(polygons[name], size) for name in classes]
    label = SparseMaps.from_patches(grid, [RESAMPLE[labels](mask, corner, size, grid) for mask, corner in drawn])
    return Entry(small, size, label, Masks.from_regions(drawn, size))


class Cache:
    """The cached images of one data set at one resolution, below `folder`; `build` makes the files, `read` reads one.

    Each file holds a signature of what it was made from: sizes and times of PNG and JSON, classes, resolution, kind of
    labels, FORMAT. A file with another signature is made again. Files are written whole or not at all, so an
    interrupted build continues where it stopped. extra: names of images from other data folders, whose files are told
    apart by where they come from. people: the numbers of each image's person, see `data.people`; in memory only.
    """

    def __init__(
        self,
        folder: str | Path,
        table: pd.DataFrame,
        classes: list[str],
        image_size: int,
        labels: str = "soft",
        extra: Iterable[str] = (),
    ):
        self.grid = (image_size, image_size)
        self.labels = labels
        self.folder = Path(folder) / (str(image_size) if labels == "soft" else f"{image_size}-{labels}")
        self.classes = classes
        self.sources = {row.image_name: (row.image, row.annotation) for row in table.itertuples()}
        self.people = dict(zip(self.sources, person_values(table), strict=True))
        self.extra = {name: hashlib.sha256(json.dumps(self.sources[name]).encode()).hexdigest()[:16] for name in extra}
        self.built: dict[str, str] = {}  # signatures when `build` last looked

    def path(self, image_name: str) -> Path:
        """The file of one image."""
        source = f"-{self.extra[image_name]}" if image_name in self.extra else ""
        return self.folder / f"{image_name}{source}.npz"

    def signature(self, image_name: str) -> str:
        """A digest of everything the image's file is made from."""
        stats = [Path(p).stat() for p in self.sources[image_name] if p]
        parts = [FORMAT, self.classes, self.grid, self.labels, [(s.st_size, s.st_mtime_ns) for s in stats]]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def build(self, progress: Callable[[int, int], None] | None = None, threads: int = 0) -> int:
        """Make every missing or outdated file and return how many; a second process waits until the first has ended.

        threads: 0 for one per core. Threads are enough, because decoding, drawing and resizing release Python's global
        lock, see `short_waits`. `progress(done, of)` is called after each file. Raises DataError for bad images and
        annotations, after all other files are made.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder / ".lock"):
            delete_temporary(self.folder)
            missing = [name for name in self.sources if not self._valid(name)]
            problems, done = [], 0
            with short_waits(), ThreadPoolExecutor(threads or cores()) as pool:
                for problem in pool.map(self._make, missing):
                    done += 1
                    problems += problem
                    if progress:
                        progress(done, len(missing))
        if problems:
            raise DataError(f"{len(problems)} problems in the data", problems)
        return len(missing)

    def read(self, image_name: str) -> Entry:
        """The entry of one image; call `build` first.

        ValueError for a damaged file, which `build` makes again; DataError for one that another process has since made
        from changed files.
        """
        with open_arrays(self.path(image_name)) as arrays:
            signature = _signature(arrays)
            annotated, size = "starts" in arrays, tuple(arrays["size"].tolist())
            entry = Entry(
                image=arrays["image"],
                size=size,
                label=SparseMaps.from_arrays(arrays) if annotated else None,
                truth=Masks.from_arrays(arrays, size) if annotated else None,
            )
        if self.built.get(image_name, signature) != signature:
            changed = f"{self.sources[image_name][0]} or its annotation has changed since this step began"
            raise DataError(f"{self.path(image_name)} was made anew", [f"{changed}: start the step again"])
        return entry

    def _valid(self, image_name: str) -> bool:
        try:
            self.built[image_name] = self.signature(image_name)
            with open_arrays(self.path(image_name)) as arrays:
                return _signature(arrays) == self.built[image_name]
        except (OSError, ValueError):
            return False

    def _make(self, image_name: str) -> list[str]:
        try:
            entry = make_entry(*self.sources[image_name], self.classes, self.grid, self.labels)
        except DataError as error:
            return [str(error)]
        arrays = {"image": entry.image, "size": np.array(entry.size), "signature": _text(self.built[image_name])}
        if entry.label is not None:
            arrays |= {**entry.label.arrays(), **entry.truth.arrays()}
        with replacing(self.path(image_name)) as temporary:
            np.savez(temporary, **arrays)
        return []


@contextmanager
def short_waits() -> Iterator[None]:
    """Make threads that mostly work outside Python wait less: for the global lock, and for garbage collection.

    OpenCV releases the lock for calls of some microseconds; by default, getting it back from another thread can take
    five milliseconds. The many small lists of the polygons start garbage collections, which can skip older objects.
    """
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
        sys.setswitchinterval(before)


def _signature(arrays: Mapping[str, np.ndarray]) -> str:
    return arrays["signature"].tobytes().decode()


def _text(text: str) -> np.ndarray:
    return np.frombuffer(text.encode(), np.uint8)
