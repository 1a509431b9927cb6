"""Write and read submission files, and list the rows that a data folder's submission must have."""

import csv
import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from utils.data.competition import DataError, find_images, read_classes
from utils.data.findings import refuse
from utils.files import write_text

COLUMNS = ["image_name", "class", "rle"]
KEY = ["image_name", "class"]


def write(frame: pd.DataFrame, path: str | Path) -> None:
    """Write the columns image_name, class and rle of `frame` as a CSV, whole or not at all; None and NaN become "".

    Joining the lines here takes 0.03 s for 8,352 rows (22 MB); `DataFrame.to_csv` and csv.writer take 0.2 s.
    """
    names, classes, rles = (frame[column].fillna("").tolist() for column in COLUMNS)
    lines = [f"{_quoted(n)},{_quoted(c)},{text}\n" for n, c, text in zip(names, classes, rles, strict=True)]
    write_text(path, "".join([",".join(COLUMNS) + "\n", *lines]))


def read(path: str | Path) -> pd.DataFrame:
    """A submission file as a table of strings, "" for an empty mask; the index holds each row's line in the file.

    What pandas reads without loss is accepted, too: a byte order mark, Windows line ends, quoted fields, blank lines.
    Raises DataError for a file that is missing, is no CSV in UTF-8, or has other columns or a line without exactly 3
    fields.
    """
    lines, rows, problems = [], [], []
    try:
        records = _records(Path(path).read_bytes().decode("utf-8-sig"))
        _, header = next(records, (1, []))
        if header != COLUMNS:
            problems.append(f"line 1: expected the columns {','.join(COLUMNS)}, found {','.join(header)[:80]!r}")
        for line, row in () if problems else records:
            if len(row) == len(COLUMNS):
                rows.append(row)
                lines.append(line)
            elif row:  # not a blank line
                problems.append(f"line {line}: expected 3 fields (an empty mask is 'name,class,'), found {len(row)}")
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        problems = [f"not a readable CSV file, expected text with the columns {','.join(COLUMNS)} ({error})"]
    refuse(f"{path}: not a submission file", problems)
    return pd.DataFrame(rows, columns=COLUMNS, index=lines, dtype=object)


def expected_rows(data_dir: str | Path) -> pd.DataFrame:
    """The rows of a submission in the competition's order: image_name, class, the image's height and width (pixels).

    The size of an image that can't be read, which has its rows nevertheless, is NaN. Raises DataError without images.
    """
    images, findings = find_images(data_dir, splits=("test",))
    if images.empty:
        raise DataError(f"{data_dir}: no test images", [str(finding) for finding in findings])
    images = images.drop_duplicates("image_name")[["image_name", "height", "width"]].replace(0, np.nan)
    return images.merge(pd.DataFrame({"class": read_classes(data_dir)}), how="cross")[[*KEY, "height", "width"]]


def _records(text: str) -> Iterator[tuple[int, list[str]]]:
    """The number of each line and its fields, [] for a blank line.

    Quotes are rare, and without them a plain split takes half the time (0.05 s instead of 0.1 s).
    """
    if '"' not in text:
        lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
        return ((number, line.split(",") if line else []) for number, line in enumerate(lines, 1))
    csv.field_size_limit(2**31 - 1)
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    return ((reader.line_num, row) for row in reader)


def _quoted(field: str) -> str:
    return '"' + field.replace('"', '""') + '"' if set(field) & set(',"\r\n') else field
