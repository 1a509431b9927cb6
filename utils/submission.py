"""Write, read, check, score, vote on and compare submission files, by RLE intervals instead of pixels.

    python -m utils.submission check FILE --data DIR
    python -m utils.submission score FILE SOLUTION [--data DIR]
    python -m utils.submission vote FILE FILE … --out FILE [--min-votes K]
    python -m utils.submission diff FILE FILE

A submission is a CSV with the columns image_name, class, rle: one row for each test image (its file name, without the
folder) and class, ordered by the images' relative paths, then by class; an empty mask is an empty field.
Rows are always matched by image and class, never by position. This module imports no torch, so that it starts at once.
"""

import argparse
import csv
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from utils.data.competition import DataError, read_classes, read_index
from utils.errors import nearest
from utils.files import write_text
from utils.masks import rle
from utils.masks.dice import dice_of_masks

COLUMNS = ["image_name", "class", "rle"]
KEY = ["image_name", "class"]
EXAMPLES = 10
"""Rows that are listed at most, of those with a bad RLE (the others are counted) and of the most different ones."""


def write(frame: pd.DataFrame, path: str | Path) -> None:
    """Write the columns image_name, class and rle of `frame` as a CSV, whole or not at all; None and NaN become "".

    Joining the lines here takes 0.03 s for 8,352 rows (22 MB); `DataFrame.to_csv` and csv.writer take 0.2 s.
    """
    names, classes, rles = (frame[column].fillna("").tolist() for column in COLUMNS)
    lines = [f"{_quoted(n)},{_quoted(c)},{text}\n" for n, c, text in zip(names, classes, rles, strict=True)]
    write_text(path, "".join([",".join(COLUMNS) + "\n", *lines]))


def read(path: str | Path) -> pd.DataFrame:
    """A submission file as a table of strings, "" for an empty mask; the index holds each row's line in the file.

    Raises DataError for a file that is missing, is no CSV, or has other columns or a line without exactly 3 fields.
    """
    lines, rows, problems = [], [], []
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
        csv.field_size_limit(2**31 - 1)
        # quotes are rare, and without them a plain split takes half the time (0.05 s instead of 0.1 s)
        split = csv.reader if '"' in text else lambda lines: (line.split(",") for line in lines)
        fields = split(text.split("\n"))
        header = next(fields)
        if header != COLUMNS:
            problems.append(f"line 1: expected the columns {','.join(COLUMNS)}, found {','.join(header)[:80]!r}")
        for line, row in enumerate([] if problems else fields, 2):
            if len(row) == len(COLUMNS):
                rows.append(row)
                lines.append(line)
            elif any(row):  # not a blank line
                problems.append(f"line {line}: expected 3 fields (an empty mask is 'name,class,'), found {len(row)}")
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        problems = [f"not a readable CSV file, expected text with the columns {','.join(COLUMNS)} ({error})"]
    _refuse(f"{path}: not a submission file", problems)
    return pd.DataFrame(rows, columns=COLUMNS, index=lines, dtype=object)


def expected_rows(data_dir: str | Path) -> pd.DataFrame:
    """The rows of a submission in the competition's order: image_name, class, the image's height and width (pixels)."""
    images = read_index(data_dir, splits=("test",))[["image_name", "height", "width"]]
    return images.merge(pd.DataFrame({"class": read_classes(data_dir)}), how="cross")[[*KEY, "height", "width"]]


def check(path: str | Path, data_dir: str | Path) -> list[str]:
    """Find everything that is wrong with a submission file.

    Args:
        path: the CSV file.
        data_dir: the data folder; its test images and classes are the rows that the file must have, in their order.

    Returns:
        One text per problem, [] for a valid file. Problems are: a file that can't be read; wrong columns or lines;
        unknown, repeated, missing or misplaced rows; malformed masks, and masks that end past the image's last pixel.

    Raises:
        DataError: if the data folder can't be read.
    """
    try:
        frame = read(path)
    except DataError as error:
        return error.problems
    expected = expected_rows(data_dir)
    return _row_problems(frame, expected) + _rle_problems(frame, expected)


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
        DataError: with every problem found, if a file can't be read, the two have different or repeated rows, or a mask
            is malformed; with `data_dir`, also if rows or masks don't fit its images.
    """
    tables = _aligned([solution, submission])
    if data_dir is not None:
        expected = expected_rows(data_dir)
        for name, table in tables:
            problems = _row_problems(table, expected, ordered=False) + _rle_problems(table, expected)
            _refuse(f"{name}: does not fit {data_dir}", problems)
    return tables[0][1][KEY].assign(dice=_on_masks(dice_of_masks, tables)).reset_index(drop=True)


def vote(paths: Sequence[str | Path], min_votes: int | None = None) -> pd.DataFrame:
    """Hard vote: a pixel is set where at least `min_votes` files (default: more than half) set it.

    Returns the columns image_name, class and rle in the first file's order. Raises DataError unless all files have the
    same rows of well-formed masks, or if `min_votes` is not between 1 and the number of files.
    """
    min_votes = len(paths) // 2 + 1 if min_votes is None else min_votes
    if not 1 <= min_votes <= len(paths):
        raise DataError("no vote", [f"--min-votes is {min_votes}; expected 1 to {len(paths)}, the number of files"])
    tables = _aligned(paths)
    voted = _on_masks(lambda *columns: rle.vote_column(columns, min_votes), tables)
    return tables[0][1][KEY].assign(rle=voted).reset_index(drop=True)


def compare(path_a: str | Path, path_b: str | Path) -> pd.DataFrame:
    """Two submissions row by row: columns image_name, class, dice (0 to 1), identical (bool), in the first one's order.

    Raises DataError unless both have the same rows of well-formed masks.
    """
    (_, a), (_, b) = tables = _aligned([path_a, path_b])
    identical = a["rle"].to_numpy() == b["rle"].to_numpy()
    return a[KEY].assign(dice=_on_masks(dice_of_masks, tables), identical=identical).reset_index(drop=True)


def _row_problems(frame: pd.DataFrame, expected: pd.DataFrame, ordered: bool = True) -> list[str]:
    """One text per kind of wrong row: unknown, repeated, missing, with `ordered` also out of order."""
    problems = []
    for column, do in (("image_name", "write the file's name without its folder"), ("class", "see classes.txt")):
        known = expected[column].unique()
        unknown = frame[~frame[column].isin(known)]
        if len(unknown):
            value = unknown[column].iloc[0]
            problems.append(
                f"{len(unknown)} rows with an unknown {column}, first line {unknown.index[0]}: {value!r}; "
                f"expected one of {len(known)}, such as {nearest(value, known)[0]!r}; {do}"
            )
    wanted, present = pd.MultiIndex.from_frame(expected[KEY]), pd.MultiIndex.from_frame(frame[KEY])
    repeated = present[present.duplicated()]
    if len(repeated):
        lines = frame.index[present == repeated[0]]
        where = f"{', '.join(repeated[0])} in lines {', '.join(map(str, lines[:3]))}"
        problems.append(f"{len(repeated)} repeated rows, first {where}; expected one per image and class; remove them")
    extra = frame[~present.isin(wanted) & np.all([frame[c].isin(expected[c]) for c in KEY], axis=0)]
    if len(extra):
        where = f"line {extra.index[0]}: {', '.join(extra[KEY].iloc[0])}"
        problems.append(f"{len(extra)} rows that are not expected, first {where}; remove them")
    missing = wanted[~wanted.isin(present)]
    if len(missing):
        problems.append(
            f"{len(missing)} of {len(expected)} rows are missing, in {missing.unique(0).size} images, first "
            f"{'; '.join(map(', '.join, missing[:3]))}; add them (an empty mask is an empty field)"
        )
    if ordered and not problems and not (wanted == present).all():
        i = int(np.argmax(wanted != present))
        problems.append(
            f"rows are out of order from line {frame.index[i]}: found {', '.join(present[i])}, expected "
            f"{', '.join(wanted[i])}; sort by the images' relative path, then by class order"
        )
    return problems


def _rle_problems(frame: pd.DataFrame, expected: pd.DataFrame | None = None) -> list[str]:
    """Malformed masks of `frame`, and with `expected` runs past the end of the image."""
    texts = frame["rle"].tolist()
    _, ends, row, wrong = rle.parse_column(texts)
    problems = {i: f"malformed RLE: {rle.problem(texts[i])}; write it with utils.masks.rle.encode" for i in wrong}
    if expected is not None:
        sizes = expected.drop_duplicates("image_name").set_index("image_name").reindex(frame["image_name"])
        last = np.zeros(len(frame), np.int64)
        np.maximum.at(last, row, ends)
        for i in np.flatnonzero(last > (sizes["height"] * sizes["width"]).fillna(np.inf).to_numpy()):
            height, width = sizes.iloc[i][["height", "width"]].astype(int)
            problems[i] = (
                f"a run ends at pixel {last[i]}, past the {height * width} pixels of the image ({height} rows × "
                f"{width} columns); encode masks at the image's full size"
            )
    names = frame[KEY].to_numpy()
    messages = [f"line {frame.index[i]}, {', '.join(names[i])}: {problems[i]}" for i in sorted(problems)]
    more = len(messages) - EXAMPLES
    return messages[:EXAMPLES] + ([f"… and {more} more rows with a bad RLE"] if more > 0 else [])


def _aligned(sources: Sequence[str | Path | pd.DataFrame]) -> list[tuple[str, pd.DataFrame]]:
    """Name and table of each source, all with the rows of the first in its order; the index keeps the line numbers.

    Raises DataError if a table has repeated, missing or unknown rows.
    """
    tables = []
    for number, source in enumerate(sources, 1):
        if isinstance(source, pd.DataFrame):
            tables.append((f"table {number}", source[COLUMNS].set_axis(range(2, len(source) + 2))))  # as if written
        else:
            tables.append((str(source), read(source)))
    name, first = tables[0]
    _refuse(f"{name}: repeated rows", _row_problems(first, first.drop_duplicates(KEY), ordered=False))
    for i, (other, table) in enumerate(tables[1:], 1):
        if np.array_equal(table[KEY], first[KEY]):
            continue
        _refuse(f"{other}: other rows than {name}", _row_problems(table, first, ordered=False))
        position = pd.MultiIndex.from_frame(table[KEY]).get_indexer(pd.MultiIndex.from_frame(first[KEY]))
        tables[i] = (other, table.iloc[position])
    return tables


def _on_masks(function: Callable[..., Any], tables: list[tuple[str, pd.DataFrame]]) -> Any:
    """`function` of the tables' RLE columns; DataError lists the malformed masks of the first table that has any."""
    try:
        return function(*(table["rle"].tolist() for _, table in tables))
    except ValueError:
        for name, table in tables:
            _refuse(f"{name}: malformed masks", _rle_problems(table))
        raise


def _quoted(field: str) -> str:
    return '"' + field.replace('"', '""') + '"' if set(field) & set(',"\r\n') else field


def _refuse(title: str, problems: list[str]) -> None:
    if problems:
        raise DataError(title, problems)


def _print_per_class(table: pd.DataFrame) -> None:
    print(f"mean Dice {table['dice'].mean():.4f}, {table['image_name'].nunique()} images, classes from worst to best:")
    for label, value in table.groupby("class")["dice"].mean().sort_values(kind="stable").items():
        print(f"  {label:<16} {value:.4f}")


def main() -> None:
    """The command line; if a file is not valid or can't be read, print the problems and exit with status 1."""
    parser = argparse.ArgumentParser(prog="python -m utils.submission", description="Submission files (CSV).")
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("check", help="is this a valid submission?")
    command.add_argument("file")
    command.add_argument("--data", required=True, help="data folder, whose test images are expected")
    command = commands.add_parser("score", help="mean Dice against a solution, and per class")
    command.add_argument("file")
    command.add_argument("solution")
    command.add_argument("--data", help="data folder: also check that masks end inside its images")
    command = commands.add_parser("vote", help="hard vote of several submissions")
    command.add_argument("files", nargs="+")
    command.add_argument("--out", required=True)
    command.add_argument("--min-votes", type=int, help="files that must set a pixel (default: more than half)")
    command = commands.add_parser("diff", help="where do two submissions differ?")
    command.add_argument("files", nargs=2)
    options = parser.parse_args()
    try:
        {"check": _check, "score": _score, "vote": _vote, "diff": _diff}[options.command](options)
    except (DataError, OSError) as error:
        sys.exit(str(error))


def _check(options: argparse.Namespace) -> None:
    if problems := check(options.file, options.data):
        raise DataError(f"{options.file}: not a valid submission for {options.data}", problems, shown=50)
    rows = expected_rows(options.data)
    print(f"OK: {rows['image_name'].nunique()} images × {rows['class'].nunique()} classes")


def _score(options: argparse.Namespace) -> None:
    _print_per_class(score(options.file, options.solution, options.data))


def _vote(options: argparse.Namespace) -> None:
    voted = vote(options.files, options.min_votes)
    write(voted, options.out)
    print(f"{options.out}: {len(voted)} rows from {len(options.files)} files")


def _diff(options: argparse.Namespace) -> None:
    table = compare(*options.files)
    print(f"{table['identical'].sum()} of {len(table)} rows are identical")
    _print_per_class(table)
    print("most different rows:")
    for row in table.sort_values("dice", kind="stable").head(EXAMPLES).to_dict("records"):
        print(f"  {row['image_name']}, {row['class']}: {row['dice']:.4f}")


if __name__ == "__main__":
    main()
