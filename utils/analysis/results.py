"""Find runs and read the out-of-fold Dice of their models and ensembles, from the tables that the notebooks wrote.

A result is named `<run>` (its ensemble, or its only model), `<run>/<model>`, `<run>/ensemble` or `<run>/baseline`. The
run is a folder below outputs/, or a path. Nothing here needs the data, the stored probabilities or a GPU.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from utils.data.records import (
    NAME,
    PREDICTING,
    Baseline,
    Ensemble,
    Prediction,
    Training,
    Yolo,
    fold_folders,
    read_record,
)
from utils.files import ROOT, Problems, read_json, read_table, resolve, shown, unknown

OUTPUTS = ROOT / "outputs"
ENSEMBLE, BASELINE = "ensemble", "baseline"
TRAINED = (Training, Yolo)
"""Records of the steps that train fold models."""


@dataclass(frozen=True)
class Scores:
    """The out-of-fold Dice of one model or ensemble.

    name: `<run>/<member>`. run: the run's folder. dice: images × classes, in [0, 1]. images: with the same index
    (image_name), ID (person), bent (bool, of the person) and fold. tta: with test-time augmentation, as
    notebook 04 measured it; False: the validation of notebook 03 or 02.
    """

    name: str
    run: Path
    dice: pd.DataFrame
    images: pd.DataFrame
    tta: bool = True


def find_runs(outputs: str | Path = OUTPUTS) -> list[Path]:
    """The folders of all runs below `outputs`, sorted: those with a folds.csv."""
    return sorted(path.parent for path in resolve(outputs).glob("*/folds.csv"))


def models(run: Path) -> list[str]:
    """The models that a run trains or has trained, in the order of its profile, others after them."""
    planned = read_json(run / "run.json", {}).get("models", [])
    trained = sorted(folder.parent.name for folder in fold_folders(run, TRAINED, finished=False))
    return list(dict.fromkeys([*planned, *trained]))


def members(run: Path) -> list[str]:
    """What can be judged in a run: ensemble, models, baseline; only those with out-of-fold scores."""
    return [name for name in (ENSEMBLE, *models(run), BASELINE) if _tables(run, name)[0]]


def open_scores(name: str | Path, outputs: str | Path = OUTPUTS) -> Scores:
    """The scores of a result, by its name as described above.

    Raises Problems for an unknown run or member, naming the nearest; for a run without scores; for several models
    without an ensemble, if none is named; and for tables that do not fit the run's folds.csv.
    """
    text = str(name).rstrip("/")
    start, _, end = text.rpartition("/")
    for run, member in ((text, ""), (start, end)):
        for path in (resolve(outputs) / run, resolve(run)):
            if run and (path / "folds.csv").exists():
                return read_scores(path, member)
    runs = [path.name for path in find_runs(outputs)]
    raise Problems(f"{text}: no such result", [unknown("run", text.partition("/")[0], runs)])


def read_scores(run: str | Path, member: str = "") -> Scores:
    """The scores of one `member` of a run's folder: "" for the ensemble or the only model; see `open_scores`."""
    run = Path(run)
    names = members(run)
    if not names:
        advice = f"expected {shown(run / Prediction.notebook)}/<model>/fold<k>/oof_dice.csv: run "
        advice += f"{Training.notebook}, then {Prediction.notebook}"
        raise Problems(f"{shown(run)}: no out-of-fold scores yet", [advice])
    if member and member not in names:
        raise Problems(f"{shown(run)}: no such result", [unknown("model", member, names)])
    if not member and ENSEMBLE not in names and len(names) > 1:
        problem = f"it has no ensemble; write {run.name}/<model>, one of {', '.join(names)}"
        raise Problems(f"{shown(run)}: which model?", [problem])
    member = member or names[0]
    paths, tta = _tables(run, member)
    dice = pd.concat([read_table(path, index_col="image_name") for path in paths])
    images = read_images(run)
    strange = [f"{name} is not in folds.csv" for name in dice.index.difference(images.index)]
    strange += [f"{name} appears twice" for name in dice.index[dice.index.duplicated()]]
    if strange:
        raise Problems(f"{run.name}/{member}: the scores do not fit {shown(run / 'folds.csv')}", strange)
    return Scores(f"{run.name}/{member}", run, dice, images.loc[dice.index], tta)


def read_images(run: Path) -> pd.DataFrame:
    """The run's folds.csv by image_name: ID, bent and fold of each training image."""
    return read_table(run / "folds.csv").set_index("image_name")


def _tables(run: Path, member: str) -> tuple[list[Path], bool]:
    """The files with the member's scores (images × classes), and whether notebook 04 or 05 measured them."""
    if member in (ENSEMBLE, BASELINE):
        kind, table = (Ensemble, "oof_dice.csv") if member == ENSEMBLE else (Baseline, "val_dice.csv")
        record = read_record(run / kind.notebook, kind)
        return [record.folder / table] if record and (record.folder / table).exists() else [], member == ENSEMBLE
    predicted = [folder / "oof_dice.csv" for folder in fold_folders(run, PREDICTING, member)]
    if predicted := [path for path in predicted if path.exists()]:
        return predicted, True
    trained = [folder / "val_dice.csv" for folder in fold_folders(run, (Training,), member, finished=False)]
    return [path for path in trained if path.exists()], False


def check_same_data(a: Scores, b: Scores) -> None:
    """Raise Problems if two results are not of the same data.

    The classes, the people of shared images and, where both runs list their files (data.json), the sizes of shared
    training files must agree. Runs without such a list are compared only if they name the same data folder.
    """
    problems = []
    if list(a.dice.columns) != list(b.dice.columns):
        problems.append(f"classes differ: {_some(a.dice.columns)} and {_some(b.dice.columns)}")
    shared = a.images.index.intersection(b.images.index)
    moved = shared[a.images.loc[shared, "ID"].to_numpy() != b.images.loc[shared, "ID"].to_numpy()]
    problems += [f"{n} belongs to {a.images.loc[n, 'ID']} and to {b.images.loc[n, 'ID']}" for n in moved]
    files = [read_json(s.run / "data.json", None) for s in (a, b)]
    if None not in files:
        one, other = ({name: found[0] for name, found in listed.items() if "/" in name} for listed in files)
        stems = {Path(name).stem for name in shared}
        common = [n for n in one if n in other and n.startswith("train/") and Path(n).stem in stems]
        problems += [f"{n} has {one[n]} and {other[n]} bytes" for n in common if one[n] != other[n]]
    elif data_folder(a.run) != data_folder(b.run):
        problems.append(f"data folders are {shown(data_folder(a.run))} and {shown(data_folder(b.run))}")
    if problems:
        raise Problems(f"{a.name} and {b.name} are of different data and can't be compared:", problems, shown=5)


def data_folder(run: Path) -> Path:
    """The data folder of a run, as run.json or a finished step names it; "" there is the default sample's."""
    named = [read_json(run / "run.json", {}).get("data_dir")]
    steps = (path.parent for pattern in (f"*/{NAME}", f"*/*/fold*/{NAME}") for path in sorted(run.glob(pattern)))
    named += [read_record(folder).parameters.get("data_dir") for folder in steps]
    return resolve(next((name for name in named if name), "data/sample"))


def _some(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:3]) + (f", … ({len(names)})" if len(names) > 3 else "")
