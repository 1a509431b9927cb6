"""A small repository with quick notebooks, to test the run itself: what reruns, what goes on, what is reported."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import nbformat
import numpy as np

from utils.files import ROOT

COMMON = """
data_dir: str = ""  # data
output_dir: str = "outputs/try"  # run
n_folds: int = 5  # folds
plugins: list = []  # files
label_fixes: str = ""  # file
"""
OF_FOLD = COMMON + 'model: str = ""  # name\nfold: int = 0  # fold\n'
TRAINING = """
epochs: int = 1  # epochs
lr: float = 1e-3  # rate
architecture: str = "unet"  # name
loss: str = "bce"  # name
init_checkpoint: str = ""  # folder
wrist_of: str = ""  # name
num_workers: int = 0  # processes
"""

BODY = """
import json, os, sys, time
from pathlib import Path
sys.path.insert(0, os.getcwd())
from utils.params import check_parameters
parameters = check_parameters(globals())
from utils.files import resolve, write_json, read_json
folder = resolve(output_dir) / STEP
print("at work in", folder.name)
with open(resolve(output_dir) / "diary.txt", "a") as diary:
    diary.write(STEP + "\\n")
"""

END = 'write_json(folder / "metrics.json", {"step": STEP, "minutes": 0.1, "parameters": parameters, **scores})'

NOTEBOOKS = {
    "01_eda": (COMMON, 'STEP = "01_eda"\n', "scores = {}"),
    "03_train": (
        OF_FOLD + TRAINING,
        'STEP = f"03_train/{model}/fold{fold}"\n',
        """
if lr > 1:
    raise ValueError("the loss is not finite")
checkpoint = folder / "last.ckpt"
first = int(checkpoint.read_text()) + 1 if checkpoint.exists() else 0
for epoch in range(first, epochs):
    with open(resolve(output_dir) / "diary.txt", "a") as diary:
        diary.write(f"{STEP} epoch {epoch}\\n")
    time.sleep(0.3)
    checkpoint.write_text(str(epoch))
scores = {"val_dice": 0.9 + fold / 100, "model": model, "fold": fold}""",
    ),
    "04_inference_tta": (
        OF_FOLD + 'tta: str = "hflip"  # flips\n',
        'STEP = f"04_inference_tta/{model}/fold{fold}"\n',
        'scores = {"oof_dice": 0.91 + fold / 100, "test_dice": 0.905, "model": model, "fold": fold}',
    ),
    "08_instances": (
        OF_FOLD,
        'STEP = f"08_instances/{model}/fold{fold}"\n',
        'scores = {"val_dice": 0.9, "model": model, "fold": fold}',
    ),
    "09_yolo": (
        OF_FOLD + 'network: str = "yolo11n-seg"  # name\nepochs: int = 1  # epochs\n',
        'STEP = f"09_yolo/{model}/fold{fold}"\n',
        'scores = {"val_dice": 0.88, "oof_dice": 0.88, "test_dice": 0.87, "model": model, "fold": fold}',
    ),
    "05_ensemble": (
        COMMON
        + 'models: list = []  # names\nsubmission: str = ""  # path\nmissing: dict = {}  # reasons\n'
        + "weights: list = []  # numbers\ntune_weights: bool = True  # choose\n",
        'STEP = "05_ensemble"\n',
        """
Path(submission).parent.mkdir(exist_ok=True)
Path(submission).write_text("image_name,class,rle\\n")
of_models = {m: {"oof_dice": 0.915, "test_dice": 0.905, "weight": 1.0} for m in models}
voters = [str(path.parent) for path in resolve(output_dir).glob("0[49]_*/*/*/metrics.json")]
scores = {"oof_dice": 0.92, "test_dice": 0.91, "models": of_models, "submission": submission}
scores |= {"missing": missing, "fold_models": voters}""",
    ),
    "07_analysis": (
        COMMON + "worst: int = 2  # images\n",
        'STEP = "07_analysis"\n',
        """
if worst < 0:
    raise ValueError("no worst image")
(folder / "scores.csv").write_text("on,images,people,dice,low,high\\nall images,8,4,0.92,0.9,0.94\\n")
verdict = "quick/ensemble beats quick/thin by 0.0012 [0.0004, 0.0021]"
scores = {"result": "quick/ensemble", "wrists": "57% are bent", "verdicts": [verdict]}""",
    ),
}

PROFILE = """
threads: 1
jobs: 2
parameters: {n_folds: 2}
folds: [0]
train: {epochs: 6, lr: 1e-3}
models: {thin: {architecture: unet}}
predict: {tta: hflip}
"""


NO_TRIAL = """
import sys

from utils.files import read_json, write_json

write_json(sys.argv[1], {"key": read_json(sys.argv[1])["key"], "problems": [], "parameters": {}})
"""
"""In place of try_parts.py, which imports torch: the quick notebooks train nothing."""


def make_repository(root: Path, try_parts: bool = False, kernels: bool = False) -> Path:
    """A repository below `root` with the pipeline's modules, quick notebooks and the profile `quick`."""
    shutil.copytree(ROOT / "utils", root / "utils", ignore=shutil.ignore_patterns("__pycache__"))
    if not try_parts:
        (root / "utils" / "pipeline" / "try_parts.py").write_text(NO_TRIAL)
    if not kernels:
        (root / "papermill").mkdir()
        shutil.copy(Path(__file__).with_name("quick_papermill.py"), root / "papermill" / "__init__.py")
        (root / "papermill" / "iorw.py").write_text("from papermill import LocalHandler, papermill_io\n")
    (root / "notebooks" / "profiles").mkdir(parents=True)
    shutil.copy(ROOT / "notebooks" / "Snakefile", root / "notebooks")
    (root / "notebooks" / "profiles" / "quick.yaml").write_text(PROFILE)
    for name, (parameters, step, work) in NOTEBOOKS.items():
        add_notebook(root, name, parameters, step, work)
    return root


def add_notebook(root: Path, name: str, parameters: str, step: str, work: str) -> None:
    """Write a quick notebook: its parameters cell, what sets STEP, and what sets the scores that it hands on."""
    cells = [nbformat.v4.new_markdown_cell(f"# {name}"), nbformat.v4.new_code_cell(parameters.strip())]
    cells += [nbformat.v4.new_code_cell(text.strip()) for text in (step + BODY, work, END)]
    cells[1].metadata["tags"] = ["parameters"]
    book = nbformat.v4.new_notebook(cells=cells)
    book.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(book, root / "notebooks" / f"{name}.ipynb")


def make_data(folder: Path) -> Path:
    """Two people for training and one for test, in the competition's layout, with one class."""
    for split, people in (("train", ("ID001", "ID002")), ("test", ("ID003",))):
        for person in people:
            image = folder / split / "DCM" / person / f"image{person}.png"
            image.parent.mkdir(parents=True)
            cv2.imwrite(str(image), np.full((32, 32), 128, np.uint8))
            if split == "train":
                points = [[4, 4], [20, 4], [20, 20]]
                annotation = {"annotations": [{"type": "poly_seg", "points": points, "label": "bone"}]}
                path = folder / split / "outputs_json" / person / f"image{person}.json"
                path.parent.mkdir(parents=True)
                path.write_text(json.dumps(annotation))
    (folder / "classes.txt").write_text("bone\n")
    return folder


class FakeRun:
    """One run of the small repository: start it, see what it did.

    try_parts: with the real trial of all parts. kernels: each notebook by papermill, in a kernel of its own.
    """

    def __init__(self, root: Path, try_parts: bool = False, kernels: bool = False):
        self.root = make_repository(root / "a repository", try_parts, kernels)
        self.data = make_data(root / "the data")
        self.run = self.root / "outputs" / "quick-the data"
        self.diary = self.run / "diary.txt"
        self.command = [sys.executable, "-m", "utils.pipeline", "--profile", "quick", "--data", str(self.data)]
        self.environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}

    def save(self, folder: Path) -> None:
        """Keep a copy of repository and data, which `restore` puts back."""
        self.saved = folder
        for name in (self.root, self.data):
            shutil.copytree(name, folder / name.name)

    def restore(self) -> None:
        for name in (self.root, self.data):
            shutil.rmtree(name)
            shutil.copytree(self.saved / name.name, name)

    def tree(self) -> dict[str, int]:
        """Every file below outputs/ and submissions/ with its time."""
        folders = (self.root / "outputs", self.root / "submissions")
        files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
        return {str(path): path.stat().st_mtime_ns for path in files if path.name != ".lock"}

    def begin(self, *options: str) -> subprocess.Popen:
        return subprocess.Popen(
            [*self.command, *options],
            cwd=self.root,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def start(self, *options: str) -> tuple[int, str, list[str]]:
        """Exit status, what it printed, and the diary's new lines: the steps that were executed."""
        before = len(self.lines())
        process = self.begin(*options)
        output, _ = process.communicate(timeout=900)
        return process.returncode, output, self.lines()[before:]

    def lines(self) -> list[str]:
        return self.diary.read_text().splitlines() if self.diary.exists() else []

    def edit(self, path: str, old: str, new: str) -> None:
        text = (self.root / path).read_text()
        assert old in text
        (self.root / path).write_text(text.replace(old, new))
