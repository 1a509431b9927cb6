"""Choose weights and thresholds of the vote by out-of-fold Dice, and estimate the Dice to expect on new people."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from utils.data.cache import Cache
from utils.data.significance import LEVEL, sign_flip_p
from utils.inference.ensemble import FoldModel, vote_images
from utils.inference.postprocess import build_postprocess
from utils.masks.dice import dice_of_masks, dice_table, mean_dice

PICKS = 5
"""Models that `choose_weights` picks one after the other, with repetition: weights are multiples of 1/5, 1/4, 1/3, …"""


Voters = tuple[Sequence[FoldModel], dict[str, float]]
"""Fold models, and the weight of each model."""


def shared_images(fold_models: Sequence[FoldModel], folds: pd.DataFrame) -> dict[str, int]:
    """The images, with their fold, for which every model has a fold model that did not see the person."""
    models = {m.model for m in fold_models}
    common = set.intersection(*({m.fold for m in fold_models if m.model == model} for model in models))
    return {row.image_name: row.fold for row in folds.itertuples() if row.fold in common}


def out_of_fold_dice(
    fold_models: Sequence[FoldModel],
    images: dict[str, int],
    cache: Cache,
    weights: dict[str, float],
    threshold: float | Sequence[float] = 0.5,
    vote: str = "soft",
    postprocess: Sequence[str] = (),
) -> pd.DataFrame:
    """Dice, images × classes, of the vote on `images` (name: fold, see `shared_images`)."""
    votes = vote_images(fold_models, images, "oof", weights, threshold, images, vote, postprocess)
    return dice_table({name: dice_of_masks(masks, cache.read(name).truth) for name, masks in votes}, cache.classes)


CANDIDATES = (["largest"], ["fill_holes"], ["min_area 100"])
"""Post-processing that `judge_postprocess` tries beside the chosen steps."""


def judge_postprocess(
    fold_models: Sequence[FoldModel],
    images: dict[str, int],
    cache: Cache,
    weights: dict[str, float],
    threshold: float | Sequence[float],
    vote: str = "soft",
    chosen: Sequence[str] = (),
) -> pd.DataFrame:
    """What post-processing is worth out of fold, with one row for the `chosen` steps and each of CANDIDATES.

    Columns: steps, dice, gain (over no steps) and changed (masks, of images × classes). Each image is voted on once.
    """
    trials = [list(chosen), *(steps for steps in CANDIDATES if steps != list(chosen))] if chosen else list(CANDIDATES)
    plain, dice, changed = [], [[] for _ in trials], [0] * len(trials)
    for name, masks in vote_images(fold_models, images, "oof", weights, threshold, images, vote):
        entry = cache.read(name)
        plain.append(dice_of_masks(masks, entry.truth))
        for number, steps in enumerate(trials):
            tidied = build_postprocess(steps)(masks)
            changed[number] += int((~tidied.same(masks)).sum())
            dice[number].append(dice_of_masks(tidied, entry.truth))
    means = [float(np.mean(scores)) for scores in dice]
    rows = zip(map(", ".join, trials), means, np.array(means) - np.mean(plain), changed, strict=True)
    return pd.DataFrame(rows, columns=["steps", "dice", "gain", "changed"])


@dataclass(frozen=True)
class Weights:
    """Weights and what they are worth.

    best: each model's weight, chosen on all images; 0 leaves the model out. dice: images × classes, of the vote with
    these weights. equal: mean Dice with equal weights. crossed: mean Dice if each fold is scored with the weights that
    are best on the other folds; it is the Dice to expect on new people. p: of the difference between these two, see
    `data.significance.sign_flip_p`. others: by fold, the weights that are best on the other folds.
    """

    best: dict[str, float]
    dice: pd.DataFrame
    equal: float
    crossed: float
    p: float
    others: dict[int, dict[str, float]]

    @property
    def worth_it(self) -> bool:
        """Whether chosen weights are shown to be better than equal ones, on folds on which they were not chosen."""
        return self.crossed > self.equal and self.p < 1 - LEVEL


def choose_weights(
    fold_models: Sequence[FoldModel],
    images: dict[str, int],
    cache: Cache,
    threshold: float | Sequence[float] = 0.5,
    vote: str = "soft",
    people: Mapping[str, str] | None = None,
    elsewhere: Mapping[int, Sequence[FoldModel]] | None = None,
) -> Weights:
    """Choose each model's weight by out-of-fold Dice, and estimate the Dice to expect on new people.

    Greedy selection with replacement (Caruana et al., "Ensemble selection from libraries of models", 2004): the best
    model is picked first, then PICKS - 1 times the model that makes the vote best; the best of these votes is taken. A
    model's weight is its share of the picks. If all images are of one fold, the choice could not be checked on another
    one, and all weights are equal.

    Args:
        fold_models: the fold models, see `find_fold_models`.
        images: name and fold of each image, see `shared_images`.
        cache: the built cache, at any resolution, for the true masks of the images.
        threshold: of the vote, 0 to 1, one number or one per class.
        vote: "soft" or "hard".
        people: whose image each is, for p; None: every image is of another person.
        elsewhere: by fold, the fold models as refined by what the other folds say; None for `fold_models` everywhere.

    Returns:
        The weights by model (multiples of 1/PICKS or of 1 / a smaller number of picks, with sum 1; all 1.0 if there is
        only one fold), the Dice of the vote with them, and the two estimates of `Weights`.

    Raises:
        FileNotFoundError: if an image is not in a store or in the cache.
        ValueError: if a stored file is damaged, or if fold models disagree about the size of an image.
    """
    models = sorted({m.model for m in fold_models})
    fold_of = np.array([images[name] for name in images])
    voted: dict[tuple, pd.DataFrame] = {}

    def dice(picks: Sequence[int], voters: Sequence[FoldModel] = fold_models) -> pd.DataFrame:
        counts = tuple((np.array(picks) // np.gcd.reduce(picks)).tolist())
        if (key := (id(voters), counts)) not in voted:
            voted[key] = out_of_fold_dice(voters, images, cache, shares(counts, 1), threshold, vote)
        return voted[key]

    def shares(picks: Sequence[int], of: int) -> dict[str, float]:
        return {model: n / of for model, n in zip(models, picks, strict=True)}

    def select(rows: np.ndarray, voters: Sequence[FoldModel] = fold_models) -> tuple[int, ...]:
        picks, path = (0,) * len(models), []
        for _ in range(PICKS):
            more = [tuple(n + (i == j) for j, n in enumerate(picks)) for i in range(len(models))]
            picks = max(more, key=lambda some: mean_dice(dice(some, voters)[rows]))
            path.append(picks)
        return max(path, key=lambda some: mean_dice(dice(some, voters)[rows]))

    equal = dice((1,) * len(models))
    if len(np.unique(fold_of)) < 2:
        return Weights(dict.fromkeys(models, 1.0), equal, mean_dice(equal), mean_dice(equal), 1.0, {})
    crossed, equal, others = equal.copy(), equal.copy(), {}
    for fold in sorted({*fold_of.tolist(), *(elsewhere or {})}):
        here, voters = fold_of == fold, (elsewhere or {}).get(fold, fold_models)
        picks = select(~here, voters)
        others[fold] = shares(picks, sum(picks))
        crossed[here], equal[here] = dice(picks, voters)[here], dice((1,) * len(models), voters)[here]
    best = select(np.ones(len(fold_of), bool))
    gains = (crossed - equal).mean(axis=1)
    p = sign_flip_p(gains.to_numpy(), gains.index.map(people or {name: name for name in images}).to_numpy())
    return Weights(shares(best, sum(best)), dice(best), mean_dice(equal), mean_dice(crossed), p, others)


def model_weights(
    fold_models: Sequence[FoldModel], models: Sequence[str], weights: Sequence[float]
) -> dict[str, float]:
    """Each model's weight: `weights` in the order of `models`, or 1 for all. ValueError if they do not match."""
    if not weights:
        return {m.model: 1.0 for m in fold_models}
    if len(weights) != len(models) or min(weights) < 0 or sum(weights) <= 0:
        raise ValueError(
            f"weights {list(weights)} for models {list(models)}: expected one number ≥ 0 for each named model, "
            "not all of them 0"
        )
    return dict(zip(models, map(float, weights), strict=True))


@dataclass(frozen=True)
class Vote:
    """How the models vote.

    weights: by model; 0 leaves the model out. tables: out-of-fold Dice (images × classes) of each model and of the
    "ensemble", on the same images; empty if no image can be scored. crossed: Dice if refinements and weights of each
    fold are those that the other folds choose; None if none is chosen. summary: one line for people. others: by fold,
    who votes with these.
    """

    weights: dict[str, float]
    tables: dict[str, pd.DataFrame]
    crossed: float | None
    summary: str
    others: dict[int, Voters] = field(default_factory=dict)


def weigh_models(
    fold_models: Sequence[FoldModel],
    images: dict[str, int],
    cache: Cache,
    models: Sequence[str],
    weights: Sequence[float],
    tune: bool,
    threshold: float,
    vote: str = "soft",
    people: Mapping[str, str] | None = None,
    elsewhere: Mapping[int, Sequence[FoldModel]] | None = None,
) -> Vote:
    """Each model's weight with the scores: `weights` in the order of `models` if given, else chosen or equal.

    With `tune`, weights are chosen by out-of-fold Dice, and taken if they are shown to be better than equal ones on
    folds on which they were not chosen (see `Weights.worth_it`). images: see `shared_images`; without any, weights are
    as given or equal. people: whose image each is. elsewhere: see `choose_weights`. Raises ValueError for weights that
    do not match the models.
    """
    given = model_weights(fold_models, models, weights)
    elsewhere = elsewhere or dict.fromkeys({m.fold for m in fold_models}, fold_models)
    others = {fold: (voters, given) for fold, voters in elsewhere.items()}
    if not images:
        return Vote(given, {}, None, "no image can be scored by all models, so there is no out-of-fold score", others)
    tables = {name: out_of_fold_dice(fold_models, images, cache, {name: 1.0}, threshold, vote) for name in given}
    crossed, summary = None, ""
    if tune and not weights:
        chosen = choose_weights(fold_models, images, cache, threshold, vote, people, elsewhere)
        summary = (
            f"equal weights {chosen.equal:.4f}, chosen on the other folds {chosen.crossed:.4f}, p = {chosen.p:.2g}: "
        )
        summary += "chosen weights are taken; " if chosen.worth_it else "weights stay equal; "
        if chosen.worth_it:
            given, tables["ensemble"], crossed = chosen.best, chosen.dice, chosen.crossed
            others = {fold: (voters, chosen.others[fold]) for fold, voters in elsewhere.items()}
    if "ensemble" not in tables:
        tables["ensemble"] = out_of_fold_dice(fold_models, images, cache, given, threshold, vote)
    if crossed is None and any(voters is not fold_models for voters in elsewhere.values()):
        crossed = mean_dice(_of_others("ensemble", others, images, cache, threshold, vote))
    dice = {name: mean_dice(table) for name, table in tables.items()}
    best = max(given, key=dice.get)
    summary += f"{len(images)} images: ensemble {dice['ensemble']:.4f}, {best} alone {dice[best]:.4f}"
    return Vote(given, tables, crossed, f"{summary}: {dice['ensemble'] - dice[best]:+.4f}", others)


def _of_others(
    name: str,
    others: Mapping[int, Voters],
    images: Mapping[str, int],
    cache: Cache,
    thresholds: Mapping[int, Sequence[float]] | float,
    vote: str,
    postprocess: Sequence[str] = (),
) -> pd.DataFrame:
    """Dice of a model or the "ensemble", each fold voted on as the other folds choose."""
    parts = []
    for fold in sorted(set(images.values())):
        voters, weights = others[fold]
        here = {n: k for n, k in images.items() if k == fold}
        shares = weights if name == "ensemble" else {name: 1.0}
        limit = thresholds if isinstance(thresholds, float) else thresholds[fold]
        parts.append(out_of_fold_dice(voters, here, cache, shares, limit, vote, postprocess))
    return pd.concat(parts).loc[list(images)]


def submitted_dice(
    images: dict[str, int],
    cache: Cache,
    voting: Vote,
    thresholds: Mapping[int, Sequence[float]] | float,
    vote: str = "soft",
    postprocess: Sequence[str] = (),
) -> dict[str, pd.DataFrame]:
    """Out-of-fold Dice (images × classes) of each model and of the "ensemble", of masks made as the submitted ones.

    Args:
        images, cache, vote: as of `weigh_models`.
        voting: what it returned, at the fixed threshold and without post-processing.
        thresholds: the fixed one or, where tuned ones are submitted, by fold those that are best on the other folds
            (`Thresholds.others`), so that no image is scored with thresholds, weights or refinements chosen on it.
        postprocess: the steps on the submitted masks.

    Returns:
        The tables of `voting` where nothing differs from it.
    """
    if not images or (isinstance(thresholds, float) and not postprocess):
        return voting.tables
    given = images, cache, thresholds, vote, postprocess
    return {name: _of_others(name, voting.others, *given) for name in voting.tables}
