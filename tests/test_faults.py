"""Trainings that are killed, go wrong or find no memory: nothing is lost, nothing is trained twice."""

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from torch.utils.data import get_worker_info

from tests import one_training
from tests.small import fit, same, small_data, weights
from utils import registry
from utils.data.augment import Augmenter
from utils.data.augmentation import Augmentation
from utils.data.loader import TrainingSet, dense_labels, training_loader
from utils.files import ROOT
from utils.training.losses import TrainingError
from utils.training.resume import RETRY_LR

pytestmark = pytest.mark.usefixtures("one_thread")
COLUMNS = ["epoch", "loss", "val_dice", "lr", "retries"]


@pytest.fixture(scope="module")
def cache(sample, tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def data(sample, cache):
    return small_data(sample, cache)


def start(sample, cache, folder, **options):
    """The ended process of one training."""
    given = {"sample": str(sample), "cache": str(cache), "folder": str(folder), **options}
    command = [sys.executable, "-m", "tests.one_training", json.dumps(given)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def equal(folder, other):
    """Whether two trainings left the same numbers, bit for bit."""
    a, b = (pd.read_csv(path / "history.csv")[COLUMNS] for path in (folder, other))
    pd.testing.assert_frame_equal(a, b, check_exact=True)
    pd.testing.assert_frame_equal(*(pd.read_csv(path / "val_dice.csv") for path in (folder, other)), check_exact=True)
    return all(same(weights(folder / name), weights(other / name)) for name in ("best", "last"))


STOPS = {"num_workers": 2, "epochs": 30, "early_stopping": 2, "schedule": "constant", "ema_decay": 0.0, "lr": 1e-5}
PLUGIN = {"num_workers": 2, "epochs": 4, "plugin_parts": True, "accumulate": 2}


@pytest.mark.parametrize(
    ("options", "kill", "rows"),
    [(STOPS, [2, 1], 2), (PLUGIN, [2, "write"], 3)],
    ids=["batch, with early stopping", "resume file, with a plugin's parts"],
)
def test_a_killed_training_ends_with_the_same_bits(sample, cache, tmp_path, monkeypatch, options, kill, rows):
    monkeypatch.setattr(registry, "_parts", dict(registry._parts))
    monkeypatch.chdir(ROOT)
    folder = tmp_path / "killed"
    killed = start(sample, cache, folder, kill=kill, **options)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert len(pd.read_csv(folder / "history.csv")) == rows
    assert len(torch.load(folder / "resume.ckpt", weights_only=True)["training"]["history"]) == 2
    assert len(list(folder.glob(".resume.ckpt*"))) == rows - 2, "half a file, where it was killed while writing"
    one_training.run(sample, cache, folder, **options)
    whole = one_training.run(sample, cache, tmp_path / "whole", **options)
    assert equal(folder, tmp_path / "whole") and 2 < len(whole.history) < 30
    files = {path.name for path in folder.iterdir()}
    assert files == {"best", "last", "history.csv", "val_dice.csv", "logs", "finished.json"}


def test_a_plateau_and_an_early_stop_survive_an_interruption(data, tmp_path):
    def plateau(optimizer):
        return torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, mode="max", patience=0, eps=0.0)

    options = {"epochs": 30, "lr": 1e-12, "ema_decay": 0.0, "early_stopping": 3, "parts": {"schedule": plateau}}
    whole = fit(data, tmp_path / "whole", **options)
    assert len(set(whole.history["lr"])) > 1 and len(whole.history) < 30
    for after in (whole.history["lr"].diff().ne(0).iloc[1:].idxmax() + 1, len(whole.history)):
        folder = tmp_path / f"cut{after}"
        with pytest.raises(InterruptedError):
            fit(data, folder, stop_after=after, **options)
        fit(data, folder, **options)
        assert equal(folder, tmp_path / "whole")


def test_a_finished_training_is_taken_up_at_once(data, tmp_path, capsys):
    first = fit(data, tmp_path / "fold0")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "fold0").rglob("*")}
    again = fit(data, tmp_path / "fold0")
    assert "finished: nothing is trained again" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "fold0").rglob("*")}
    assert (again.score, again.minutes) == (first.score, first.minutes)
    pd.testing.assert_frame_equal(again.history, first.history, check_exact=True)
    pd.testing.assert_frame_equal(again.val_dice, first.val_dice, check_exact=True)
    assert same(again.model.state_dict(), first.model.state_dict()) and not again.model.training


def test_a_training_ended_before_its_mark_is_not_trained_again(data, tmp_path):
    whole = fit(data, tmp_path / "whole")
    with pytest.raises(InterruptedError):
        fit(data, tmp_path / "cut", stop_after=2)  # after the last epoch, before last/ is written
    assert not (tmp_path / "cut" / "last").exists()
    fit(data, tmp_path / "cut")
    assert equal(tmp_path / "cut", tmp_path / "whole") and len(whole.history) == 2


def test_results_of_other_parameters_move_aside(data, tmp_path, capsys):
    folder = tmp_path / "fold0"
    fit(data, folder, epochs=1)
    old = weights(folder / "best")
    for name in ("metrics.json", "worst-a.png", "log.txt", "inputs.json"):
        (folder / name).write_text("{}")
    for number, options in enumerate(({"epochs": 1, "seed": 1}, {"epochs": 1, "seed": 2}), 1):
        capsys.readouterr()
        fit(data, folder, **options)
        assert f"its results are now in {tmp_path}/previous/fold0-{number}" in capsys.readouterr().out
    aside = tmp_path / "previous" / "fold0-1"
    assert same(weights(aside / "best"), old) and (aside / "metrics.json").exists() and (aside / "worst-a.png").exists()
    assert not (folder / "metrics.json").exists(), "or a kill now would leave a step that looks finished"
    assert (folder / "log.txt").exists() and (folder / "inputs.json").exists()


def test_one_retry_at_a_lower_rate_after_a_loss_that_is_not_finite(data, tmp_path, capsys):
    class Fragile(torch.optim.SGD):
        """Breaks the weights at a high learning rate."""

        def step(self, closure=None):
            loss = super().step(closure)
            for group in self.param_groups:
                if group["lr"] > 0.05:
                    for parameter in group["params"]:
                        parameter.data.fill_(float("nan"))
            return loss

    parts = {
        "optimizer": lambda parameters: Fragile(parameters, lr=0.1),
        "schedule": lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda step: 0.01 if step < 4 else 1.0),
    }
    whole = fit(data, tmp_path / "whole", epochs=5, parts=parts)
    assert "the loss became nan in epoch 3, batch 2" in capsys.readouterr().out
    assert whole.history["retries"].tolist() == [0, 0, 1, 1, 1] and whole.history["loss"].notna().all()
    assert whole.history["lr"].tolist() == pytest.approx([0.001, 0.1 * RETRY_LR, *[0.1 * RETRY_LR] * 3], rel=10)
    with pytest.raises(InterruptedError):
        fit(data, tmp_path / "cut", epochs=5, parts=parts, stop_after=4)
    fit(data, tmp_path / "cut", epochs=5, parts=parts)
    assert equal(tmp_path / "cut", tmp_path / "whole")
    loader = training_loader(data, Augmenter(Augmentation()), 4, seed=0)
    loader.sampler.set_epoch(2)
    expected = list(loader)[1]
    with np.load(tmp_path / "whole" / "nonfinite-epoch3-batch2.npz", allow_pickle=False) as saved:
        assert np.array_equal(saved["image"], expected["image"]) and np.isnan(saved["loss"])
        assert np.array_equal(saved["label"], dense_labels(expected).mul(255).round().numpy())
        assert len(saved["image_name"]) == 4 and set(saved["image_name"]) <= set(data.train["image_name"])


def test_after_the_retry_training_stops_and_keeps_what_was_good(data, tmp_path):
    broken = lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda step: 1.0 if step < 4 else 1e30)  # noqa: E731
    with pytest.raises(
        TrainingError, match=r"(?s)epoch 3, batch 2.*npz\), also at 0.1 of the learning rate.*smaller lr"
    ):
        fit(data, tmp_path, epochs=4, ema_decay=0.0, parts={"schedule": broken})
    assert len(pd.read_csv(tmp_path / "history.csv")) == 2 and weights(tmp_path / "best")
    saved = torch.load(tmp_path / "resume.ckpt", weights_only=True)["training"]
    assert len(saved["history"]) == 2


def test_too_little_memory_names_sizes_that_were_tried(sample, cache, tmp_path):
    options = {"epochs": 1, "ema_decay": 0.0, "memory": 1400 * 2**20, "per_pixel": 100_000}
    failed = start(sample, cache, tmp_path, **options)
    assert failed.returncode == 1
    message = failed.stderr.strip().splitlines()[-1]
    assert "TrainingError: out of memory with batch_size=4 at image_size=64" in message
    assert "batch_size=2 with accumulate=2 fits" in message and "image_size=32 fits with batch_size=4" in message


def test_a_killed_loader_worker_is_explained_and_costs_no_epoch(data, tmp_path, monkeypatch):
    whole = fit(data, tmp_path / "whole", epochs=3, num_workers=2)
    read, mark = TrainingSet.__getitem__, tmp_path / "killed once"

    def killed(self, key):
        if key[0] == 1 and get_worker_info() and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return read(self, key)

    monkeypatch.setattr(TrainingSet, "__getitem__", killed)
    with pytest.raises(TrainingError, match=r"num_workers=2 processes that prepare batches died.*--shm-size"):
        fit(data, tmp_path / "cut", epochs=3, num_workers=2)
    fit(data, tmp_path / "cut", epochs=3, num_workers=2)
    assert equal(tmp_path / "cut", tmp_path / "whole") and len(whole.history) == 3


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_the_gpu_that_was_asked_for_nothing_begins(data, tmp_path):
    with pytest.raises(RuntimeError, match="sees no GPU; use device='auto' or 'cpu'"):
        fit(data, tmp_path / "new", device="cuda")
    assert not (tmp_path / "new").exists()
