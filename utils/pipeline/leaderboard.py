"""Make the leaderboard of a run from its metrics.json files: ensemble, models, fold models and baseline."""

from pathlib import Path
from typing import Any

import pandas as pd
from tabulate import SEPARATING_LINE, tabulate

from utils.data.records import Baseline, Ensemble, fold_records, read_record
from utils.files import read_json, write_table
from utils.pipeline.steps import PREDICT, TRAIN, YOLO

COLUMNS = {
    "kind": ("", "{}"),
    "model": ("model", "{}"),
    "fold": ("fold", "{:.0f}"),
    "val_dice": ("fold Dice", "{:.4f}"),
    "oof_dice": ("out-of-fold", "{:.4f}"),
    "test_dice": ("test", "{:.4f}"),
    "weight": ("weight", "{:.3g}"),
    "minutes": ("minutes", "{:.1f}"),
}
"""Heading and format of each column."""

KINDS = ["ensemble", "model", "fold model", "baseline"]


def read_leaderboard(run: str | Path) -> pd.DataFrame:
    """One row per ensemble, model, fold model and baseline, in this order, the best of each kind first.

    Columns: kind, model, fold (Int64); val_dice: mean Dice at full size on the fold's images, without test-time
    augmentation (TTA), as training measured it; oof_dice: out-of-fold Dice, with TTA; test_dice: Dice on the test
    images if the data has a solution.csv; weight: of the model in the ensemble, or beside the one it refines (0:
    off); minutes: training and inference.
    Scores are in [0, 1], and NaN if a step has not ended or has no such score. `run` is the run's folder.
    """
    run = Path(run)
    kinds = PREDICT.record, TRAIN.record, YOLO.record
    steps = [{**dict(record), "kind": "fold model"} for record in fold_records(run, kinds)]
    measures = {name: "sum" if name == "minutes" else "first" for name in list(COLUMNS)[3:]}
    fold_models = _table(steps).groupby(["kind", "model", "fold"], as_index=False).agg(measures)
    minutes = fold_models.groupby("model")["minutes"].sum()
    rows = fold_models.to_dict("records")
    if ensemble := read_record(run / Ensemble.notebook, Ensemble):
        shown = ensemble.all_models
        rows += [
            {**found, "kind": "model", "model": name, "minutes": minutes.get(name, 0)} for name, found in shown.items()
        ]
        votes, missing = len(ensemble.fold_models), len(ensemble.missing)
        name = f"PARTIAL: {votes} of {votes + missing} voted" if missing else f"{len(ensemble.models)} models"
        rows.append({**dict(ensemble), "kind": "ensemble", "model": name})
    if baseline := read_record(run / Baseline.notebook, Baseline):
        rows.append({**dict(baseline), "kind": "baseline", "model": baseline.model or "official baseline"})
    table = _table(rows)
    table = table.assign(order=table["kind"].map(KINDS.index), score=table["oof_dice"].fillna(table["val_dice"]))
    table = table.sort_values(["order", "score", "model", "fold"], ascending=[True, False, True, True])
    return table[list(COLUMNS)].astype({"fold": "Int64"}).reset_index(drop=True)


def show_leaderboard(run: str | Path, width: int = 100) -> str:
    """The leaderboard as text, at most `width` characters wide; also written to `<run>/leaderboard.csv`."""
    table = read_leaderboard(run)
    write_table(Path(run) / "leaderboard.csv", table, index=False, float_format="%.6g")
    total = table.loc[table["kind"] != "model", "minutes"].sum()
    return "\n".join([*as_text(table, width), f"{total:.0f} minutes in all", *left_out(run)])


def left_out(run: str | Path) -> list[str]:
    """A line about the images that --skip-bad left out of the run, if there are any."""
    skipped = read_json(Path(run) / "data.json", {}).get("skipped", [])
    test = sum(path.startswith("test/") for path in skipped)
    line = f"{len(skipped)} bad images left out by --skip-bad, {test} of them test images, whose masks are empty"
    return [line] if skipped else []


def as_text(table: pd.DataFrame, width: int = 100) -> list[str]:
    """The lines of the table as text; empty columns are left out and long model names shortened to fit `width`."""
    if table.empty:
        return ["no step with a score has ended yet"]
    table = displayed(table)
    names, full = table["model"].str, max(map(len, _lines(table)))
    room = max(names.len().max() - full + width, len("model"))
    table["model"] = table["model"].where(names.len() <= room, names[: room - 1] + "…")
    return _lines(table)


def as_html(table: pd.DataFrame) -> str:
    """The table as HTML, all columns but the first two aligned to the right; empty columns are left out."""
    shown = displayed(table)
    return tabulate(shown, "keys", "html", showindex=False, disable_numparse=True, colalign=_alignment(shown))


def displayed(table: pd.DataFrame) -> pd.DataFrame:
    """The table as strings with readable headings, without its empty columns."""
    texts = {}
    for column in table.dropna(axis=1, how="all"):
        heading, form = COLUMNS[column]
        texts[heading] = ["" if pd.isna(value) else form.format(value) for value in table[column]]
    return pd.DataFrame(texts, dtype=str)


def _lines(table: pd.DataFrame) -> list[str]:
    """The lines of a table of strings, with separators between kinds, its first column."""
    rows = []
    for _, group in table.groupby("", sort=False):
        rows += [SEPARATING_LINE, *group.to_numpy().tolist()]
    return tabulate(rows[1:], list(table), disable_numparse=True, colalign=_alignment(table)).splitlines()


def _alignment(table: pd.DataFrame) -> list[str]:
    return ["left" if column in ("", "model") else "right" for column in table]


def _table(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """The rows as a table of COLUMNS; other keys of a row are left out."""
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype(dict.fromkeys(list(COLUMNS)[2:], float))
