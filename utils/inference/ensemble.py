"""Soft vote of stored probabilities, image by image, so that memory does not grow with fold models or images."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from utils.data.records import PREDICTING, Prediction, Training, Yolo, fold_folders, fold_records
from utils.files import resolve, shown
from utils.inference.in_order import in_order
from utils.inference.postprocess import build_postprocess
from utils.inference.probabilities import LEVELS, ProbabilityStore, Stored
from utils.inference.refinement import RefinedStore
from utils.masks import upsampling
from utils.masks.masks import Masks, Runs, majority, region_runs
from utils.models.checkpoint import Config, read_config


@dataclass(frozen=True)
class FoldModel:
    """A model trained on one fold, with its stored probabilities: `oof` of the images it never saw, and `test`.

    The probabilities of a model that refines another are those of both models, see `inference.refinement`.
    """

    model: str
    fold: int
    oof: ProbabilityStore
    test: ProbabilityStore
    config: Config


def open_fold_model(
    output_dir: str | Path, model: str, fold: int, kind: type[Prediction] | type[Yolo] = Prediction
) -> FoldModel:
    """A trained fold model of a run, with the stores that a step of this `kind`, one of PREDICTING, fills."""
    output_dir = resolve(output_dir)
    config = read_config(output_dir / kind.checkpoint_of / model / f"fold{fold}" / "best")

    def store(split: str, of: str = model) -> ProbabilityStore:
        return ProbabilityStore(output_dir / kind.notebook / of / f"fold{fold}" / split)

    stores = [store("oof"), store("test")]
    if config.refines:
        stores = [RefinedStore(s.folder, store(s.folder.name, config.first), config) for s in stores]
    return FoldModel(model, fold, *stores, config)


def find_fold_models(output_dir: str | Path, models: Sequence[str] = (), stages: bool = False) -> list[FoldModel]:
    """The fold models with finished predictions (of the steps in PREDICTING) in a run's folder.

    models: only those with these names; () for all but those that refine another. stages: all of these instead, if any.

    Raises FileNotFoundError if predictions are missing, and ValueError if fold models have different classes.
    """
    output_dir = resolve(output_dir)
    fold_models = []
    for record in fold_records(output_dir, PREDICTING):
        if not models or record.model in models:
            fold_model = open_fold_model(output_dir, record.model, record.fold, type(record))
            if models or bool(fold_model.config.refines) == stages:
                fold_models.append(fold_model)
    missing = sorted(set(models) - {m.model for m in fold_models})
    if missing or not (fold_models or stages):
        raise FileNotFoundError(
            f"no finished predictions of {', '.join(missing) or 'any model'} in {shown(output_dir)}: "
            f"run {' first, or '.join(kind.notebook for kind in PREDICTING)}"
        )
    classes = {tuple(m.config.classes) for m in fold_models}
    if len(classes) > 1:
        raise ValueError(
            f"the fold models in {shown(output_dir)} have different classes: {sorted(map(len, classes))} of them"
        )
    return sorted(fold_models, key=lambda m: (m.model, m.fold))


def soft_vote(stored: Sequence[Stored], weights: Sequence[float], threshold: float | Sequence[float]) -> Masks:
    """Vote on one image: a pixel is in a mask if Σ weight · bilinear_upsample(probability) > threshold.

    Upsampling is linear, so the maps of one resolution are averaged first and upsampled once; the result differs from
    averaging at full size by float32 rounding only. A pixel can be in the mask only if the mean of at least one
    resolution is above the threshold there, so only these regions are computed. One class at a time is in memory.

    Args:
        stored: the image's probabilities by each fold model, at least one; resolutions may differ.
        weights: one positive number per fold model; they are divided by their sum.
        threshold: 0 to 1, one number or one per class.

    Returns:
        The full-size masks.

    Raises:
        ValueError: if there is no fold model, if fold models disagree about the image's full size or the number of
            classes, or if there are not as many weights as fold models or as many thresholds as classes.
    """
    size = _common_size(stored)
    shares = np.asarray(weights, np.float64) / np.sum(weights)
    layers = [
        (layer, share, share / len(s.layers)) for s, share in zip(stored, shares, strict=True) for layer in s.layers
    ]
    totals: dict[tuple[int, int], float] = {}
    for layer, _, part in layers:
        totals[layer.grid] = totals.get(layer.grid, 0.0) + part
    thresholds = np.broadcast_to(np.asarray(threshold, np.float32), len(stored[0].regions.boxes))
    runs = []
    for limit, *patches in zip(thresholds, *(layer.patches() for layer, *_ in layers), strict=True):
        means: dict[tuple[int, int], np.ndarray] = {}
        for (layer, share, _), (patch, (top, left)) in zip(layers, patches, strict=True):
            if patch.size:
                if layer.grid not in means:
                    means[layer.grid] = np.zeros(layer.grid, np.float32)
                region = means[layer.grid][top : top + patch.shape[0], left : left + patch.shape[1]]
                region += patch * np.float32(share) / np.float32(LEVELS)
        runs.append(_vote_class(means, totals, limit, size))
    return Masks.from_runs(runs, size)


def hard_vote(stored: Sequence[Stored], weights: Sequence[float], threshold: float | Sequence[float]) -> Masks:
    """Vote on one image by masks: a pixel is in a mask if fold models with more than half of all weight say so.

    Each fold model's mask is its upsampled probability above the threshold. Arguments, result and errors are those of
    `soft_vote`. The masks are counted as runs, without pixels.
    """
    _common_size(stored)
    masks = [soft_vote([s], [1.0], threshold) for s in stored]
    # sums of weights that are equal but for rounding are a tie, and a tie is no
    return majority(masks, weights, sum(weights) / 2 + 1e-9)


VOTES = {"soft": soft_vote, "hard": hard_vote}


def _common_size(stored: Sequence[Stored]) -> tuple[int, int]:
    if not stored:
        raise ValueError("no fold model votes; expected the stored probabilities of at least one")
    sizes = {s.size for s in stored}
    if len(sizes) > 1:
        raise ValueError(f"fold models disagree about the image's size: {sorted(sizes)}; their data differ")
    return stored[0].size


def _vote_class(
    means: dict[tuple[int, int], np.ndarray],
    totals: dict[tuple[int, int], float],
    threshold: np.float32,
    size: tuple[int, int],
) -> Runs:
    """Intervals of one class from its mean (h, w) of each resolution where it is not 0.

    totals: the threshold's parts, one for each resolution, with sum 1: where the means' sum is above the threshold, at
    least one of them is above its part.
    """
    if len(means) == 1:
        return upsampling.upsample_masks(next(iter(means.values()))[None], size, threshold)[0]
    boxes = []
    for grid, mean in means.items():
        hot = mean > np.float32(float(threshold) * totals[grid])
        rows, columns = np.flatnonzero(hot.any(1)), np.flatnonzero(hot.any(0))
        if len(rows):
            shape = int(rows[-1] - rows[0]) + 1, int(columns[-1] - columns[0]) + 1
            boxes.append(upsampling.reach((int(rows[0]), int(columns[0])), shape, grid, size))
    if not boxes:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    lows, highs = np.min(boxes, axis=0), np.max(boxes, axis=0)
    box = int(lows[0]), int(lows[1]), int(highs[2]), int(highs[3])
    total = sum(upsampling.upsample_region(mean, (0, 0), grid, size, box) for grid, mean in means.items())
    return region_runs(total > threshold, box[:2], size)


def vote_images(
    fold_models: Sequence[FoldModel],
    names: Iterable[str],
    split: str,
    weights: dict[str, float],
    threshold: float | Sequence[float],
    folds: dict[str, int] | None = None,
    vote: str = "soft",
    postprocess: Sequence[str] = (),
    threads: int = 0,
) -> Iterator[tuple[str, Masks]]:
    """Yield the name and the masks of each image; `split` is "test" or "oof" (out of fold).

    weights: by model; 0 or a missing name leaves a model out. folds: with "oof", the fold of each image; only the fold
    models of this fold vote, which never saw the person. vote: "soft" or "hard". postprocess: steps that follow, see
    `inference.postprocess`. threads: 0 for as many as torch uses, which in a run is the profile's `threads`. Raises
    ValueError for an image on which no fold model votes.
    """
    threads = threads or torch.get_num_threads()
    decide, tidy = VOTES[vote], build_postprocess(postprocess)

    def one(name: str) -> tuple[str, Masks]:
        voters = [m for m in fold_models if weights.get(m.model, 0) > 0 and (folds is None or m.fold == folds[name])]
        if not voters:
            known = ", ".join(sorted({f"{m.model} fold {m.fold}" for m in fold_models})) or "none"
            asked = f"with a weight above 0 in {weights}" + (f", of fold {folds[name]}" if folds is not None else "")
            raise ValueError(f"{name}: no fold model votes; expected one {asked}; the fold models are {known}")
        stored = [getattr(m, split).read(name) for m in voters]
        masks = decide(stored, [weights[m.model] for m in voters], threshold)
        return name, tidy(masks)

    with closing(in_order(one, names, threads, ahead=2 * threads)) as votes:
        yield from votes


def find_checkpoint(output_dir: str | Path, model: str, fold: int) -> Path:
    """The folder of the best checkpoint of a model and fold in a run; "" takes the first model by name.

    Raises FileNotFoundError if there is no finished training of it.
    """
    found = fold_folders(resolve(output_dir), (Training,), model or "*", fold)
    if not found:
        step = Training.notebook
        raise FileNotFoundError(
            f"no finished training of {model or 'any model'} with fold {fold} in {shown(resolve(output_dir) / step)}: "
            f"run {step} first"
        )
    return found[0] / "best"


def submission_frame(votes: Iterable[tuple[str, Masks]], classes: Sequence[str]) -> pd.DataFrame:
    """A table with the columns image_name, class and rle, in the order of `votes`, then of the classes."""
    rows = [(name, label, mask) for name, masks in votes for label, mask in zip(classes, masks.texts(), strict=True)]
    return pd.DataFrame(rows, columns=["image_name", "class", "rle"])
