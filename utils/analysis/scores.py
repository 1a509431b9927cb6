"""Judge one result: Dice with intervals, by stratum and re-weighted to the test images, and the outlines' distances."""

from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from utils.analysis.results import Scores
from utils.data.significance import Estimate, bootstrap
from utils.files import cores
from utils.hand.bend import BENT, STRAIGHT
from utils.masks.masks import Masks
from utils.masks.surface import Distances, surface_distances

if TYPE_CHECKING:  # it imports torch, which the command line does without
    from utils.data.cache import Cache

NO_DISTANCES: Mapping[str, pd.DataFrame] = {}
ALL, REWEIGHTED = "all images", "re-weighted"


def summary(scores: Scores, bent_share: float = float("nan")) -> pd.DataFrame:
    """Mean Dice with its 95 % interval by person, on all, straight and bent images, and re-weighted to the test set.

    bent_share: share (0 to 1) of test images that are bent; NaN if unknown. Index: ALL; STRAIGHT and BENT if there
    are both; REWEIGHTED if bent_share is known too: the Dice to expect on images of which this share is bent.
    Columns: images, people, dice, low, high.
    """
    table = grouped(scores.dice.mean(axis=1).to_frame("dice"), scores.images, bent_share)
    return table.assign(low=table["low"].clip(0, 1), high=table["high"].clip(0, 1))


def grouped(values: pd.DataFrame, images: pd.DataFrame, bent_share: float) -> pd.DataFrame:
    """The rows of `summary` for any values (images × columns).

    Columns: images, people, the mean of each column, and low and high, the interval of the last column.
    """
    bent, people = images["bent"].to_numpy(bool), images["ID"].to_numpy()
    everything = np.ones(len(bent), bool)
    rows = {ALL: (everything, None)}
    if bent.any() and not bent.all():
        rows |= {STRAIGHT: (~bent, None), BENT: (bent, None)}
        if not np.isnan(bent_share):
            rows[REWEIGHTED] = everything, {False: 1 - bent_share, True: bent_share}
    table = {}
    for name, (some, shares) in rows.items():
        found = bootstrap(values.to_numpy()[some], people[some], bent[some], shares)
        counts = {"images": int(some.sum()), "people": len(set(people[some]))}
        ends = {"low": found.low[-1], "high": found.high[-1]}
        table[name] = counts | dict(zip(values.columns, found.mean, strict=True)) | ends
    return pd.DataFrame.from_dict(table, orient="index")


def by_class(
    scores: Scores, bent_share: float = float("nan"), distances: Mapping[str, pd.DataFrame] = NO_DISTANCES
) -> pd.DataFrame:
    """One row per class, in order: dice, low, high (95 % by person), straight, bent, re-weighted, hd95, msd.

    Columns that can't be known (nothing bent, no bent_share, no distances) are left out. hd95, msd: means over the
    images of `distances`, see `distance_tables`, in pixels.
    """
    dice, people = scores.dice, scores.images["ID"].to_numpy()
    found: Estimate = bootstrap(dice.to_numpy(), people)
    table = pd.DataFrame(found._asdict(), index=dice.columns).clip(0, 1).rename(columns={"mean": "dice"})
    bent = scores.images["bent"].to_numpy(bool)
    if bent.any() and not bent.all():
        table["straight"], table["bent"] = dice[~bent].mean(), dice[bent].mean()
        if not np.isnan(bent_share):
            table["re-weighted"] = (1 - bent_share) * table["straight"] + bent_share * table["bent"]
    for name, measured in distances.items():
        table[name] = measured.mean()
    return table.rename_axis("class")


def by_image(scores: Scores, distances: Mapping[str, pd.DataFrame] = NO_DISTANCES) -> pd.DataFrame:
    """One row per image, the worst first: ID, bent, fold, dice, worst_class and its Dice, hd95, msd (mean, pixels)."""
    dice = scores.dice
    table = scores.images[["ID", "bent", "fold"]].assign(
        dice=dice.mean(axis=1), worst_class=dice.idxmin(axis=1), worst_dice=dice.min(axis=1)
    )
    for name, measured in distances.items():
        table[name] = measured.mean(axis=1)
    return table.sort_values("dice", kind="stable")


def worst_masks(scores: Scores, number: int, distances: Mapping[str, pd.DataFrame] = NO_DISTANCES) -> pd.DataFrame:
    """The `number` masks with the lowest Dice: image_name, class, dice and, with `distances`, hd95 and msd (pixels)."""
    table = scores.dice.melt(var_name="class", value_name="dice", ignore_index=False)
    for name, measured in distances.items():
        table[name] = measured.loc[scores.dice.index].melt()["value"].to_numpy()
    return table.reset_index().sort_values("dice", kind="stable", ignore_index=True).head(number)


def distance_tables(votes: Iterable[tuple[str, Masks]], cache: "Cache") -> dict[str, pd.DataFrame]:
    """The distances of the predicted masks (name, masks) of each image from the true ones, images × classes.

    cache: the built cache, at any resolution, for the true masks. By name, in pixels at full size: hd95 and msd, see
    `utils.masks.surface.Distances`.
    """

    def one(vote: tuple[str, Masks]) -> tuple[str, Distances]:
        return vote[0], surface_distances(vote[1], cache.read(vote[0]).truth)

    with ThreadPoolExecutor(cores()) as pool:
        rows = dict(pool.map(one, votes))
    images, found = pd.Index(list(rows), name="image_name"), Distances(*zip(*rows.values(), strict=True))
    return {name: pd.DataFrame(list(values), images, cache.classes) for name, values in found._asdict().items()}
