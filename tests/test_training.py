"""Training, checkpoints, prediction and voting: small real runs."""

import json
import math

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import reference
from utils.data.augment import NO_AUGMENTATION, Augmentation
from utils.data.cache import Cache
from utils.data.competition import read_classes, read_index
from utils.data.folds import assign_folds
from utils.device import choose_device, choose_precision
from utils.inference import ensemble
from utils.inference.predict import TTA, Predictor
from utils.inference.probabilities import LEVELS, ProbabilityStore
from utils.masks import upsampling
from utils.masks.dice import dice_per_class, mean_dice
from utils.masks.rle import decode
from utils.models import ModelError
from utils.models.checkpoint import Config, load_checkpoint, read_config, save_checkpoint
from utils.training import fit as fitting
from utils.training import module

CPU = torch.device("cpu")
THIN = {"architecture": "deeplabv3plus", "encoder": "tu-mobilenetv3_small_050", "options": {"decoder_channels": 16}}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def data(sample, tmp_path_factory):
    table, classes = read_index(sample), read_classes(sample)
    cache = Cache(tmp_path_factory.mktemp("cache"), table, classes, 64)
    cache.build()
    names = table.loc[table["split"] == "train", "image_name"].tolist()
    return cache, names


def fit(data, folder, validation=4, stop_after=0, augmentation=None, config=None, **options):
    cache, names = data
    config = config or Config(classes=cache.classes, image_size=64, **THIN)

    def on_epoch(history):
        if len(history) == stop_after:
            raise InterruptedError("killed")

    chosen = {"epochs": 2, "batch_size": 4, "lr": 2e-3} | options
    return fitting.fit(
        config,
        module.Settings(**chosen),
        augmentation or Augmentation(),
        cache,
        names[validation:],
        names[:validation],
        folder,
        CPU,
        on_epoch=on_epoch,
    )


def weights(folder):
    return load_checkpoint(folder)[0].state_dict()


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.values(), b.values(), strict=True))


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    return fit(data, tmp_path_factory.mktemp("trained"), epochs=4, accumulate=2, gradient_clip=1.0)


def test_a_training_leaves_what_the_next_steps_need(trained, data):
    folder = trained.checkpoint.parent
    cache, names = data
    config = read_config(folder / "best")
    assert config.score == pytest.approx(trained.score) == pytest.approx(mean_dice(trained.val_dice))
    assert config.classes == cache.classes and len(config.thresholds) == 29 and config.versions["torch"]
    assert (
        trained.history["epoch"].tolist() == [1, 2, 3, 4]
        and trained.history["loss"].iloc[-1] < trained.history["loss"].iloc[0]
    )
    assert trained.val_dice.shape == (4, 29) and set(trained.val_dice.index) == set(names[:4])
    assert {p.name for p in folder.iterdir()} == {"best", "last", "history.csv", "val_dice.csv", "logs"}
    assert list((folder / "logs").glob("events*"))


def test_the_score_is_the_baselines_dice_at_full_size(trained, data):
    cache, _ = data
    for name in trained.val_dice.index:
        entry = cache.read(name)
        model, config = load_checkpoint(trained.checkpoint)
        image = (torch.from_numpy(entry.image).float() / 255).expand(1, 3, -1, -1)
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in (config.mean, config.std))
        with torch.inference_mode():
            probabilities = model((image - mean) / std).sigmoid()[0].numpy()
        predicted = reference.upsample(probabilities, entry.size) > 0.5
        truth = np.stack([decode(mask, entry.size) for mask in entry.truth])
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
    assert "other parameters or data" in capsys.readouterr().out and len(result.history) == 2


def test_a_damaged_resume_file_does_not_cost_the_training(data, tmp_path, capsys):
    (tmp_path / "resume.ckpt").write_bytes(b"half a file")
    assert len(fit(data, tmp_path, epochs=1).history) == 1
    assert "can't be read" in capsys.readouterr().out


def test_fold_minus_one_trains_on_everything(data, tmp_path):
    result = fit(data, tmp_path, validation=0, epochs=1)
    assert math.isnan(result.score) and result.val_dice.empty
    assert read_config(result.checkpoint).score is None


def test_fine_tuning_starts_from_an_earlier_fold_model(data, tmp_path, trained):
    cache, names = data
    config = Config(classes=cache.classes, image_size=64, **THIN)
    options = {
        "settings": module.Settings(epochs=1, lr=1e-12, ema_decay=0, weight_decay=0),
        "augmentation": NO_AUGMENTATION,
    }
    result = fitting.fit(
        config,
        cache=cache,
        train=names[4:],
        validation=names[:4],
        folder=tmp_path,
        device=CPU,
        init_checkpoint=trained.checkpoint,
        **options,
    )
    before, after = weights(trained.checkpoint), weights(result.checkpoint)
    assert all(
        torch.allclose(before[k], after[k], atol=1e-6)
        for k, v in before.items()
        if "running" not in k and v.is_floating_point()
    )
    other = Config(classes=cache.classes, image_size=64, architecture="unet", encoder=THIN["encoder"])
    with pytest.raises(ModelError, match="must be the same"):
        fitting.start_from(other.build(), other, trained.checkpoint)


def test_early_stopping(data, tmp_path):
    result = fit(data, tmp_path, epochs=30, lr=1e-12, ema_decay=0.0, early_stopping=2)
    assert len(result.history) < 30


def test_a_diverging_loss_stops_with_advice(data, tmp_path):
    with pytest.raises(module.TrainingError, match="smaller"):
        fit(data, tmp_path, lr=1e30, ema_decay=0.0, warmup_epochs=0.0)


def test_learning_rate_warms_up_and_falls():
    factors = [module.warmup_cosine(step, 10, 100) for step in range(101)]
    assert factors[0] < factors[5] < factors[10] == max(factors) == 1.0
    assert np.all(np.diff(factors[10:]) <= 0) and factors[-1] == pytest.approx(0.01)


def test_unknown_settings_are_refused():
    with pytest.raises(ValueError, match="optimizer"):
        module.Settings(optimizer="sgd")
    assert choose_precision("auto", CPU) == "32-true" and choose_device("auto").type in ("cpu", "cuda")
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


@pytest.mark.parametrize("tta", list(TTA))
def test_tta_averages_probabilities(trained, data, tta):
    cache, names = data
    predictor = Predictor(trained.checkpoint, CPU, tta)
    image = torch.from_numpy(cache.read(names[0]).image)[None, None]
    result = predictor(image)
    plain = Predictor(trained.checkpoint, CPU)
    expected = plain(image)
    if tta == "hflip":
        expected = (expected + plain(image.flip(3))[..., ::-1]) / 2
    assert result.shape == (1, 29, 64, 64) and result.min() >= 0 and result.max() <= 1
    if tta in ("none", "hflip"):
        assert np.abs(result - expected).max() < 1e-6
    else:
        assert 0 < np.abs(result - expected).max() < 0.9


def test_an_interrupted_prediction_goes_on_and_another_source_starts_anew(trained, data, tmp_path):
    cache, names = data
    store = ProbabilityStore(tmp_path)
    predictor = Predictor(trained.checkpoint, CPU)

    def stop(done, of):
        if done == 2:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        predictor.fill(store, cache, names[:4], 2, progress=stop)
    times = {p: p.stat().st_mtime_ns for p in tmp_path.glob("*.npz")}
    assert len(times) == 2
    predictor.fill(store, cache, names[:4], 2)
    assert store.names() == sorted(names[:4]) and all(p.stat().st_mtime_ns == t for p, t in times.items())
    Predictor(trained.checkpoint, CPU, "hflip").fill(store, cache, names[:3], 2)
    assert store.names() == sorted(names[:3]) and all(p.stat().st_mtime_ns != t for p, t in times.items() if p.exists())


def test_damaged_and_missing_probabilities_are_named(tmp_path):
    store = ProbabilityStore(tmp_path)
    store.write("a.png", np.full((1, 4, 4), 0.5, np.float32), (8, 8))
    store.path("a.png").write_bytes(store.path("a.png").read_bytes()[:40])
    with pytest.raises(ValueError, match=r"a\.png\.npz is damaged"):
        store.read("a.png")
    with pytest.raises(FileNotFoundError, match="run 04_inference_tta"):
        store.read("b.png")
    with pytest.raises(ValueError, match="NaN"):
        store.write("c.png", np.full((1, 4, 4), np.nan, np.float32), (8, 8))


def blobs(rng, grid, classes=3):
    """Smooth maps such as a network gives: a few round regions a class, sometimes none."""
    y, x = np.mgrid[: grid[0], : grid[1]]
    maps = np.zeros((classes, *grid), np.float32)
    for plane in maps[: rng.integers(1, classes + 1)]:
        for _ in range(rng.integers(1, 3)):
            cy, cx, radius = rng.uniform(0, grid[0]), rng.uniform(0, grid[1]), rng.uniform(1, min(grid) / 3)
            plane += 1 / (1 + np.exp(np.clip(2 * (np.hypot(y - cy, x - cx) - radius), -30, 30)))
    return np.minimum(maps, 1)


@settings(max_examples=40)
@given(
    seed=st.integers(0, 10_000),
    grids=st.lists(st.sampled_from([(16, 16), (16, 16), (24, 24), (11, 19)]), min_size=1, max_size=4),
    size=st.sampled_from([(64, 64), (61, 47), (13, 20)]),
    threshold=st.sampled_from([0.3, 0.5, 0.62]),
)
def test_soft_vote_is_the_full_size_vote_of_what_is_stored(tmp_path_factory, seed, grids, size, threshold):
    rng = np.random.default_rng(seed)
    store = ProbabilityStore(tmp_path_factory.mktemp("store"))
    shares = rng.uniform(0.2, 1, len(grids))
    total, stored = np.zeros((3, *size)), []
    for number, (grid, share) in enumerate(zip(grids, shares, strict=True)):
        store.write(f"{number}", blobs(rng, grid), size)
        stored.append(store.read(f"{number}"))
        quantised = stored[-1].regions.dense() / np.float32(LEVELS)
        total += share / shares.sum() * reference.upsample(quantised, size)
    voted = ensemble.soft_vote(stored, shares, threshold)
    clear = np.abs(total - threshold) > 1e-5
    for mask, plane, decided in zip(voted, total > threshold, clear, strict=True):
        assert np.array_equal(decode(mask, size)[decided], plane[decided])


def test_quantisation_hardly_changes_the_dice(tmp_path):
    store = ProbabilityStore(tmp_path)
    differences = []
    for number in range(20):
        rng = np.random.default_rng(number)
        truth = blobs(rng, (64, 64))
        maps = [np.roll(truth, rng.integers(-2, 3, 2), (1, 2)) * 0.999 for _ in range(2)]  # they agree but for a shift
        encoded = upsampling.encode_masks(truth, (256, 256), 0.5)
        for of, probabilities in enumerate(maps):
            store.write(f"{number}-{of}", probabilities, (256, 256))
        exact = upsampling.encode_masks(np.mean(maps, axis=0, dtype=np.float32), (256, 256), 0.5)
        voted = ensemble.soft_vote([store.read(f"{number}-{of}") for of in range(2)], [1, 1], 0.5)
        differences.append(dice_per_class(voted, encoded).mean() - dice_per_class(exact, encoded).mean())
    assert abs(np.mean(differences)) < 1e-4


def voter(folder, model, fold, config):
    return ensemble.FoldModel(
        model, fold, ProbabilityStore(folder / model / str(fold) / "oof"), ProbabilityStore(folder / "test"), config
    )


def test_only_fold_models_that_did_not_see_a_person_judge_it(data, tmp_path):
    cache, names = data
    table = pd.DataFrame({"split": "train", "ID": list(names), "image_name": names})
    folds = assign_folds(table, 2)
    config = Config(classes=cache.classes, image_size=64, **THIN)
    fold_models = [voter(tmp_path, model, fold, config) for model in ("a", "b") for fold in (0, 1)]
    truth = {name: cache.read(name).label.dense() / np.float32(255) for name in names}
    for m in fold_models:
        for row in folds[folds["fold"] == m.fold].itertuples():  # the own fold only: reading another's would fail
            m.oof.write(row.image_name, truth[row.image_name] * (1.0 if m.model == "a" else 0.4), (256, 256))
    images = ensemble.shared_images(fold_models, folds)
    assert images == dict(zip(folds["image_name"], folds["fold"], strict=True))
    good = mean_dice(ensemble.out_of_fold_dice(fold_models, images, cache, {"a": 1.0}))
    mixed = mean_dice(ensemble.out_of_fold_dice(fold_models, images, cache, {"a": 1.0, "b": 1.0}))
    assert good > 0.9 and mixed < good
    assert ensemble.shared_images(fold_models[:3], folds) == {n: f for n, f in images.items() if f == 0}
    tuned = ensemble.choose_thresholds(fold_models, images, cache, {"a": 1.0, "b": 1.0})
    assert tuned.fixed == pytest.approx(mixed) and tuned.tuned > tuned.fixed and np.mean(tuned.best) < 0.5
    weights = ensemble.choose_weights(fold_models, images, cache)
    assert weights.best == {"a": 1, "b": 0} and mean_dice(weights.dice) == good and weights.equal == mixed
    assert weights.crossed == good
    one_fold = {n: f for n, f in images.items() if f == 0}
    assert ensemble.choose_weights(fold_models, one_fold, cache).best == {
        "a": 1,
        "b": 1,
    }  # nothing to judge a choice by


def test_a_fold_is_scored_with_the_weights_that_the_other_folds_chose(data, tmp_path):
    cache, names = data
    folds = {name: number % 2 for number, name in enumerate(names)}
    config = Config(classes=cache.classes, image_size=64, **THIN)
    fold_models = [voter(tmp_path, model, fold, config) for model in ("a", "b") for fold in (0, 1)]
    for m in fold_models:  # "a" is right in fold 0, "b" in fold 1; the other one sees nothing
        right = (m.model == "a") == (m.fold == 0)
        for name in (n for n, fold in folds.items() if fold == m.fold):
            m.oof.write(name, cache.read(name).label.dense() / np.float32(255) * right, (256, 256))
    chosen = ensemble.choose_weights(fold_models, folds, cache)
    assert chosen.crossed < 0.1  # the other fold's choice is wrong here
    alone = [mean_dice(ensemble.out_of_fold_dice(fold_models, folds, cache, {m: 1.0})) for m in "ab"]
    best = mean_dice(ensemble.out_of_fold_dice(fold_models, folds, cache, chosen.best))
    assert best == mean_dice(chosen.dice) >= max(alone)


def test_weights_belong_to_named_models(tmp_path):
    fold_models = [voter(tmp_path, model, 0, None) for model in ("a", "b")]
    assert ensemble.model_weights(fold_models, [], []) == {"a": 1.0, "b": 1.0}
    assert ensemble.model_weights(fold_models, ["b", "a"], [3, 1]) == {"b": 3.0, "a": 1.0}
    for models, wrong in (([], [1]), (["a", "b"], [1]), (["a", "b"], [1, -1]), (["a", "b"], [0, 0])):
        with pytest.raises(ValueError, match="expected one number"):
            ensemble.model_weights(fold_models, models, wrong)
    with pytest.raises(FileNotFoundError, match="run 04_inference_tta first"):
        ensemble.find_fold_models(tmp_path)
    with pytest.raises(FileNotFoundError, match="run 03_train first"):
        ensemble.find_checkpoint(tmp_path, "", 0)
