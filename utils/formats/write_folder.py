"""Write images and polygons from other formats as a data folder, whole or not at all."""

import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np

from utils.data.annotation import Polygons, annotation_text
from utils.data.competition import DataError
from utils.data.findings import refuse
from utils.files import replacing_folder, shown


class Imported(NamedTuple):
    """An image from another format: its file, the name it is called by there, and its polygons (None: a test image).

    as_stored: the polygons are those of the pixels as stored, not turned as EXIF says.
    """

    image: Path
    name: str
    polygons: Polygons | None
    as_stored: bool = False


@contextmanager
def new_folder(path: str | Path) -> Iterator[Path]:
    """`replacing_folder` for a new one: DataError if `path` exists and is not an empty folder."""
    path = Path(os.path.abspath(path))
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise DataError(f"{shown(path)} exists already", ["choose a new folder; nothing in it was touched"])
    with replacing_folder(path) as new:
        yield new


def link(source: str | Path, target: Path) -> None:
    """Make `target` the same file as `source` (a hard link), or a copy where the file system allows none."""
    try:
        os.link(os.path.realpath(source), target)  # a link to a relative symbolic link would point nowhere
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
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                _copy_as_png(image.image, target, image.as_stored)
            except ValueError as error:
                problems.append(str(error))
            if image.polygons is not None:
                annotation = temporary / split / "outputs_json" / ID / f"{stem}.json"
                annotation.parent.mkdir(parents=True, exist_ok=True)
                shapes = [(label, points) for label, parts in image.polygons.items() for points in parts]
                annotation.write_bytes(annotation_text(shapes, target.name, ID))
        refuse("these images can't be read", problems)
        (temporary / "classes.txt").write_text("".join(f"{name}\n" for name in classes), encoding="utf-8")
    count = sum(len(parts) for image in images if image.polygons for parts in image.polygons.values())
    whose = "folders are people" if by_folder else "every image is taken as another person's (see --people)"
    return f"{path}: {len(images)} images, {len(set(ids))} people ({whose}), {len(classes)} classes, {count} polygons"


def _copy_as_png(source: Path, target: Path, as_stored: bool) -> None:
    """Link or copy a PNG; write any other image as PNG, turned as EXIF says or with the pixels as they are stored."""
    if source.suffix.lower() == ".png":
        link(source, target)
        return
    import cv2

    how = cv2.IMREAD_ANYCOLOR | cv2.IMREAD_ANYDEPTH | (cv2.IMREAD_IGNORE_ORIENTATION if as_stored else 0)
    pixels = cv2.imdecode(np.fromfile(source, np.uint8), how)
    if pixels is None:
        raise ValueError(f"{source}: not a readable image")
    cv2.imwrite(str(target), pixels)
