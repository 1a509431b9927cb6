"""How long the trainings of a run will still take, from what was measured of their models on this machine."""

import math
from pathlib import Path

import pandas as pd

from utils.data.records import read_record
from utils.files import read_json
from utils.pipeline.steps import ROWS, Step

MEASURED_BY = tuple(
    f"{row.notebook}/*/{file}" for row in ROWS if row.models for file in ("precision.json", "*/history.csv")
)
"""Files of a run that hold measured times."""


def expected_hours(run: Path, left: list[Step], images: int, jobs: int) -> str:
    """One line: the hours of the trainings among the steps `left`, `jobs` at a time, and the models nobody measured.

    left: the steps that have to be executed, see `pipeline.up_to_date`. images: number of training images. The time of
    a fold model is epochs × the median epoch of its model's fold models so far, validation included; before any,
    epochs × steps × the seconds of a step that the choice of the precision measured. Predictions and the ensemble, some
    minutes, are not counted.
    """
    hours, counted, unknown = 0.0, 0, {}
    for step in left:
        given = step.all_parameters()
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


def _same_size(fold_model: Path, given: dict) -> bool:
    record = read_record(fold_model)
    before = record.parameters if record else given
    return all(before.get(name) == given.get(name) for name in ("batch_size", "image_size", "crop"))
