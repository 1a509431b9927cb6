"""Read the images and polygons of a data folder on all cores, and divide them by folds."""

import functools
import gc
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from utils.data.annotation import Polygons, read_annotation
from utils.data.competition import DataError
from utils.data.findings import refuse
from utils.data.folds import assign_folds, read_folds, split_fold
from utils.files import cores
from utils.hand.bend import stratum

CHUNK = 40
"""Images that a process reads at a time; fewer than two chunks are read without processes."""


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
    results, problems, empty = [], [], {name: [] for name in classes}
    for image in images:
        try:
            polygons = read_annotation(image.annotation, classes, image.size) if image.annotation else empty
        except DataError as error:
            problems += [f"{image.annotation}: {problem}" for problem in error.problems]
            continue
        results.append(function(image, polygons))
    return results, problems


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
