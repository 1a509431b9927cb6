"""What is unlikely about masks of bones or other classes, in labels as in a submission, compared with what is usual.

A finding is a hint, not a proof: look at the image.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd

from utils.hand.sides import hand_sides

KEY = ["image_name", "class"]
USUAL = 0.9
"""What at least this share of the reference images shows is usual."""
AREA_SPREADS, AREA_RATIO, AREA_IMAGES = 6.0, 1.4, 10
"""An area is unusual if it differs from the expected one by more than this many robust standard deviations of its
logarithm and by more than this factor; at least so many reference images must have the class."""
SIZED = 5
"""In images with at least so many classes, areas are compared relative to the size of the whole."""
MISSING, PIECES, HOLES, AREA = "missing", "pieces", "holes", "area"
EXCHANGED, FILE_NAME, SAME_HAND = "exchanged", "file name", "same hand"


@dataclass(frozen=True)
class Usual:
    """What is usual in a reference, such as the training labels.

    classes: one row per class: present (share of the images), single and whole (share of these with one piece, and
    without a hole), median of the logarithm of its area as a share of the image, and, once all images have the same
    size, offset and spread of this logarithm; NaN for a class in fewer than AREA_IMAGES images. both_sides: share of
    the people with two images of whom one shows a right hand and the other one a left hand.
    """

    classes: pd.DataFrame
    both_sides: float


def what_is_usual(shapes: pd.DataFrame, images: pd.DataFrame) -> Usual:
    """What is usual in a reference; arguments as of `find_unlikely`, without masks of no area."""
    groups = shapes.groupby("class")
    classes = pd.DataFrame({"present": groups.size() / max(len(images), 1)})
    for column, share, normal in (("pieces", "single", 1), ("holes", "whole", 0)):
        if column in shapes:
            classes[share] = (shapes[column] == normal).groupby(shapes["class"]).mean()
    classes["median"] = _log_shares(shapes, images).median().where(groups.size() >= AREA_IMAGES)
    off = _relative(shapes, images, classes["median"])
    classes["offset"] = off.median()
    classes["spread"] = 1.4826 * (off - off.median()).abs().median()
    sides = _of_people(images)
    return Usual(classes, float((sides == 0).mean()) if len(sides) else 0.0)


def find_unlikely(shapes: pd.DataFrame, images: pd.DataFrame, usual: Usual) -> pd.DataFrame:
    """Everything unlikely about the masks of some images.

    Args:
        shapes: one row per mask that is not empty: image_name, class, area (pixels), x, y (centroid), pieces and, where
            they are known, holes and smaller (pixels outside the largest piece).
        images: one row per image: image_name, ID, height, width and side ("R", "L", "" if unknown), see `side_letters`.
        usual: what they are compared with.

    Returns:
        image_name, class ("" for the whole image), rule (one of the constants of this module), reason (for people) and
        score (a value divided by its limit; 1 for rules without numbers).
    """
    rows = [*_missing(shapes, images, usual), *_broken(shapes, usual), *_areas(shapes, images, usual)]
    rows += _sides(images, usual)
    return pd.DataFrame(rows, columns=[*KEY, "rule", "reason", "score"])


def side_letters(shapes: pd.DataFrame, images: pd.Series) -> np.ndarray:
    """The side of the hand in each of these images (names): "R", "L", or "" where it is not to be told."""
    return hand_sides(shapes)[0].map({1: "R", -1: "L"}).reindex(images).fillna("").to_numpy()


def exchanged_bones(shapes: pd.DataFrame) -> pd.DataFrame:
    """Images in which some bones' left and right contradict that of the other bones, with the columns of findings."""
    side, votes = hand_sides(shapes)
    against = votes.mul(side, axis=0).lt(0)
    rows = [
        (image, "", EXCHANGED, ", ".join(" and ".join(pair) for pair in against.columns[pairs]), 1.0)
        for image, pairs in zip(against.index, against.to_numpy(), strict=True)
        if pairs.any()
    ]
    return pd.DataFrame(rows, columns=[*KEY, "rule", "reason", "score"])


def _missing(shapes: pd.DataFrame, images: pd.DataFrame, usual: Usual) -> Iterator[tuple]:
    present = set(shapes[KEY].itertuples(index=False, name=None))
    shares = usual.classes.loc[usual.classes["present"] >= USUAL, "present"]
    for name, share in shares.items():
        for image in images["image_name"]:
            if (image, name) not in present:
                yield image, name, MISSING, f"missing, though {share:.0%} of the images have it", 1.0


def _broken(shapes: pd.DataFrame, usual: Usual) -> Iterator[tuple]:
    for rule, share, normal, what in ((PIECES, "single", 1, "separate pieces"), (HOLES, "whole", 0, "hole")):
        if rule in shapes and share in usual.classes:
            is_usual = shapes["class"].map(usual.classes[share]) >= USUAL
            odd = shapes[is_usual & (shapes[rule] > normal)]
            more = [""] * len(odd)
            if rule == PIECES and "smaller" in odd:
                odd = odd.sort_values("smaller", ascending=False, kind="stable")
                more = [
                    f", {s:.0f} of {a:.0f} pixels outside the largest"
                    for s, a in zip(odd["smaller"], odd["area"], strict=True)
                ]
            for (image, name, number), text in zip(odd[[*KEY, rule]].itertuples(index=False), more, strict=True):
                yield image, name, rule, f"{number} {what}{text}", 1.0


def _areas(shapes: pd.DataFrame, images: pd.DataFrame, usual: Usual) -> Iterator[tuple]:
    off = _relative(shapes, images, usual.classes["median"]).sub(usual.classes["offset"])
    limit = np.maximum(AREA_SPREADS * usual.classes["spread"], np.log(AREA_RATIO))
    score, areas = (off.abs() / limit).stack(), shapes.set_index(KEY)["area"]  # noqa: PD013
    for image, name in score[score > 1].sort_values(ascending=False, kind="stable").index:
        ratio = np.exp(off.loc[image, name])
        reason = f"{areas[image, name]:.0f} pixels, {ratio:.2g} times the area usual in an image like this"
        yield image, name, AREA, reason, float(score[image, name])


def _log_shares(shapes: pd.DataFrame, images: pd.DataFrame) -> pd.DataFrame:
    """The logarithm of each mask's area as a share of its image, images × classes; NaN where there is none."""
    pixels = images.set_index("image_name")[["height", "width"]].prod(axis=1).astype(float)
    areas = shapes.pivot_table(index="image_name", columns="class", values="area")
    return np.log(areas.div(pixels.reindex(areas.index), axis=0))


def _relative(shapes: pd.DataFrame, images: pd.DataFrame, median: pd.Series) -> pd.DataFrame:
    """`_log_shares` compared with their medians, and, with enough classes, with the size of the whole in each image."""
    off = _log_shares(shapes, images).sub(median).reindex(columns=median.index)
    return off.sub(off.median(axis=1), axis=0) if len(median) >= SIZED else off


def _sides(images: pd.DataFrame, usual: Usual) -> Iterator[tuple]:
    hands = images[images["side"] != ""]
    named = hands["image_name"].str.extract(r"_([RL])\.\w+$")[0]
    for image, side, letter in zip(hands["image_name"], hands["side"], named, strict=True):
        if isinstance(letter, str) and letter != side:
            yield image, "", FILE_NAME, f"the file name says {letter}, the order of the bones {side}", 1.0
    if usual.both_sides >= USUAL:
        same = _of_people(images)
        for image, ID in hands.loc[hands["ID"].isin(same.index[same != 0]), ["image_name", "ID"]].to_numpy():
            yield image, "", SAME_HAND, f"both images of {ID} show the thumb on the same side", 1.0


def _of_people(images: pd.DataFrame) -> pd.Series:
    """The sum of the sides (1 for right, -1 for left) of each person with two images of a known side."""
    known = images["side"].map({"R": 1, "L": -1}).dropna()
    people = known.groupby(images["ID"]).agg(["size", "sum"])
    return people.loc[people["size"] == 2, "sum"]
