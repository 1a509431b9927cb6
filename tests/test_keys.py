"""What tells trainings apart: every setting, part and value of the data is in the key, or said not to be."""

from dataclasses import fields, replace

import numpy as np
import pandas as pd
import pytest
import torch

from tests.small import fit, small_data
from utils.data.augment import Augmenter
from utils.data.augmentation import Augmentation
from utils.data.flip import FlipRule
from utils.data.loader import training_loader
from utils.data.windows import Windows
from utils.training.faults import save_batch
from utils.training.key import describe_parts, training_key
from utils.training.losses import build_loss
from utils.training.optimizers import build_optimizer, build_schedule, exponential_average
from utils.training.settings import NOT_SHAPING, Settings

OTHER = {"precision": "32-true", "init_checkpoint": "start"}
NO_RESULT = {
    "device": "where it is computed",
    "num_workers": "batches do not depend on it",
    "wandb_project": "a log",
    "resumable": "what is kept for a restart",
    "on_epoch": "what is shown",
    "precision_file": "its choice, `precision`, is in the key",
}
"""Settings that change no result, with the reason."""


@pytest.fixture(scope="module")
def data(sample, tmp_path_factory):
    return small_data(sample, tmp_path_factory.mktemp("cache"))


def changed(value, name):
    if name in OTHER:
        return OTHER[name]
    return not value if isinstance(value, bool) else value + 1 if isinstance(value, int | float) else f"{value}x"


def test_every_setting_is_in_the_key_or_said_to_change_nothing(data, tmp_path, monkeypatch):
    monkeypatch.setattr("utils.training.key.file_sha256", str)
    plain = training_key({}, Settings(), data, False)
    for field in fields(Settings):
        other = replace(Settings(), **{field.name: changed(getattr(Settings(), field.name), field.name)})
        assert (training_key({}, other, data, False) == plain) == (field.name in NO_RESULT), field.name
    assert set(NO_RESULT) <= set(NOT_SHAPING)


def test_everything_of_the_data_is_in_the_key(data):
    plain = training_key({}, Settings(), data, False)
    windows = Windows([0], (64, 64), 32, dict.fromkeys(data.validation["image_name"], (0, 0)))
    others = {
        "train": data.train.iloc[1:],
        "validation": data.validation.iloc[1:],
        "fold": 3,
        "flip": FlipRule(False, (), "asked for"),
        "crop": 32,
        "region": ["Hamate"],
        "region_crops": 0.5,
        "refines": "base",
        "windows": windows,
    }
    for name, value in others.items():
        assert training_key({}, Settings(), replace(data, **{name: value}), False) != plain, name
    assert training_key({}, Settings(), data, True) != plain, "people's values, for a network that is told them"
    not_here = {"cache", "known"}  # its images are, by signature; whom other models have seen trains nothing
    assert {field.name for field in fields(data)} == {*others, *not_here}


def test_parts_are_told_apart_by_every_value_their_closures_hold():
    weights = [torch.nn.Parameter(torch.ones(2))]

    def schedule(name="cosine", steps=100, warmup=10):
        return build_schedule(name, build_optimizer("adam", weights, 0.1, 0), steps, warmup)

    kinds = {
        "schedule": [
            schedule(),
            schedule("polynomial"),
            schedule("constant"),
            schedule(steps=101),
            schedule(warmup=11),
            schedule("plateau"),
        ],
        "loss": [build_loss(name) for name in ("bce", "dice", "focal", "tversky", "lovasz", "bce + dice", "2*bce")],
        "optimizer": [build_optimizer("adam", weights, lr, decay) for lr, decay in ((0.1, 0), (0.2, 0), (0.1, 0.1))]
        + [build_optimizer(name, weights, 0.1, 0) for name in ("adamw", "sgd")],
        "augmentation": [Augmenter(replace(Augmentation(), **{f.name: _more(f)})) for f in fields(Augmentation)],
    }
    for kind, parts in kinds.items():
        found = [str(describe_parts({kind: part})) for part in parts]
        assert len(set(found)) == len(found), kind


def _more(field):
    value = getattr(Augmentation(), field.name)
    return not value if isinstance(value, bool) else value + 0.01 if isinstance(value, int | float) else value


def test_a_batch_with_crops_around_the_wrist_is_saved_too(data, tmp_path):
    crops = replace(data, crop=32, region=["Hamate", "Capitate"], region_crops=1.0)
    crops = replace(
        crops, region=[name for name in data.cache.classes if name in crops.region] or data.cache.classes[:2]
    )
    loader = training_loader(crops, Augmenter(Augmentation()), 4, seed=0)
    last = len(loader) - 1
    save_batch(tmp_path / "batch.npz", loader, 0, last, float("nan"))
    with np.load(tmp_path / "batch.npz") as saved:
        assert saved["image"].shape[2:] == (32, 32) and set(saved["image_name"]) <= set(data.train["image_name"])


def test_a_second_run_of_the_training_cell_is_refused(data, tmp_path):
    torch.manual_seed(0)
    net = torch.nn.Conv2d(3, len(data.cache.classes), 3, padding=1)
    parts = {"model": lambda: net}
    fit(data, tmp_path / "a", epochs=1, parts=parts)
    with pytest.raises(ValueError, match=r"trained before.*run the cell that builds the parts again"):
        fit(data, tmp_path / "b", epochs=1, parts=parts)
    assert not (tmp_path / "b" / "best").exists()


def test_last_and_best_say_the_score_of_their_own_epoch(data, tmp_path):
    from utils.models.checkpoint import read_config

    found = fit(data, tmp_path, epochs=3, lr=1e-12, ema_decay=0.0).history["val_dice"]
    assert read_config(tmp_path / "last").score == pytest.approx(found.iloc[-1])
    assert read_config(tmp_path / "best").score == pytest.approx(found.max())


def test_the_average_counts_its_updates_without_a_tensor():
    average = exponential_average(torch.nn.Linear(2, 2), 0.9)
    average.update(torch.nn.Linear(2, 2))
    assert type(average.updates) is int and average.updates == 1


def test_no_memory_is_pinned_before_a_gpu_is_chosen(data):
    assert not training_loader(data, Augmenter(Augmentation()), 4, seed=0).pin_memory
    cuda = training_loader(data, Augmenter(Augmentation()), 4, 0, device=torch.device("cuda", 0))
    assert cuda.pin_memory, "a chosen one gets its batches from pinned memory"


def test_best_is_written_again_after_a_kill_between_it_and_the_resume_file(data, tmp_path, monkeypatch):
    from utils.training.fit import TrainingModule

    save = TrainingModule.save_best

    def killed(self):
        if len(self.history) == 1:
            raise InterruptedError("killed")
        save(self)

    options = {"epochs": 1, "ema_decay": 0.0}
    monkeypatch.setattr(TrainingModule, "save_best", killed)
    with pytest.raises(InterruptedError):
        fit(data, tmp_path, **options)
    assert not (tmp_path / "best").exists()
    monkeypatch.setattr(TrainingModule, "save_best", save)
    assert len(fit(data, tmp_path, **options).history) == 1
    assert (tmp_path / "best").exists() and len(pd.read_csv(tmp_path / "val_dice.csv")) == len(data.validation)
