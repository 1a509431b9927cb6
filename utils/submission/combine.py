"""Score, vote on and compare submission files; files that do not fit each other are refused."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from utils.data.competition import DataError
from utils.data.findings import refuse
from utils.masks import rle
from utils.masks.dice import dice_of_masks
from utils.masks.masks import Masks, majority
from utils.submission.checker import rle_problems, row_problems, shown_name
from utils.submission.csv_file import COLUMNS, KEY, expected_rows, read

ROWS_AT_A_TIME, THREADS = 256, 2
"""Rows of each file that are worked on together, which limits the memory and is faster; threads at the same time."""
WIDTH_RUNS, WIDTH_SHARE, WIDTH_RATIO = 16, 0.6, 1.5
"""The width of an image can be told from a mask if it has at least this many runs, and if at least this share of its
runs begins about one width (10 %) after the run before; widths that differ by this factor are those of two sizes."""


def score(
    submission: str | Path | pd.DataFrame, solution: str | Path | pd.DataFrame, data_dir: str | Path | None = None
) -> pd.DataFrame:
    """The competition's Dice of every image and class; its mean is the score.

    Args:
        submission: predicted masks, a CSV file or a table with the columns image_name, class and rle.
        solution: true masks, in the same form; rows are matched by image and class.
        data_dir: data folder; if given, both must have exactly the rows of its test images, with masks inside them.

    Returns:
        Columns image_name, class and dice (0 to 1; 1 where both masks are empty), in the solution's order.

    Raises:
        DataError: with every problem of both, if a file can't be read, if the two have different or repeated rows or
            masks of another image size, or if a mask is malformed; with `data_dir`, also if rows or masks don't fit
            its images.
    """
    tables = _aligned([solution, submission], data_dir)
    return tables[0][1][KEY].assign(dice=_on_masks(dice_of_masks, tables)).reset_index(drop=True)


def vote(paths: Sequence[str | Path], min_votes: int | None = None, data_dir: str | Path | None = None) -> pd.DataFrame:
    """Hard vote: a pixel is set where at least `min_votes` files (default: more than half) set it.

    Returns the columns image_name, class and rle in the first file's order. Raises what `score` raises, and DataError
    if `min_votes` is not between 1 and the number of files.
    """
    min_votes = len(paths) // 2 + 1 if min_votes is None else min_votes
    if not 1 <= min_votes <= len(paths):
        raise DataError("no vote", [f"--min-votes is {min_votes}; expected 1 to {len(paths)}, the number of files"])
    tables = _aligned(paths, data_dir)
    voted = _on_masks(lambda *masks: majority(masks, [1] * len(masks), min_votes - 1).texts(), tables)
    return tables[0][1][KEY].assign(rle=voted).reset_index(drop=True)


def compare(path_a: str | Path, path_b: str | Path, data_dir: str | Path | None = None) -> pd.DataFrame:
    """Two submissions row by row: columns image_name, class, dice (0 to 1), identical (bool), in the first one's order.

    Raises what `score` raises.
    """
    (_, a), (_, b) = tables = _aligned([path_a, path_b], data_dir)
    identical = a["rle"].to_numpy() == b["rle"].to_numpy()
    return a[KEY].assign(dice=_on_masks(dice_of_masks, tables), identical=identical).reset_index(drop=True)


def _aligned(
    sources: Sequence[str | Path | pd.DataFrame], data_dir: str | Path | None = None
) -> list[tuple[str, pd.DataFrame]]:
    """Name and table of each source, all with the rows of the first in its order; the index keeps the line numbers.

    Raises DataError with the problems of all sources.
    """
    tables, problems = [], []
    for number, source in enumerate(sources, 1):
        if isinstance(source, pd.DataFrame):
            tables.append(
                (f"table {number}", source[COLUMNS].fillna("").set_axis(range(2, len(source) + 2)))
            )  # as if written
            continue
        try:
            tables.append((str(source), read(source)))
        except DataError as error:
            problems += [f"{source}: {problem}" for problem in error.problems]
    refuse("these files can't be read", problems)
    name, first = tables[0]
    sizes = None if data_dir is None else expected_rows(data_dir)
    wanted, where = (first.drop_duplicates(KEY), name) if sizes is None else (sizes, data_dir)
    for number, (other, table) in enumerate(tables):
        if number == 0 or not np.array_equal(table[KEY], first[KEY]):
            title = other if table is first and sizes is None else f"{other}: other rows than {where}"
            problems += [f"{title}: {problem}" for problem in row_problems(table, wanted)]
    if problems or sizes is not None:
        problems += _mask_problems(tables, sizes)
    refuse("these files do not fit", problems)
    order = pd.MultiIndex.from_frame(first[KEY])
    for number, (other, table) in enumerate(tables):
        if not np.array_equal(table[KEY], first[KEY]):
            tables[number] = other, table.iloc[pd.MultiIndex.from_frame(table[KEY]).get_indexer(order)]
    return tables


def _on_masks(function: Callable[..., Sequence[Any]], tables: list[tuple[str, pd.DataFrame]]) -> list[Any]:
    """`function` of the tables' masks, in portions; DataError lists malformed masks and other image sizes."""
    columns = [table["rle"].tolist() for _, table in tables]

    def rows(first: int) -> Sequence[Any]:
        return function(*(Masks.from_texts(column[first : first + ROWS_AT_A_TIME]) for column in columns))

    try:
        refuse("these files do not fit", _size_problems(tables))
        with ThreadPoolExecutor(THREADS) as pool:  # NumPy releases Python's global lock while it works
            return list(chain.from_iterable(pool.map(rows, range(0, len(columns[0]), ROWS_AT_A_TIME))))
    except DataError:
        raise
    except ValueError:
        refuse("malformed masks", _mask_problems(tables))
        raise


def _mask_problems(tables: list[tuple[str, pd.DataFrame]], sizes: pd.DataFrame | None = None) -> list[str]:
    return [f"{name}: {problem}" for name, table in tables for problem in rle_problems(table, sizes)]


def _size_problems(tables: list[tuple[str, pd.DataFrame]]) -> list[str]:
    """Images of which two files have masks of different sizes, told from the distance between a mask's runs.

    Only the mask with the first file's longest text of each image is looked at. Of two sizes, the mask's last pixel
    differs, too; where it does not, a file has evenly spaced parts in a row, such as teeth, and not another size.
    """
    name, first = tables[0]
    images = first["image_name"].to_numpy()
    longest = pd.Series(first["rle"].str.len().to_numpy()).groupby(images, sort=False).idxmax()
    widths, last = zip(*(_widths(table["rle"].iloc[longest].tolist()) for _, table in tables), strict=True)
    problems = []
    for (other, _), found, end in zip(tables[1:], widths[1:], last[1:], strict=True):
        ratio, length = np.log(found / widths[0]), np.log(end / last[0])  # NaN where a mask does not show its width
        differing = np.flatnonzero((abs(ratio) > np.log(WIDTH_RATIO)) & (length * np.sign(ratio) > abs(ratio)))
        if differing.size:
            image, here, there = (values[differing[0]] for values in (longest.index, found, widths[0]))
            problems.append(
                f"{other}: masks of other image sizes than {name} in {differing.size} images, first "
                f"{shown_name(image)}: about {here:.0f} pixels wide instead of {there:.0f}; encode masks at full size"
            )
    return problems


def _widths(texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """The width in pixels that each mask shows, NaN where it shows none, and the mask's last pixel."""
    starts, ends, row, _ = rle.parse_column(texts)
    widths, last = np.full(len(texts), np.nan), np.ones(len(texts))
    np.maximum.at(last, row, ends)
    for mask, of_mask in enumerate(np.split(starts, np.searchsorted(row, np.arange(1, len(texts))))):
        steps = np.diff(of_mask)
        if len(of_mask) >= WIDTH_RUNS and (abs(steps / np.median(steps) - 1) < 0.1).mean() >= WIDTH_SHARE:
            widths[mask] = np.median(steps)
    return widths, last
