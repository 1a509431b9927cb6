"""Training and checkpoints: small real runs."""

import json
import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from tests import reference
from tests.small import THIN, fit, same, small_data, weights
from utils.data.augment import Augmenter
from utils.data.augmentation import NO_AUGMENTATION
from utils.device import choose_device
from utils.masks.dice import mean_dice
from utils.models import ModelError, build_model
from utils.models.checkpoint import load_checkpoint, read_config, save_checkpoint
from utils.training.losses import TrainingError
from utils.training.optimizers import build_optimizer, build_schedule
from utils.training.settings import Settings
from utils.training.start import start_from

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def data(sample, tmp_path_factory):
    return small_data(sample, tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    return fit(data, tmp_path_factory.mktemp("trained"), epochs=4, accumulate=2, gradient_clip=1.0)


def test_a_training_leaves_what_the_next_steps_need(trained, data):
    folder = trained.checkpoint.parent
    config = read_config(folder / "best")
    assert config.score == pytest.approx(trained.score) == pytest.approx(mean_dice(trained.val_dice))
    assert config.classes == data.cache.classes and len(config.thresholds) == 29 and config.versions["torch"]
    assert (
        trained.history["epoch"].tolist() == [1, 2, 3, 4]
        and trained.history["loss"].iloc[-1] < trained.history["loss"].iloc[0]
    )
    assert trained.val_dice.shape == (4, 29) and set(trained.val_dice.index) == set(data.validation["image_name"])
    files = {"best", "last", "history.csv", "val_dice.csv", "logs", "finished.json"}
    assert {p.name for p in folder.iterdir()} == files and read_config(folder / "last").epoch == 4
    assert list((folder / "logs").glob("events*"))


def test_the_score_is_the_baselines_dice_at_full_size(trained, data):
    for name in trained.val_dice.index:
        entry = data.cache.read(name)
        model, config = load_checkpoint(trained.checkpoint)
        image = (torch.from_numpy(entry.image).float() / 255).expand(1, 3, -1, -1)
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in (config.mean, config.std))
        with torch.inference_mode():
            probabilities = model((image - mean) / std).sigmoid()[0].numpy()
        predicted = reference.upsample(probabilities, entry.size) > 0.5
        truth = np.stack([entry.truth.dense(number) for number in range(len(entry.truth))])
        assert trained.val_dice.loc[name].to_numpy() == pytest.approx(reference.dice(predicted, truth), abs=2e-3)


def test_an_interrupted_training_ends_with_the_same_numbers(data, tmp_path, trained):
    options = {"epochs": 4, "accumulate": 2, "gradient_clip": 1.0}
    with pytest.raises(InterruptedError):
        fit(data, tmp_path, stop_after=2, **options)
    assert (tmp_path / "resume.ckpt").exists()
    resumed = fit(data, tmp_path, **options)
    columns = ["epoch", "loss", "val_dice", "lr"]
    pd.testing.assert_frame_equal(resumed.history[columns], trained.history[columns], check_exact=True)
    assert same(weights(tmp_path / "last"), weights(trained.checkpoint.parent / "last"))
    assert not (tmp_path / "resume.ckpt").exists()


def test_another_parameter_starts_anew(data, tmp_path, capsys):
    with pytest.raises(InterruptedError):
        fit(data, tmp_path, stop_after=1)
    result = fit(data, tmp_path, lr=1e-3)
    assert "other parameters, parts or data" in capsys.readouterr().out and len(result.history) == 2


def test_a_damaged_resume_file_does_not_cost_the_training(data, tmp_path, capsys):
    (tmp_path / "resume.ckpt").write_bytes(b"half a file")
    assert len(fit(data, tmp_path, epochs=1).history) == 1
    assert "can't be read" in capsys.readouterr().out


def test_fold_minus_one_trains_on_everything_and_no_fold_starts_from_it(sample, data, tmp_path):
    everything = small_data(sample, tmp_path / "cache", validation=0)
    result = fit(everything, tmp_path, epochs=1)
    assert math.isnan(result.score) and result.val_dice.empty
    assert read_config(result.checkpoint).score is None
    with pytest.raises(ModelError, match=r"\(fold -1\) was trained on .* leak"):
        start_from(result.model, data, str(result.checkpoint))
    people = start_from(result.model, everything, str(result.checkpoint))
    assert len(people) == everything.train["ID"].nunique()


def test_fine_tuning_starts_from_an_earlier_fold_model(data, tmp_path, trained):
    start = tmp_path / "fold0"
    (start / "best").parent.mkdir()
    save_checkpoint(start / "best", *load_checkpoint(trained.checkpoint))
    parts = {"augmentation": Augmenter(NO_AUGMENTATION), "optimizer": lambda p: build_optimizer("adamw", p, 1e-12, 0)}
    init = str(tmp_path / "fold{fold}" / "best")
    result = fit(data, tmp_path / "new", epochs=1, ema_decay=0, init_checkpoint=init, parts=parts)
    before, after = weights(trained.checkpoint), weights(result.checkpoint)
    assert all(
        torch.allclose(before[k], after[k], atol=1e-6)
        for k, v in before.items()
        if "running" not in k and v.is_floating_point()
    )
    assert set(read_config(trained.checkpoint).people) <= set(read_config(result.checkpoint).people)
    with pytest.raises(ModelError, match="must be the same"):
        start_from(build_model("unet", 29, THIN["encoder"]), data, str(trained.checkpoint))


def test_fine_tuning_on_a_person_of_the_validation_images_is_refused(data, tmp_path, trained):
    other = replace(data, train=data.validation, validation=data.train, fold=1)
    with pytest.raises(ModelError, match=r"\(fold 0\) was trained on \d people of this fold, such as ID\d+.*leak"):
        fit(other, tmp_path, init_checkpoint=str(trained.checkpoint))
    path = trained.checkpoint / "config.json"
    nobody = tmp_path / "nobody"
    save_checkpoint(nobody, *load_checkpoint(trained.checkpoint))
    path = nobody / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"people": []}))
    with pytest.raises(ModelError, match="people it does not name"):
        fit(data, tmp_path, init_checkpoint=str(nobody))


def test_the_last_epoch_is_scored_whatever_validate_every_says(data, tmp_path):
    result = fit(data, tmp_path / "a", epochs=3, validate_every=5)
    assert result.history["val_dice"].notna().tolist() == [False, False, True]
    result = fit(data, tmp_path / "b", epochs=3, validate_every=2)
    assert result.history["val_dice"].notna().tolist() == [False, True, True]


def test_stochastic_weight_averaging_is_the_mean_of_the_last_epochs(data, tmp_path):
    def last(epochs, **options):
        name = tmp_path / f"{epochs}{len(options)}"
        fit(data, name, epochs=epochs, schedule="constant", ema_decay=0, precision="32-true", **options)
        return weights(name / "last")

    two, three, averaged = last(2), last(3), last(3, swa_epochs=2)
    for name, tensor in averaged.items():
        wanted = (two[name] + three[name]) / 2 if tensor.is_floating_point() else three[name]
        assert torch.allclose(tensor, wanted, atol=1e-6), name
    assert not same(two, three)


def test_early_stopping_counts_epochs(data, tmp_path):
    for every in (1, 2):
        result = fit(
            data, tmp_path / str(every), epochs=30, lr=1e-12, ema_decay=0.0, early_stopping=4, validate_every=every
        )
        best = result.history["val_dice"].idxmax() + 1
        assert len(result.history) == best + 4


def test_a_diverging_loss_stops_with_advice(data, tmp_path):
    with pytest.raises(TrainingError, match="smaller"):
        fit(data, tmp_path, lr=1e30, schedule="constant", ema_decay=0.0, warmup_epochs=0.0)


@pytest.mark.parametrize(("name", "last"), [("cosine", 0.01), ("polynomial", 0.0), ("constant", 1.0)])
def test_learning_rates_warm_up_and_follow_their_schedule(name, last):
    optimizer = build_optimizer("adam", [torch.nn.Parameter(torch.zeros(1))], 1.0, 0.0)
    schedule, rates = build_schedule(name, optimizer, 100, 10), []
    for _ in range(101):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates[0] < rates[5] < rates[10] == max(rates) == 1.0
    assert np.all(np.diff(rates[10:]) <= 0) and rates[-1] == pytest.approx(last)


def test_unknown_settings_are_refused():
    with pytest.raises(ValueError, match="unknown precision"):
        Settings(precision="double")
    assert choose_device("auto").type in ("cpu", "cuda")
    if not torch.cuda.is_available():
        with pytest.raises(RuntimeError, match="sees no GPU"):
            choose_device("cuda")


def test_checkpoints_are_read_without_running_code(tmp_path, data, trained):
    model, config = load_checkpoint(trained.checkpoint)
    save_checkpoint(tmp_path / "copy", model, config)
    save_checkpoint(tmp_path / "copy", model, config)  # replaces the first
    assert {p.name for p in (tmp_path / "copy").iterdir()} == {"model.safetensors", "config.json"}
    assert same(weights(tmp_path / "copy"), model.state_dict())
    with pytest.raises(FileNotFoundError, match="is no checkpoint"):
        load_checkpoint(tmp_path / "nothing")
    path = tmp_path / "copy" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"architecture": "unet", "options": {}}))
    with pytest.raises(ModelError, match="does not fit the model"):
        load_checkpoint(tmp_path / "copy")
