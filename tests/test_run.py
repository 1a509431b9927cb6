"""The run that a notebook opens: what it refuses, how it ends, and data that has less than usual."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest

from tests.fake_run import make_data
from utils.data.check import check_data
from utils.data.records import Baseline, Ensemble, Training, read_record
from utils.files import ROOT, read_json, read_table, write_json, write_table
from utils.masks.masks import Masks
from utils.models.base import ModelError
from utils.models.checkpoint import hash_people
from utils.pipeline import changes
from utils.pipeline.judge import describe_vote
from utils.pipeline.run import start_run
from utils.pipeline.steps import Step
from utils.pipeline.up_to_date import digests, inputs

STEP = "03_train"


def opened(data, folder, step=STEP, **parameters):
    given = {"data_dir": str(data), "output_dir": str(folder), "n_folds": 2, "seed": 0}
    return start_run(given | parameters, step)


def test_a_run_ends_with_its_record(tmp_path):
    run = opened(make_data(tmp_path / "data"), tmp_path / "run", lr=0.1)
    table = run.finish(Training(model="unet", fold=1, val_dice=float("nan"), epochs=3))
    found = read_json(tmp_path / "run" / STEP / "unet" / "fold1" / "metrics.json")
    assert (found["step"], found["model"], found["fold"], found["epochs"]) == (STEP, "unet", 1, 3)
    assert found["val_dice"] is None and found["parameters"]["lr"] == 0.1 and 0 <= found["minutes"] < 1
    assert table.loc["epochs"].item() == 3 and "parameters" not in table.index
    record = read_record(tmp_path / "run" / STEP / "unet" / "fold1", Training)
    assert record.minutes == found["minutes"] and record.folder.name == "fold1"
    assert read_record(tmp_path, Training) is None and read_record(tmp_path, Training, empty=True).epochs == 0


def test_a_submission_is_described_as_soon_as_it_is_checked(tmp_path):
    run = opened(make_data(tmp_path / "data"), tmp_path / "run", "02_baseline_fcn")
    path = run.submit({"imageID003.png": Masks.from_texts(["1 5"], (32, 32))}, str(tmp_path / "made.csv"))
    run.describe(Baseline(submission=path, val_dice=0.5))
    assert read_json(tmp_path / "made.json")["val_dice"] == 0.5
    assert not (run.folder / "metrics.json").exists(), "the step itself is not done"


def test_a_fold_model_that_knows_held_out_people_is_refused(tmp_path):
    """As after new folds in a used folder: what was trained before them would be scored on what it learnt."""
    run = opened(make_data(tmp_path / "data"), tmp_path / "run")
    held_out = run.folds.loc[run.folds["fold"] == 0, "ID"].tolist()
    others = run.folds.loc[run.folds["fold"] == 1, "ID"].tolist()
    config = SimpleNamespace(classes=run.classes, fold=0, people=hash_people(others))
    run.check_fold_model(config, 0, "unet, fold 0,")
    run.check_fold_model(SimpleNamespace(classes=run.classes, fold=-1, people=hash_people(held_out)), -1, "unet")
    for people in (hash_people(held_out + others), []):
        config = SimpleNamespace(classes=run.classes, fold=0, people=people)
        with pytest.raises(ModelError, match=r"unet, fold 0, \(fold 0\) was trained on .*Train it again"):
            run.check_fold_model(config, 0, "unet, fold 0,")


@pytest.mark.parametrize("names", [("NA", "None"), ("null", "nan"), ("007", "1e5")])
def test_people_may_be_called_whatever_a_table_takes_for_a_missing_value(tmp_path, names):
    data = make_data(tmp_path / "data")
    for old, new in zip(("ID001", "ID002"), names, strict=True):
        for folder in ("DCM", "outputs_json"):
            (data / "train" / folder / old).rename(data / "train" / folder / new)
    for _ in range(2):  # folds.csv is written, then read
        run = opened(data, tmp_path / "run")
        assert sorted(run.folds["ID"]) == sorted(names)


def test_data_without_test_images_has_no_submission_and_says_so(tmp_path, capsys):
    data = make_data(tmp_path / "data")
    shutil.rmtree(data / "test")
    report = check_data(data)
    assert report.errors == [] and "no test images" in {finding.kind for finding in report.findings}
    run = opened(data, tmp_path / "run", "05_ensemble")
    assert (run.test, run.submit({}, str(tmp_path / "made.csv"))) == ([], "")
    assert "no test images" in capsys.readouterr().out and not (tmp_path / "made.csv").exists()
    run.finish(Ensemble(submission="", oof_dice=0.9))
    assert read_record(run.folder, Ensemble).oof_dice == 0.9
    shutil.rmtree(data / "train" / "DCM")
    assert "no images" in {finding.kind for finding in check_data(data).errors}


def test_what_lies_outside_the_run_counts_with_the_parameters_that_name_it(tmp_path):
    """Another checkpoint or other images under the same path: what was made from them is out of date."""
    extra, start = make_data(tmp_path / "extra"), tmp_path / "start" / "fold0"
    write_json(start / "config.json", {"fold": 0})
    parameters = {"output_dir": str(tmp_path / "run"), "fold": 0, "extra_data": str(extra)}
    parameters |= {"init_checkpoint": str(tmp_path / "start" / "fold{fold}")}
    step = Step(name=f"{STEP}/unet/fold0", parameters=parameters)

    def made_from():
        changes._write_parameters(tmp_path / "run", step)
        return digests(tmp_path / "run", inputs(step))

    seen = [made_from()]
    assert made_from() == seen[0]
    os.utime(next(extra.glob("train/outputs_json/*/*.json")), (1, 1))
    seen.append(made_from())
    write_json(start / "config.json", {"fold": 1})
    seen.append(made_from())
    assert seen[0] != seen[1] != seen[2]
    step.parameters["init_checkpoint"] = str(tmp_path / "run" / STEP / "first" / "fold0" / "best")
    write_json(Path(step.parameters["init_checkpoint"]) / "config.json", {})
    own = made_from()
    write_json(Path(step.parameters["init_checkpoint"]) / "config.json", {"changed": 1})
    assert made_from() == own, "a checkpoint of the run itself comes from a step before"


def test_identifiers_are_text_and_empty_cells_are_missing(tmp_path):
    write_table(tmp_path / "a.csv", pd.DataFrame({"ID": ["NA", "001"], "dice": [None, 0.5]}), index=False)
    found = read_table(tmp_path / "a.csv")
    assert found["ID"].tolist() == ["NA", "001"] and found["dice"].isna().tolist() == [True, False]


SLOW_PIP = """#!/bin/bash
[ "$1 $2 $3" = "-m pip install" ] || exec "{python}" "$@"
echo begins >>"$0.log"
sleep 1
echo ends >>"$0.log"
"""


def test_two_first_starts_install_once(tmp_path):
    """Both find an environment without requirements; the second waits for the first, and has nothing left to do."""
    for name in ("run_all.sh", "requirements.txt"):
        shutil.copy(ROOT / name, tmp_path)
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(SLOW_PIP.format(python=sys.executable))
    python.chmod(0o755)
    starts = [subprocess.Popen(["bash", tmp_path / "run_all.sh", "--install"], stdout=-1, stderr=-2) for _ in range(3)]
    assert [process.communicate()[0].count(b"installing") for process in starts].count(1) == 1
    assert {process.returncode for process in starts} == {0}
    assert python.with_name("python.log").read_text().split() == ["begins", "ends"]
    assert (tmp_path / ".venv" / "requirements.sha256").exists() and (tmp_path / "outputs" / "try").is_dir()


def test_the_record_of_a_vote_tells_scores_and_weights_of_its_models():
    tables = {name: pd.DataFrame({"bone": [dice]}) for name, dice in (("a", 0.8), ("b", 0.6), ("ensemble", 0.9))}
    voting = SimpleNamespace(tables=tables, weights={"a": 0.7, "b": 0.3}, crossed=0.89)
    models = [SimpleNamespace(model=m, fold=f, config=SimpleNamespace(score=0.5 + f)) for m, f in (("a", 0), ("b", -1))]
    stages = [
        SimpleNamespace(model=name, first="a", weight=weight, summary=lambda: {"wrist_of": "a"})
        for name, weight in (("fine", 0.5), ("off", 0))
    ]
    found = Ensemble(**describe_vote(voting, models, stages, {"ensemble": 0.85, "a": 0.81}))
    assert (found.oof_dice, found.oof_dice_cross_fitted, found.test_dice) == (0.9, 0.89, 0.85)
    assert found.models["a"] == {"oof_dice": 0.8, "test_dice": 0.81, "weight": 0.7}
    assert found.models["b"]["test_dice"] is None
    assert found.fold_models[1] == {"model": "b", "fold": -1, "weight": 0.3, "val_dice": -0.5}
    assert [stage["oof_dice"] for stage in found.wrist_stages.values()] == [0.8, None]
    nothing = SimpleNamespace(tables={}, weights={"a": 1.0}, crossed=None)
    assert describe_vote(nothing, [], [], {})["oof_dice"] is None
