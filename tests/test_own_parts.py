"""Notebooks with parts of one's own, as objects and from a plugin, and notebooks that start earlier ones."""

import shutil
import subprocess

import nbformat
import pandas as pd
import pytest

from tests.execute import execute_all
from tests.notebooks import QUICK, outputs
from utils.files import ROOT, read_json
from utils.submission import check


def test_papermill_inside_notebooks_and_earlier_steps_run_by_themselves(sample, tmp_path):
    """Started in notebooks/, as JupyterLab does."""
    common = {"data_dir": sample, "output_dir": tmp_path / "run"}
    steps = [
        ("04_inference_tta", tmp_path / "04.ipynb", common | {"model": "none"}),
        ("03_train", tmp_path / "03.ipynb", common | QUICK),
        ("05_ensemble", tmp_path / "05.ipynb", common | {"n_folds": 3, "examples": 1}),
    ]
    missing, *others = execute_all(steps, tmp_path, cwd=ROOT / "notebooks")
    assert "no model 'none'" in missing and others == ["", ""]
    assert "running notebooks/04_inference_tta.ipynb first" in outputs(tmp_path / "05.ipynb")
    assert (tmp_path / "run" / "04_inference_tta" / "04_inference_tta.ipynb").exists()


OWN_LINES = {
    "criterion": "lambda logits, labels: ((logits.sigmoid() - labels) ** 2).mean()",
    "augmenter": '__import__("albumentations").Compose([__import__("albumentations").Rotate((-9, 9))])',
    "network": "torch.nn.Conv2d(3, len(run.classes), 5, padding=2)",
}


OWN_ARGUMENTS = {
    "metric": """
from utils.masks.dice import dice_of_masks
def worst_class(predicted, true):
    return dice_of_masks(predicted, true).min()
worst_class.version = 1
""",
    "module": """
from utils.training.fit import TrainingModule
class Doubled(TrainingModule):
    version = 1
    def training_step(self, batch, index):
        return 2 * super().training_step(batch, index)
""",
    "callbacks": """
from lightning import Callback
class Diary(Callback):
    version = 1
    def on_train_epoch_end(self, trainer, module):
        with (folder / "diary.txt").open("a") as file:
            file.write(f"{module.rate():.3g} ")
""",
}
"""What is written before `fit` in notebook 03, at most ten lines, for an argument of it."""
PASSED = {"metric": "worst_class", "module": "Doubled", "callbacks": "[Diary()]"}


@pytest.fixture(scope="module")
def own(sample, tmp_path_factory):
    """A run in which notebook 03 was executed with each of OWN_LINES and OWN_ARGUMENTS in turn, and 04's error with its
    own network."""
    folder = tmp_path_factory.mktemp("own")
    common = {"data_dir": sample, "output_dir": folder / "run"}
    steps = []
    for part, code in OWN_LINES.items():
        book = nbformat.read(ROOT / "notebooks" / "03_train.ipynb", as_version=4)
        (cell,) = (cell for cell in book.cells if cell.get("id") == "parts")
        lines = cell.source.splitlines()
        (number,) = (i for i, line in enumerate(lines) if line.startswith(f"{part} = "))
        lines[number] = f"{part} = {code}"
        cell.source = "\n".join(lines)
        nbformat.write(book, folder / f"{part}.ipynb")
        steps.append((folder / f"{part}.ipynb", folder / f"out-{part}.ipynb", common | QUICK | {"model": part}))
    for name, code in OWN_ARGUMENTS.items():
        book = nbformat.read(ROOT / "notebooks" / "03_train.ipynb", as_version=4)
        (cell,) = (cell for cell in book.cells if "result = fit(" in cell.source)
        cell.source = code + cell.source.replace("settings, folder)", f"settings, folder, {name}={PASSED[name]})")
        nbformat.write(book, folder / f"{name}.ipynb")
        steps.append((folder / f"{name}.ipynb", folder / f"out-{name}.ipynb", common | QUICK | {"model": name}))
    steps.append(("04_inference_tta", folder / "04.ipynb", common | {"n_folds": 3, "model": "network"}))
    return folder / "run", execute_all(steps, folder)


@pytest.mark.parametrize("part", OWN_LINES)
def test_a_replaced_line_is_trained(own, part):
    run, errors = own
    assert errors[list(OWN_LINES).index(part)] == ""
    folder = run / "03_train" / part / "fold0"
    assert 0 <= read_json(folder / "metrics.json")["val_dice"] <= 1
    inline = read_json(folder / "best" / "config.json")["architecture"] == ""
    assert inline == (part == "network")


@pytest.mark.parametrize("name", OWN_ARGUMENTS)
def test_an_own_metric_module_and_callback_take_at_most_ten_lines(own, name):
    run, errors = own
    assert errors[len(OWN_LINES) + list(OWN_ARGUMENTS).index(name)] == ""
    assert len(OWN_ARGUMENTS[name].strip().splitlines()) <= 10
    folder = run / "03_train" / name / "fold0"
    history = pd.read_csv(folder / "history.csv")
    metric = read_json(folder / "best" / "config.json")["metric"]
    if name == "metric":
        assert metric == "worst_class" and (history["val_worst_class"] <= history["val_dice"]).all()
    elif name == "callbacks":
        assert len((folder / "diary.txt").read_text().split()) == len(history) and metric == "dice"
    else:
        plain = pd.read_csv(run / "03_train" / "callbacks" / "fold0" / "history.csv")
        assert history["val_dice"].between(0, 1).all()
        assert history["loss"].iloc[0] == pytest.approx(plain["loss"].iloc[0], rel=0.2), (
            "the history has the plain loss"
        )


def test_a_network_given_inline_is_refused_later_with_what_to_write(own):
    assert "given inline" in own[1][-1] and "@register_model(" in own[1][-1]


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
    (refused,) = execute_all([("04_inference_tta", tmp_path / "04.ipynb", loose)], tmp_path)
    assert "-p plugins '[notebooks/plugins/example.py]'" in refused
