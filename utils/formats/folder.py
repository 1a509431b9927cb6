"""Data folders as other formats need them: read on all cores, split by folds, written from what was imported."""

import functools
import gc
import os
import re
import shutil
import tempfile
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from itertools import accumulate, chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import orjson
import pandas as pd

from utils.data.competition import HAND_BONES, DataError, read_annotation
from utils.data.folds import assign_folds, read_folds, split_fold
from utils.files import cores, shown

CHUNK = 40
"""Images that a process reads at a time; fewer than two chunks are read without processes."""

Polygons = dict[str, list[np.ndarray]]
"""For each class its polygons, (n, 2) x-y points in pixels, together one mask."""


class Image(NamedTuple):
    """A row of the index (`read_index`): file name, person, paths as text, height and width in pixels."""

    image_name: str
    ID: str
    image: str
    annotation: str
    height: int
    width: int

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.height, self.width


class Imported(NamedTuple):
    """An image from another format: its file, the name it is called by there, and its polygons (None: a test image)."""

    image: Path
    name: str
    polygons: Polygons | None


def images_of(table: pd.DataFrame) -> list[Image]:
    """The rows of an index."""
    return [Image(*row) for row in table[list(Image._fields)].itertuples(index=False, name=None)]


def each_image(images: Sequence[Image], classes: list[str], function: Callable[[Image, Polygons], Any]) -> list[Any]:
    """`function(image, polygons)` for every image, on all cores, in the order of `images`.

    `function` is defined at a module's top (or a functools.partial of such). The polygons are what `read_annotation`
    gives, for an image without annotation {}. Raises DataError with the problems of all annotations at once.
    """
    work = functools.partial(_chunk, classes=classes, function=function)
    chunks = [images[i : i + CHUNK] for i in range(0, len(images), CHUNK)]
    if len(chunks) < 2 or cores() < 2:
        done = list(map(work, chunks))
    else:
        # without garbage collection, which finds nothing in plain lists, reading takes a sixth less time
        with ProcessPoolExecutor(min(cores(), len(chunks)), initializer=gc.disable) as pool:
            done = list(pool.map(work, chunks))
    refuse("these annotations can't be converted", [problem for _, problems in done for problem in problems])
    return [result for results, _ in done for result in results]


def _chunk(
    images: Sequence[Image], classes: list[str], function: Callable[[Image, Polygons], Any]
) -> tuple[list[Any], list[str]]:
    results, problems = [], []
    for image in images:
        try:
            polygons = _plain_annotation(image, classes) or read_annotation(image.annotation, classes, image.size)
        except DataError as error:
            problems += [f"{image.annotation}: {problem}" for problem in error.problems]
            continue
        results.append(function(image, polygons))
    return results, problems


def _plain_annotation(image: Image, classes: list[str]) -> Polygons | None:
    """What `read_annotation` gives, in half its time, if nothing at all is unusual in the file; otherwise None.

    All points of a file are read and checked together, 29 polygons in 0.4 ms.
    """
    polygons: Polygons = {name: [] for name in classes}
    if not image.annotation:
        return polygons
    try:
        text = Path(image.annotation).read_bytes()
        annotations = orjson.loads(text)["annotations"]
        outlines = [annotation["points"] for annotation in annotations]
        counts = [len(points) for points in outlines]
        pairs = list(chain.from_iterable(outlines))
        if min(counts) < 3 or max(counts) > 10_000 or set(map(len, pairs)) != {2}:
            return None
        numbers = np.frombuffer(array("d", list(chain.from_iterable(pairs)))).reshape(-1, 2)  # refuses text and null
        inside = (numbers >= 0) & (numbers <= (image.width - 1, image.height - 1))
        if not inside.all() or b"true" in text or b"false" in text:
            return None
        points = np.rint(numbers).astype(np.int32)
        for annotation, end, count in zip(annotations, accumulate(counts), counts, strict=True):
            polygons[annotation["label"]].append(points[end - count : end])
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        return None
    return polygons


def split_images(
    table: pd.DataFrame, classes: list[str], folds: str | Path | None, fold: int
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The training and validation rows of an index (`split_fold`).

    folds: a run's folds.csv; None divides the people in five, or into as many parts as there are people. Raises
    DataError if the file is missing or was written for other images, if it has no such fold, or with one person only.
    """
    if folds is None:
        people = table.loc[table["split"] == "train", "ID"].nunique()
        dealt = assign_folds(table, max(2, min(5, people)))
    elif not Path(folds).exists():
        raise DataError(f"{folds}: no such file", ["give a run's folds.csv, such as outputs/sample/folds.csv"])
    else:
        n_folds = pd.read_csv(folds)["fold"].nunique()
        dealt = read_folds(folds, table, classes, n_folds)
    if fold != -1 and fold not in set(dealt["fold"]):
        found = sorted(set(dealt["fold"]))
        raise DataError(f"there is no fold {fold}", [f"expected one of {found}, or -1 for all images"])
    return split_fold(table, dealt, fold)


@contextmanager
def new_folder(path: str | Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path` that takes its place at the end: a whole folder or none.

    Raises DataError if `path` exists and is not an empty folder.
    """
    path = Path(os.path.abspath(path))
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise DataError(f"{shown(path)} exists already", ["choose a new folder; nothing in it was touched"])
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part"))
    try:
        yield temporary
        temporary.chmod(0o755)
        temporary.replace(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def link(source: str | Path, target: Path) -> None:
    """Make `target` the same file as `source` (a hard link), or a copy where the file system allows none."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def write_folder(path: str | Path, images: Iterable[Imported], classes: list[str], people: str = "auto") -> str:
    """Write imported images as a data folder of the competition, whole or not at all; returns one line about it.

    Args:
        path: the new folder; it must not exist, or be empty.
        images: the images; those of other formats than PNG are converted, PNGs are linked or copied.
        classes: the class names in their order; they are written to classes.txt.
        people: whose an image is: "folder", its folder's name; "image", each image is another person's; "auto", its
            folder's name if the images are in several folders.

    Raises:
        DataError: with every problem: no image, two images with one file name, an image that can't be read. Two images
            of one person must not get into two folds, so an ID is never guessed from a file's name.
    """
    images = list(images)
    folders = [Path(image.name).parent.name.strip(".") for image in images]
    by_folder = people == "folder" or (people == "auto" and len(set(folders)) > 1 and all(folders))
    stems = [Path(image.name).stem for image in images]
    problems = [] if images else ["there are no images in it"]
    for stem, count in Counter(stems).items():
        if count > 1:
            names = ", ".join(image.name for image in images if Path(image.name).stem == stem)
            problems.append(f"{count} images are called {stem}: {names}; rename them, a submission knows only the name")
    if by_folder and not all(folders):
        problems.append("--people folder needs images in folders that are named after people")
    refuse(f"{shown(path)} can't be made", problems)
    ids = folders if by_folder else stems
    with new_folder(path) as temporary:
        problems = []
        for image, ID, stem in zip(images, ids, stems, strict=True):
            split = "test" if image.polygons is None else "train"
            target = temporary / split / "DCM" / ID / f"{stem}.png"
            try:
                _copy_as_png(image.image, target)
            except ValueError as error:
                problems.append(str(error))
            if image.polygons is not None:
                annotation = temporary / split / "outputs_json" / ID / f"{stem}.json"
                annotation.parent.mkdir(parents=True, exist_ok=True)
                annotation.write_bytes(_annotation(image.polygons, stem, ID))
        refuse("these images can't be read", problems)
        (temporary / "classes.txt").write_text("".join(f"{name}\n" for name in classes), encoding="utf-8")
    count = sum(len(parts) for image in images if image.polygons for parts in image.polygons.values())
    whose = "folders are people" if by_folder else "every image is taken as another person's (see --people)"
    return f"{path}: {len(images)} images, {len(set(ids))} people ({whose}), {len(classes)} classes, {count} polygons"


def _annotation(polygons: Polygons, stem: str, ID: str) -> bytes:
    """An annotation file in the competition's format; whole numbers stay whole, others have two decimals."""
    annotations = []
    for label, parts in polygons.items():
        for points in parts:
            rounded = np.round(points, 2)
            whole = rounded.astype(np.int64)
            points = whole if (whole == rounded).all() else rounded
            one = {"id": f"{len(annotations)}", "type": "poly_seg", "attributes": {}, "points": points.tolist()}
            annotations.append({**one, "label": label})
    content = {"annotations": annotations, "filename": f"{stem}.png", "parent_path": f"/{ID}"}
    return orjson.dumps(content)


def _copy_as_png(source: Path, target: Path) -> None:
    """Link or copy a PNG; write any other image as PNG, with the pixels as they are stored (no EXIF rotation)."""
    if source.suffix.lower() == ".png":
        link(source, target)
        return
    import cv2

    pixels = cv2.imread(str(source), cv2.IMREAD_ANYCOLOR | cv2.IMREAD_ANYDEPTH | cv2.IMREAD_IGNORE_ORIENTATION)
    if pixels is None:
        raise ValueError(f"{source}: not a readable image")
    target.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(target), pixels)


def class_order(found: Iterable[str], given: str | Path | None) -> list[str]:
    """The order of classes of a format that has none: that of the file `given` (one class a line); without it, that of
    the competition for its 29 bones, otherwise by name, numbers by value.

    Raises DataError if a label is not in the given file.
    """
    found = set(found)
    if given:
        classes = read_class_file(given)
        refuse(f"{given} lacks classes", [f"label {name!r} is not in it" for name in sorted(found - set(classes))])
        return classes
    if found == set(HAND_BONES):
        return list(HAND_BONES)
    return sorted(found, key=lambda name: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)])


def read_class_file(path: str | Path) -> list[str]:
    """The classes in a text file, one a line. Raises DataError if it is missing, empty or repeats a class."""
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not a file with one class a line", [str(error)]) from error
    classes = [line.strip() for line in lines if line.strip()]
    repeated = [f"repeated: {name}" for name, count in Counter(classes).items() if count > 1]
    refuse(f"{path}: expected one class a line, each only once", repeated or ([] if classes else ["empty"]))
    return classes


def refuse(title: str, problems: list[str]) -> None:
    """Raise DataError if there are problems."""
    if problems:
        raise DataError(title, problems)
