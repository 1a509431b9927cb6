"""Divide the training images into folds by person, stratified by bent wrist, in the run's folds.csv."""

import hashlib
from pathlib import Path

import numpy as np
import pandas as pd
from filelock import FileLock

from utils.data.competition import DataError, read_annotation
from utils.files import shown, write_table

FOREARM = ("Radius", "Ulna")
MIDDLE_METACARPAL = "finger-11"
BENT_DEGREES = 12.0
"""A wrist counts as bent when hand and forearm differ by more than this."""


def wrist_angle(polygons: dict[str, list[np.ndarray]]) -> float:
    """Angle in degrees between forearm and hand, 0 for a straight wrist; positive bends turn clockwise on screen.

    As radiologists measure it: between the long axis of the middle metacarpal and the mean of those of Radius and Ulna.
    The long axis of a bone is the first principal axis of its outline. `polygons` is what `read_annotation` returns.
    NaN if one of the three bones is missing.
    """
    if not all(polygons.get(name) for name in (*FOREARM, MIDDLE_METACARPAL)):
        return float("nan")
    bones = {name: np.concatenate(polygons[name]).astype(float) for name in (*FOREARM, MIDDLE_METACARPAL)}
    outwards = bones[MIDDLE_METACARPAL].mean(0) - (bones["Radius"].mean(0) + bones["Ulna"].mean(0)) / 2
    hand = _long_axis(bones[MIDDLE_METACARPAL], outwards)
    forearm = _long_axis(bones["Radius"], outwards) + _long_axis(bones["Ulna"], outwards)
    angle = np.arctan2(hand[1], hand[0]) - np.arctan2(forearm[1], forearm[0])
    return float(np.degrees((angle + np.pi) % (2 * np.pi) - np.pi))


def _long_axis(points: np.ndarray, towards: np.ndarray) -> np.ndarray:
    """Unit vector (x, y) of the first principal axis of an outline, on the side of `towards`."""
    values, vectors = np.linalg.eigh(np.cov((points - points.mean(0)).T))
    axis = vectors[:, values.argmax()]
    return axis if axis @ towards > 0 else -axis


def add_wrists(table: pd.DataFrame, classes: list[str]) -> pd.DataFrame:
    """The table with `wrist_angle` (degrees) and `bent` (bool) for annotated images; NaN and False elsewhere."""
    angles = [
        wrist_angle(read_annotation(row.annotation, classes))
        if row.annotation and set(FOREARM) <= set(classes)
        else np.nan
        for row in table.itertuples()
    ]
    return table.assign(wrist_angle=angles, bent=np.abs(angles) > BENT_DEGREES)


def assign_folds(table: pd.DataFrame, n_folds: int, seed: int = 0) -> pd.DataFrame:
    """Divide the training images of a table into folds by person.

    People get the folds 0, 1, 2, … in turn: first those with a bent wrist, then the others, each group in the order of
    the hash of seed and ID. So nobody is in two folds, bent wrists are in all of them (if there are enough), and every
    machine gets the same folds.

    Args:
        table: the index (`read_index`); a column bent (bool, see `add_wrists`) is used if it is there.
        n_folds: number of folds.
        seed: another seed gives other folds.

    Returns:
        One row per training image, in the order of `table`: ID, image_name, bent (bool: any image of the person shows
        a bent wrist), fold (int, 0 to n_folds - 1).

    Raises:
        DataError: if there are fewer people than folds.
    """
    table = table[table["split"] == "train"]
    people = table.groupby("ID")["bent"].any() if "bent" in table else pd.Series(False, index=table["ID"].unique())
    if len(people) < n_folds:
        raise DataError(
            f"{n_folds} folds need at least {n_folds} people", [f"found {len(people)} in the training split"]
        )
    draw = {ID: hashlib.sha256(f"{seed}:{ID}".encode()).hexdigest() for ID in people.index}
    order = sorted(people.index, key=lambda ID: (not people[ID], draw[ID]))
    fold = {ID: place % n_folds for place, ID in enumerate(order)}
    return pd.DataFrame(
        {
            "ID": table["ID"],
            "image_name": table["image_name"],
            "bent": table["ID"].map(people),
            "fold": table["ID"].map(fold),
        }
    ).reset_index(drop=True)


def read_folds(path: str | Path, table: pd.DataFrame, classes: list[str], n_folds: int, seed: int = 0) -> pd.DataFrame:
    """The folds of a run: read from a file, or made by `assign_folds` and written there if it does not exist yet.

    Of several processes that start together, one deals the folds and the others read them.

    Args:
        path: the run's folds.csv.
        table: the index (`read_index`); its training images are divided.
        classes: the class names, with which the annotations are read to measure the wrists.
        n_folds: number of folds.
        seed: of the folds. Folds that are there are kept whatever the seed, with a printed line: so models of several
            seeds can be compared and averaged out of fold.

    Returns:
        The columns ID, image_name, bent and fold of `assign_folds`.

    Raises:
        DataError: if the file lists other images than `table`, has another number of folds or a person in two folds;
            if there are fewer people than folds; if an annotation can't be read.
    """
    path = Path(path)
    train = table[table["split"] == "train"]
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f".{path.name}.lock"), mode=0o666):
        if not path.exists():
            write_table(path, assign_folds(add_wrists(train, classes), n_folds, seed), index=False)
    folds = pd.read_csv(path, dtype={"ID": str, "image_name": str})
    problems = []
    for title, names in (
        ("in the file but not in the data", set(folds["image_name"]) - set(train["image_name"])),
        ("in the data but not in the file", set(train["image_name"]) - set(folds["image_name"])),
    ):
        if names:
            problems.append(f"{len(names)} images {title}, such as {min(names)}")
    if len(folds["fold"].unique()) != n_folds:
        problems.append(f"n_folds is {n_folds}, the file has {len(folds['fold'].unique())}")
    if len(folds[["ID", "fold"]].drop_duplicates()) > len(folds["ID"].unique()):
        problems.append("a person is in two folds")
    if problems:
        advice = "choose another output_dir for other data or folds, or delete the file and what was trained with it"
        raise DataError(f"{shown(path)} was written for another run; {advice}", problems)
    found = folds.set_index("image_name").loc[train["image_name"]]
    if (
        assign_folds(train.assign(bent=found["bent"].tolist()), n_folds, seed)["fold"].tolist()
        != found["fold"].tolist()
    ):
        print(f"{shown(path)} was not dealt with seed {seed}; its folds are kept, so that scores can be compared")
    return folds


def split_fold(table: pd.DataFrame, folds: pd.DataFrame, fold: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Training and validation rows of `table` for one fold; -1 trains on everything and validates on nothing."""
    of_image = table["image_name"].map(folds.set_index("image_name")["fold"])
    train = table["split"] == "train"
    return table[train & (of_image != fold)], table[train & (of_image == fold)]
