"""Find what is wrong with a submission file: rows, names and malformed masks."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from utils.data.competition import DataError
from utils.files import nearest
from utils.masks import rle
from utils.submission.csv_file import KEY, expected_rows, read

EXAMPLES = 10
"""Rows that are listed at most of those with a bad RLE; the others are counted."""


def check(path: str | Path, data_dir: str | Path) -> list[str]:
    """Find every error of a submission file; `unlikely.find_warnings` finds what is only unlikely.

    Args:
        path: the CSV file.
        data_dir: the data folder; its test images and classes are the rows that the file must have, in any order.

    Returns:
        One text per error, [] for a valid file. Errors are: a file that can't be read; wrong columns or lines;
        unknown, repeated or missing rows; malformed masks, and masks that end past the image's last pixel.

    Raises:
        DataError: if the data folder can't be read.
    """
    try:
        frame = read(path)
    except DataError as error:
        return error.problems
    expected = expected_rows(data_dir)
    return row_problems(frame, expected) + rle_problems(frame, expected)


def row_problems(frame: pd.DataFrame, expected: pd.DataFrame) -> list[str]:
    """One text per kind of wrong row: unknown, repeated, extra, missing."""
    problems = []
    for column, do in (("image_name", "write the file's name without its folder"), ("class", "see classes.txt")):
        known = expected[column].unique()
        unknown = frame[~frame[column].isin(known)]
        if len(unknown):
            value = unknown[column].iloc[0]
            problems.append(
                f"{len(unknown)} rows with an unknown {column}, first line {unknown.index[0]}: {shown_name(value)!r}; "
                f"expected one of {len(known)}, such as {nearest(value[:200], known)[0]!r}; {do}"
            )
    wanted, present = pd.MultiIndex.from_frame(expected[KEY]), pd.MultiIndex.from_frame(frame[KEY])
    repeated = present[present.duplicated()]
    if len(repeated):
        lines = frame.index[present == repeated[0]]
        where = f"{shown_row(repeated[0])} in lines {', '.join(map(str, lines[:3]))}"
        problems.append(f"{len(repeated)} repeated rows, first {where}; expected one per image and class; remove them")
    extra = frame[~present.isin(wanted) & np.all([frame[c].isin(expected[c]) for c in KEY], axis=0)]
    if len(extra):
        where = f"line {extra.index[0]}: {shown_row(extra[KEY].iloc[0])}"
        problems.append(f"{len(extra)} rows that are not expected, first {where}; remove them")
    missing = wanted[~wanted.isin(present)]
    if len(missing):
        problems.append(
            f"{len(missing)} of {len(expected)} rows are missing, in {missing.unique(0).size} images, first "
            f"{'; '.join(map(shown_row, missing[:3]))}; add them (an empty mask is an empty field)"
        )
    return problems


def rle_problems(frame: pd.DataFrame, expected: pd.DataFrame | None = None) -> list[str]:
    """Malformed masks of `frame`, and with `expected` also stray blanks and runs past the end of the image."""
    problems = bad_masks(frame, expected)
    names = frame[KEY].to_numpy()
    messages = [f"line {frame.index[i]}, {shown_row(names[i])}: {problems[i]}" for i in sorted(problems)]
    more = len(messages) - EXAMPLES
    return messages[:EXAMPLES] + ([f"… and {more} more rows with a bad RLE"] if more > 0 else [])


def bad_masks(frame: pd.DataFrame, expected: pd.DataFrame | None = None) -> dict[int, str]:
    """The positions of the rows that `rle_problems` describes, and what is wrong with each."""
    texts = frame["rle"].tolist()
    _, ends, row, wrong = rle.parse_column(texts)
    problems = {i: f"malformed RLE: {rle.problem(texts[i])}; write it with utils.masks.rle.encode" for i in wrong}
    if expected is not None:
        for i, text in enumerate(texts):
            if i not in problems and ("  " in text or text[:1] == " " or text[-1:] == " "):
                problems[i] = "malformed RLE: expected one blank between two numbers and none at the ends"
        sizes = expected.drop_duplicates("image_name").set_index("image_name").reindex(frame["image_name"])
        last = np.zeros(len(frame), np.int64)
        np.maximum.at(last, row, ends)
        for i in np.flatnonzero(last > (sizes["height"] * sizes["width"]).fillna(np.inf).to_numpy()):
            height, width = sizes.iloc[i][["height", "width"]].astype(int)
            problems[i] = (
                f"a run ends at pixel {last[i]}, past the {height * width} pixels of the image ({height} rows × "
                f"{width} columns); encode masks at the image's full size"
            )
    return problems


def shown_name(name: str) -> str:
    """A name for a message: without line breaks and other control characters, and at most 80 characters long."""
    name = name if name.isprintable() else repr(name)[1:-1]
    return name if len(name) <= 80 else f"{name[:79]}…"


def shown_row(names: Iterable[str]) -> str:
    """Image and class of a row, for a message."""
    return ", ".join(map(shown_name, names))
