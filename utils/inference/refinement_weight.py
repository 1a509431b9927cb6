"""Whether a model that refines another helps, and with which weight: by out-of-fold Dice; off unless it is shown."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from utils.data.cache import Cache
from utils.data.significance import LEVEL, sign_flip_p
from utils.hand.bend import BENT
from utils.hand.bones import PARAMETER
from utils.inference.ensemble import FoldModel, find_fold_models, soft_vote
from utils.inference.in_order import in_order
from utils.inference.probabilities import Stored
from utils.masks.dice import dice_of_masks
from utils.masks.sparse import SparseMaps

WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0)
"""The weights that are tried; 0 is the first model alone."""


@dataclass(frozen=True)
class Gain:
    """The gain in mean Dice over all classes on some images: `images` and `people` of them, p: see `sign_flip_p`."""

    mean: float
    p: float
    images: int
    people: int

    @property
    def shown(self) -> bool:
        """Whether it is a gain, and more than noise."""
        return self.mean > 0 and self.p < 1 - LEVEL

    def __str__(self) -> str:
        """Such as "+0.0021 (p = 0.003, 12 people)"."""
        return f"{self.mean:+.4f} (p = {self.p:.2g}, {self.people} people)"


@dataclass(frozen=True)
class Stage:
    """What a model is worth that refines another one.

    model: its name. first: the model that it refines. dice: mean Dice of the refined classes by weight, on all images.
    best: the weight that is best there. overall, bent: the gain, on all images and on those in folds.csv marked as
    bent, if each fold is scored with the weight that is best on the other folds; it is what to expect on new people.
    others: by fold, what the other folds alone say.
    """

    model: str
    first: str
    dice: dict[float, float]
    best: float
    overall: Gain
    bent: Gain
    others: dict[int, "Stage"] = field(default_factory=dict)

    @property
    def weight(self) -> float:
        """The weight to use: `best` where a gain is shown both on all images and on the bent ones, else 0."""
        return self.best if self.overall.shown and self.bent.shown else 0.0

    def summary(self) -> dict[str, Any]:
        """What metrics.json says about it."""
        gains = {"overall": asdict(self.overall), "bent": asdict(self.bent)}
        return {PARAMETER: self.first, "weight": self.weight, "carpals": self.dice, **gains}

    def __str__(self) -> str:
        """One line for people."""
        scores = ", ".join(f"{weight:g}: {dice:.4f}" for weight, dice in self.dice.items())
        verdict = f"taken with weight {self.weight:g}" if self.weight else f"off, {self.first} stays as it is"
        return (
            f"{self.model}: refined classes by weight {scores}; gain with weights of the other folds {self.overall}, "
            f"on {BENT} {self.bent}: {verdict}"
        )


def refined_dice(
    stage: Sequence[FoldModel], images: Mapping[str, int], cache: Cache, threshold: float = 0.5, threads: int = 0
) -> np.ndarray:
    """The Dice of each refined class with each of WEIGHTS: float64 (weights, images, classes).

    stage: the fold models of one model that refines another. images: the fold of each image, by image_name. threads:
    as of `ensemble.vote_images`.
    """
    threads = threads or torch.get_num_threads()
    of_fold, numbers = {m.fold: m.oof for m in stage}, stage[0].config.refined_numbers

    def one(name: str) -> list[np.ndarray]:
        truth = cache.read(name).truth.select(numbers)
        stored = [only(of_fold[images[name]].at(weight).read(name), numbers) for weight in WEIGHTS]
        return [dice_of_masks(soft_vote([s], [1.0], threshold), truth) for s in stored]

    return np.stack(list(in_order(one, images, threads, 2 * threads)), axis=1)


def only(stored: Stored, numbers: Sequence[int]) -> Stored:
    """The probabilities of some of the classes, by their numbers."""
    patches = [(m.grid, m.patches()) for m in stored.layers]
    layers = [SparseMaps.from_patches(grid, [of_class[number] for number in numbers]) for grid, of_class in patches]
    return Stored(layers[0], stored.size, *layers[1:])


def judge(model: str, first: str, dice: np.ndarray, images: pd.DataFrame, classes: int, nested: bool = True) -> Stage:
    """What a model that refines `first` is worth by its Dice (weights, images, refined classes), see `refined_dice`.

    images: one row for each, with ID, bent (bool) and fold. classes: number of all classes, over which gains are meant.
    With images of one fold only, a weight could not be checked on another one: it is 0. nested: give `Stage.others`.
    """
    means, fold_of = dice.mean(2), images["fold"].to_numpy()  # (weights, images)
    crossed = means[0].copy()
    for fold in np.unique(fold_of):
        here, others = fold_of == fold, fold_of != fold
        if others.any():
            crossed[here] = means[means[:, others].mean(1).argmax()][here]
    gains = (crossed - means[0]) * dice.shape[2] / classes

    def gain(rows: np.ndarray) -> Gain:
        people = images["ID"].to_numpy()[rows]
        p = sign_flip_p(gains[rows], people) if rows.any() else 1.0
        return Gain(float(gains[rows].mean()) if rows.any() else 0.0, p, int(rows.sum()), len(set(people)))

    by_weight = dict(zip(WEIGHTS, means.mean(1).tolist(), strict=True))
    best = WEIGHTS[int(means.mean(1).argmax())]
    elsewhere = {fold: fold_of != fold for fold in np.unique(fold_of).tolist() if nested and (fold_of != fold).any()}
    others = {f: judge(model, first, dice[:, rows], images[rows], classes, False) for f, rows in elsewhere.items()}
    found = gain(np.ones(len(gains), bool)), gain(images["bent"].to_numpy(bool))
    return Stage(model, first, by_weight, best, *found, others)


def judge_stages(
    output_dir: str | Path, fold_models: Sequence[FoldModel], folds: pd.DataFrame, cache: Cache, threshold: float = 0.5
) -> list[Stage]:
    """What each model of a run is worth that refines one of these fold models, the best one first.

    folds: ID, image_name, bent and fold of each training image, as in folds.csv. cache: for the true masks.
    """
    there, stages = {(m.model, m.fold) for m in fold_models}, {}
    for m in find_fold_models(output_dir, stages=True):
        if (m.config.first, m.fold) in there:
            stages.setdefault(m.model, []).append(m)
    found = []
    for model, stage in stages.items():
        rows = folds[folds["fold"].isin([m.fold for m in stage])]
        if len(rows):
            dice = refined_dice(stage, dict(zip(rows["image_name"], rows["fold"], strict=True)), cache, threshold)
            found.append(judge(model, stage[0].config.first, dice, rows, len(cache.classes)))
    return sorted(found, key=lambda stage: -stage.overall.mean)


def refine_by_fold(
    output_dir: str | Path, fold_models: Sequence[FoldModel], stages: Sequence[Stage]
) -> tuple[list[FoldModel], dict[int, list[FoldModel]]]:
    """The fold models as `refine` gives them with the stages' weights; by fold, with those of the other folds."""
    made: dict[tuple, list[FoldModel]] = {}

    def of(fold: int | None) -> list[FoldModel]:
        judged = sorted((stage.others.get(fold, stage) for stage in stages), key=lambda stage: -stage.overall.mean)
        weights = tuple((stage.model, stage.weight) for stage in judged if stage.weight)
        if weights not in made:
            made[weights] = refine(output_dir, fold_models, dict(weights))
        return made[weights]

    return of(None), {fold: of(fold) for fold in sorted({m.fold for m in fold_models})}


def refine(output_dir: str | Path, fold_models: Sequence[FoldModel], weights: Mapping[str, float]) -> list[FoldModel]:
    """The fold models with the classes that other models refine.

    weights: of each of these by its name; 0 leaves it out. Of several that refine one model, the first one counts. A
    fold model that is not refined in its fold stays as it is.
    """
    refined = {(m.model, m.fold): m for m in fold_models}
    for name, weight in reversed(list(weights.items())):
        for stage in find_fold_models(output_dir, [name]) if weight else ():
            first = stage.config.first, stage.fold
            if first in refined:
                people = sorted({*refined[first].config.people, *stage.config.people})
                config = replace(refined[first].config, people=people)
                refined[first] = FoldModel(*first, stage.oof.at(weight), stage.test.at(weight), config)
    return list(refined.values())
