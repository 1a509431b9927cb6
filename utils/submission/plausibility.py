"""Find what is unlikely in a submission file: warnings, each worth a look at the masks, none of them an error."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from utils.data.competition import DataError, find_images, read_annotation, read_classes
from utils.hand.sides import hand_sides
from utils.submission.checker import bad_masks, shown_name, shown_row
from utils.submission.csv_file import KEY, expected_rows, read
from utils.submission.shapes import measure

TRAINING_IMAGES = 200
"""About so many training images, of people spread evenly over the data, say what is usual."""
USUAL = 0.9
"""What at least this share of the training images shows is usual."""
AREA_SPREADS, AREA_RATIO, AREA_IMAGES = 6.0, 2.0, 10
"""An area is unusual if it differs from the class's median in training by more than this many robust standard
deviations of its logarithm and by more than this factor; the class must be in at least so many training images."""
EXAMPLES = 3
"""Rows that a warning names."""


@dataclass(frozen=True)
class Usual:
    """What is usual in the training annotations.

    classes: one row per class: present (share of the images), single (share of these with one polygon), median and
    spread of the logarithm of its area as a share of the image (NaN for a class in fewer than AREA_IMAGES images).
    both_sides: share of the people with two images of whom one shows a right hand and the other one a left hand.
    """

    classes: pd.DataFrame
    both_sides: float


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
    shapes = shapes.assign(**measure(shapes["rle"].tolist(), shapes["height"], shapes["width"])).drop(columns="rle")
    try:
        usual = read_usual(data_dir)
    except DataError as error:
        usual = None
        reason = error.problems[0]
        warnings.append(f"empty masks, areas and pieces are not compared with the training annotations: {reason}")
    if usual is not None:
        shapes = shapes.merge(usual.classes, left_on="class", right_index=True)
        warnings += [*_empty(shapes), *_areas(shapes), *_pieces(shapes)]
    return warnings + _sides(shapes, find_images(data_dir, splits=("test",))[0], usual)


def read_usual(data_dir: str | Path) -> Usual:
    """What the annotations of about TRAINING_IMAGES training images show; files that can't be read are left out.

    Raises DataError if there are no training images, or none whose annotation can be read.
    """
    classes, table = read_classes(data_dir), find_images(data_dir, splits=("train",))[0]
    table = table[table["height"] > 0].drop_duplicates("image_name")
    if table.empty:
        raise DataError(f"{data_dir}: nothing to compare with", ["there are no training images"])
    people = table["ID"].unique()[:: math.ceil(len(table) / TRAINING_IMAGES)]
    rows = []
    for image in table[table["ID"].isin(people)].itertuples():
        try:
            polygons = read_annotation(image.annotation, classes)
        except DataError:
            continue
        for label, outlines in polygons.items():
            area = sum(abs(_twice_area(points)) for points in outlines) / 2 / (image.height * image.width)
            x, y = np.concatenate(outlines).mean(0) if outlines else (np.nan, np.nan)
            rows.append((image.image_name, label, len(outlines), area, x, y))
    if not any(polygons for _, _, polygons, *_ in rows):
        raise DataError(f"{data_dir}: nothing to compare with", ["no polygon in the training annotations can be read"])
    found = pd.DataFrame(rows, columns=[*KEY, "polygons", "area", "x", "y"])
    present = found[found["polygons"] > 0]
    areas = np.log(present["area"].where(present["area"] > 0)).groupby(present["class"])
    median = areas.median()
    usual = pd.DataFrame(
        {
            "present": (found["polygons"] > 0).groupby(found["class"]).mean(),
            "single": (present["polygons"] == 1).groupby(present["class"]).mean(),
            "median": median.where(areas.count() >= AREA_IMAGES),
            "spread": 1.4826 * areas.apply(lambda values: (values - values.median()).abs().median()),
        }
    ).reindex(classes)
    sides = hand_sides(found)[0]
    sums = _of_people(sides, table)
    return Usual(usual, float((sums == 0).mean()) if len(sums) else 0.0)


def _of_people(sides: pd.Series, images: pd.DataFrame) -> pd.Series:
    """The sum of the sides of each person with two images of a known side: 0 for a right and a left hand."""
    known = sides[sides != 0]
    found = known.groupby(images.set_index("image_name")["ID"].reindex(known.index)).agg(["size", "sum"])
    return found.loc[found["size"] == 2, "sum"]


def _twice_area(points: np.ndarray) -> float:
    x, y = points.T.astype(float)
    return float(x @ np.roll(y, -1) - y @ np.roll(x, -1))


def _order(frame: pd.DataFrame, expected: pd.DataFrame) -> list[str]:
    found, wanted = (list(map(tuple, table[KEY].to_numpy())) for table in (frame, expected))
    if found == wanted or sorted(found) != sorted(wanted):  # missing and other rows are errors
        return []
    i = next(i for i, (a, b) in enumerate(zip(found, wanted, strict=True)) if a != b)
    return [
        f"rows are in another order than the competition's from line {frame.index[i]}: found {shown_row(found[i])}, "
        f"expected {shown_row(wanted[i])}; they are matched by name, so the score stays the same"
    ]


def _empty(shapes: pd.DataFrame) -> list[str]:
    empty = shapes[(shapes["area"] == 0) & (shapes["present"] >= USUAL)]
    what = f"masks are empty, though at least {USUAL:.0%} of the training images have their class"
    return _warning(empty, what, [""] * len(empty))


def _areas(shapes: pd.DataFrame) -> list[str]:
    drawn = shapes[shapes["area"] > 0]
    off = np.log(drawn["area"] / (drawn["height"] * drawn["width"])) - drawn["median"]  # NaN: too few to compare with
    far = off.abs() > np.maximum(AREA_SPREADS * drawn["spread"], np.log(AREA_RATIO))
    texts = [f"{area:.0f} pixels, {np.exp(d):.2g} times the usual" for area, d in zip(drawn["area"], off, strict=True)]
    found = drawn.assign(text=texts, off=off.abs())[far].sort_values("off", ascending=False, kind="stable")
    return _warning(found, "masks have areas far from those of their class in training", found["text"])


def _pieces(shapes: pd.DataFrame) -> list[str]:
    found = shapes[(shapes["pieces"] > 1) & (shapes["single"] >= USUAL)]
    found = found.sort_values("smaller", ascending=False, kind="stable")
    texts = [
        f"{n} pieces, {small:.0f} of {area:.0f} pixels outside the largest"
        for n, small, area in found[["pieces", "smaller", "area"]].itertuples(index=False)
    ]
    return _warning(found, "masks have several pieces, where training images have one", texts)


def _warning(rows: pd.DataFrame, what: str, texts: Sequence[str]) -> list[str]:
    """One text: the number of masks, the classes that have most of them, and the first rows."""
    if rows.empty:
        return []
    counts = rows["class"].value_counts()
    classes = ", ".join(f"{shown_name(label)} {count}" for label, count in counts.head(EXAMPLES).items())
    classes += f", {len(counts) - EXAMPLES} more classes" if len(counts) > EXAMPLES else ""
    named = zip(rows[["line", *KEY]].itertuples(index=False), texts, strict=True)
    examples = [f"line {line}, {shown_row(names)}{text and ': ' + text}" for (line, *names), text in named]
    return [f"{len(rows)} {what} ({classes}), such as {'; '.join(examples[:EXAMPLES])}"]


def _sides(shapes: pd.DataFrame, images: pd.DataFrame, usual: Usual | None) -> list[str]:
    """Bones and hands whose left and right are probably exchanged; nothing for data without hand bones."""
    side, votes = hand_sides(shapes)
    warnings = []
    against = votes.mul(side, axis=0).lt(0)
    found = [
        f"{shown_name(image)}: {', '.join(' and '.join(pair) for pair in against.columns[pairs])}"
        for image, pairs in zip(against.index, against.to_numpy(), strict=True)
        if pairs.any()
    ]
    if found:
        warnings.append(
            f"{len(found)} images have bones with left and right exchanged, compared with their other bones, "
            f"such as {'; '.join(found[:EXAMPLES])}"
        )
    hands = side[side != 0]
    named = hands.index.to_series().str.extract(r"_([RL])\.\w+$")[0].map({"R": 1, "L": -1})
    wrong = [shown_name(image) for image in hands.index[named.notna() & (named != hands)]]
    if wrong:
        warnings.append(
            f"{len(wrong)} images show the other hand than their file name says, such as "
            f"{', '.join(wrong[:EXAMPLES])}; was a flip not undone?"
        )
    if usual is not None and usual.both_sides >= USUAL:
        sums = _of_people(side, images)
        same = sums.index[sums != 0].tolist()
        if same:
            warnings.append(
                f"{len(same)} people have two images of the same hand, though in training they show both hands, such "
                f"as {', '.join(map(shown_name, same[:EXAMPLES]))}; was a flip not undone in one of them?"
            )
    return warnings
