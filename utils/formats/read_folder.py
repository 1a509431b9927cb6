"""Read the images and polygons of a data folder on all cores, and divide them by folds."""

import functools
import gc
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import orjson
import pandas as pd

from utils.data.competition import DataError, read_annotation
from utils.data.findings import refuse
from utils.data.folds import assign_folds, read_folds, split_fold
from utils.files import cores
from utils.hand.bend import stratum
from utils.masks import digits

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


def images_of(table: pd.DataFrame) -> list[Image]:
    """The rows of an index."""
    return [Image(*row) for row in table[list(Image._fields)].itertuples(index=False, name=None)]


def each_image(
    images: Sequence[Image], classes: list[str], function: Callable[[Image, Polygons], Any]
) -> Iterator[Any]:
    """`function(image, polygons)` for every image, on all cores, in the order of `images`, each as soon as it is there.

    `function` is defined at a module's top (or a functools.partial of such). The polygons are what `read_annotation`
    gives, none for an image without annotation. An image whose annotation can't be used is left out; after the last
    image, DataError is raised with the problems of all of them.
    """
    work = functools.partial(_chunk, classes=classes, function=function)
    chunks = [images[i : i + CHUNK] for i in range(0, len(images), CHUNK)]
    problems: list[str] = []
    with ExitStack() as stack:
        done = map(work, chunks)
        if len(chunks) > 1 and cores() > 1:
            # without garbage collection, which finds nothing in plain lists, reading takes a sixth less time
            pool = ProcessPoolExecutor(min(cores(), len(chunks)), initializer=gc.disable)
            done = stack.enter_context(pool).map(work, chunks)
        for results, found in done:
            problems += found
            yield from results
    refuse("these annotations can't be converted", problems)


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
    """What `read_annotation` gives, in a third of its time, for a usual file; None for any other.

    Usual are whole numbers inside the image, written as all programs write JSON, with or without a blank after commas.
    The lists of points are cut out of the text and read together; JSON's reader gets what remains.
    """
    polygons: Polygons = {name: [] for name in classes}
    if not image.annotation:
        return polygons
    try:
        first, *rest = Path(image.annotation).read_bytes().split(b'"points":')
        outlines, frame = [], [first]
        for number, text in enumerate(rest):
            end = text.find(b"]]") + 2
            outlines.append(text[:end].strip())
            frame += (b'"points":%d' % number, text[end:])
        annotations = orjson.loads(b"".join(frame))["annotations"]
        counts = [outline.count(b"[") - 1 for outline in outlines]
        if [annotation["points"] for annotation in annotations] != list(range(len(counts))) or min(counts) < 3:
            return None
        joined, form = b"".join(outlines), b"".join(b"[%b[,]]" % (b"[,]," * (count - 1)) for count in counts)
        characters = np.frombuffer(joined, np.uint8)
        # with blanks elsewhere, such as in "[, 1 2]", numbers that no JSON reader accepts would look usual
        after_comma, blank = characters[:-1] == ord(","), characters[1:] == ord(" ")
        if joined.translate(None, b"0123456789 ") != form or (blank & ~after_comma).any():
            return None
        numbers, _ = digits.read(joined)
        if len(numbers) != 2 * sum(counts) or (numbers.reshape(-1, 2) >= (image.width, image.height)).any():
            return None
        points = numbers.reshape(-1, 2).astype(np.int32)
        for annotation, end, count in zip(annotations, accumulate(counts), counts, strict=True):
            polygons[annotation["label"]].append(points[end - count : end])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return polygons


def split_images(
    table: pd.DataFrame, classes: list[str], folds: str | Path | None, fold: int
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The training and validation rows of an index (`split_fold`).

    folds: a run's folds.csv; None divides the people in five, or into as many parts as there are people. Raises
    DataError if the file is missing or was written for other images, if it has no such fold, or if there is nobody to
    hold out.
    """
    if folds is None and fold == -1:
        train = table[table["split"] == "train"]
        return train, train.iloc[:0]
    if folds is None:
        people = table.loc[table["split"] == "train", "ID"].nunique()
        dealt = assign_folds(table, max(2, min(5, people)))
    elif not Path(folds).exists():
        raise DataError(f"{folds}: no such file", ["give a run's folds.csv, such as outputs/sample/folds.csv"])
    else:
        n_folds = pd.read_csv(folds)["fold"].nunique()
        dealt = read_folds(folds, table, classes, n_folds, is_bent=stratum(classes))
    if fold != -1 and fold not in set(dealt["fold"]):
        found = sorted(set(dealt["fold"]))
        raise DataError(f"there is no fold {fold}", [f"expected one of {found}, or -1 for all images"])
    return split_fold(table, dealt, fold)
