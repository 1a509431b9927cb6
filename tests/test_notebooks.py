"""Every notebook, executed by papermill on a tiny sample, as a person types it."""

import json
import subprocess

import pandas as pd
import pytest

from tests.execute import execute_all
from tests.notebooks import PAPERMILL, ZOO, outputs, papermill, pictures
from utils.files import ROOT, read_json
from utils.hand.bones import CARPALS
from utils.pipeline.leaderboard import read_leaderboard
from utils.submission import check


@pytest.mark.parametrize(
    ("step", "keys"),
    [
        ("01_eda", {"multi_label"}),
        ("02_baseline_fcn", {"val_dice", "test_dice", "submission"}),
        ("03_train/thin/fold0", {"val_dice", "model", "fold"}),
        ("03_train/thin/fold1", {"val_dice", "model", "fold"}),
        ("04_inference_tta/thin/fold0", {"oof_dice", "test_dice"}),
        ("04_inference_tta/thin/fold1", {"oof_dice", "test_dice"}),
        ("03_train/thin_wrist/fold0", {"carpal_dice"}),
        ("04_inference_tta/thin_wrist/fold0", {"oof_dice", "test_dice"}),
        ("05_ensemble", {"oof_dice", "test_dice", "models", "submission", "thresholds"}),
        ("06_model_zoo", {"models", "cam"}),
        ("07_analysis", {"result", "oof_dice", "hd95", "msd", "verdicts"}),
        ("10_export/thin/fold0", {"val_dice", "formats", "architectures"}),
    ],
)
def test_every_step_leaves_metrics_and_pictures(run, step, keys):
    metrics = read_json(run / step / "metrics.json")
    assert keys | {"step", "minutes", "parameters"} <= metrics.keys() and metrics["step"] == step.split("/")[0]
    drawn = list((run / step).glob("*.png"))
    assert drawn and all(path.stat().st_size > 3000 for path in drawn)
    assert all(0 <= metrics[k] <= 1 for k in keys if k.endswith("_dice"))


def test_a_fold_model_trained_on_everything_votes_on_the_test_images_only(run):
    for step in ("03_train", "04_inference_tta"):
        metrics = read_json(run / step / "thin" / "fold-1" / "metrics.json")
        assert metrics["val_dice"] is None and metrics.get("oof_dice") is None
    predicted = run / "04_inference_tta" / "thin" / "fold-1"
    assert list((predicted / "test").glob("*.npz")) and not list((predicted / "oof").glob("*.npz"))
    fold_models = read_json(run / "05_ensemble" / "metrics.json")["fold_models"]
    assert [fold_model["fold"] for fold_model in fold_models] == [-1, 0, 1]


@pytest.mark.parametrize("step", ["02_baseline_fcn", "05_ensemble"])
def test_submissions_pass_the_check(run, sample, step):
    assert check(run / step / "submission.csv", sample) == []
    made = read_json(run / step / "submission.json")
    assert made["submission"].endswith("submission.csv")
    shown = outputs(run / f"{step}-0.ipynb")
    assert all(f"warning: {warning}" in shown for warning in made.get("warnings", []))
    assert ("warnings" in made and "warning" in shown) == (step == "05_ensemble")


def test_the_notebooks_tell_their_findings(run):
    assert "wrist" in outputs(run / "01_eda-0.ipynb") and pictures(run / "01_eda-0.ipynb") >= 8
    assert "best validation Dice" in outputs(run / "03_train-0.ipynb") and pictures(run / "03_train-0.ipynb") >= 4
    assert "out-of-fold Dice" in outputs(run / "04_inference_tta-0.ipynb")
    assert "complete and in order" in outputs(run / "05_ensemble-0.ipynb")
    assert "lies inside its bone" in outputs(run / "06_model_zoo-0.ipynb")
    compared = {model["architecture"]: model for model in read_json(run / "06_model_zoo" / "metrics.json")["models"]}
    assert compared.keys() == set(ZOO["architectures"]) and pictures(run / "06_model_zoo-0.ipynb") == 3
    assert all(0 <= model["dice"] <= 1 and model["multiply_adds"] > 0 for model in compared.values())
    analysed = outputs(run / "07_analysis-0.ipynb")
    assert "no difference can be shown" in analysed and pictures(run / "07_analysis-0.ipynb") == 5


def test_a_wrist_stage_is_judged_and_stays_off_where_nothing_is_shown(run):
    stage = read_json(run / "05_ensemble" / "metrics.json")["wrist_stages"]["thin_wrist"]
    assert (stage["wrist_of"], stage["weight"], list(stage["carpals"])) == (
        "thin",
        0,
        ["0.0", "0.25", "0.5", "0.75", "1.0"],
    )
    assert "thin_wrist: refined classes by weight 0: " in outputs(run / "05_ensemble-0.ipynb")
    assert "off, thin stays as it is" in outputs(run / "05_ensemble-0.ipynb")
    assert "Dice" in outputs(run / "03_train-wrist.ipynb") and "of the carpals" in outputs(run / "03_train-wrist.ipynb")
    by_weight = f"0: {stage['carpals']['0.0']:.4f} 0.25: {stage['carpals']['0.25']:.4f}"
    assert f"carpals by weight {by_weight}" in outputs(run / "04_inference_tta-wrist.ipynb")
    tables = {
        name: pd.read_csv(run / f"04_inference_tta/{name}/fold0/oof_dice.csv", index_col="image_name")
        for name in ("thin", "thin_wrist")
    }
    others = [name for name in tables["thin"] if name not in CARPALS]
    assert tables["thin"][others].equals(tables["thin_wrist"][others]), "only carpals change"
    board = read_leaderboard(run).set_index(["kind", "model"])
    assert board.loc[("model", "thin_wrist"), "weight"].item() == 0
    assert pd.isna(board.loc[("fold model", "thin_wrist"), "val_dice"].item())


def test_the_analysis_judges_what_the_ensemble_scored(run):
    metrics = read_json(run / "07_analysis" / "metrics.json")
    assert metrics["oof_dice"] == pytest.approx(read_json(run / "05_ensemble" / "metrics.json")["oof_dice"])
    by_image = pd.read_csv(run / "07_analysis" / "images.csv", index_col="image_name")
    folds = pd.read_csv(run / "folds.csv", index_col="image_name")
    assert set(by_image.index) == set(folds.index[folds["fold"].isin([0, 1])])
    assert by_image["dice"].mean() == pytest.approx(metrics["oof_dice"])
    dice = pd.read_csv(run / "05_ensemble" / "oof_dice.csv", index_col="image_name")
    for name in ("hd95", "msd"):
        distances = pd.read_csv(run / "07_analysis" / f"{name}.csv", index_col="image_name")
        assert distances.to_numpy().mean() == pytest.approx(metrics[name])
        assert (distances.loc[dice.index].to_numpy()[dice.to_numpy() > 0.999999] == 0).all()
    board = pd.read_csv(run / "07_analysis" / "experiments.csv")
    assert {"thin", "thin_wrist", "ensemble", "baseline"} == set(board.loc[board["run"] == run.name, "name"])


def test_the_export_notebook_compares_formats_and_architectures(run):
    metrics = read_json(run / "10_export/thin/fold0/metrics.json")
    formats = {row["format"]: row for row in metrics["formats"]}
    assert list(formats) == ["pytorch", "onnx", "int8"] and {row["problem"] for row in formats.values()} == {""}
    assert abs(formats["onnx"]["change"]) < 1e-4 and formats["int8"]["megabytes"] < formats["onnx"]["megabytes"]
    tried = pd.read_csv(run / "10_export" / "architectures.csv", keep_default_na=False)
    assert list(tried["format"]) == ["pytorch", "torchscript", "onnx", "openvino", "int8"]
    assert set(tried["architecture"]) == {"linknet"} and set(tried["problem"]) == {""}
    assert tried["difference"].astype(float)[:4].max() < 1e-5
    assert (tried[["megabytes", "milliseconds"]].astype(float) > 0).all(axis=None)
    submitted = read_json(run / "05_ensemble" / "metrics.json")["thresholds"]
    about = read_json(run / "10_export/thin/fold0/files/config.json")
    assert dict(zip(about["classes"], about["thresholds"], strict=True)) == submitted
    text = outputs(run / "10_export-0.ipynb")
    assert "Dice 1.0000" in text and "linknet" in text and pictures(run / "10_export-0.ipynb") == 2


def test_out_of_fold_scores_are_those_of_the_folds(run):
    folds = pd.read_csv(run / "folds.csv")
    for fold in (0, 1):
        stored = {p.name.removesuffix(".npz") for p in (run / f"04_inference_tta/thin/fold{fold}/oof").glob("*.npz")}
        assert stored == set(folds.loc[folds["fold"] == fold, "image_name"])
    ensemble = read_json(run / "05_ensemble" / "metrics.json")
    single = [read_json(run / f"04_inference_tta/thin/fold{fold}/metrics.json")["oof_dice"] for fold in (0, 1)]
    sizes = folds["fold"].value_counts()
    mean = (single[0] * sizes[0] + single[1] * sizes[1]) / (sizes[0] + sizes[1])
    assert ensemble["models"]["thin"]["oof_dice"] == pytest.approx(mean, abs=1e-9)


WRONG = {
    "fold": ("first", "fold"),
    "architecture": ("unetplusplusplus", "unetplusplus"),
    "loss": ("bce_dcie", "bce_dice"),
}


@pytest.fixture(scope="module")
def refused(tmp_path_factory):
    """The errors of notebook 03 with wrong parameters, by the parameter; there is no data."""
    folder = tmp_path_factory.mktemp("wrong")
    nothing = {"data_dir": folder / "nothing", "output_dir": folder / "run"}
    steps = [("03_train", folder / "out.ipynb", nothing | {name: value}) for name, (value, _) in WRONG.items()]
    return dict(zip(WRONG, execute_all(steps, folder), strict=True))


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_parameter_stops_the_run_and_names_the_nearest(refused, name):
    assert WRONG[name][1] in refused[name].split("Error")[-1] and "no such data folder" not in refused[name]


def test_papermill_fails_and_shows_the_error(tmp_path):
    finished = papermill("03_train.ipynb", tmp_path / "out.ipynb", data_dir=tmp_path / "nothing", epoch="3")
    assert finished.returncode != 0
    assert "epochs" in finished.stderr and "no such data folder" not in finished.stderr


def test_help_explains_every_parameter():
    finished = subprocess.run(
        [PAPERMILL, "--help-notebook", "notebooks/03_train.ipynb"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    declared = json.loads((ROOT / "notebooks" / "03_train.ipynb").read_text())["cells"][1]["source"]
    for line in declared:
        name, _, help_text = line.partition("#")
        assert name.split(":")[0] in finished.stdout and help_text.strip()[:30] in finished.stdout.replace("\n", " ")
