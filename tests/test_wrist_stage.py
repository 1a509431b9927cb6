"""The wrist stage: its squares, how it refines a first model, what keeps leaks out, and when it is switched off."""

import json
from dataclasses import replace
from types import SimpleNamespace

import cv2
import numpy as np
import pandas as pd
import pytest
import torch

from tests.small import CPU, fit, thin_config
from utils.data.augment import Augmenter
from utils.data.augmentation import NO_AUGMENTATION
from utils.data.cache import Cache
from utils.data.competition import read_index
from utils.data.fold_data import FoldData
from utils.data.folds import read_folds, split_fold
from utils.data.loader import dense_labels, training_loader
from utils.data.windows import Windows, corner_around
from utils.files import Problems, write_json
from utils.hand.bend import stratum
from utils.hand.bones import CARPALS, HAND_BONES, check_crops, small_bones
from utils.inference.ensemble import find_fold_models, hard_vote, soft_vote
from utils.inference.predict import Predictor, worst_images
from utils.inference.probabilities import LEVELS, ProbabilityStore, quantised
from utils.inference.pseudo_labels import confidence
from utils.inference.refinement import RefinedStore, merge, open_first
from utils.inference.refinement_weight import WEIGHTS, judge, judge_stages, refine, refine_by_fold
from utils.masks import upsampling
from utils.masks.dice import dice_of_masks
from utils.models.base import ModelError, build_model
from utils.models.checkpoint import WEIGHTS as WEIGHT_FILE
from utils.models.checkpoint import hash_people, read_config, save_checkpoint
from utils.pipeline.run import start_run
from utils.registry import file_sha256

COARSE, FINE, SIDE = 64, 128, 56
NUMBERS = [HAND_BONES.index(name) for name in CARPALS]


@pytest.fixture(scope="module")
def run(sample, tmp_path_factory):
    """A run of the tiny sample, in which nothing is trained yet."""
    folder = tmp_path_factory.mktemp("run")
    return start_run({"data_dir": str(sample), "output_dir": str(folder), "n_folds": 3, "seed": 0}, "03_train")


@pytest.fixture(scope="module")
def coarse(run):
    return run.cache(COARSE)


@pytest.fixture(scope="module")
def fine(run):
    return run.cache(FINE)


def truth(cache: Cache, name: str) -> np.ndarray:
    """Probabilities of a model that knows the labels, float32 (classes, h, w)."""
    return cache.read(name).label.dense() / np.float32(255)


def make_first(run, cache, model="first", fold=0, people=None):
    """A fold model whose predictions, at the coarse resolution, are the labels; what it was trained on is made up."""
    checkpoint = run.output_dir / "03_train" / model / f"fold{fold}" / "best"
    train, held_out = (
        run.table[run.table["image_name"].isin(run.folds.loc[rows, "image_name"])]
        for rows in (run.folds["fold"] != fold, run.folds["fold"] == fold)
    )
    network = build_model("deeplabv3plus", 29, "tu-mobilenetv3_small_050", decoder_channels=16)
    config = replace(thin_config(SimpleNamespace(cache=cache)), image_size=COARSE, fold=fold)
    config = replace(config, people=hash_people(train["ID"]) if people is None else people)
    save_checkpoint(checkpoint, network, config)
    folder = run.output_dir / "04_inference_tta" / model / f"fold{fold}"
    for split, names in (("oof", held_out["image_name"]), ("test", run.test)):
        store = ProbabilityStore(folder / split)
        store.begin({"weights": file_sha256(checkpoint / WEIGHT_FILE)})
        for name in names:
            if split == "oof":
                store.write(name, truth(cache, name), cache.read(name).size)
    write_json(folder / "metrics.json", {"model": model, "fold": fold})
    return held_out


def stage_config(config, wrist_of="first"):
    return replace(config, image_size=FINE, window=SIDE, wrist_of=wrist_of, refines=list(CARPALS))


@pytest.fixture(scope="module")
def first(run, coarse):
    """The validation images of a first model."""
    return make_first(run, coarse)


@pytest.fixture(scope="module")
def oracle(run, fine, first):
    """The store of a wrist stage that knows the labels, at weight 1, and its images' names."""
    folder = run.output_dir / "04_inference_tta"
    config = stage_config(read_config(run.output_dir / "03_train" / "first" / "fold0" / "best"))
    store = RefinedStore(
        folder / "oracle" / "fold0" / "oof", ProbabilityStore(folder / "first" / "fold0" / "oof"), config, 1
    )
    names = first["image_name"].tolist()
    store.begin({})
    windows = store.windows(names)
    for name in names:
        top, left = windows.corners[name]
        inside = truth(fine, name)[:, top : top + SIDE, left : left + SIDE]
        store.write(name, inside, fine.read(name).size)
    return store, names


def test_the_square_is_around_the_carpals_and_inside_the_image(fine, coarse, oracle):
    _, names = oracle
    for name in names:
        label = fine.read(name).label
        corner = corner_around(label, NUMBERS, (FINE, FINE), SIDE)
        assert (
            np.abs(np.subtract(corner, corner_around(coarse.read(name).label, NUMBERS, (FINE, FINE), SIDE))).max() <= 1
        )
        for number in NUMBERS:
            patch, place = label.patches()[number]
            assert (np.array(place) >= corner).all() and (
                np.array(place) + patch.shape <= np.array(corner) + SIDE
            ).all()
        near_border = corner_around(label, NUMBERS, (FINE, FINE), FINE - 4)
        assert min(near_border) >= 0 and max(near_border) <= 4
    nothing = quantised("x", np.zeros((29, 8, 8), np.float32))
    assert corner_around(nothing, NUMBERS, (FINE, FINE), SIDE) == ((FINE - SIDE) // 2,) * 2


def test_masks_of_a_square_are_those_of_the_whole_image(fine, oracle):
    store, names = oracle
    windows = store.windows(names)
    for name in names:
        whole, size = truth(fine, name), fine.read(name).size
        inside = np.ascontiguousarray(windows.cut(name, whole.transpose(1, 2, 0)).transpose(2, 0, 1))
        expected = upsampling.upsample_masks(whole[NUMBERS], size, 0.5).texts()
        assert windows.masks(name, inside, size, 0.5).texts() == expected


def test_a_stage_that_agrees_changes_nothing(coarse, oracle):
    size = (256, 256)
    for name in oracle[1]:
        first = quantised(name, truth(coarse, name))
        corner = corner_around(first, NUMBERS, (COARSE, COARSE), 28)
        inside = np.zeros((29, COARSE, COARSE), np.float32)
        part = slice(corner[0], corner[0] + 28), slice(corner[1], corner[1] + 28)
        for number in NUMBERS:
            inside[(number, *part)] = truth(coarse, name)[(number, *part)]
        stored = SimpleNamespace(regions=first, size=size)
        merged = merge(stored, quantised(name, inside), corner, 28, 0.6, NUMBERS)
        total = sum(layer.dense().astype(int) for layer in merged.layers)
        assert np.abs(total - first.dense()).max() <= 1, "up to rounding"


def test_an_oracle_refines_the_carpals_and_nothing_else(fine, oracle):
    store, names = oracle
    others = [number for number in range(29) if number not in NUMBERS]
    for name in names:
        plain, refined = store.first.read(name), store.read(name)
        before, after = soft_vote([plain], [1.0], 0.5), soft_vote([refined], [1.0], 0.5)
        assert before.select(others).texts() == after.select(others).texts()
        off = store.at(0.0).read(name)
        assert off.detail is None and soft_vote([off], [1.0], 0.5).texts() == before.texts()
        true = fine.read(name).truth
        gain = dice_of_masks(after, true)[NUMBERS] - dice_of_masks(before, true)[NUMBERS]
        assert gain.mean() > 0.003 and gain.min() > -0.002
        assert hard_vote([refined], [1.0], 0.5).texts() == after.texts()
        alone = upsampling.upsample_masks(truth(fine, name), plain.size, 0.5)
        assert dice_of_masks(after, alone)[NUMBERS].min() > 0.999, "with weight 1 only the stage counts"


@pytest.mark.parametrize("weight", [0.25, 1.0])
def test_nothing_changes_beyond_the_square(fine, oracle, weight):
    store, names = oracle
    size, step = (256, 256), 256 // FINE
    for name in names:
        plain = store.first.read(name)
        everywhere = quantised(name, np.ones((29, FINE, FINE), np.float32))  # a stage gone wrong
        top, left = corner = store.corner(name)
        second = quantised(name, np.zeros((29, FINE, FINE), np.float32))
        square = [(everywhere.patches()[0][0][:SIDE, :SIDE], corner)] * 29
        second = type(second).from_patches((FINE, FINE), square)
        wrong = merge(plain, second, corner, SIDE, weight, NUMBERS)
        for number in NUMBERS:
            values = [
                sum(
                    upsampling.upsample_region(p.astype(np.float32), place, layer.grid, size, (0, 0, *size))
                    for layer, (p, place) in zip(
                        stored.layers, (m.patches()[number] for m in stored.layers), strict=True
                    )
                )
                for stored in (plain, wrong)
            ]
            difference = np.abs(values[1] - values[0]) / LEVELS
            inside = np.zeros(size, bool)
            inside[top * step : (top + SIDE) * step, left * step : (left + SIDE) * step] = True
            assert difference[~inside].max() == 0
            middle = values[1][(top + SIDE // 2) * step, (left + SIDE // 2) * step] / LEVELS
            assert middle >= weight - 1e-3, "in the middle, the stage has its full weight"


def test_a_refined_vote_beside_another_model_is_the_weighted_mean_at_full_size(fine, oracle):
    store, names = oracle
    store = store.at(0.5)
    other, refined = store.first.read(names[0]), store.read(names[0])
    total = np.zeros((29, *other.size))
    for stored, share in ((other, 0.3), (refined, 0.7)):
        for layer in stored.layers:
            dense = torch.from_numpy(layer.dense().astype(np.float32) / LEVELS)[None]
            total += share * torch.nn.functional.interpolate(dense, size=other.size, mode="bilinear")[0].numpy()
    voted = soft_vote([other, refined], [3, 7], 0.5)
    clear = np.abs(total - 0.5) > 1e-5
    for number, (plane, decided) in enumerate(zip(total > 0.5, clear, strict=True)):
        assert np.array_equal(voted.dense(number)[decided], plane[decided])
    assert confidence(refined, 0.5) == pytest.approx(confidence(other, 0.5), abs=0.03), "of the sum, not of its parts"


def rows(folds=(0, 1, 2), people=12, bent=8):
    """Two images of each of `people`, of whom the first `bent` have a bent wrist."""
    person = np.arange(2 * people) // 2
    fold = np.array(folds)[person % len(folds)]
    return pd.DataFrame({"ID": [f"ID{p:03}" for p in person], "bent": person < bent, "fold": fold})


def made_up(images, straight, bent, noise=0.002, seed=0):
    """Dice of the carpals (weights, images, 8) that changes by this much at weight 0.75, the best one."""
    rng = np.random.default_rng(seed)
    effect = np.where(images["bent"], bent, straight) + rng.normal(0, noise, len(images))
    shape = np.array([0, 0.6, 0.9, 1.0, 0.8])  # of the effect at each of WEIGHTS
    return np.clip(0.9 + shape[:, None] * effect, 0, 1)[:, :, None] + np.zeros(8)


def test_a_stage_that_helps_is_on_with_its_best_weight():
    found = judge("wrist", "first", made_up(rows(), 0.02, 0.015), rows(), 29)
    assert found.weight == 0.75 and "taken with weight 0.75" in str(found)
    assert found.overall.mean == pytest.approx((0.02 * 8 + 0.015 * 16) / 24 * 8 / 29, abs=5e-4)
    assert (found.bent.people, found.bent.images) == (8, 16) and found.overall.p < 0.01
    assert list(found.dice) == list(WEIGHTS) and found.summary()["weight"] == 0.75


@pytest.mark.parametrize(
    ("straight", "bent", "images"),
    [
        (0.03, -0.004, rows(people=40)),  # as others saw: a gain in validation, a loss on bent wrists
        (-0.02, -0.02, rows()),
        (0.0, 0.0, rows()),  # noise
        (0.02, 0.02, rows(bent=4)),  # too few bent wrists to show anything
        (0.02, 0.02, rows(bent=0)),
        (0.02, 0.02, rows(folds=(0,))),  # no other fold to check the weight on
    ],
    ids=["bent lose", "all lose", "noise", "few bent", "none bent", "one fold"],
)
def test_a_stage_is_off_unless_it_helps_overall_and_on_bent_wrists(straight, bent, images):
    found = judge("wrist", "first", made_up(images, straight, bent), images, 29)
    assert found.weight == 0 and "off, first stays as it is" in str(found)
    assert found.overall.shown == (straight > 0 and len(set(images["fold"])) > 1), "so it is the bent wrists that count"


def test_weights_are_checked_on_folds_on_which_they_were_not_chosen():
    images = rows(folds=(0, 1))
    dice = np.full((5, len(images), 8), 0.9)
    dice[1, images["fold"] == 0] += 0.05  # what is best on one fold harms the other
    dice[1, images["fold"] == 1] -= 0.06
    dice[2, images["fold"] == 1] += 0.05
    dice[2, images["fold"] == 0] -= 0.06
    found = judge("wrist", "first", dice, images, 29)
    assert found.overall.mean == pytest.approx(-0.06 * 8 / 29) and found.weight == 0


def test_a_run_judges_its_stages_and_refines_the_first_models(run, coarse, fine):
    for fold in (0, 1):
        names = make_first(run, coarse, "base", fold)["image_name"]
        step = run.output_dir / "03_train" / "base" / f"fold{fold}" / "best"
        config = replace(stage_config(read_config(step), "base"), people=[*read_config(step).people, "f" * 16])
        save_checkpoint(
            run.output_dir / "03_train" / "knows" / f"fold{fold}" / "best",
            build_model("deeplabv3plus", 29, "tu-mobilenetv3_small_050", decoder_channels=16),
            config,
        )
        folder = run.output_dir / "04_inference_tta" / "knows" / f"fold{fold}"
        write_json(folder / "metrics.json", {"model": "knows", "fold": fold})
        (stage,) = [m for m in find_fold_models(run.output_dir, ["knows"]) if m.fold == fold]
        stage.oof.begin({})
        for name in names:
            top, left = stage.oof.corner(name)
            stage.oof.write(name, truth(fine, name)[:, top : top + SIDE, left : left + SIDE], fine.read(name).size)
    fold_models = find_fold_models(run.output_dir, ["base"])
    assert "knows" not in {m.model for m in find_fold_models(run.output_dir)}, "it does not vote by itself"
    (found,) = judge_stages(run.output_dir, fold_models, run.folds, fine)
    assert found.first == "base" and found.best == 1.0 and found.overall.mean > 0.001
    assert found.dice[0.0] < found.dice[0.5] < found.dice[1.0]
    assert found.weight == 0, "so few people show nothing"
    same = refine(run.output_dir, fold_models, {"knows": 0.0})
    assert same == fold_models
    refined = refine(run.output_dir, fold_models, {"knows": 0.75})
    assert [(m.model, m.fold) for m in refined] == [("base", 0), ("base", 1)]
    assert all(m.oof.weight == 0.75 and "f" * 16 in m.config.people for m in refined)


def test_a_first_model_that_knows_the_people_is_refused(run, coarse, first):
    predictions, config = open_first(run.output_dir, "first", 0, first["ID"])
    assert (predictions / "oof" / "store.json").exists() and config.image_size == COARSE
    with pytest.raises(ModelError, match=r"first.*\(fold 0\) was trained on 1 people of this fold, such as ID.*leak"):
        open_first(run.output_dir, "first", 0, [*first["ID"], run.folds.loc[run.folds["fold"] == 1, "ID"].iloc[0]])
    make_first(run, coarse, "everyone", people=hash_people(run.folds["ID"]))
    with pytest.raises(ModelError, match=r"people of this fold.*the validation score would leak\. Train everyone with"):
        run.fold_data(0, FINE, crop=SIDE, wrist_of="everyone")
    make_first(run, coarse, "silent", people=[])
    with pytest.raises(ModelError, match="people it does not name"):
        run.fold_data(0, FINE, crop=SIDE, wrist_of="silent")


def test_a_first_model_without_fitting_predictions_is_refused(run, coarse, first):
    with pytest.raises(
        FileNotFoundError, match=r"wrist_of = frist: no finished predictions .* -p model frist -p fold 0"
    ):
        run.fold_data(0, FINE, crop=SIDE, wrist_of="frist")
    make_first(run, coarse, "newer")
    folder = run.output_dir / "04_inference_tta" / "newer" / "fold0"
    ProbabilityStore(folder / "test").begin({"weights": "of another training"})
    with pytest.raises(ModelError, match="predicted with other weights than those"):
        open_first(run.output_dir, "newer", 0, first["ID"])
    make_first(run, coarse, "stage")
    checkpoint = run.output_dir / "03_train" / "stage" / "fold0" / "best"
    write_json(checkpoint / "config.json", vars(stage_config(read_config(checkpoint))))
    with pytest.raises(ModelError, match="refines another itself; name first"):
        open_first(run.output_dir, "stage", 0, first["ID"])


def test_impossible_stages_are_refused_before_data_is_read():
    with pytest.raises(Problems, match="wrist_of = unet: the classes have no Radius"):
        check_crops(32, 0, 64, ["nucleus"], "unet")
    for crop, wrist_crops in ((0, 0), (32, 0.5)):
        with pytest.raises(Problems, match="expected a crop above 0 and no wrist_crops"):
            check_crops(crop, wrist_crops, 64, [*CARPALS, "Radius", "Ulna"], "unet")


def test_a_stage_trains_on_wrists_is_validated_on_carpals_and_predicts_its_squares(run, coarse, first, tmp_path):
    data = run.fold_data(0, FINE, crop=SIDE, wrist_of="first")
    assert data.judged == list(CARPALS) and len(data) == len(data.train) and len(data.known) > 0
    loader = training_loader(data, Augmenter(NO_AUGMENTATION, classes=run.classes), 4, seed=0)
    labels = torch.cat([dense_labels(batch) for batch in loader])
    capitate = labels[:, run.classes.index("Capitate")].sum((1, 2))
    assert labels.shape[2:] == (SIDE, SIDE) and capitate.min() > 5, "the middle of every wrist"
    result = fit(data, tmp_path, precision="32-true", epochs=2)
    config = read_config(result.checkpoint)
    assert (config.wrist_of, config.window, config.image_size) == ("first", SIDE, FINE)
    assert set(data.known) <= set(config.people) and list(result.val_dice) == list(CARPALS)
    names = data.validation["image_name"].tolist()
    made = dict(result.predict(names))
    true = {name: data.cache.read(name).truth.select(NUMBERS) for name in names}
    assert np.mean([dice_of_masks(made[n], true[n]) for n in names]) == pytest.approx(result.score, abs=1e-6)
    (worst,) = worst_images(result.predict, data, result.val_dice, 1)
    assert worst.truth.texts() == true[worst.name].texts() and worst.predicted.texts() == made[worst.name].texts()

    before = run.output_dir / "04_inference_tta" / "first" / "fold0" / "oof"
    store = RefinedStore(tmp_path / "oof", ProbabilityStore(before), config, 1.0)
    predictor = Predictor(result.checkpoint, CPU, "hflip+scale")
    predictor.fill(store, data.cache, names, 2)
    assert store.names() == sorted(names) and store.windows(names) == data.windows
    _, maps = next(predictor.predict(data.cache, names[:1], 1, windows=data.windows))
    assert maps.shape == (29, SIDE, SIDE)
    kept = ProbabilityStore(tmp_path / "oof").read(names[0]).regions
    assert [n for n, box in enumerate(kept.boxes) if box.any()] == [n for n in NUMBERS if maps[n].max() > 0.0052]
    assert store.read(names[0]).detail.grid == (FINE, FINE)
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "oof").glob("*.npz")}
    predictor.fill(store, data.cache, names, 2)
    assert all(path.stat().st_mtime_ns == time for path, time in times.items())


def test_other_squares_are_another_training(run, first, tmp_path, capsys):
    data = run.fold_data(0, FINE, crop=SIDE, wrist_of="first")
    moved = {name: (top + 1, left) for name, (top, left) in data.windows.corners.items()}
    fit(data, tmp_path, precision="32-true", epochs=1)
    fit(data, tmp_path, precision="32-true", epochs=1)
    assert "nothing is trained again" in capsys.readouterr().out
    other: FoldData = replace(data, windows=Windows(NUMBERS, (FINE, FINE), SIDE, moved))
    fit(other, tmp_path, precision="32-true", epochs=1)
    assert "holds another training" in capsys.readouterr().out


def make_plates(folder):
    """Six people's images of a plate with a small hole somewhere in it, in the competition's layout."""
    rng = np.random.default_rng(0)
    for person in range(6):
        top, left = rng.integers(20, 70, 2)
        pixels = np.full((128, 128), 40, np.uint8)
        pixels[10:118, 10:118] = 160
        pixels[top : top + 20, left : left + 20] = 90
        square = [[left, top], [left + 19, top], [left + 19, top + 19], [left, top + 19]]
        shapes = {"plate": [[10, 10], [117, 10], [117, 117], [10, 117]], "hole": np.array(square).tolist()}
        annotations = [
            {"id": name, "type": "poly_seg", "attributes": {}, "points": points, "label": name}
            for name, points in shapes.items()
        ]
        for split, content in (("DCM", None), ("outputs_json", annotations)):
            path = folder / "train" / split / f"P{person}" / f"plate{person}.{'json' if content else 'png'}"
            path.parent.mkdir(parents=True, exist_ok=True)
            if content:
                path.write_text(json.dumps({"annotations": content, "filename": f"plate{person}.png"}))
            else:
                cv2.imwrite(str(path), pixels)
    (folder / "classes.txt").write_text("plate\nhole\n")
    return folder


def test_a_model_refines_another_on_data_without_hands(tmp_path):
    table = read_index(make_plates(tmp_path / "plates"), ("train",))
    assert small_bones(["plate", "hole"]) == [] and stratum(["plate", "hole"]) is None
    cache = Cache(tmp_path / "cache", table, ["plate", "hole"], 96)
    cache.build()
    folds = read_folds(tmp_path / "folds.csv", table, cache.classes, 3, is_bent=None)
    train, held_out = split_fold(table, folds, 0)
    names, first = held_out["image_name"].tolist(), ProbabilityStore(tmp_path / "first")
    first.begin({})
    for name in names:
        first.write(name, truth(cache, name), (128, 128))
    corners = {name: corner_around(first.read(name).regions, [1], cache.grid, 40) for name in names}
    windows = Windows([1], cache.grid, 40, corners)
    data = FoldData(cache, train, held_out, 0, crop=40, region=["hole"], refines="first", windows=windows)
    labels = torch.cat([dense_labels(b) for b in training_loader(data, Augmenter(NO_AUGMENTATION), 4, seed=0)])
    assert (labels[:, 1].sum((1, 2)) > 100).all(), "all crops are around the hole"
    result = fit(data, tmp_path / "stage", precision="32-true", epochs=2)
    config = read_config(result.checkpoint)
    assert (config.first, config.refines, config.window) == ("first", ["hole"], 40)
    assert list(result.val_dice) == ["hole"] and 0 <= result.score <= 1
    store = RefinedStore(tmp_path / "oof", first, config, 1.0)
    Predictor(result.checkpoint, CPU).fill(store, cache, names, 2)
    assert store.windows(names) == windows
    for name in names:
        refined, plain = store.read(name), first.read(name)
        plates = [soft_vote([stored], [1.0], 0.5).texts()[0] for stored in (refined, plain)]
        assert plates[0] == plates[1] and refined.detail.grid == cache.grid
        assert not ProbabilityStore(tmp_path / "oof").read(name).regions.boxes[0].any(), "only the hole is stored"


def test_what_a_fold_is_scored_with_is_chosen_on_the_other_folds(monkeypatch):
    """The weight, and whether a stage is taken at all: a gain in fold 0 alone doesn't speak for fold 0."""
    images = rows(folds=(0, 1, 2), people=36, bent=30)
    dice = np.full((5, len(images), 8), 0.9)
    dice[1] += 0.02
    dice[4, images["fold"] == 0] += 0.08
    found = judge("wrist", "first", dice, images, 29)
    assert found.best == 1.0 and found.others[0].best == 0.25, "fold 0's own gain chose 1"
    monkeypatch.setattr("utils.inference.refinement_weight.refine", lambda folder, models, chosen: [chosen, *models])
    models = [SimpleNamespace(fold=fold) for fold in (0, 1, 2)]
    final, by_fold = refine_by_fold("", models, [found])
    made = [by_fold[fold][0].get("wrist", 0.0) for fold in range(3)]
    assert made == [found.others[fold].weight for fold in range(3)] and final[0].get("wrist", 0.0) == found.weight
    assert found.others[0].weight == 0.25
