"""How long the trainings of a run will still take, from what was measured of their models on this machine."""

import math
from pathlib import Path

import pandas as pd

from utils.files import read_json
from utils.pipeline.profile import Step

MEASURED_BY = ("03_train/*/precision.json", "03_train/*/*/history.csv", "09_yolo/*/*/history.csv")
"""Files of a run that hold measured times."""


def expected_hours(run: Path, planned: list[Step], images: int, jobs: int) -> str:
    """One line: the hours of the trainings that are not done, `jobs` at a time, and the models that nobody measured.

    images: number of training images. Not done are those without metrics.json and those that Snakemake will repeat,
    because a notebook, its parameters, the data or a step before changed, as `prepare_run` has just written them. The
    time of a fold model is epochs × the median epoch of its model's fold models so far, validation included; before
    any, epochs × steps × the seconds of a step that the choice of the precision measured. Predictions and the ensemble,
    some minutes, are not counted.
    """
    hours, counted, unknown = 0.0, 0, {}
    done: set[str] = set()
    for step in planned:
        given = step.all_parameters()
        if _is_up_to_date(run, step) and done.issuperset(step.after):
            done.add(step.name)
            continue
        if "epochs" not in given:
            continue
        seconds = seconds_per_epoch((run / step.name).parent, given, images)
        if math.isnan(seconds):
            unknown[step.name.split("/")[1] if "/" in step.name else step.name] = None
        else:
            hours, counted = hours + given["epochs"] * seconds / 3600 / jobs, counted + 1
    parts = [f"about {hours:.1f} for {counted} trainings"] if counted else []
    parts += [f"not measured for {', '.join(unknown)}"] if unknown else []
    return f"hours: {'; '.join(parts) or 'no training is left'}"


def seconds_per_epoch(model: Path, given: dict, images: int) -> float:
    """Seconds of an epoch of the model whose fold models lie in the folder `model`; NaN if nobody measured them.

    given: the parameters of 03, with which the measured ones must agree in batch and image size.
    """
    files = [path for path in model.glob("fold*/history.csv") if _same_size(path.parent, given)]
    if rows := [pd.read_csv(path)["seconds"] for path in files]:
        return float(pd.concat(rows).median())
    found = read_json(model / "precision.json", {})
    if found.get("batch") != [given.get("batch_size"), given.get("crop") or given.get("image_size")]:
        return math.nan
    trained = images * (1 - 1 / given["n_folds"]) if given["fold"] >= 0 else images
    return math.ceil(trained / given["batch_size"]) * found["seconds_per_step"][found["precision"]]


def _is_up_to_date(run: Path, step: Step) -> bool:
    result, notebook = run / step.name / "metrics.json", f"{step.name.partition('/')[0]}.ipynb"
    inputs = [run / "notebooks" / notebook, run / "parameters" / f"{step.name}.yaml", run / "data.json"]
    inputs += [run / earlier / "metrics.json" for earlier in step.after]
    changes = [path.stat().st_mtime for path in inputs if path.exists()]
    return result.exists() and max(changes, default=0.0) <= result.stat().st_mtime


def _same_size(fold_model: Path, given: dict) -> bool:
    before = read_json(fold_model / "metrics.json", {}).get("parameters", given)
    return all(before.get(name) == given.get(name) for name in ("batch_size", "image_size", "crop"))
