"""Results of runs: read, judged, compared and listed, from the tables that the notebooks write."""

import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from tests.fake_run import make_data
from utils.analysis.__main__ import main
from utils.analysis.comparison import compare_scores, compare_with
from utils.analysis.experiments import as_text, experiments
from utils.analysis.results import Scores, members, open_scores, read_scores
from utils.analysis.scores import by_class, by_image, distance_tables, summary, worst_masks
from utils.data import significance
from utils.data.cache import Cache
from utils.data.competition import read_annotation, read_classes, read_index
from utils.data.folds import read_folds
from utils.files import ROOT, Problems, read_json, write_json, write_table
from utils.hand.bend import AUTO, MEASURED, angle_of, angle_of_masks, bent_share, bent_wrists
from utils.hand.bones import FOREARM
from utils.masks.masks import Masks

CLASSES = ["Radius", "Ulna", "Lunate"]
PEOPLE, IMAGES = 20, 40
STEPS = ("03_train", "04_inference_tta")
NAMES = [f"image{i:02d}.png" for i in range(IMAGES)]
FOLDS = pd.DataFrame(
    {
        "ID": [f"ID{i // 2:03d}" for i in range(IMAGES)],
        "image_name": NAMES,
        "bent": [i // 2 < 4 for i in range(IMAGES)],
        "fold": [i // 2 % 4 for i in range(IMAGES)],
    }
)


def dice(gain=0.0, seed=0, noise=0.01):
    """A table images × classes: some images are difficult for every model; `gain` is the model's own."""
    difficulty = np.random.default_rng(9).gamma(2, 0.02, (IMAGES, 1)) + 0.05 * FOLDS["bent"].to_numpy()[:, None]
    values = 0.93 - difficulty + gain + np.random.default_rng(seed).normal(0, noise, (IMAGES, len(CLASSES)))
    return pd.DataFrame(values.clip(0, 1), columns=CLASSES, index=pd.Index(NAMES, name="image_name"))


def make_run(folder, models, folds=range(4), vote=True, planned=None, data="data/sample", sizes=1000, **parameters):
    """A run's folder as the notebooks leave it: `models` are tables by name, of which `folds` are finished."""
    folder.mkdir(parents=True)
    FOLDS.to_csv(folder / "folds.csv", index=False)
    files = {f"train/DCM/{row.ID}/{row.image_name}": [sizes, 1] for row in FOLDS.itertuples()}
    write_json(folder / "data.json", files)
    plan = list(planned if planned is not None else folds)
    write_json(folder / "run.json", {"data_dir": data, "models": list(models), "voters": list(models), "folds": plan})
    for number, (name, table) in enumerate(models.items()):
        given = {"architecture": name, "lr": 0.01 * (number + 1), "epochs": 5, "data_dir": data, **parameters}
        for fold in folds:
            rows = table[(FOLDS["fold"] == fold).to_numpy()]
            trained, predicted = (folder / step / name / f"fold{fold}" for step in ("03_train", "04_inference_tta"))
            write_table(trained / "val_dice.csv", rows - 0.01)
            write_json(trained / "metrics.json", {"minutes": 10, "val_dice": 0.8, "parameters": given})
            write_table(predicted / "oof_dice.csv", rows)
            write_json(predicted / "metrics.json", {"minutes": 1, "oof_dice": 0.9, "parameters": {"tta": "hflip"}})
    if vote:
        kept = FOLDS["fold"].isin(list(folds)).to_numpy()
        write_table(folder / "05_ensemble" / "oof_dice.csv", sum(models.values())[kept] / len(models))
        scored = {name: {"oof_dice": 0.9, "test_dice": 0.88, "weight": 1.0} for name in models}
        voters = [{"model": name, "fold": fold} for name in models for fold in folds]
        made = {
            "fold_models": voters,
            "minutes": 2,
            "test_dice": 0.89,
            "models": scored,
            "submission": "submissions/none.csv",
        }
        write_json(folder / "05_ensemble" / "metrics.json", made)
    return folder


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    """Three runs: one finished, one of which two of four folds are, one whose training was interrupted."""
    folder = tmp_path_factory.mktemp("outputs")
    make_run(folder / "first", {"unet": dice(), "fpn": dice(0.004, 1)})
    make_run(folder / "second", {"unet": dice(0.01, 2)}, [1, 2], vote=False, planned=range(4), epochs=9)
    make_run(folder / "stopped", {"unet": dice()}, [0], vote=False, planned=range(4))
    for step in ("03_train", "04_inference_tta"):
        (folder / "stopped" / step / "unet" / "fold0" / "metrics.json").unlink()
    (folder / "stopped" / "03_train" / "unet" / "fold0" / "failed.txt").write_text("out of memory")
    return folder


def test_results_are_found_by_name_and_folds_are_pooled(outputs):
    assert members(outputs / "first") == ["ensemble", "unet", "fpn"]
    assert open_scores("first", outputs).name == "first/ensemble"
    pooled = open_scores("first/fpn", outputs)
    pd.testing.assert_frame_equal(pooled.dice.sort_index(), dice(0.004, 1))
    assert (pooled.images["fold"].loc[NAMES].to_numpy() == FOLDS["fold"]).all() and pooled.tta
    assert open_scores(outputs / "second").name == "second/unet" and len(open_scores("second", outputs).dice) == 20
    stopped = open_scores("stopped/unet", outputs)
    assert not stopped.tta and len(stopped.dice) == 10


def test_what_is_not_there_is_named_with_the_nearest(outputs, tmp_path):
    with pytest.raises(Problems, match=r"unknown run 'frist': did you mean first"):
        open_scores("frist/unet", outputs)
    with pytest.raises(Problems, match=r"unknown model 'unt': did you mean unet"):
        open_scores("first/unt", outputs)
    run = make_run(tmp_path / "run", {"a": dice(), "b": dice()}, vote=False)
    with pytest.raises(Problems, match=r"it has no ensemble; write run/<model>, one of a, b"):
        read_scores(run)
    with pytest.raises(Problems, match="run 03_train, then 04_inference_tta"):
        read_scores(make_run(tmp_path / "empty", {}, vote=False))
    FOLDS.iloc[1:].to_csv(run / "folds.csv", index=False)
    with pytest.raises(Problems, match=r"image00\.png is not in folds\.csv"):
        read_scores(run, "a")


def test_scores_by_wrist_and_re_weighted_to_the_test_images(outputs):
    scores = open_scores("first/unet", outputs)
    table = summary(scores, 0.57)
    of_image, bent = dice().mean(axis=1), FOLDS.set_index("image_name")["bent"]
    straight, other = of_image[~bent].mean(), of_image[bent].mean()
    assert table["dice"].tolist() == pytest.approx(
        [of_image.mean(), straight, other, 0.43 * straight + 0.57 * other], abs=1e-12
    )
    assert table["images"].tolist() == [40, 32, 8, 40] and table["people"].tolist() == [20, 16, 4, 20]
    enough = table.iloc[:2]
    assert ((enough["low"] < enough["dice"]) & (enough["dice"] < enough["high"]) & (enough["high"] <= 1)).all()
    assert table.iloc[2:][["low", "high"]].isna().all(axis=None), "four bent people carry no interval"
    assert table.loc["all images", "dice"] > table.loc["re-weighted", "dice"]
    assert summary(scores).index.tolist() == ["all images", "straight wrists", "bent wrists"]
    assert summary(open_scores("first", outputs)).index.size == 3


def test_scores_by_class_and_image(outputs):
    scores = open_scores("first/unet", outputs)
    distances = {"hd95": pd.DataFrame(7.0, scores.dice.index, CLASSES), "msd": dice() * 2}
    table = by_class(scores, 0.5, distances)
    assert table["dice"].tolist() == pytest.approx(dice().mean().tolist())
    assert table["re-weighted"].tolist() == pytest.approx(((table["straight"] + table["bent"]) / 2).tolist())
    assert (table["hd95"] == 7).all() and not {"hd95", "msd"} & set(by_class(scores))
    assert table["msd"].tolist() == pytest.approx((2 * dice().mean()).tolist())
    worst = by_image(scores, distances)
    assert worst["dice"].is_monotonic_increasing and worst.index[0] == dice().mean(axis=1).idxmin()
    assert worst.loc[NAMES, "worst_class"].tolist() == dice().idxmin(axis=1).tolist()
    masks = worst_masks(scores, 3, distances)
    assert masks["dice"].tolist() == pytest.approx(np.sort(dice().to_numpy().ravel())[:3])
    assert dice().loc[masks.loc[0, "image_name"], masks.loc[0, "class"]] == masks.loc[0, "dice"]
    assert masks["msd"].tolist() == (2 * masks["dice"]).tolist()
    assert worst["msd"].tolist() == pytest.approx((2 * worst["dice"]).tolist())


def test_distances_of_the_true_masks_are_zero_and_of_shifted_ones_the_shift(sample, tmp_path):
    table, classes = read_index(sample), read_classes(sample)
    cache = Cache(tmp_path, table[:2], classes, 64)
    cache.build()
    names = table["image_name"][:2].tolist()
    truth = {name: cache.read(name).truth for name in names}

    shifted = Masks.from_dense([np.roll(truth[names[1]].dense(n), -3, axis=0) for n in range(len(classes))])
    votes = [(names[0], truth[names[0]]), (names[1], shifted)]
    distances = distance_tables(votes, cache)
    hd95, msd = distances["hd95"], distances["msd"]
    whole = [name for name in classes if name not in FOREARM]  # the image's border cuts the forearm
    assert hd95.index.name == msd.index.name == "image_name"
    assert (hd95.loc[names[0]] == 0).all() and (msd.loc[names[0]] == 0).all() and list(hd95) == list(msd) == classes
    assert hd95.loc[names[1], whole].between(2, 3).all()
    assert (msd.loc[names[1], whole] > 0).all() and (msd.loc[names[1]] < hd95.loc[names[1]]).all()


def test_wrists_of_masks_are_those_of_the_polygons(sample):
    table, classes = read_index(sample), read_classes(sample)
    for row in table[table["split"] == "train"].itertuples():
        angle = angle_of(read_annotation(row.annotation, classes))
        drawn = true_masks(row, classes)

        def measured(masks):
            return angle_of_masks(Masks.from_dense(list(masks.values())), list(masks))

        assert measured(drawn) == pytest.approx(angle, abs=3)
        noisy = drawn["Radius"].astype(bool)
        noisy[2:5, 2:5] = True  # false pixels far away
        assert measured(drawn | {"Radius": noisy}) == pytest.approx(measured(drawn))
        assert np.isnan(measured(drawn | {"Ulna": np.zeros_like(noisy)}))


def true_masks(row, classes):
    from utils.masks.labels import draw

    polygons = read_annotation(row.annotation, classes)
    return {name: draw(polygons[name], (row.height, row.width)) for name in MEASURED}


def test_the_share_of_bent_test_wrists_is_measured_on_a_submission(sample):
    table = read_index(sample, ("test",))
    good = pd.Series(0.95, index=read_classes(sample))
    wrists = bent_wrists(sample / "solution.csv", table)
    assert len(wrists) == len(table) and wrists["wrist_angle"].notna().all()
    assert len(wrists[["ID", "bent"]].drop_duplicates()) == wrists["ID"].nunique()
    share, how = bent_share(AUTO, sample / "solution.csv", table, good)
    assert share == wrists["bent"].mean() and f"masks of {len(table)} images" in how
    assert bent_share(0.57, "", table, good) == (0.57, "57% of the test wrists are bent, as given")
    poor = bent_share(AUTO, sample / "solution.csv", table, good.where(good.index != "Ulna", 0.6))
    assert np.isnan(poor[0]) and "Ulna is predicted with Dice 0.60" in poor[1]
    assert np.isnan(bent_share(AUTO, sample / "none.csv", table, good)[0])
    assert np.isnan(bent_share(AUTO, sample / "solution.csv", table, good[["Radius"]])[0])
    for wrong in (-0.5, 1.5):
        with pytest.raises(ValueError, match="expected 0 to 1, such as"):
            bent_share(wrong, "", table, good)


def test_a_better_result_is_named_with_its_gain_and_interval(outputs):
    a, b = (open_scores(f"first/{name}", outputs) for name in ("unet", "fpn"))
    found = compare_scores(a, b, 0.57)
    gain = (dice(0.004, 1) - dice()).to_numpy().mean()
    assert found.winner == "first/fpn" and found.p < 0.05 and found.notes == []
    assert found.estimate.mean == pytest.approx(gain) and 0 < found.estimate.low < gain < found.estimate.high
    assert found.verdict.startswith(f"first/fpn beats first/unet by {gain:.4f} [{found.estimate.low:.4f}, ")
    assert found.rows.index.tolist()[-1] == "re-weighted"
    assert (found.rows["b"] - found.rows["a"]).tolist() == pytest.approx(found.rows["difference"].tolist())
    assert found.classes["difference"].mean() == pytest.approx(gain)


def test_swapping_the_results_changes_the_sign_only(outputs):
    a, b = open_scores("first/unet", outputs), open_scores("second", outputs)
    one, other = compare_scores(a, b), compare_scores(b, a)
    assert one.p == other.p and one.winner == other.winner == "second/unet" and one.verdict == other.verdict
    assert one.estimate == pytest.approx((-other.estimate.mean, -other.estimate.high, -other.estimate.low))
    note = "20 of the 40 images of first/unet are not in the other and not used"
    assert one.notes == other.notes == [note]


def test_no_difference_is_said_plainly(outputs, tmp_path):
    a = open_scores("first/unet", outputs)
    same = compare_scores(a, a)
    assert same.p == 1 and same.verdict == "no difference can be shown: first/unet and first/unet have the same scores"
    noise = read_scores(make_run(tmp_path / "noise", {"unet": dice(0, 5)}, vote=False))
    found = compare_scores(a, noise)
    assert found.winner == "" and found.verdict.startswith("no difference can be shown: noise/unet − first/unet = ")
    few = compare_scores(a, read_scores(make_run(tmp_path / "few", {"unet": dice(0.1)}, [0], vote=False)))
    assert few.winner == "" and "5 people are too few" in few.notes[1]
    run = make_run(tmp_path / "tuned", {"unet": dice()})
    write_json(run / "05_ensemble" / "metrics.json", {"oof_dice_cross_fitted": 0.8765})
    assert "chosen by these scores" in compare_scores(a, read_scores(run)).notes[0]
    assert compare_scores(a, read_scores(run, "unet")).notes == []
    moved = a.images.assign(fold=(a.images["fold"] + 1) % 4)
    notes = compare_scores(a, Scores("x/unet", a.run, a.dice, moved, tta=False)).notes
    assert "40 of the 40 shared images were in another fold" in notes[0]
    assert "x/unet was scored without test-time augmentation" in notes[1]


def test_results_of_different_data_are_refused(outputs, tmp_path):
    a = open_scores("first/unet", outputs)
    with pytest.raises(Problems, match=r"image00\.png has 1000 and 900 bytes") as error:
        compare_scores(a, read_scores(make_run(tmp_path / "sizes", {"unet": dice()}, vote=False, sizes=900)))
    assert len(error.value.problems) == IMAGES
    renamed = dice().rename(columns={"Lunate": "Hamate"})
    with pytest.raises(Problems, match="classes differ"):
        compare_scores(a, read_scores(make_run(tmp_path / "classes", {"unet": renamed}, vote=False)))
    other = read_scores(make_run(tmp_path / "folder", {"unet": dice()}, vote=False, data="data/other"))
    assert compare_scores(a, other).p == 1, "a copy of the same files elsewhere is the same data"
    (other.run / "data.json").unlink()
    with pytest.raises(Problems, match="data folders are data/sample and data/other"):
        compare_scores(a, other)
    with pytest.raises(Problems, match=r"image03\.png belongs to ID001 and to ID9"):
        compare_scores(a, Scores("x/y", a.run, a.dice, a.images.assign(ID=a.images["ID"].replace("ID001", "ID9"))))
    one, two = (read_scores(make_run(tmp_path / f"{n}", {"unet": dice()}, [n], vote=False)) for n in (0, 1))
    with pytest.raises(Problems, match="their folds are 0 and 1"):
        compare_scores(one, two)


def test_a_result_is_compared_with_all_others_of_its_run_or_with_those_that_are_named(tmp_path):
    make_run(tmp_path / "one", {"unet": dice(), "fcn": dice(seed=1)})
    make_run(tmp_path / "two", {"fpn": dice(seed=2)})
    scores = read_scores(tmp_path / "one", "ensemble")
    found = compare_with(scores, [], float("nan"))
    assert [(c.a, c.b) for c in found] == [("one/unet", "one/ensemble"), ("one/fcn", "one/ensemble")]
    assert compare_with(scores, [], float("nan"), others=False) == []
    (found,) = compare_with(scores, [str(tmp_path / "two" / "fpn")], float("nan"), others=False)
    assert (found.a, found.b) == ("two/fpn", "one/ensemble")


def test_between_equal_results_a_winner_is_named_in_about_one_of_20_comparisons(outputs, monkeypatch):
    monkeypatch.setattr(significance, "RESAMPLES", 1000)
    a = open_scores("first/unet", outputs)
    images, wrong = a.images.assign(bent=False), 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        of_person = np.repeat(rng.normal(0, 0.01, (PEOPLE, 1)), 2, axis=0)  # both hands are better, or both worse
        values = of_person + rng.normal(0, 0.01, a.dice.shape)
        b = Scores("x/b", a.run, (a.dice.sort_index() + values).loc[a.dice.index], images)
        wrong += compare_scores(Scores("x/a", a.run, a.dice, images), b).winner != ""
    assert 3 <= wrong <= 19, "5 % of 200 is 10; 99.7 % of such experiments give 3 to 19"


def test_minutes_count_the_models_that_one_starts_from(tmp_path):
    run = make_run(tmp_path / "run", {name: dice() for name in ("small", "large", "other")})
    after = {"large": ["03_train/small"], "other": ["03_train/large", "04_inference_tta/small"]}
    planned = [f"{step}/{m}/fold{f}" for f in range(4) for m in ("small", "large", "other") for step in STEPS]
    planned = [step for step in planned if not step.startswith("04_inference_tta/small")]
    about = {"after": after, "steps": planned, "voters": ["large", "other"]}
    write_json(run / "run.json", read_json(run / "run.json") | about)
    for folder in (run / "04_inference_tta" / "small").iterdir():
        (folder / "metrics.json").unlink()
        (folder / "oof_dice.csv").unlink()
    vote = read_json(run / "05_ensemble" / "metrics.json")
    vote["fold_models"] = [m for m in vote["fold_models"] if m["model"] != "small"]
    vote["models"] = {name: vote["models"][name] for name in ("large", "other")}
    write_json(run / "05_ensemble" / "metrics.json", vote)
    table = experiments(tmp_path).set_index("name")
    assert table["minutes"].to_dict() == {"small": 40, "large": 84, "other": 128, "ensemble": 130}
    assert table["state"].to_dict() == {
        "small": "done, without TTA, for it does not vote",
        **dict.fromkeys(("large", "other", "ensemble"), "done"),
    }


def test_every_result_of_every_run_is_listed(outputs):
    table = experiments(outputs).set_index(["run", "name"])
    assert table["state"].to_dict() == {
        ("first", "fpn"): "done",
        ("first", "unet"): "done",
        ("first", "ensemble"): "done",
        ("second", "unet"): "2 of 4 folds",
        ("stopped", "unet"): "0 of 4 folds, failed, not predicted yet",
    }
    assert table["dice"].is_monotonic_decreasing and table["images"].to_dict()[("second", "unet")] == 20
    assert (
        table["minutes"].to_dict()[("first", "unet")] == 44 and table["minutes"].to_dict()[("first", "ensemble")] == 90
    )
    assert table["test_dice"].to_dict()[("first", "ensemble")] == 0.89
    assert list(table.columns)[8:] == ["architecture", "lr", "epochs"], "only parameters that differ"
    assert table["epochs"].to_dict()[("second", "unet")] == "9" and table.loc[("first", "ensemble"), "epochs"] == ""
    text = as_text(table.reset_index())
    assert max(map(len, text.splitlines())) <= 125
    assert all(words in text for words in ("first/ensemble", "2 of 4 folds", "epochs 9", "0.8900", "90.0"))


def test_partial_ensembles_and_single_people_are_shown_as_such(tmp_path):
    run = make_run(tmp_path / "partial", {"unet": dice(), "fpn": dice()}, [0, 1], planned=range(4))
    alone = dice().head(2)
    write_table(run / "05_ensemble" / "oof_dice.csv", alone)
    table = experiments(tmp_path).set_index("name")
    assert table.loc["ensemble", "state"] == "4 of 8 fold models" and table.loc["unet", "state"] == "2 of 4 folds"
    assert np.isnan(table.loc["ensemble", "low"]) and "nan" not in as_text(table.reset_index())
    one = read_scores(run)
    assert compare_scores(one, read_scores(run, "fpn")).verdict.endswith("on one person")


def test_the_commands_list_compare_and_report(outputs, tmp_path, capsys):
    def printed(*arguments):
        main([*map(str, arguments), "--outputs", str(outputs)])
        return capsys.readouterr().out

    assert "second/unet" in printed("table", "--csv", tmp_path / "all.csv")
    assert len(pd.read_csv(tmp_path / "all.csv")) == 5
    compared = printed("compare", "first/unet", "first/fpn", "--bent-share", "0.57")
    assert "first/fpn beats first/unet by 0.00" in compared and "re-weighted" in compared
    report = printed("report", "first", "--bent-share", "0.57")
    assert (
        report.count("57%") == 1
        and "57% of the test wrists are bent, as given" in report
        and "worst images" in report
        and "hd95" not in report
        and "msd" not in report
    )
    analysed = outputs / "first" / "07_analysis"
    write_table(analysed / "hd95.csv", dice() * 10)
    scored = summary(read_scores(outputs / "first")).loc["all images", "dice"]
    write_json(analysed / "metrics.json", {"result": "first/ensemble", "oof_dice": scored})
    write_table(analysed / "msd.csv", dice())
    report = printed("report", "first")
    assert "hd95" in report and "msd" in report and "hd95" not in printed("report", "first/unet")
    write_json(analysed / "metrics.json", {"result": "first/ensemble", "oof_dice": scored - 0.001})
    assert "hd95" not in printed("report", "first"), "they are of earlier predictions"
    write_json(analysed / "metrics.json", {"result": "first/ensemble", "oof_dice": scored})
    write_table(analysed / "hd95.csv", dice().head(3))
    report = printed("report", "first")
    assert "hd95" not in report and "msd" in report, "it lacks images"


def test_a_run_that_left_bad_images_out_is_reported_and_compared(tmp_path, capsys):
    """The test images, on which bent wrists are measured, are read without those that the run left out."""
    data = make_data(tmp_path / "data")
    next(data.glob("test/DCM/*/*.png")).write_bytes(b"no picture")
    make_run(tmp_path / "outputs" / "run", {"unet": dice(), "fcn": dice(seed=1)}, data=str(data))
    path = tmp_path / "outputs" / "run" / "data.json"
    with pytest.raises(SystemExit, match="these files can't be used"):
        main(["report", "run", "--outputs", str(tmp_path / "outputs")])
    write_json(path, read_json(path) | {"skipped": ["test/DCM/ID003/imageID003.png"]})
    main(["report", "run", "--outputs", str(tmp_path / "outputs")])
    main(["compare", "run/unet", "run/fcn", "--outputs", str(tmp_path / "outputs")])
    assert "worst images" in capsys.readouterr().out
    shutil.rmtree(data / "test")
    main(["report", "run", "--outputs", str(tmp_path / "outputs")])
    assert "there are no test images" in capsys.readouterr().out


def test_problems_end_the_command_in_words(outputs):
    command = [sys.executable, "-m", "utils.analysis", "compare", "first/unet", "frist", "--outputs", str(outputs)]
    refused = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert refused.returncode == 1 and "did you mean first" in refused.stderr and "Traceback" not in refused.stderr


def test_folds_written_by_the_run_can_be_read(sample, tmp_path):
    table, classes = read_index(sample), read_classes(sample)
    folds = read_folds(tmp_path / "folds.csv", table, classes, 3)
    values = pd.DataFrame(0.9, folds["image_name"], classes).rename_axis("image_name")
    write_table(tmp_path / "02_baseline_fcn" / "val_dice.csv", values)
    write_json(tmp_path / "02_baseline_fcn" / "metrics.json", {"minutes": 1})
    scores = read_scores(tmp_path)
    assert scores.name.endswith("/baseline") and not scores.tta and len(scores.dice) == len(folds)


def test_the_command_measures_what_labels_keep(sample, capsys):
    main(["label-fidelity", str(sample), "--sizes", "64", "256", "--images", "2"])
    lines = capsys.readouterr().out.strip().splitlines()
    small, full = (list(map(float, line.split()[1:])) for line in lines[-2:])
    assert [line.split()[0] for line in lines[-2:]] == ["64", "256"]
    assert full == [1.0] * len(full), "labels of the image's own size lose nothing"
    assert max(small) < 1.0
