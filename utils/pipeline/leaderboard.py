"""The leaderboard of a run: scores of fold models, models, ensemble and baseline from the steps' metrics.json."""

from pathlib import Path
from typing import Any

import pandas as pd

from utils.files import read_json, replacing
from utils.pipeline.profile import NOTEBOOKS

COLUMNS = ["kind", "model", "fold", "val_dice", "oof_dice", "test_dice", "weight", "minutes"]
HEADINGS = {"val_dice": "fold Dice", "oof_dice": "out-of-fold", "test_dice": "test", "kind": "", "model": "model"}


def read_leaderboard(run: str | Path) -> pd.DataFrame:
    """One row per ensemble, model, fold model and baseline, in this order, the best of each first; columns COLUMNS.

    val_dice: full-size mean Dice on the fold's images, without TTA, as training measured it; oof_dice: out-of-fold,
    with TTA; test_dice: on the test images where the data has a solution.csv; minutes: training and inference.
    Scores are in [0, 1], NaN where a step has not ended or has no such score.
    """
    run = Path(run)
    rows = _fold_models(run)
    ensemble = _metrics(run / NOTEBOOKS["ensemble"])
    for model, scores in ensemble.get("models", {}).items():
        minutes = sum(r["minutes"] or 0 for r in rows if r["kind"] == "fold model" and r["model"] == model)
        rows.append({"kind": "model", "model": model, "minutes": minutes, **_scores(scores)})
    if ensemble:
        fold_models = f"{len(ensemble.get('models', {}))} models"
        rows.append({"kind": "ensemble", "model": fold_models, "minutes": ensemble.get("minutes"), **_scores(ensemble)})
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
    table = table.assign(order=order, score=score).sort_values(
        ["order", "score", "model", "fold"], ascending=[True, False, True, True], kind="stable"
    )
    return table[COLUMNS].astype({"fold": "Int64"}).reset_index(drop=True)


def show_leaderboard(run: str | Path, width: int = 100) -> str:
    """The leaderboard as text of at most `width` columns; also written to `<run>/leaderboard.csv`."""
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
    room = width - sum(max(len(c), *table[c].str.len()) + 2 for c in table if c != "model")
    table["model"] = [m if len(m) <= room else f"{m[: room - 1]}…" for m in table["model"]]
    widths = {c: max(len(c), *table[c].str.len()) for c in table}
    rule = "─" * (sum(widths.values()) + 2 * (len(widths) - 1))

    def line(cells: Any) -> str:
        cells = zip(table.columns, cells, strict=True)
        return "  ".join(t.ljust(widths[c]) if c in ("", "model") else t.rjust(widths[c]) for c, t in cells).rstrip()

    lines, kind = [line(table.columns), rule], None
    for row in table.itertuples(index=False, name=None):
        lines += [rule] if kind not in (None, row[0]) else []
        lines.append(line(row))
        kind = row[0]
    return [*lines, rule]


def displayed(table: pd.DataFrame) -> pd.DataFrame:
    """The table as strings under headings for people, without its empty columns."""
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
