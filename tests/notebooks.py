"""The run of all notebooks that tests share, and running one by papermill as a person types it."""

import subprocess
import sys
from pathlib import Path

import nbformat

from utils.files import ROOT

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
EXPORT = {
    "formats": ["onnx", "int8"],
    "calibration_images": 4,
    "images": 2,
    "architectures": ["linknet"],
    "architecture_size": 32,
}


def shared_steps(sample, folder):
    """Notebook, executed notebook and parameters of each step of the run that all tests share.

    01, 02, 03 and 04 (two folds, all, and a wrist stage), 05, 06, 07, 08 and 10, in turn.
    """
    common = {"data_dir": str(sample), "output_dir": str(folder), "n_folds": 3}
    wrist = {"image_size": 96, "crop": 48, "wrist_of": "thin"}
    steps = [
        ("01_eda", {"examples": 2}),
        ("02_baseline_fcn", {"image_size": 64, "epochs": 1, "batch_size": 4, "precision": "32-true"}),
        *(("03_train", QUICK | {"fold": fold, "model": "thin"}) for fold in (0, 1, -1)),
        *(("04_inference_tta", {"fold": fold, "examples": 1}) for fold in (0, 1, -1)),
        ("03_train", QUICK | wrist | {"fold": 0, "model": "thin_wrist"}),
        ("04_inference_tta", {"fold": 0, "model": "thin_wrist", "examples": 1}),
        ("05_ensemble", {"examples": 1, "tune_thresholds": True}),
        ("06_model_zoo", ZOO),
        ("07_analysis", {"worst": 1, "bent_share": 0.5, "ablation": "thin", "against": [f"{folder}/thin"]}),
        ("08_instances", {"examples": 1}),
        ("10_export", EXPORT),
    ]
    made = []
    for name, parameters in steps:
        kind = "wrist" if "wrist" in parameters.get("model", "") else parameters.get("fold", 0)
        made.append((name, folder / f"{name}-{kind}.ipynb", common | parameters))
    return made


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
