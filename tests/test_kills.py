"""A small run of the real notebooks: a fold model that fails, then kills; `python -m tests.kills` does many more."""

import signal

import pytest

from tests.kills import SmallRun
from utils.files import read_json
from utils.submission import check


@pytest.fixture
def small(tmp_path):
    small = SmallRun(tmp_path)
    yield small
    small.stop()


@pytest.mark.slow
def test_after_a_failed_fold_model_and_kills_everything_is_as_in_an_undisturbed_run(small):
    small.clear()
    assert small.finish(starts=1) == (0, 1), small.printed.read_text()
    undisturbed = small.results()

    small.clear()
    small.printed.unlink()
    (small.root / "broken").write_text("03_train/thin/fold1")
    assert small.finish(starts=1) == (1, 1)
    printed = small.printed.read_text()
    assert printed.count("✗ 03_train thin fold1 failed") == 2, "tried once more"
    about = read_json(small.submission.with_suffix(".json"))
    assert about["missing"] == {"thin/fold1": "03_train/thin/fold1 failed: RuntimeError: this part is broken"}
    assert [(m["model"], m["fold"], m["weight"]) for m in about["fold_models"]] == [("thin", 0, 1.0)]
    assert check(small.submission, small.root / "data" / "tiny") == []
    assert small.submission.read_bytes() != undisturbed["submissions/tiny.csv"]

    (small.root / "broken").unlink()
    finished = small.trained()
    assert [folder.rpartition("/")[2] for folder in finished] == ["fold0"]
    process = small.begin()
    assert small.disturb(process, 1, "kernel", signal.SIGKILL)
    assert small.disturb(process, 3, "run_all.sh", signal.SIGHUP)
    assert process.wait(60) == 128 + signal.SIGHUP
    process = small.begin()
    assert small.disturb(process, 2, "papermill", signal.SIGTERM)
    assert small.disturb(process, 0, "Snakemake", signal.SIGKILL)
    assert small.finish(process)[0] == 0
    assert small.differences(undisturbed, finished) == []
