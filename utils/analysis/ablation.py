"""What each technique is worth: the models of a run against one of them, from which each differs by one thing."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import false_discovery_control, t
from tabulate import tabulate

from utils.analysis.comparison import compare_scores
from utils.analysis.experiments import IGNORED, model_minutes, model_parameters
from utils.analysis.results import ENSEMBLE, Scores, members, read_scores
from utils.analysis.scores import ALL
from utils.data.records import Analysis
from utils.data.significance import LEVEL
from utils.files import Problems, read_json, read_table, unknown
from utils.hand.bend import BENT

VARIANTS = Path(Analysis.notebook, "variants")
"""Where notebook 07 puts the scores of other ways to predict, see `utils.inference.variants`."""
BETTER, WORSE, NEITHER = "better", "worse", "not shown"


@dataclass(frozen=True)
class Ablation:
    """The techniques of a run against its model `base`.

    repeats: the models that differ from base by their seed only. dice: mean out-of-fold Dice of base and repeats.
    noise: how far a training may lie from that mean by its random numbers alone, see `seed_noise`; NaN without repeats.
    table: one row per technique, in the order of the profile: technique, images, dice, difference (from base), low,
    high (95 % by person), bent (the difference on bent images, NaN if there are none), p, verdict (BETTER, WORSE or
    NEITHER), minutes (with those of the model it starts from), trained (False: another way to predict with base).
    """

    base: str
    repeats: list[str]
    dice: float
    noise: float
    table: pd.DataFrame


def judge_techniques(run: str | Path, base: str) -> Ablation:
    """Compare every model of a run, and every variant that notebook 07 scored, with the model `base`.

    What a model is compared with is the mean over base and its repeats, image by image and class by class, because one
    training alone may have been lucky; a variant is compared with the mean over the models it uses. A row is called
    better or worse if the paired test by person says so (`compare`), also after Benjamini and Hochberg's correction for
    the number of rows, and if, for a trained row, the difference is larger than `noise`.

    Raises Problems if base has no out-of-fold scores, or nothing to be compared with.
    """
    run = Path(run)
    scored, repeats = _predicted(run), find_repeats(run, base)
    reference = _mean([scored[name] for name in (base, *repeats)])
    noise = seed_noise([scored[name] for name in (base, *repeats)])
    rows = [
        _row(name, reference, scores, noise) | {"minutes": model_minutes(run, [name]), "trained": True}
        for name, scores in scored.items()
        if name not in (base, *repeats)
    ]
    for name, variant in read_json(run / VARIANTS / "variants.json", {}).items():
        if set(variant["models"]) <= set(scored):
            dice = read_table(run / VARIANTS / variant["file"], index_col="image_name")
            before = _mean([scored[model] for model in variant["models"]])
            found = _row(name, before, replace(before, name=f"{run.name}/{name}", dice=dice))
            rows.append(found | {"minutes": variant["minutes"], "trained": False})
    if not rows:
        raise Problems(f"{run.name}: nothing to compare {base} with", ["train further models that differ by one thing"])
    table = pd.DataFrame(rows)
    table.loc[false_discovery_control(table["p"]) >= 1 - LEVEL, "verdict"] = NEITHER
    return Ablation(base, repeats, reference.dice.to_numpy().mean(), noise, table)


def find_repeats(run: str | Path, base: str) -> list[str]:
    """The predicted models of a run that differ from `base` by their seed only. Raises Problems without its scores."""
    run = Path(run)
    scored = _predicted(run)
    if base not in scored:
        raise Problems(f"{run.name}: no ablation", [unknown("predicted model", base, scored)])
    given = {name: _shaping(run, name) for name in scored}
    return [name for name in scored if name != base and given[name] == given[base]]


def as_text(found: Ablation) -> str:
    """The ablation for a terminal or a README: a table in Markdown, and what to know about it."""
    rows = []
    for row in found.table.itertuples():
        ends = f" [{_signed(row.low)}, {_signed(row.high)}]" if row.low == row.low else ""
        interval = f"{_signed(row.difference)}{ends}"
        numbers = [f"{row.dice:.4f}", interval, _signed(row.bent)]
        rows.append([row.technique, *numbers, row.verdict, f"{row.minutes:.1f}"])
    several = f", mean of {1 + len(found.repeats)} seeds" if found.repeats else ""
    rows.insert(0, [f"{found.base}{several}", f"{found.dice:.4f}", "", "", "", ""])
    headings = ["technique", "out-of-fold Dice", "difference [95 %]", BENT, "verdict", "minutes"]
    align = ["left", "right", "right", "right", "left", "right"]
    lines = [tabulate(rows, headings, "github", disable_numparse=True, colalign=align), ""]
    lines += [f"Intervals are paired, by person; {len(rows) - 1} rows, corrected for their number."]
    if np.isnan(found.noise):
        lines += ["No model repeats the base with another seed, so what is due to random numbers is not known."]
    else:
        lines += [f"Another seed alone moves a training by up to {found.noise:.4f} (95 %); less is not called a gain."]
    return "\n".join(lines)


def seed_noise(scores: Sequence[Scores]) -> float:
    """How far the mean Dice of one more training may lie from the mean of these, which differ by their seeds only.

    Half of the 95 % prediction interval by Student's t, from the variance between seeds within each fold. NaN for fewer
    than two seeds.
    """
    count = len(scores)
    if count < 2:
        return float("nan")
    folds = pd.DataFrame({n: s.dice.mean(axis=1).groupby(s.images["fold"]).mean() for n, s in enumerate(scores)})
    folds = folds.dropna()
    freedom = len(folds) * (count - 1)
    within = folds.sub(folds.mean(axis=1), axis=0).pow(2).to_numpy().sum() / freedom
    return float(t.ppf((1 + LEVEL) / 2, freedom) * np.sqrt(within / len(folds) * (1 + 1 / count)))


def _row(technique: str, before: Scores, scores: Scores, noise: float = float("nan")) -> dict:
    """One row of the table, but for its minutes; noise: NaN for none."""
    found = compare_scores(before, scores)
    on_all = found.rows.loc[ALL]
    gain, low, high = found.estimate
    seen = found.winner and not abs(gain) <= noise
    return {
        "technique": technique,
        "images": int(on_all["images"]),
        "dice": on_all["b"],
        "difference": gain,
        "low": low,
        "high": high,
        "bent": found.rows["difference"].get(BENT, float("nan")),
        "p": found.p,
        "verdict": NEITHER if not seen else BETTER if gain > 0 else WORSE,
    }


def _predicted(run: Path) -> dict[str, Scores]:
    """The scores of the models that notebook 04 has predicted, in the order of the profile."""
    found = (read_scores(run, name) for name in members(run) if name != ENSEMBLE)
    return {scores.name.rpartition("/")[2]: scores for scores in found if scores.tta}


def _mean(scores: Sequence[Scores]) -> Scores:
    """The mean of the Dice of several results, on the images that all of them scored."""
    first, *others = scores
    shared = first.dice.index
    for other in others:
        shared = shared.intersection(other.dice.index)
    dice = sum(s.dice.loc[shared] for s in scores) / len(scores)
    return replace(first, dice=dice, images=first.images.loc[shared])


def _shaping(run: Path, model: str) -> dict:
    """The parameters of a model's training and prediction, but for its seed and names."""
    return {k: v for k, v in model_parameters(run, model).items() if k not in IGNORED | {"seed"}}


def _signed(value: float) -> str:
    return f"{value:+.4f}".replace("-", "−") if value == value else ""
