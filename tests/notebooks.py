"""Running notebooks by papermill as a person types it, for the tests."""

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
