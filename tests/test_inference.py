"""Prediction, test-time augmentation, stored probabilities and the vote."""

import threading
import time
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import reference
from tests.small import CPU, fit, small_data, thin_config
from utils.data.folds import assign_folds
from utils.inference import ensemble, weights
from utils.inference.in_order import in_order
from utils.inference.predict import Predictor
from utils.inference.probabilities import LEVELS, ProbabilityStore
from utils.inference.thresholds import choose_thresholds
from utils.inference.tta import build_tta
from utils.masks import upsampling
from utils.masks.dice import dice_of_masks, mean_dice
from utils.registry import list_parts


@pytest.fixture(scope="module")
def data(sample, tmp_path_factory):
    return small_data(sample, tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    return fit(data, tmp_path_factory.mktemp("trained"), epochs=2)


@pytest.mark.parametrize("tta", list_parts("tta"))
def test_tta_averages_probabilities(trained, data, tta):
    cache, names = data.cache, data.validation["image_name"].tolist() + data.train["image_name"].tolist()
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
    cache, names = data.cache, data.validation["image_name"].tolist() + data.train["image_name"].tolist()
    store = ProbabilityStore(tmp_path)
    predictor = Predictor(trained.checkpoint, CPU)

    def stop(done, of):
        if done == 2:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        predictor.fill(store, cache, names[:4], 2, progress=stop)
    times = {p: p.stat().st_mtime_ns for p in tmp_path.glob("*.npz")}
    assert store.names() in (sorted(names[:2]), sorted(names[:3]))  # the third may have been in work
    assert all(store.read(name).size == (256, 256) for name in store.names())
    unfinished = tmp_path / f".{names[3]}.npz.1234.part.npz"  # as a killed process leaves it
    unfinished.write_bytes(b"PK")
    predictor.fill(store, cache, names[:4], 2)
    assert store.names() == sorted(names[:4]) and all(p.stat().st_mtime_ns == t for p, t in times.items())
    Predictor(trained.checkpoint, CPU, "hflip").fill(store, cache, names[:3], 2)
    assert store.names() == sorted(names[:3]) and all(p.stat().st_mtime_ns != t for p, t in times.items() if p.exists())


def test_an_error_while_writing_stops_the_prediction(trained, data, tmp_path):
    names = data.train["image_name"].tolist()
    predictor = Predictor(trained.checkpoint, CPU)
    with torch.no_grad():
        for parameter in predictor.network.parameters():
            parameter.fill_(np.nan)
    with pytest.raises(ValueError, match=f"{names[0]}: the probabilities hold NaN"):
        predictor.fill(ProbabilityStore(tmp_path), data.cache, names, 2)
    assert [path.name for path in tmp_path.iterdir()] == ["store.json"]


def test_few_items_are_in_memory_at_a_time_and_results_come_in_order():
    taken, lock = [], threading.Lock()
    running = [0, 0]  # now, most

    def items():
        for number in range(30):
            taken.append(number)
            yield number

    def work(number):
        with lock:
            running[0] += 1
            running[1] = max(running)
        time.sleep(0.002 * (number % 3))
        with lock:
            running[0] -= 1
        if number == 25:
            raise OSError("no space left")
        return number

    results = []
    with pytest.raises(OSError, match="no space left"):
        for result in in_order(work, items(), threads=2, ahead=4):
            results.append(result)
            time.sleep(0.003)
            assert len(taken) <= len(results) + 4
    assert results == list(range(25)) and running == [0, 2]


def test_a_vote_without_voters_says_so(tmp_path):
    with pytest.raises(ValueError, match="no fold model votes; expected the stored probabilities of at least one"):
        ensemble.soft_vote([], [], 0.5)
    fold_models = [voter(tmp_path, "a", 0, None)]
    for weights_, folds in (({"a": 0.0}, None), ({"b": 1.0}, None), ({"a": 1.0}, {"x.png": 1})):
        with pytest.raises(ValueError, match=r"x\.png: no fold model votes; .* the fold models are a fold 0"):
            list(ensemble.vote_images(fold_models, ["x.png"], "oof", weights_, 0.5, folds))


def test_the_vote_is_the_same_with_any_number_of_threads(tmp_path):
    rng, fold_models = np.random.default_rng(0), [voter(tmp_path, "a", fold, None) for fold in (0, 1)]
    names = [f"{number}.png" for number in range(7)]
    for fold_model in fold_models:
        for name in names:
            fold_model.test.write(name, blobs(rng, (24, 24)), (61, 47))
    votes = [list(ensemble.vote_images(fold_models, names, "test", {"a": 1.0}, 0.5, threads=n)) for n in (0, 1, 5)]
    votes = [[(name, masks.texts()) for name, masks in each] for each in votes]
    assert votes[0] == votes[1] == votes[2] and [name for name, _ in votes[0]] == names
    expected = [ensemble.soft_vote([m.test.read(name) for m in fold_models], [1, 1], 0.5) for name in names]
    assert [masks for _, masks in votes[0]] == [masks.texts() for masks in expected]


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
    for number, (plane, decided) in enumerate(zip(total > threshold, clear, strict=True)):
        assert np.array_equal(voted.dense(number)[decided], plane[decided])


@settings(max_examples=30)
@given(
    seed=st.integers(0, 10_000),
    grids=st.lists(st.sampled_from([(16, 16), (24, 24), (11, 19)]), min_size=1, max_size=4),
    equal=st.booleans(),
)
def test_hard_vote_is_the_majority_of_the_full_size_masks(tmp_path_factory, seed, grids, equal):
    rng, size, limits = np.random.default_rng(seed), (61, 47), [0.5, 0.4, 0.6]
    store = ProbabilityStore(tmp_path_factory.mktemp("store"))
    shares = np.full(len(grids), 0.2) if equal else rng.uniform(0.2, 1, len(grids))
    total, stored = np.zeros((3, *size)), []
    for number, (grid, share) in enumerate(zip(grids, shares, strict=True)):
        store.write(f"{number}", blobs(rng, grid), size)
        stored.append(store.read(f"{number}"))
        scores = (stored[-1].regions.dense() / np.float32(LEVELS)).astype(np.float32)
        masks = upsampling.upsample_masks(scores, size, limits)
        total += share * np.stack([masks.dense(number) for number in range(3)])
    voted = ensemble.hard_vote(stored, shares.tolist(), limits)
    assert all(np.array_equal(voted.dense(i), plane > shares.sum() / 2 + 1e-7) for i, plane in enumerate(total))


def test_post_processing_is_judged_out_of_fold(data, tmp_path):
    cache, name = data.cache, data.validation["image_name"].iloc[0]
    fold_model = voter(tmp_path, "a", 0, thin_config(data))
    probabilities = cache.read(name).label.dense() / np.float32(255)
    probabilities[3, 1, 1] = 1  # a wrong piece far from the hand
    fold_model.oof.write(name, probabilities, (256, 256))
    found = weights.judge_postprocess([fold_model], {name: 0}, cache, {"a": 1.0}, 0.5, chosen=["min_area 1"])
    assert found["steps"].tolist() == ["min_area 1", "largest", "fill_holes", "min_area 100"]
    assert found["gain"].iloc[1] > 0.0005 and found["changed"].iloc[1] >= 1
    assert found["gain"].iloc[0] == found["changed"].iloc[0] == 0
    plain = mean_dice(weights.out_of_fold_dice([fold_model], {name: 0}, cache, {"a": 1.0}))
    assert found["dice"].iloc[1] - found["gain"].iloc[1] == pytest.approx(plain)
    (_, masks), *_ = ensemble.vote_images([fold_model], [name], "oof", {"a": 1.0}, 0.5, postprocess=["largest"])
    assert dice_of_masks(masks, cache.read(name).truth).mean() == pytest.approx(found["dice"].iloc[1])


def test_quantisation_hardly_changes_the_dice(tmp_path):
    store = ProbabilityStore(tmp_path)
    differences = []
    for number in range(20):
        rng = np.random.default_rng(number)
        truth = blobs(rng, (64, 64))
        maps = [np.roll(truth, rng.integers(-2, 3, 2), (1, 2)) * 0.999 for _ in range(2)]  # they agree but for a shift
        encoded = upsampling.upsample_masks(truth, (256, 256), 0.5)
        for of, probabilities in enumerate(maps):
            store.write(f"{number}-{of}", probabilities, (256, 256))
        exact = upsampling.upsample_masks(np.mean(maps, axis=0, dtype=np.float32), (256, 256), 0.5)
        voted = ensemble.soft_vote([store.read(f"{number}-{of}") for of in range(2)], [1, 1], 0.5)
        differences.append(dice_of_masks(voted, encoded).mean() - dice_of_masks(exact, encoded).mean())
    assert abs(np.mean(differences)) < 1e-4


def voter(folder, model, fold, config):
    return ensemble.FoldModel(
        model, fold, ProbabilityStore(folder / model / str(fold) / "oof"), ProbabilityStore(folder / "test"), config
    )


def test_only_fold_models_that_did_not_see_a_person_judge_it(data, tmp_path):
    cache, names = data.cache, data.validation["image_name"].tolist() + data.train["image_name"].tolist()
    table = pd.DataFrame({"split": "train", "ID": list(names), "image_name": names})
    folds = assign_folds(table, 2)
    config = thin_config(data)
    fold_models = [voter(tmp_path, model, fold, config) for model in ("a", "b") for fold in (0, 1)]
    truth = {name: cache.read(name).label.dense() / np.float32(255) for name in names}
    for m in fold_models:
        for row in folds[folds["fold"] == m.fold].itertuples():  # the own fold only: reading another's would fail
            m.oof.write(row.image_name, truth[row.image_name] * (1.0 if m.model == "a" else 0.4), (256, 256))
    images = weights.shared_images(fold_models, folds)
    assert images == dict(zip(folds["image_name"], folds["fold"], strict=True))
    good = mean_dice(weights.out_of_fold_dice(fold_models, images, cache, {"a": 1.0}))
    mixed = mean_dice(weights.out_of_fold_dice(fold_models, images, cache, {"a": 1.0, "b": 1.0}))
    assert good > 0.9 and mixed < good
    assert weights.shared_images(fold_models[:3], folds) == {n: f for n, f in images.items() if f == 0}
    tuned = choose_thresholds(fold_models, images, cache, {"a": 1.0, "b": 1.0})
    assert tuned.fixed == pytest.approx(mixed) and tuned.tuned > tuned.fixed and np.mean(tuned.best) < 0.5
    chosen = weights.choose_weights(fold_models, images, cache)
    assert chosen.best == {"a": 1, "b": 0} and mean_dice(chosen.dice) == good and chosen.equal == mixed
    assert chosen.crossed == good
    one_fold = {n: f for n, f in images.items() if f == 0}
    assert weights.choose_weights(fold_models, one_fold, cache).best == {
        "a": 1,
        "b": 1,
    }  # nothing to judge a choice by


def test_a_fold_is_scored_with_the_weights_that_the_other_folds_chose(data, tmp_path):
    cache, names = data.cache, data.validation["image_name"].tolist() + data.train["image_name"].tolist()
    folds = {name: number % 2 for number, name in enumerate(names)}
    config = thin_config(data)
    fold_models = [voter(tmp_path, model, fold, config) for model in ("a", "b") for fold in (0, 1)]
    for m in fold_models:  # "a" is right in fold 0, "b" in fold 1; the other one sees nothing
        right = (m.model == "a") == (m.fold == 0)
        for name in (n for n, fold in folds.items() if fold == m.fold):
            m.oof.write(name, cache.read(name).label.dense() / np.float32(255) * right, (256, 256))
    chosen = weights.choose_weights(fold_models, folds, cache)
    assert chosen.crossed < 0.1  # the other fold's choice is wrong here
    assert chosen.others == {0: {"a": 0.0, "b": 1.0}, 1: {"a": 1.0, "b": 0.0}}
    right = {fold: [m if m.fold == fold else replace(m, oof=None) for m in fold_models] for fold in (0, 1)}
    voting = weights.weigh_models(fold_models, folds, cache, [], [], False, 0.5, elsewhere=right)
    assert voting.crossed == pytest.approx(mean_dice(voting.tables["ensemble"]))
    assert {fold: of for fold, (of, _) in voting.others.items()} == right, "each fold is voted on by its own voters"
    alone = [mean_dice(weights.out_of_fold_dice(fold_models, folds, cache, {m: 1.0})) for m in "ab"]
    best = mean_dice(weights.out_of_fold_dice(fold_models, folds, cache, chosen.best))
    assert best == mean_dice(chosen.dice) >= max(alone)


def test_equally_good_thresholds_give_way_to_the_fixed_one(data, tmp_path):
    names = data.train["image_name"].tolist()
    folds = {name: number % 2 for number, name in enumerate(names)}
    fold_models = [voter(tmp_path, "a", fold, thin_config(data)) for fold in (0, 1)]
    for m in fold_models:
        for name in (n for n, fold in folds.items() if fold == m.fold):  # certain everywhere: no threshold matters
            m.oof.write(name, np.zeros_like(data.cache.read(name).label.dense(), np.float32), (256, 256))
    for fixed in (0.5, 0.42):
        tuned = choose_thresholds(fold_models, folds, data.cache, {"a": 1.0}, fixed)
        assert {*tuned.best, *tuned.others[0], *tuned.others[1]} == {fixed}
        assert tuned.curve.index.is_monotonic_increasing and tuned.tuned == tuned.fixed


def test_weights_belong_to_named_models(tmp_path):
    fold_models = [voter(tmp_path, model, 0, None) for model in ("a", "b")]
    assert weights.model_weights(fold_models, [], []) == {"a": 1.0, "b": 1.0}
    assert weights.model_weights(fold_models, ["b", "a"], [3, 1]) == {"b": 3.0, "a": 1.0}
    for models, wrong in (([], [1]), (["a", "b"], [1]), (["a", "b"], [1, -1]), (["a", "b"], [0, 0])):
        with pytest.raises(ValueError, match="expected one number"):
            weights.model_weights(fold_models, models, wrong)
    with pytest.raises(FileNotFoundError, match="run 04_inference_tta first"):
        ensemble.find_fold_models(tmp_path)
    with pytest.raises(FileNotFoundError, match="run 03_train first"):
        ensemble.find_checkpoint(tmp_path, "", 0)


def test_flips_of_tta_follow_the_trainings_rule():
    assert [type(t).__name__ for t in build_tta("hflip+scale", 64)] == ["HorizontalFlip", "Resize"]
    assert [type(t).__name__ for t in build_tta("hflip+scale", 64, flip=False)] == ["Resize"]
    (swapping,) = build_tta("hflip", 64, flip_order=[1, 0, 2])
    maps = torch.rand(1, 3, 2, 4)
    back = swapping.apply_deaug_mask(maps, apply=True)
    assert torch.equal(back, maps.flip(3)[:, [1, 0, 2]]) and torch.equal(
        swapping.apply_deaug_mask(maps, apply=False), maps
    )


def test_the_vote_is_weighed_as_asked(data, tmp_path):
    names = data.train["image_name"].tolist()
    folds = {name: number % 2 for number, name in enumerate(names)}
    fold_models = [voter(tmp_path, model, fold, thin_config(data)) for model in ("a", "b") for fold in (0, 1)]
    for m in fold_models:
        for name in (n for n, fold in folds.items() if fold == m.fold):
            truth = data.cache.read(name).label.dense() / np.float32(255)
            m.oof.write(name, truth * (1.0 if m.model == "a" else 0.4), (256, 256))
    given = fold_models, folds, data.cache
    tuned = weights.weigh_models(*given, [], [], True, 0.5)
    assert tuned.weights == {"a": 1, "b": 0} and set(tuned.tables) == {"a", "b", "ensemble"}
    assert "ensemble" in tuned.summary and tuned.crossed == pytest.approx(mean_dice(tuned.tables["a"]))
    two_people = {name: str(fold) for name, fold in folds.items()}  # too few to show a difference
    kept = weights.weigh_models(*given, [], [], True, 0.5, people=two_people)
    assert kept.weights == {"a": 1, "b": 1} and kept.crossed is None and "weights stay equal" in kept.summary
    equal = weights.weigh_models(*given, [], [], False, 0.5)
    assert equal.weights == {"a": 1.0, "b": 1.0} and equal.crossed is None
    assert weights.weigh_models(*given, ["a", "b"], [1, 3], True, 0.5).weights == {"a": 1.0, "b": 3.0}
    nothing = weights.weigh_models(fold_models, {}, data.cache, [], [], True, 0.5)
    assert nothing.tables == {} and nothing.weights == {"a": 1.0, "b": 1.0} and "no out-of-fold" in nothing.summary
