"""What a run leaves behind and what it says at its end, whatever is broken; without running any notebook."""

import os
import subprocess
import sys
import time

import psutil
import pytest

from utils.files import (
    ROOT,
    WORKS_FOR,
    delete_temporary,
    read_json,
    replacing,
    replacing_folder,
    restore_folder,
    write_json,
    write_text,
)
from utils.pipeline.changes import prepare_partial
from utils.pipeline.leftovers import OWNER, end_processes, new_start, owner_of
from utils.pipeline.outcome import finish, missing_fold_models, untried
from utils.pipeline.steps import Step
from utils.pipeline.up_to_date import digests, inputs, note_inputs, out_of_date

FOLD_MODELS = ("unet/fold0", "unet/fold1", "fcn/fold0")


@pytest.fixture
def planned():
    steps = [Step(name="01_eda")]
    for name in FOLD_MODELS:
        steps += [Step(name=f"03_train/{name}"), Step(name=f"04_inference_tta/{name}", after=[f"03_train/{name}"])]
    parameters = {"models": ["fcn", "unet"], "weights": [0.4, 0.6]}
    voters = [f"04_inference_tta/{name}" for name in FOLD_MODELS]
    return [*steps, Step(name="05_ensemble", parameters=parameters, after=voters)]


@pytest.fixture
def run(tmp_path, planned):
    """A run in which everything has ended well."""
    about = {"data_dir": "data/x", "folds": [0, 1], "submission": "", "steps": {s.name: {} for s in planned}}
    write_json(tmp_path / "run.json", about)
    for step in planned:
        write_json(
            tmp_path / step.name / "metrics.json", {"val_dice": 0.9, "model": "unet", "models": {}, "minutes": 1}
        )
        note_inputs(tmp_path, step.name, digests(tmp_path, inputs(step)))
    planned[-1].parameters["submission"] = "submissions/run.csv"
    return tmp_path


def fail(run, name, error):
    (run / name / "metrics.json").unlink()
    if error:
        write_text(run / name / "failed.txt", error)


def test_the_cause_is_told_from_what_only_waits_for_it(run, planned):
    fail(run, "03_train/unet/fold1", "Traceback\nValueError: NaN")
    fail(run, "04_inference_tta/fcn/fold0", "")
    left = list(out_of_date(run, planned))
    of_unet = ["03_train/unet/fold1", "04_inference_tta/unet/fold1"]
    assert left == [*of_unet, "04_inference_tta/fcn/fold0", "05_ensemble"]
    assert untried(run, planned, left) == ["04_inference_tta/fcn/fold0"]
    missing = missing_fold_models(run, planned, left)
    assert missing["unet/fold1"] == "03_train/unet/fold1 failed: ValueError: NaN"
    assert missing["fcn/fold0"].startswith("04_inference_tta/fcn/fold0 failed: it was killed from outside")
    prepare_partial(run, planned[-1], missing)
    needed = read_json(run / "run.json")["steps"]["05_ensemble"]["inputs"]
    assert [name for name in needed if "metrics" in name] == ["04_inference_tta/unet/fold0/metrics.json"]
    text = (run / "parameters" / "05_ensemble.yaml").read_text()
    assert "models:\n- unet\n" in text and "weights: []" in text and "tune_weights: false" in text


def test_nothing_to_vote_with_is_no_partial_submission(run, planned):
    for name in FOLD_MODELS:
        fail(run, f"04_inference_tta/{name}", "OSError")
    assert missing_fold_models(run, planned, list(out_of_date(run, planned))) == {}


def test_no_broken_page_or_table_hides_what_failed(run, planned, capsys):
    fail(run, "03_train/unet/fold1", "Traceback\nValueError: NaN")
    (run / "01_eda" / "01_eda.ipynb").write_text('{"cells": [half a notebook')
    (run / "leaderboard.csv").mkdir()  # so that it can't be written
    left = list(out_of_date(run, planned))
    made = {"models": {}, "submission": "submissions/run.csv", "missing": {"unet/fold1": "03 failed: <b>NaN</b>"}}
    write_json(run / "05_ensemble" / "metrics.json", made)
    assert finish(run, planned, 1, left, 3.0) == 1
    output = capsys.readouterr().out
    order = [
        "FAILED after 3.0 min",
        "ValueError: NaN",
        "the leaderboard could not be made: IsADirectoryError",
        "report",
    ]
    places = [output.index(text) for text in order]
    assert places == sorted(places)
    assert "submission  submissions/run.csv  PARTIAL: 2 of 3 fold models" in output
    index = (run / "report" / "index.html").read_text()
    assert "unet/fold1: 03 failed: &lt;b&gt;NaN" in index
    assert "can not be shown" in (run / "report" / "01_eda.html").read_text()

    (run / "run.json").unlink()  # which the report needs
    assert finish(run, planned, 0, [], 3.0) == 1
    assert "the report could not be made: FileNotFoundError" in capsys.readouterr().out


def test_a_figure_that_fails_after_the_check_does_not_cost_the_submission(run, planned, tmp_path, capsys):
    planned[-1].parameters["submission"] = str(tmp_path / "run.csv")
    write_json(
        tmp_path / "run.json", {"missing": {}, **read_json(run / "run.json"), "submission": str(tmp_path / "run.csv")}
    )
    fail(run, "05_ensemble", "ValueError: a figure")
    assert finish(run, planned, 1, ["05_ensemble"], 3.0) == 1
    assert f"submission  {tmp_path / 'run.csv'}\n" in capsys.readouterr().out
    os.utime(tmp_path / "run.json", (1, 1))  # of an earlier run
    assert finish(run, planned, 1, ["05_ensemble"], 3.0) == 1
    assert "submission  " not in capsys.readouterr().out


def test_processes_of_a_killed_run_are_ended_and_no_others(tmp_path):
    code = "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']); "
    places = (tmp_path / "run" / "03_train", tmp_path / "run", tmp_path / "run-2", "")
    started = [
        subprocess.Popen([sys.executable, "-c", f"{code}time.sleep(60)"], env=os.environ | {WORKS_FOR: str(place)})
        for place in places
    ]
    try:
        families = [[psutil.Process(process.pid)] for process in started]
        end = time.monotonic() + 20
        while any(len(family) < 2 for family in families):
            assert time.monotonic() < end
            families = [[family[0], *family[0].children()] for family in families]
        end_processes(tmp_path / "run")
        alive = [[p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in family] for family in families]
        assert alive == [[False] * 2] * 2 + [[True] * 2] * 2
    finally:
        for process in [p for family in families for p in family]:
            if process.is_running():
                process.kill()
        for process in started:
            process.wait()


def test_temporary_files_of_killed_writers_are_found(tmp_path):
    with replacing(tmp_path / "a" / "image [1].npz") as kept, replacing(tmp_path / "b.csv") as other:
        kept.write_text("half")
        other.write_text("half")
        (tmp_path / ".hidden.part.csv").write_text("not ours")
        delete_temporary(tmp_path / "a")
        assert not kept.exists() and other.exists()
        kept.write_text("half")
        delete_temporary(tmp_path, "c.csv")
        assert other.exists()
        delete_temporary(tmp_path, "b.csv")
        assert not other.exists() and kept.exists()
        delete_temporary(tmp_path)
        assert not kept.exists()
        kept.write_text("whole")
        other.write_text("whole")
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} == {
        "image [1].npz",
        "b.csv",
        ".hidden.part.csv",
    }


@pytest.mark.parametrize("own", ["", f".{'0a' * 16}"], ids=["of an earlier version", "with its writer's own names"])
@pytest.mark.parametrize("newer", [False, True], ids=["killed between the renames", "killed after them"])
def test_a_folder_whose_writer_was_killed_is_whole(tmp_path, newer, own):
    folder, old = tmp_path / "best", tmp_path / f".best{own}.old"
    write_text(old / "weights", "older")
    write_text(tmp_path / f".best{own}.part" / "weights", "half")
    if newer:
        write_text(folder / "weights", "newer")
    expected = "newer" if newer else "older"
    with pytest.raises(KeyError), replacing_folder(folder) as new:  # the next writer fails
        assert not any(new.iterdir())
        raise KeyError
    assert {path.name for path in tmp_path.iterdir() if path.suffix != ".part"} == {"best"}
    assert (folder / "weights").read_text() == expected
    folder.rename(old)
    restore_folder(folder)
    restore_folder(folder)
    assert (folder / "weights").read_text() == expected and [path.name for path in tmp_path.iterdir()] == ["best"]


def test_two_writers_of_a_folder_leave_a_whole_one(tmp_path):
    """As where a cluster's job of a killed run still writes what the next start's job writes, too."""
    folder = tmp_path / "best"
    with replacing_folder(folder) as one:
        write_text(one / "weights", "one")
        with replacing_folder(folder) as other:
            write_text(other / "weights", "other")
            write_text(other / "config", "other")
        write_text(one / "config", "one")
    texts = {path.name: path.read_text() for path in folder.iterdir()}
    assert len(texts) == 2 and len(set(texts.values())) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["best"]


def test_a_job_on_another_machine_ends_when_the_run_is_started_again(tmp_path):
    """Its own start was killed and could not cancel it; it would write into the folders of the next start's jobs."""
    new_start(tmp_path)
    code = "import sys, time; from pathlib import Path; from utils.pipeline.leftovers import end_with_run; "
    code += "end_with_run(Path(sys.argv[1])); print('at work', flush=True); time.sleep(60)"
    owner = owner_of(tmp_path)[OWNER].split()
    environment = os.environ | {OWNER: " ".join(["another-machine", *owner[1:]])}
    command = [sys.executable, "-c", code, str(tmp_path)]
    job = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE)
    try:
        assert job.stdout.readline() and job.poll() is None
        new_start(tmp_path)
        assert job.wait(timeout=30) == 1
        late = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, timeout=30, check=False)
        assert late.returncode == 1, "one that the queue kept begins after the next start, and ends at once"
    finally:
        job.kill()
        job.wait()
