"""Notebooks with parts of one's own, as objects and from a plugin, and notebooks that start earlier ones."""

import shutil
import subprocess

import nbformat
import pytest

from tests.notebooks import PAPERMILL, QUICK, outputs, papermill
from utils.files import ROOT, read_json
from utils.submission import check


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
