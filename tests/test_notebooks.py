"""Every notebook, executed by papermill on a tiny sample, as a person types it."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pandas as pd
import pytest

from utils.files import ROOT, read_json
from utils.submission import check

PAPERMILL = Path(sys.executable).with_name("papermill")
QUICK = {
    "image_size": 64,
    "epochs": 1,
    "n_folds": 3,
    "architecture": "deeplabv3plus",
    "encoder": "tu-mobilenetv3_small_050",
}
ZOO = {
    "architectures": ["linknet", "deeplabv3plus"],
    "cost_size": 64,
    "image_size": 64,
    "epochs": 1,
    "cam_size": 64,
    "cam_epochs": 1,
}


def papermill(notebook, output, cwd=ROOT, **parameters):
    """Run `papermill` in a shell's way; the finished process."""
    given = [text for name, value in parameters.items() for text in ("-p", name, str(value))]
    path = notebook if cwd != ROOT else f"notebooks/{notebook}"
    command = [PAPERMILL, path, output, "--no-progress-bar", *given]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


def outputs(path):
    """All text that an executed notebook shows."""
    cells = nbformat.read(path, as_version=4).cells
    shown = [output for cell in cells for output in cell.get("outputs", [])]
    return "\n".join(str(o.get("text", "")) + str(o.get("data", {}).get("text/plain", "")) for o in shown)


def pictures(path):
    """Number of pictures in an executed notebook."""
    cells = nbformat.read(path, as_version=4).cells
    return sum("image/png" in o.get("data", {}) for cell in cells for o in cell.get("outputs", []))


@pytest.fixture(scope="module")
def run(sample, tmp_path_factory):
    """A run's folder in which 01, 02, 03 and 04 (two folds, and everything), 05 and 06 were executed in turn."""
    folder = tmp_path_factory.mktemp("run")
    common = {"data_dir": sample, "output_dir": folder, "n_folds": 3}
    steps = [
        ("01_eda", {"examples": 2}),
        ("02_baseline_fcn", {"image_size": 64, "epochs": 1, "batch_size": 4}),
        *(("03_train", QUICK | {"fold": fold, "model": "thin"}) for fold in (0, 1, -1)),
        *(("04_inference_tta", {"fold": fold, "examples": 1}) for fold in (0, 1, -1)),
        ("05_ensemble", {"examples": 1, "tune_thresholds": True}),
        ("06_model_zoo", ZOO),
    ]
    for name, parameters in steps:
        output = folder / f"{name}-{parameters.get('fold', 0)}.ipynb"
        finished = papermill(f"{name}.ipynb", output, **(common | parameters))
        assert finished.returncode == 0, finished.stderr[-3000:]
    return folder


@pytest.mark.parametrize(
    ("step", "keys"),
    [
        ("01_eda", {"multi_label"}),
        ("02_baseline_fcn", {"val_dice", "test_dice", "submission"}),
        ("03_train/thin/fold0", {"val_dice", "model", "fold"}),
        ("03_train/thin/fold1", {"val_dice", "model", "fold"}),
        ("04_inference_tta/thin/fold0", {"oof_dice", "test_dice"}),
        ("04_inference_tta/thin/fold1", {"oof_dice", "test_dice"}),
        ("05_ensemble", {"oof_dice", "test_dice", "models", "submission", "thresholds"}),
        ("06_model_zoo", {"models", "cam"}),
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
    assert read_json(run / step / "submission.json")["submission"].endswith("submission.csv")


def test_the_notebooks_tell_their_findings(run):
    assert "wrist" in outputs(run / "01_eda-0.ipynb") and pictures(run / "01_eda-0.ipynb") >= 8
    assert "best validation Dice" in outputs(run / "03_train-0.ipynb") and pictures(run / "03_train-0.ipynb") >= 4
    assert "out-of-fold Dice" in outputs(run / "04_inference_tta-0.ipynb")
    assert "complete and in order" in outputs(run / "05_ensemble-0.ipynb")
    assert "lies inside its bone" in outputs(run / "06_model_zoo-0.ipynb")
    compared = {model["architecture"]: model for model in read_json(run / "06_model_zoo" / "metrics.json")["models"]}
    assert compared.keys() == set(ZOO["architectures"]) and pictures(run / "06_model_zoo-0.ipynb") == 3
    assert all(0 <= model["dice"] <= 1 and model["multiply_adds"] > 0 for model in compared.values())


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


def test_papermill_inside_notebooks_and_earlier_steps_run_by_themselves(sample, tmp_path):
    run = tmp_path / "run"
    finished = papermill(
        "04_inference_tta.ipynb",
        tmp_path / "04.ipynb",
        cwd=ROOT / "notebooks",
        data_dir=sample,
        output_dir=run,
        model="none",
    )
    assert finished.returncode != 0 and "no model 'none'" in finished.stderr
    earlier = papermill(
        "03_train.ipynb", tmp_path / "03.ipynb", cwd=ROOT / "notebooks", data_dir=sample, output_dir=run, **QUICK
    )
    assert earlier.returncode == 0, earlier.stderr[-3000:]
    finished = papermill(
        "05_ensemble.ipynb", tmp_path / "05.ipynb", data_dir=sample, output_dir=run, n_folds=3, examples=1
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    assert "running notebooks/04_inference_tta.ipynb first" in outputs(tmp_path / "05.ipynb")


@pytest.mark.parametrize(
    ("parameter", "value", "nearest"),
    [
        ("epoch", "3", "epochs"),
        ("fold", "first", "fold"),
        ("architecture", "unetplusplusplus", "unetplusplus"),
        ("loss", "bce_dcie", "bce_dice"),
    ],
)
def test_a_wrong_parameter_stops_the_run_and_names_the_nearest(tmp_path, parameter, value, nearest):
    finished = papermill("03_train.ipynb", tmp_path / "out.ipynb", data_dir=tmp_path / "nothing", **{parameter: value})
    assert finished.returncode != 0
    error = finished.stderr.split("Error")[-1] if parameter == "loss" else finished.stderr
    assert nearest in error and "no such data folder" not in finished.stderr


def test_help_explains_every_parameter():
    finished = subprocess.run(
        [PAPERMILL, "--help-notebook", "notebooks/03_train.ipynb"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    declared = json.loads((ROOT / "notebooks" / "03_train.ipynb").read_text())["cells"][1]["source"]
    for line in declared:
        name, _, help_text = line.partition("#")
        assert name.split(":")[0] in finished.stdout and help_text.strip()[:30] in finished.stdout.replace("\n", " ")


OWN_LINES = {
    "criterion": "lambda logits, labels: ((logits.sigmoid() - labels) ** 2).mean()",
    "augmenter": '__import__("albumentations").Compose([__import__("albumentations").Rotate((-9, 9))])',
    "network": "torch.nn.Conv2d(3, len(run.classes), 5, padding=2)",
}


@pytest.mark.parametrize("part", OWN_LINES)
def test_a_replaced_line_is_trained(sample, tmp_path, part):
    book = nbformat.read(ROOT / "notebooks" / "03_train.ipynb", as_version=4)
    (cell,) = (cell for cell in book.cells if cell.get("id") == "parts")
    lines = cell.source.splitlines()
    (number,) = (i for i, line in enumerate(lines) if line.startswith(f"{part} = "))
    lines[number] = f"{part} = {OWN_LINES[part]}"
    cell.source = "\n".join(lines)
    nbformat.write(book, tmp_path / "own.ipynb")
    given = {"data_dir": sample, "output_dir": tmp_path / "run", "model": "own", **QUICK}
    command = [PAPERMILL, tmp_path / "own.ipynb", tmp_path / "out.ipynb", "--no-progress-bar"]
    command += [text for name, value in given.items() for text in ("-p", name, str(value))]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    folder = tmp_path / "run" / "03_train" / "own" / "fold0"
    assert 0 <= read_json(folder / "metrics.json")["val_dice"] <= 1
    inline = read_json(folder / "best" / "config.json")["architecture"] == ""
    assert inline == (part == "network")
    if inline:
        common = {"data_dir": sample, "output_dir": tmp_path / "run", "n_folds": 3, "model": "own"}
        refused = papermill("04_inference_tta.ipynb", tmp_path / "04.ipynb", **common)
        assert refused.returncode and "given inline" in refused.stderr and "@register_model(" in refused.stderr


OWN_PROFILE = """
threads: 1
parameters: {n_folds: 3, plugins: [notebooks/plugins/example.py]}
train: {image_size: 64, epochs: 2, loss: bce + 0.5*soft_iou, augmentation: wobble, optimizer: radam, schedule: drops}
models: {mine: {architecture: small_net, model_options: {width: 8}}}
predict: {tta: brighter}
"""


def test_the_example_plugin_runs_through_run_all(sample, tmp_path):
    for name in ("run_all.sh", "requirements.txt"):
        shutil.copy(ROOT / name, tmp_path)
    for name in ("utils", "notebooks"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / ".venv").symlink_to(ROOT / ".venv")
    (tmp_path / "notebooks" / "profiles" / "own.yaml").write_text(OWN_PROFILE)
    command = ["bash", tmp_path / "run_all.sh", "--profile", "own", "--data", str(sample)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]
    run = tmp_path / "outputs" / f"own-{sample.name}"
    config = read_json(run / "03_train" / "mine" / "fold0" / "best" / "config.json")
    assert (config["architecture"], config["plugin"]) == ("small_net", "notebooks/plugins/example.py")
    assert check(tmp_path / "submissions" / f"{run.name}.csv", sample) == []
    loose = {"data_dir": sample, "output_dir": run, "n_folds": 3, "model": "mine", "tta": "none"}
    refused = papermill("04_inference_tta.ipynb", tmp_path / "04.ipynb", **loose)
    assert refused.returncode and "-p plugins '[notebooks/plugins/example.py]'" in refused.stderr
