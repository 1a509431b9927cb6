"""The leaderboard of a run: scores of fold models, models, ensemble and baseline, read from the steps' metrics.json."""

from pathlib import Path
from typing import Any

import pandas as pd
from tabulate import SEPARATING_LINE, tabulate

from utils.files import read_json, replacing
from utils.pipeline.profile import NOTEBOOKS

COLUMNS = ["kind", "model", "fold", "val_dice", "oof_dice", "test_dice", "weight", "minutes"]
HEADINGS = {"val_dice": "fold Dice", "oof_dice": "out-of-fold", "test_dice": "test", "kind": "", "model": "model"}


def read_leaderboard(run: str | Path) -> pd.DataFrame:
    """One row per ensemble, model, fold model and baseline, in this order, the best of each kind first.

    Columns: kind, model, fold (Int64); val_dice: mean Dice at full size on the fold's images, without test-time
    augmentation (TTA), as training measured it; oof_dice: out-of-fold Dice, with TTA; test_dice: Dice on the test
    images where the data has a solution.csv; weight: the model's part in the ensemble; minutes: training and inference.
    Scores are in [0, 1], NaN where a step has not ended or has no such score. `run` is the run's folder.
    """
    run = Path(run)
    rows = _fold_models(run)
    ensemble = _metrics(run / NOTEBOOKS["ensemble"])
    for model, scores in ensemble.get("models", {}).items():
        minutes = sum(r["minutes"] or 0 for r in rows if r["kind"] == "fold model" and r["model"] == model)
        rows.append({"kind": "model", "model": model, "minutes": minutes, **_scores(scores)})
    if ensemble:
        models = f"{len(ensemble.get('models', {}))} models"
        rows.append({"kind": "ensemble", "model": models, "minutes": ensemble.get("minutes"), **_scores(ensemble)})
    baseline = _metrics(run / NOTEBOOKS["baseline"])
    if baseline:
        name = baseline.get("model") or "official baseline"
        row = {"kind": "baseline", "model": name, "fold": baseline.get("fold"), "minutes": baseline.get("minutes")}
        rows.append(row | _scores(baseline))
    table = pd.DataFrame(rows, columns=COLUMNS)
    numbers = [c for c in COLUMNS if c not in ("kind", "model")]
    table[numbers] = table[numbers].astype(float)
    order = table["kind"].map({"ensemble": 0, "model": 1, "fold model": 2, "baseline": 3})
    score = table["oof_dice"].fillna(table["val_dice"])
    keys = {"order": True, "score": False, "model": True, "fold": True}
    table = table.assign(order=order, score=score).sort_values(list(keys), ascending=list(keys.values()), kind="stable")
    return table[COLUMNS].astype({"fold": "Int64"}).reset_index(drop=True)


def show_leaderboard(run: str | Path, width: int = 100) -> str:
    """The leaderboard as text, at most `width` characters wide; also written to `<run>/leaderboard.csv`."""
    table = read_leaderboard(run)
    with replacing(Path(run) / "leaderboard.csv") as temporary:
        table.to_csv(temporary, index=False, float_format="%.6g")
    total = table.loc[table["kind"].isin(["fold model", "ensemble", "baseline"]), "minutes"].sum()
    lines = [*as_text(table, width), f"{total:.0f} minutes in all"]
    return "\n".join(lines)


def as_text(table: pd.DataFrame, width: int = 100) -> list[str]:
    """The lines of the table as text; empty columns are left out and long model names shortened to fit `width`."""
    if table.empty:
        return ["no step with a score has ended yet"]
    table = displayed(table)
    names, full = table["model"].str, max(map(len, _lines(table)))
    room = max(names.len().max() - full + width, len("model"))
    table["model"] = table["model"].where(names.len() <= room, names[: room - 1] + "…")
    return _lines(table)


def _lines(table: pd.DataFrame) -> list[str]:
    """The lines of a table of strings, with separators between kinds, its first column."""
    rows = []
    for _, group in table.groupby("", sort=False):
        rows += [SEPARATING_LINE, *group.to_numpy().tolist()]
    align = ["left" if column in ("", "model") else "right" for column in table]
    return tabulate(rows[1:], list(table), disable_numparse=True, colalign=align).splitlines()


def displayed(table: pd.DataFrame) -> pd.DataFrame:
    """The table as strings with readable headings, without its empty columns."""
    table = table.dropna(axis=1, how="all")
    texts = {}
    for column in table:
        form = {"fold": "{:.0f}", "minutes": "{:.1f}", "weight": "{:.3g}"}.get(column, "{:.4f}")
        plain = column in ("kind", "model")
        texts[HEADINGS.get(column, column)] = [
            "" if pd.isna(value) else str(value) if plain else form.format(value) for value in table[column]
        ]
    return pd.DataFrame(texts, dtype=str)


def _fold_models(run: Path) -> list[dict[str, Any]]:
    """One row per model and fold that is trained or predicted, in the order of their names."""
    names = {
        p.parent.relative_to(run / step)
        for step in map(NOTEBOOKS.get, ("train", "predict"))
        for p in run.glob(f"{step}/*/fold*/metrics.json")
    }
    rows = []
    for name in sorted(names):
        trained, predicted = (_metrics(run / NOTEBOOKS[s] / name) for s in ("train", "predict"))
        minutes = [m.get("minutes") for m in (trained, predicted)]
        row = {"kind": "fold model", "model": name.parent.name, "fold": int(name.name.removeprefix("fold"))}
        scores = _scores(trained) | _scores(predicted)
        rows.append(row | scores | {"minutes": sum(m for m in minutes if m is not None)})
    return rows


def _metrics(folder: Path) -> dict[str, Any]:
    path = folder / "metrics.json"
    return read_json(path) if path.exists() else {}


def _scores(metrics: dict[str, Any]) -> dict[str, Any]:
    return {k: metrics[k] for k in ("val_dice", "oof_dice", "test_dice", "weight") if metrics.get(k) is not None}
