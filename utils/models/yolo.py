"""ultralytics' YOLO models, as this project uses that package: optional, without network, without pickled code.

ultralytics is AGPL-3.0, so it is not in requirements.txt; only notebook 09 and the profiles' section `yolo` need it.
Weights are read by torch's restricted loader, which builds known layers only and runs no code from the file.
"""

import contextlib
import functools
import importlib.util
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from utils.files import ROOT, replacing, resolve, shown, unknown
from utils.models.base import ModelError

HELP = (
    "YOLO needs ultralytics, which is optional because of its licence (AGPL-3.0): "
    ".venv/bin/python -m pip install ultralytics-opencv-headless"
)
TASKS = {"seg": "segment", "sem": "semantic"}
NAMES = tuple(
    [f"{family}{scale}-seg" for family in ("yolov8", "yolo11", "yolo26") for scale in "nsmlx"]
    + [f"yolo26{scale}-sem" for scale in "nsmlx"]
)
"""Networks of ultralytics that are offered by name; others, such as yolov9c-seg, by the path of their YAML file."""

WEIGHTS = "best/yolo.pt"
"""The weights of a trained fold model, in its folder."""

ENVIRONMENT = {
    "YOLO_OFFLINE": "1",  # no fonts, weights, news of versions, nor counts of users
    "YOLO_AUTOINSTALL": "0",  # a missing package is an error, not an installation
    "YOLO_VERBOSE": "0",  # the notebook says what happens
    "ULTRALYTICS_SAFE_LOAD": "1",  # torch.load(weights_only=True) with a list of known classes
}
REPORTING = ("sync", "clearml", "comet", "dvc", "mlflow", "raytune", "tensorboard", "wandb")
"""Settings of ultralytics that send or write a training's figures elsewhere."""


@functools.cache
def import_ultralytics() -> ModuleType:
    """The package, without network and with this process's number of threads. ModelError says how to install it."""
    if not importlib.util.find_spec("ultralytics"):
        raise ModelError(HELP)
    folder = ROOT / "outputs" / ".ultralytics"
    os.environ |= ENVIRONMENT | {"YOLO_CONFIG_DIR": str(folder)}
    _place_fonts(folder / "Ultralytics")
    import ultralytics
    from ultralytics.utils import torch_utils

    ultralytics.settings.update(dict.fromkeys(REPORTING, False))
    torch_utils.NUM_THREADS = torch.get_num_threads()  # on a CPU it would take one less than there are cores
    return ultralytics


def _place_fonts(folder: Path) -> None:
    """Give ultralytics a font under the names it asks for, even without pictures: it would look for them on the web."""
    import matplotlib

    font = Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")
    for name in ("Arial.ttf", "Arial.Unicode.ttf"):
        if not (folder / name).exists():
            with replacing(folder / name) as temporary:
                shutil.copyfile(font, temporary)


def open_yolo(network: str | Path) -> Any:
    """An `ultralytics.YOLO` by its name (random weights), or by the path of a model YAML or of local weights (.pt).

    Raises ModelError where ultralytics is not installed, for an unknown name, for a file that is missing or that the
    restricted loader refuses, and for a network that makes no masks.
    """
    import_ultralytics()
    from ultralytics import YOLO

    name = str(network).removesuffix(".yaml")
    path = resolve(network)
    if name in NAMES:
        return YOLO(f"{name}.yaml", task=TASKS[name.rpartition("-")[2]])
    if path.suffix not in (".yaml", ".yml", ".pt"):
        raise ModelError(f"{unknown('network', name, NAMES)}; or the path of a model YAML or of local weights (.pt)")
    if not path.is_file():
        raise ModelError(f"{shown(path)} is missing; nothing is downloaded, so put the file there yourself")
    try:
        model = YOLO(str(path))
    except Exception as error:  # whatever ultralytics raises for a damaged or strange file
        message = re.sub(r"\s+", " ", str(error))
        raise ModelError(f"{shown(path)} is no model that ultralytics can open: {message}") from error
    if model.task not in TASKS.values():
        raise ModelError(f"{shown(path)} is a model for {model.task}; expected one for {' or '.join(TASKS.values())}")
    return model


def describe_yolo(network: str | Path) -> tuple[str, int]:
    """The task of a network, segment or semantic, and its number of parameters; ModelError as `open_yolo` raises it."""
    model = open_yolo(network)
    return model.task, sum(tensor.numel() for tensor in model.model.parameters())


def device_name(device: torch.device) -> str:
    """A device as ultralytics takes it: cpu, or the number of a GPU."""
    return str(device.index or 0) if device.type == "cuda" else device.type


@contextlib.contextmanager
def without_bars() -> Iterator[None]:
    """Keep ultralytics' bars out of a notebook; what goes wrong is raised."""
    with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
        yield
