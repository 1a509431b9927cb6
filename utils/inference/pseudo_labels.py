"""Pseudo-labels: confident predictions of the test images as annotations, for the next round of training."""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from utils.files import replacing_folder, write_json, write_text
from utils.inference.ensemble import FoldModel, soft_vote
from utils.inference.probabilities import LEVELS, Stored
from utils.inference.weights import Voters
from utils.masks.masks import Masks
from utils.masks.outlines import outline

RECORD = "pseudo.json"
"""Beside train/: how the pseudo-labels were made, with the hashed people that the fold models had seen."""


def write_pseudo_labels(
    fold_models: Sequence[FoldModel],
    table: pd.DataFrame,
    classes: Sequence[str],
    weights: dict[str, float],
    threshold: float | Sequence[float],
    least: float,
    folder: str | Path,
    others: Mapping[int, Voters] | None = None,
    limits: Mapping[int, Sequence[float]] | None = None,
) -> pd.DataFrame:
    """Write the confident test images of a run as training data, one data folder for each fold.

    What a fold model learns from must not depend on the people it is validated on, so the labels for fold k are the
    soft vote of the models of fold k alone, which never saw these people, with what was chosen on the other folds.

    Args:
        fold_models: with stored test probabilities. weights, threshold: as of `vote_images`.
        table: the run's index; its test images are labelled. classes: their names.
        least: an image is written if its `confidence` is at least this, 0 to 1.
        folder: gets fold0/, fold1/, … in the competition's layout, as `extra_data` of notebook 03 takes them. Images
            are links. What was there is replaced.
        others, limits: by fold, the voters and thresholds that the other folds choose, see `inference.weights`; a fold
            that is not there has `fold_models`, `weights` and `threshold`.

    Returns:
        One row per fold and test image: fold, image_name, confidence, kept (bool).
    """
    rows, test = [], table[table["split"] == "test"]
    for fold in sorted({m.fold for m in fold_models}):
        of_fold, chosen = (others or {}).get(fold, (fold_models, weights))
        limit = (limits or {}).get(fold, threshold)
        voters = [m for m in of_fold if m.fold == fold and chosen.get(m.model, 0) > 0]
        shares = [chosen[m.model] for m in voters]
        kept = []
        for row in test.itertuples():
            each = [confidence(m.test.read(row.image_name), limit) for m in voters]
            sure = float(np.average(each, weights=shares))
            rows.append((fold, row.image_name, sure, sure >= least))
            kept += [row] * (sure >= least)
        target = Path(folder) / f"fold{fold}"
        if not kept:
            shutil.rmtree(target, ignore_errors=True)
            continue
        with replacing_folder(target) as new:
            for row in kept:
                stored = [m.test.read(row.image_name) for m in voters]
                masks = soft_vote(stored, shares, limit)
                _write(new, row, f"{Path(row.image_name).stem}-pseudo{fold}", masks, classes)
            write_text(new / "classes.txt", "\n".join(classes) + "\n")
            people = sorted({person for m in voters for person in m.config.people})
            models = {m.model: share for m, share in zip(voters, shares, strict=True)}
            write_json(new / RECORD, {"fold": fold, "models": models, "least": least, "people": people})
    return pd.DataFrame(rows, columns=["fold", "image_name", "confidence", "kept"])


def confidence(stored: Stored, threshold: float | Sequence[float]) -> float:
    """How sure a fold model is of an image, 0 to 1: the Dice to expect of its masks if its probabilities are right.

    For each class, 2·Σ p inside the mask / (Σ p + area), with one pixel added above and below, so that a class that is
    surely absent counts 1; the mean over classes.
    """
    scores = []
    for codes, limit in zip(stored.finest(), np.broadcast_to(threshold, len(stored.regions.boxes)), strict=True):
        p = codes.astype(np.float64) / LEVELS
        inside = p > limit
        scores.append((2 * p[inside].sum() + 1) / (p.sum() + inside.sum() + 1))
    return float(np.mean(scores))


def _write(folder: Path, row: Any, name: str, masks: Masks, classes: Sequence[str]) -> None:
    image = folder / "train" / "DCM" / row.ID / f"{name}.png"
    image.parent.mkdir(parents=True, exist_ok=True)
    image.symlink_to(row.image)
    annotations = [
        {"type": "poly_seg", "attributes": {}, "points": points.tolist(), "label": label}
        for number, label in enumerate(classes)
        for points in outline(*masks.region(number))
    ]
    about = {"annotations": annotations, "filename": image.name, "parent_path": f"/{row.ID}"}
    path = folder / "train" / "outputs_json" / row.ID / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(about))
