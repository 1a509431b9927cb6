"""Divide the training images into folds by person, stratified by what their labels show, in the run's folds.csv."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import pandas as pd
from filelock import FileLock

from utils.data.competition import DataError, read_annotation
from utils.files import read_table, shown, write_table


def assign_folds(table: pd.DataFrame, n_folds: int, seed: int = 0) -> pd.DataFrame:
    """Divide the training images of a table into folds by person.

    People get the folds 0, 1, 2, … in turn: first those who are bent, then the others, each group in the order of the
    hash of seed and ID. So nobody is in two folds, bent ones are in all of them (if there are enough), and every
    machine gets the same folds.

    Args:
        table: the index (`read_index`); a column bent (bool, such as `hand.bend.is_bent`) is used if it is there.
        n_folds: number of folds.
        seed: another seed gives other folds.

    Returns:
        One row per training image, in the order of `table`: ID, image_name, bent (bool: any image of the person
        is), fold (int, 0 to n_folds - 1).

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


def read_folds(
    path: str | Path,
    table: pd.DataFrame,
    classes: list[str],
    n_folds: int,
    seed: int = 0,
    is_bent: Callable[[dict], bool] | None = None,
) -> pd.DataFrame:
    """The folds of a run: read from a file, or made by `assign_folds` and written there if it does not exist yet.

    Of several processes that start together, one deals the folds and the others read them.

    Args:
        path: the run's folds.csv.
        table: the index (`read_index`); its training images are divided.
        classes: the class names, with which the annotations are read for `is_bent`.
        n_folds: number of folds.
        seed: of the folds. Folds that are there are kept whatever the seed, with a printed line: so models of several
            seeds can be compared and averaged out of fold.
        is_bent: by what people are stratified, such as `hand.bend.stratum` gives it: whether an image belongs to the
            smaller group by its polygons, as `read_annotation` returns them; None for one group.

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
            bent = [bool(is_bent and each and is_bent(read_annotation(each, classes))) for each in train["annotation"]]
            write_table(path, assign_folds(train.assign(bent=bent), n_folds, seed), index=False)
    folds = read_table(path)
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
