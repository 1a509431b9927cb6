"""List every result of every run: what differs between their parameters, what they score, how long they took."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from tabulate import tabulate

from utils.analysis.results import (
    BASELINE,
    ENSEMBLE,
    OUTPUTS,
    TRAINED,
    data_folder,
    find_runs,
    members,
    models,
    read_scores,
)
from utils.analysis.scores import ALL, summary
from utils.data.records import (
    PREDICTING,
    Baseline,
    Ensemble,
    Prediction,
    Training,
    Yolo,
    fold_folders,
    fold_records,
    read_record,
)
from utils.files import read_json, shown
from utils.params import OWN, WITHOUT_EFFECT

COLUMNS = ["run", "name", "state", "data", "images", "dice", "low", "high", "test_dice", "minutes"]
IGNORED = {*OWN, *WITHOUT_EFFECT, "examples", "plugins"}


def experiments(outputs: str | Path = OUTPUTS) -> pd.DataFrame:
    """One row per ensemble, model and baseline of every run below `outputs`, the best first; unscored ones last.

    Columns: run; name (the model, "ensemble" or "baseline"); state ("done", or what is missing); data (folder); images
    that have an out-of-fold score; dice, low and high: out-of-fold Dice with its 95 % interval by person; test_dice,
    where the data has a solution; minutes of training and inference in finished steps, with those of the models that a
    model starts from, or an ensemble is made of. After them, one column per parameter of notebook 03 or of test-time
    augmentation that differs between the rows, "" where a row has none. Scores of different data folders are not
    comparable.
    """
    rows, parameters = [], []
    for run in find_runs(outputs):
        scored, data = members(run), shown(data_folder(run))
        for name in dict.fromkeys([*scored, *models(run)]):
            row = {"run": run.name, "name": name, "data": data, **_state(run, name)}
            if name in scored:
                scores = read_scores(run, name)
                row |= summary(scores).loc[ALL, ["images", "dice", "low", "high"]].to_dict()
                unseen = "without TTA, for it does not vote" if _only_trained(run, name) else "not predicted yet"
                row["state"] += "" if scores.tta or name == BASELINE else f", {unseen}"
            rows.append(row)
            parameters.append(model_parameters(run, name))
    table = pd.DataFrame(rows, columns=COLUMNS).astype(dict.fromkeys(COLUMNS[4:], float)).astype({"images": "Int64"})
    given = pd.DataFrame(parameters, index=table.index).drop(columns=list(IGNORED), errors="ignore")
    given = given.map(lambda value: "" if value is None or value != value else _text(value))
    differing = [name for name in given if len(set(given[name]) - {""}) > 1]
    return table.join(given[differing]).sort_values("dice", ascending=False, kind="stable", ignore_index=True)


def as_text(table: pd.DataFrame) -> str:
    """The table of `experiments` for a terminal of 120 columns; the parameters that differ share the last column."""
    if table.empty:
        return "no runs yet"
    differing = [name for name in table if name not in COLUMNS]
    several = len(set(table["data"])) > 1
    rows = []
    for row in table.to_dict("records"):
        ends = f" [{row['low']:.4f}, {row['high']:.4f}]" if row["low"] == row["low"] else ""
        interval = _number(row["dice"], ".4f") + ends
        rest = ", ".join(f"{name} {row[name]}" for name in differing if row[name])
        numbers = [interval, _number(row["test_dice"], ".4f"), _number(row["minutes"], ".1f")]
        rows.append([f"{row['run']}/{row['name']}", row["state"], *([row["data"]] if several else []), *numbers, rest])
    headings = ["result", "state", *(["data"] if several else []), "out-of-fold Dice [95 %]", "test", "minutes"]
    widths = [34, 16, *([18] if several else []), None, None, None, 28 if several else 40]
    align = ["left"] * (3 if several else 2) + ["left", "right", "right", "left"]
    return tabulate(
        rows, [*headings, "what differs"], disable_numparse=True, maxcolwidths=widths, colalign=align, tablefmt="simple"
    )


def _state(run: Path, name: str) -> dict[str, Any]:
    """state, minutes and test_dice of one ensemble, model or baseline."""
    if name == BASELINE:
        made = read_record(run / Baseline.notebook, Baseline)
        return {"state": "done", "minutes": made.minutes, "test_dice": made.test_dice}
    vote, about = read_record(run / Ensemble.notebook, Ensemble, empty=True), read_json(run / "run.json", {})
    if name == ENSEMBLE:
        minutes = (vote.minutes or 0) + model_minutes(run, vote.all_models)
        voted = len(vote.fold_models)
        planned = len(about.get("voters", [])) * len(about.get("folds", []))
        state = "done" if voted >= planned else f"{voted} of {planned} fold models"
        return {"state": state, "minutes": minutes, "test_dice": vote.test_dice}
    steps = fold_folders(run, (*PREDICTING, Training), name, finished=False)
    planned = {f"fold{fold}" for fold in about.get("folds", [])}
    planned = planned or {folder.name for folder in fold_folders(run, TRAINED, name, finished=False)}
    done = {f.name for f in fold_folders(run, TRAINED if _only_trained(run, name) else PREDICTING, name)}
    state = "done" if planned <= done else f"{len(planned & done)} of {len(planned)} folds"
    state += ", failed" if any((folder / "failed.txt").exists() for folder in steps) else ""
    test = vote.models.get(name, {}).get("test_dice")
    return {"state": state, "minutes": model_minutes(run, [name]) or None, "test_dice": test}


def _only_trained(run: Path, model: str) -> bool:
    """Whether the run predicts nothing with a model, as it has `votes: false`."""
    planned = read_json(run / "run.json", {}).get("steps", [])
    trained, predicted = (any(s.startswith(f"{k.notebook}/{model}/") for s in planned) for k in (Training, Prediction))
    return trained and not predicted


def model_minutes(run: Path, models: Sequence[str]) -> float:
    """Minutes of all finished fold models of these models, and of those that they start from or refine: each once."""
    after, every, left = read_json(run / "run.json", {}).get("after", {}), set(), list(models)
    while left:
        every.add(model := left.pop())
        left += [earlier for step in after.get(model, []) if (earlier := step.rpartition("/")[2]) not in every]
    return sum(r.minutes or 0 for model in every for r in fold_records(run, (*PREDICTING, Training), model))


def model_parameters(run: Path, name: str) -> dict[str, Any]:
    """The parameters a model was trained and predicted with; of an interrupted one, those that the run gave it."""
    found = {}
    for kind, wanted in ((Training, None), (Prediction, ("tta",)), (Yolo, None)):
        for folder in fold_folders(run, (kind,), name, finished=False)[:1]:
            given = run / "parameters" / folder.relative_to(run).with_suffix(".yaml")
            record = read_record(folder)
            values = record.parameters if record else {}
            if record is None and given.exists():
                values = yaml.safe_load(given.read_text(encoding="utf-8"))
            found |= {key: value for key, value in values.items() if wanted is None or key in wanted}
    return found


def _text(value: Any) -> str:
    """A parameter's value as short text, equal for equal values."""
    if isinstance(value, dict | list):
        return json.dumps(value, ensure_ascii=False).replace('"', "")
    return f"{value:g}" if isinstance(value, float) else str(value)


def _number(value: float, form: str) -> str:
    return f"{value:{form}}" if value == value else ""
