"""Choose a threshold for each class by out-of-fold Dice, and estimate what that gains on new people."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from utils.data.cache import Cache
from utils.inference.ensemble import FoldModel
from utils.inference.weights import Voters, out_of_fold_dice
from utils.masks.dice import mean_dice

THRESHOLDS = tuple(np.round(np.arange(0.30, 0.71, 0.05), 2).tolist())
"""The thresholds that `choose_thresholds` tries."""


@dataclass(frozen=True)
class Thresholds:
    """Thresholds and what they are worth.

    best: one per class, chosen on all images. curve: mean Dice, thresholds × classes. fixed: mean Dice at the fixed
    threshold. crossed: Dice, images × classes, if each fold is scored with the thresholds that are best on the other
    folds. tuned: its mean, the Dice to expect on new people, because thresholds overfit easily. others: by fold, the
    thresholds that are best on the other folds.
    """

    best: list[float]
    curve: pd.DataFrame
    fixed: float
    crossed: pd.DataFrame
    others: dict[int, list[float]]

    @property
    def tuned(self) -> float:
        """Mean Dice with thresholds that were chosen on other folds."""
        return mean_dice(self.crossed)


def choose_thresholds(
    fold_models: Sequence[FoldModel],
    images: dict[str, int],
    cache: Cache,
    weights: dict[str, float],
    fixed: float = 0.5,
    vote: str = "soft",
    others: Mapping[int, Voters] | None = None,
) -> Thresholds:
    """Thresholds per class from the out-of-fold Dice of `images`, with a cross-fitted estimate of the gain.

    others: by fold, who votes there, see `Vote.others`; None for the same voters everywhere.
    """
    candidates = sorted({*THRESHOLDS, fixed}, key=lambda t: (abs(t - fixed), t))  # of equally good ones, the first wins
    made: dict[tuple, list[pd.DataFrame]] = {}

    def scored(voters: Sequence[FoldModel], of: Mapping[str, float]) -> tuple[list[pd.DataFrame], np.ndarray]:
        key = (id(voters), *sorted(of.items()))
        if key not in made:
            made[key] = [out_of_fold_dice(voters, images, cache, dict(of), t, vote) for t in candidates]
        return made[key], np.stack([table.to_numpy() for table in made[key]])  # (thresholds, images, classes)

    tables, dice = scored(fold_models, weights)
    fold_of = tables[0].index.map(images).to_numpy()
    crossed, best_elsewhere = np.empty_like(dice[0]), {}
    for fold in np.unique(fold_of).tolist():
        here, rest = fold_of == fold, fold_of != fold
        _, there = scored(*(others or {}).get(fold, (fold_models, weights)))
        choice = there[:, rest].mean(1).argmax(0) if rest.any() else np.zeros(dice.shape[2], int)
        crossed[here] = np.take_along_axis(there[:, here], choice[None, None], 0)[0]
        best_elsewhere[fold] = [candidates[i] for i in choice]
    best = [candidates[i] for i in dice.mean(1).argmax(0)]
    curve = pd.DataFrame(dice.mean(1), index=candidates, columns=cache.classes).sort_index()
    table = pd.DataFrame(crossed, tables[0].index, cache.classes)
    return Thresholds(best, curve, mean_dice(tables[0]), table, best_elsewhere)
