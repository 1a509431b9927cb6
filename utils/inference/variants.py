"""Score other ways to predict with the same trainings: test-time augmentation, votes, thresholds, post-processing."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from utils.data.cache import Cache
from utils.data.records import read_record
from utils.files import write_json, write_table
from utils.inference.ensemble import find_checkpoint, find_fold_models
from utils.inference.predict import Predictor
from utils.inference.probabilities import ProbabilityStore
from utils.inference.thresholds import choose_thresholds
from utils.inference.weights import CANDIDATES, out_of_fold_dice, shared_images

TTAS = ("none", "hflip", "scale", "hflip+scale")
RECORD = "variants.json"
"""Beside the tables: for each variant, its file, the models whose trainings it uses, and its minutes."""


@dataclass(frozen=True)
class Variant:
    """Out-of-fold Dice (images × classes) of a way to predict with the trainings of `models`; minutes it took."""

    name: str
    models: tuple[str, ...]
    dice: pd.DataFrame
    minutes: float


def score_variants(
    models: Sequence[str],
    folds: pd.DataFrame,
    cache: Cache,
    output_dir: str | Path,
    folder: str | Path,
    device: torch.device,
) -> Iterator[Variant]:
    """Score TTA, thresholds and post-processing of one model, and the votes with repeats of it, out of fold.

    Args:
        models: the model of the variants that need one; after it, models that repeat it with other seeds.
        folds: the run's folds, see `read_folds`.
        cache: built, at the resolution of these models.
        output_dir: the run's folder, with their checkpoints and predictions.
        folder: where probabilities with TTA are stored; what an interrupted run has stored is kept.
        device: of the predictions.

    Yields:
        The variants, each as soon as it is scored. Everything else is as notebook 04 predicted the first model.
    """
    base, weights = models[0], dict.fromkeys(models, 1.0)
    fold_models = find_fold_models(output_dir, models)
    own = [m for m in fold_models if m.model == base and m.fold >= 0]
    given = read_record(own[0].oof.folder.parent).parameters
    images, threshold = shared_images(own, folds), given["threshold"]

    def timed(name: str, of: Sequence[str], score: Callable, *arguments: Any, **options: Any) -> Variant:
        started = time.monotonic()
        table = score(*arguments, **options)
        return Variant(name, tuple(of), table, (time.monotonic() - started) / 60)

    def with_tta(other: str) -> pd.DataFrame:
        predicted = []
        for m in own:
            store = ProbabilityStore(Path(folder) / other / f"fold{m.fold}")
            names = [name for name, fold in images.items() if fold == m.fold]
            checkpoint = find_checkpoint(output_dir, base, m.fold)
            Predictor(checkpoint, device, other, given["precision"]).fill(store, cache, names, given["batch_size"])
            predicted.append(replace(m, oof=store))
        return out_of_fold_dice(predicted, images, cache, weights, threshold)

    for other in TTAS:
        if other != given["tta"]:
            yield timed(f"TTA {other}", [base], with_tta, other)
    plain = own, images, cache, weights
    if len(set(images.values())) > 1:
        yield timed("thresholds by class", [base], lambda: choose_thresholds(*plain, threshold).crossed)
    for steps in CANDIDATES:
        yield timed(", ".join(steps), [base], out_of_fold_dice, *plain, threshold, postprocess=steps)
    if len(models) > 1:
        voting = fold_models, shared_images(fold_models, folds), cache, weights, threshold
        for vote in ("soft", "hard"):
            yield timed(f"{vote} vote of {len(models)} seeds", models, out_of_fold_dice, *voting, vote)


def write_variants(folder: str | Path, variants: Iterator[Variant]) -> None:
    """Write each variant's table to a file in `folder`, and RECORD last."""
    folder, record = Path(folder), {}
    for number, variant in enumerate(variants):
        write_table(folder / f"{number}.csv", variant.dice)
        record[variant.name] = {"file": f"{number}.csv", "models": variant.models, "minutes": variant.minutes}
    write_json(folder / RECORD, record)
