"""Find what is unlikely in a submission file: warnings, each worth a look at the masks, none of them an error."""

import math
from pathlib import Path

import numpy as np
import pandas as pd

from utils.data.competition import DataError, find_images, read_annotation, read_classes
from utils.hand import plausibility
from utils.hand.plausibility import KEY, USUAL, Usual
from utils.masks.masks import Masks
from utils.submission.checker import bad_masks, shown_name, shown_row
from utils.submission.csv_file import expected_rows, read
from utils.submission.shapes import measure

TRAINING_IMAGES = 200
"""About so many training images, of people spread evenly over the data, say what is usual."""
EXAMPLES = 3
"""Rows that a warning names."""
OF_MASKS = {
    plausibility.MISSING: f"masks are empty, though at least {USUAL:.0%} of the training images have their class",
    plausibility.AREA: "masks have areas far from those of their class in training",
    plausibility.PIECES: "masks have several pieces, where training images have one",
}
OF_IMAGES = {
    plausibility.EXCHANGED: "images have bones with left and right exchanged, compared with their other bones",
    plausibility.FILE_NAME: "images show the other hand than their file name says (was a flip not undone?)",
    plausibility.SAME_HAND: "people have two images of the same hand, though in training they show both hands (was a "
    "flip not undone in one of them?)",
}
"""What is wrong with masks and with whole images, by the rule that finds it."""


def find_warnings(path: str | Path, data_dir: str | Path) -> list[str]:
    """Find what is unlikely in a submission file.

    Args:
        path: the CSV file. Rows in which `checker.check` finds errors are left out.
        data_dir: the data folder with the test images, and with training annotations that say what is usual.

    Returns:
        One text per kind of warning, [] if everything is likely: rows in another order than the competition's; empty
        masks of a class that nearly all training images have; areas far from the class's training areas; several
        separate pieces where training images have one; for hand bones, bones whose order from thumb to little finger
        is the mirror image of what the other bones show, and hands whose side contradicts the file's name or the other
        image of the same person.

    Raises:
        DataError: if the data folder's test images or classes can't be read.
    """
    expected = expected_rows(data_dir)
    try:
        frame = read(path)
    except DataError:
        return []
    warnings = _order(frame, expected)
    frame = frame.drop(index=frame.index[sorted(bad_masks(frame, expected))]).drop_duplicates(KEY)
    shapes = frame.reset_index(names="line").merge(expected, on=KEY)
    sizes = tuple(shapes[["height", "width"]].fillna(2**20).to_numpy(np.int64).T)  # unknown of a damaged image
    shapes = shapes.assign(**measure(Masks.from_texts(shapes.pop("rle").tolist(), sizes)))
    drawn, images = shapes[shapes["area"] > 0], find_images(data_dir, splits=("test",))[0]
    images = images.drop_duplicates("image_name")  # as in `expected_rows`; the data check refuses two of one name
    images = images.assign(side=plausibility.side_letters(drawn, images["image_name"]))
    try:
        usual = read_usual(data_dir)
    except DataError as error:
        usual = plausibility.what_is_usual(drawn.iloc[:0], images.iloc[:0])
        reason = error.problems[0]
        warnings.append(f"empty masks, areas and pieces are not compared with the training annotations: {reason}")
    found = plausibility.find_unlikely(drawn, images, usual).merge(shapes[["line", *KEY]], how="left", on=KEY)
    found = pd.concat([found, plausibility.exchanged_bones(drawn)])
    warnings += [
        _of_masks(found[(found["rule"] == rule) & found["line"].notna()], text) for rule, text in OF_MASKS.items()
    ]
    people = images.set_index("image_name")["ID"]
    for rule, text in OF_IMAGES.items():
        rows = found[found["rule"] == rule]
        names = people[rows["image_name"]].unique() if rule == plausibility.SAME_HAND else rows["image_name"]
        reasons = rows["reason"] if rule == plausibility.EXCHANGED else [""] * len(names)
        examples = [f"{shown_name(name)}{why and ': ' + why}" for name, why in zip(names, reasons, strict=True)]
        warnings += [f"{len(examples)} {text}, such as {'; '.join(examples[:EXAMPLES])}"] if examples else []
    return list(filter(None, warnings))


def read_usual(data_dir: str | Path) -> Usual:
    """What the annotations of about TRAINING_IMAGES training images show; files that can't be read are left out.

    Raises DataError if there are no training images, or none whose annotation can be read.
    """
    classes, table = read_classes(data_dir), find_images(data_dir, splits=("train",))[0]
    table = table[table["height"] > 0].drop_duplicates("image_name")
    if table.empty:
        raise DataError(f"{data_dir}: nothing to compare with", ["there are no training images"])
    people = table["ID"].unique()[:: math.ceil(len(table) / TRAINING_IMAGES)]
    rows, readable = [], []
    for image in table[table["ID"].isin(people)].itertuples():
        try:
            polygons = read_annotation(image.annotation, classes)
        except DataError:
            continue
        readable.append(image.image_name)
        for label, outlines in polygons.items():
            if area := sum(map(_drawn_area, outlines)):
                rows.append((image.image_name, label, len(outlines), area, *np.concatenate(outlines).mean(0)))
    if not rows:
        raise DataError(f"{data_dir}: nothing to compare with", ["no polygon in the training annotations can be read"])
    shapes = pd.DataFrame(rows, columns=[*KEY, "pieces", "area", "x", "y"])
    images = table[table["image_name"].isin(readable)]
    images = images.assign(side=plausibility.side_letters(shapes, images["image_name"]))
    return plausibility.what_is_usual(shapes, images)


def _drawn_area(points: np.ndarray) -> float:
    """About the pixels that a polygon covers with its border, by Pick's theorem."""
    x, y = points.T.astype(float)
    dx, dy = np.roll(x, -1) - x, np.roll(y, -1) - y
    return abs(float(x @ dy - y @ dx)) / 2 + float(np.maximum(abs(dx), abs(dy)).sum()) / 2 + 1


def _order(frame: pd.DataFrame, expected: pd.DataFrame) -> list[str]:
    found, wanted = (list(map(tuple, table[KEY].to_numpy())) for table in (frame, expected))
    if found == wanted or sorted(found) != sorted(wanted):  # missing and other rows are errors
        return []
    i = next(i for i, (a, b) in enumerate(zip(found, wanted, strict=True)) if a != b)
    return [
        f"rows are in another order than the competition's from line {frame.index[i]}: found {shown_row(found[i])}, "
        f"expected {shown_row(wanted[i])}; they are matched by name, so the score stays the same"
    ]


def _of_masks(rows: pd.DataFrame, what: str) -> str:
    """One text: the number of masks, the classes that have most of them, and the first rows; "" for none."""
    if rows.empty:
        return ""
    counts = rows["class"].value_counts()
    classes = ", ".join(f"{shown_name(label)} {count}" for label, count in counts.head(EXAMPLES).items())
    classes += f", {len(counts) - EXAMPLES} more classes" if len(counts) > EXAMPLES else ""
    examples = [
        f"line {row.line:.0f}, {shown_row((row.image_name, label))}"
        + (f": {row.reason}" if row.rule != plausibility.MISSING else "")
        for row, label in zip(rows.head(EXAMPLES).itertuples(), rows["class"], strict=False)
    ]
    return f"{len(rows)} {what} ({classes}), such as {'; '.join(examples)}"
