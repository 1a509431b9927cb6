"""YOLO by ultralytics: notebook 09 in an environment of its own, its table, its store, the vote, resume, no network."""

import importlib.util
import re
import signal
import subprocess
import time

import pandas as pd
import pytest
import torch

from tests.notebooks import papermill, pictures
from tests.yolo import Environment, make_shapes
from utils.files import ROOT, Problems, read_json
from utils.formats import coco_rle
from utils.formats.predicted import results_of_instances
from utils.inference.ensemble import find_fold_models
from utils.inference.predict_yolo import COLUMNS
from utils.models.instances import Instances
from utils.models.yolo import HELP
from utils.pipeline.leaderboard import read_leaderboard
from utils.pipeline.steps import Step
from utils.pipeline.try_parts import try_parts
from utils.training.train_yolo import YoloSettings

LEARNT = {"epochs": 30, "lr": "5e-3", "n_folds": 3, "image_size": 96, "batch_size": 2, "device": "cpu"}
SETTINGS = """
import sys
from pathlib import Path

import torch

from utils.files import ROOT
from utils.formats.yolo_dataset import to_yolo
from utils.pipeline.run import start_run
from utils.training.train_yolo import YoloSettings, train_yolo

output = Path(sys.argv[1])
run = start_run({"data_dir": sys.argv[2], "output_dir": sys.argv[1], "n_folds": 3, "seed": 0}, "09_yolo")
data = run.fold_data(0, 64)
if not (output / "data").exists():
    to_yolo(run.data_dir, output / "data", output / "folds.csv", 0)
for lr in map(float, sys.argv[3:]):
    settings = YoloSettings(epochs=5, image_size=64, batch_size=4, lr=lr)
    train_yolo("yolo11n-seg", output / "data" / "dataset.yaml", data, settings, output / "trained", torch.device("cpu"))
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    environment = Environment(tmp_path_factory.mktemp("ultralytics"))
    yield environment
    assert not environment.network.exists(), f"the network was asked for {environment.network.read_text()}"


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    return make_shapes(tmp_path_factory.mktemp("data") / "shapes")


def execute(environment, folder, name, **parameters):
    """Run a notebook by papermill in the environment with ultralytics; the executed notebook."""
    output = folder / f"{name}-{parameters.get('model', '')}.ipynb"
    given = [str(text) for pair in parameters.items() for text in ("-p", *pair)]
    command = ["-m", "papermill", f"notebooks/{name}.ipynb", output, "--no-progress-bar", *given]
    environment.run("python", *command, cwd=ROOT)
    return output


@pytest.fixture(scope="module")
def made(environment, shapes, tmp_path_factory):
    """A run with an instance and a semantic YOLO model of fold 0, and their vote."""
    folder = tmp_path_factory.mktemp("run")
    common = {"data_dir": shapes, "output_dir": folder, "n_folds": 3}
    execute(environment, folder, "09_yolo", **LEARNT | common, model="instances", network="yolo26n-seg")
    more = {"network": "yolo26n-sem", "epochs": 4, "export_format": "torchscript", "flip": "off"}
    execute(environment, folder, "09_yolo", **LEARNT | common | more, model="semantic")
    finished = papermill("05_ensemble.ipynb", folder / "05.ipynb", examples=1, **common)
    assert finished.returncode == 0, finished.stderr[-3000:]
    return folder


@pytest.mark.slow
def test_the_variant_of_ultralytics_keeps_this_cv2(environment):
    import cv2

    found = environment.run("python", "-c", "import cv2; print(cv2.__file__, cv2.__version__)")
    assert found.split() == [cv2.__file__, cv2.__version__]


@pytest.mark.slow
def test_the_projects_own_profile_passes(environment):
    script = (
        "from utils.pipeline.profile import profile_path, steps\nfrom utils.pipeline.try_parts import try_parts\n"
        'found, _ = try_parts(steps(profile_path("yolo"), "yolo", "data/sample"), ["bone", "ring"], 80)\nprint(found)'
    )
    assert environment.run("python", "-c", script, cwd=ROOT).splitlines()[-1] == "[]"


@pytest.mark.slow
def test_the_notebook_gives_what_other_fold_models_give(made, shapes):
    folds = pd.read_csv(made / "folds.csv")
    held_out = set(folds.loc[folds["fold"] == 0, "image_name"])
    for model in ("instances", "semantic"):
        folder = made / "09_yolo" / model / "fold0"
        stored = {
            kind: {p.name.removesuffix(".npz") for p in (folder / kind).glob("*.npz")} for kind in ("oof", "test")
        }
        assert stored == {"oof": held_out, "test": {p.name for p in shapes.glob("test/DCM/*/*.png")}}
        metrics = read_json(folder / "metrics.json")
        dice = pd.read_csv(folder / "oof_dice.csv", index_col="image_name")
        assert metrics["oof_dice"] == pytest.approx(dice.to_numpy().mean())
        assert pictures(made / f"09_yolo-{model}.ipynb") == 3
    assert read_json(made / "09_yolo/instances/fold0/metrics.json")["oof_dice"] > 0.5
    assert list((made / "09_yolo/semantic/fold0/export").glob("*.torchscript"))


@pytest.mark.slow
def test_yolo_votes_and_stands_on_the_leaderboard(made):
    found = {m.model: m.config for m in find_fold_models(made)}
    assert found.keys() == {"instances", "semantic"} and found["instances"].architecture == "ultralytics/yolo26n-seg"
    ensemble = read_json(made / "05_ensemble" / "metrics.json")
    board = read_leaderboard(made)
    for model in found:
        alone = read_json(made / "09_yolo" / model / "fold0" / "metrics.json")
        assert ensemble["models"][model]["oof_dice"] == pytest.approx(alone["oof_dice"])
        row = board[(board["kind"] == "fold model") & (board["model"] == model)].iloc[0]
        assert row["oof_dice"] == pytest.approx(alone["oof_dice"]) and row["minutes"] > 0


@pytest.mark.slow
def test_the_table_is_that_of_ultralytics_own_validation(environment, made, tmp_path):
    folder = made / "09_yolo" / "instances" / "fold0"
    given = {"model": folder / "best/yolo.pt", "data": folder / "data/dataset.yaml", "imgsz": 96, "batch": 2}
    given |= {"device": "cpu", "overlap_mask": False, "plots": False, "project": tmp_path}
    variables = environment.variables() | {"YOLO_OFFLINE": "1", "YOLO_CONFIG_DIR": str(ROOT / "outputs/.ultralytics")}
    command = [environment.bin / "yolo", "segment", "val", *(f"{name}={value}" for name, value in given.items())]
    printed = subprocess.run(command, env=variables, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    table = pd.read_csv(folder / "scores.csv").set_index("class")
    number = r"\s+([\d.e-]+)"
    for name, row in table.iterrows():
        line = re.search(rf"^\s*{name}{number * (2 + len(COLUMNS))}\s*$", printed, re.MULTILINE)
        assert line, printed
        expected = [f"{row[column]:.3g}" for column in COLUMNS]
        assert [float(text) for text in line.groups()] == [row["images"], row["instances"], *map(float, expected)]
    assert 0.3 < table.loc["all", "mask mAP50"] <= 1 and 0.3 < table.loc["all", "COCO mask mAP50"] <= 1
    assert table.loc["all", "Dice"] == pytest.approx(read_json(folder / "metrics.json")["oof_dice"])


@pytest.mark.slow
def test_an_interrupted_training_goes_on_and_another_one_starts_anew(environment, shapes, tmp_path):
    command = [environment.bin / "python", "-c", SETTINGS, tmp_path, shapes]
    more = {"env": environment.variables(), "cwd": ROOT, "text": True, "stdout": subprocess.PIPE}
    process = subprocess.Popen([*command, "1e-3"], stderr=subprocess.STDOUT, **more)
    end = time.monotonic() + 120
    while not (tmp_path / "trained" / "resume.pt").exists():
        assert process.poll() is None and time.monotonic() < end, process.communicate()[0]
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    reached = len(pd.read_csv(tmp_path / "trained" / "history.csv"))
    done = subprocess.run([*command, "1e-3", "1e-3", "2e-3"], stderr=subprocess.STDOUT, check=False, **more)
    assert done.returncode == 0, done.stdout[-3000:]
    assert re.findall(r"going on after epoch \d|nothing is trained again|results are now in", done.stdout) == [
        f"going on after epoch {reached}",
        "nothing is trained again",
        "results are now in",
    ]
    for folder in (tmp_path / "trained", tmp_path / "previous" / "trained-1"):
        assert (folder / "best" / "yolo.pt").is_file()
        assert pd.read_csv(folder / "history.csv")["epoch"].tolist() == [1, 2, 3, 4, 5]
    assert not list((tmp_path / "trained").glob("resume*"))


@pytest.mark.slow
def test_a_question_to_the_network_would_be_seen(environment, tmp_path):
    variables = environment.variables() | {"NETWORK_LOG": str(tmp_path / "log")}
    command = [environment.bin / "python", "-c", "import socket; socket.create_connection(('192.0.2.1', 80))"]
    asked = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
    assert "no network in this test" in asked.stderr and (tmp_path / "log").read_text() == "192.0.2.1\n"


@pytest.mark.skipif(importlib.util.find_spec("ultralytics") is not None, reason="ultralytics is installed here")
def test_without_ultralytics_one_line_says_what_to_do(sample, tmp_path):
    finished = papermill("09_yolo.ipynb", tmp_path / "out.ipynb", data_dir=sample, output_dir=tmp_path / "run")
    assert finished.returncode != 0 and finished.stderr.rstrip().endswith(f"ModelError: {HELP}")
    steps = [Step(name=f"09_yolo/y/fold{fold}", parameters={"fold": fold}) for fold in (0, 1)]
    assert try_parts(steps, ["bone"], 8) == ([f"09_yolo y: {HELP}"], {})  # before a run starts


@pytest.mark.slow
def test_networks_and_options_are_checked_before_anything_is_spent(environment, tmp_path):
    (tmp_path / "broken.pt").write_bytes(b"no weights")
    script = """
import sys
from utils.models.yolo import open_yolo
from utils.training.train_yolo import check_yolo_options
for name in sys.argv[1:]:
    try:
        print(open_yolo(name).task)
    except ValueError as error:
        print(type(error).__name__, error)
try:
    check_yolo_options({"mosiac": 1.0})
except Exception as error:
    print(error)
"""
    names = ["yolov8n-seg", "yolo26x-sem", "yolo11n-sge", "missing.pt", str(tmp_path / "broken.pt")]
    lines = environment.run("python", "-c", script, *names, cwd=ROOT)
    assert lines.startswith("segment\nsemantic\n") and "did you mean yolo11n-seg" in lines
    assert "missing.pt is missing" in lines and "broken.pt is no model that ultralytics can open" in lines
    assert "'mosiac' is not a valid YOLO argument" in lines and "mosaic" in lines


def test_instances_become_coco_results_at_full_size():
    masks = torch.zeros(2, 4, 8)
    masks[0, 1:3, 2:6] = 1
    boxes = torch.tensor([[2.0, 1.0, 6.0, 3.0], [0.0, 0.0, 1.0, 1.0]])
    found = Instances(boxes, torch.tensor([1, 0]), torch.tensor([0.75, 0.5]), masks)
    (result,) = results_of_instances(found, "a.png", (16, 32))
    assert (result["image_id"], result["category_id"], result["score"]) == ("a.png", 2, 0.75)
    assert result["bbox"] == [8.0, 4.0, 16.0, 8.0] and result["segmentation"]["size"] == [16, 32]
    mask, corner = coco_rle.decode_coco(result["segmentation"])
    assert corner == (4, 8) and mask.shape == (8, 16) and mask[1:-1].all()


def test_settings_that_other_parameters_set_are_refused():
    with pytest.raises(Problems) as caught:
        YoloSettings(image_size=100, options={"imgsz": 64, "overlap_mask": True, "degrees": 10})
    assert [problem.partition(":")[0] for problem in caught.value.problems] == [
        "options.imgsz",
        "options.overlap_mask",
        "image_size = 100",
    ]
    arguments = YoloSettings(options={"degrees": 10}).arguments(torch.device("cpu"), flip=False)
    assert (arguments["overlap_mask"], arguments["degrees"], arguments["fliplr"]) == (False, 10, 0.0)
