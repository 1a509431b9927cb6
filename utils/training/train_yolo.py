"""Train ultralytics' YOLO models; an interrupted training goes on after its last finished epoch."""

import contextlib
import shutil
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from utils.data.fold_data import FoldData
from utils.device import candidates
from utils.files import (
    Problems,
    Progress,
    delete_temporary,
    read_json,
    replacing,
    replacing_folder,
    resolve,
    shown,
    write_json,
    write_table,
)
from utils.models.yolo import WEIGHTS, device_name, import_ultralytics, open_yolo, without_bars
from utils.registry import file_sha256
from utils.training.key import resume_key
from utils.training.resume import finished, mark_finished, set_aside

RESUME, RESUME_BEST, RESUME_KEY = "resume.pt", "resume-best.pt", "resume.json"
RUN = "ultralytics"
"""The folder that ultralytics writes to, in a fold model's folder."""

SCORE = {"segment": ("metrics/mAP50-95(M)", "mask mAP50-95"), "semantic": ("metrics/mIoU", "mIoU")}
"""The column of a task's training history that tells how good a network is, and its name for people."""

TAKEN = {
    "data": "data_dir",
    "model": "network",
    "pretrained": "network",
    "epochs": "epochs",
    "imgsz": "image_size",
    "batch": "batch_size",
    "lr0": "lr",
    "seed": "seed",
    "device": "device",
    "workers": "num_workers",
    "format": "export_format",
}
"""Arguments of ultralytics that parameters of the notebook stand for."""
FIXED = ("task", "mode", "project", "name", "save_dir", "exist_ok", "resume", "save", "cfg", "single_cls", "classes")
FIXED += ("overlap_mask", "conf", "iou", "max_det")


@dataclass(frozen=True)
class YoloSettings:
    """How to train. The names are those of notebook 09; `options`: further arguments of ultralytics' train mode."""

    epochs: int = 100
    image_size: int = 640
    batch_size: int = 16
    lr: float = 2e-3
    num_workers: int = 0
    seed: int = 0
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse options that other parameters set; `check_yolo_options` refuses those unknown to ultralytics."""
        wrong = [f"options.{name}: use the parameter {TAKEN[name]}" for name in self.options if name in TAKEN]
        wrong += [f"options.{name}: set by the notebook itself" for name in self.options if name in FIXED]
        if self.image_size % 32:
            wrong.append(f"image_size = {self.image_size}: expected a multiple of 32, as YOLO's networks need it")
        if wrong:
            raise Problems("these settings can't be used:", wrong)

    def arguments(self, device: torch.device, validate: bool = True, flip: bool = True) -> dict[str, Any]:
        """The arguments of ultralytics' `train`; validate: after each epoch; flip: images may be mirrored.

        A step is one batch (nbs), and masks of overlapping bones stay apart (overlap_mask). Off are mosaics, which cost
        others Dice on these images, and the changes of colour that grey images do not have.
        """
        # ultralytics computes in bfloat16 on GPUs alone; its check of float16 downloads a network
        half = device.type == "cuda" and candidates(device)[0].startswith("bf16")
        chosen = {
            "epochs": self.epochs,
            "imgsz": self.image_size,
            "batch": self.batch_size,
            "nbs": self.batch_size,
            "lr0": self.lr,
            "optimizer": "AdamW",
            "warmup_epochs": 1.0,
            "patience": 0,
            "seed": self.seed,
            "workers": self.num_workers,
            "device": device_name(device),
            "amp": "bf16" if half else False,
            "cache": "ram",
            "val": validate,
            "plots": False,
            "mosaic": 0.0,
            "close_mosaic": 0,
            "hsv_h": 0.0,
            "hsv_s": 0.0,
            "fliplr": 0.5 if flip else 0.0,
            "scale": 0.2,
        }
        return {**chosen, **self.options, "overlap_mask": False, "verbose": False}


def check_yolo_options(options: Mapping[str, Any]) -> None:
    """Raise Problems for options that ultralytics does not know or whose values it refuses; its message is kept."""
    import_ultralytics()
    from ultralytics.cfg import get_cfg

    try:
        get_cfg(overrides=dict(options))
    except (SyntaxError, TypeError, ValueError) as error:
        raise Problems("these options can't be used:", [f"options: {error}"]) from error


@dataclass(frozen=True)
class YoloTrained:
    """A finished training. weights: a .pt file, of the best epoch by ultralytics' fitness. history: one row per epoch.

    version: ultralytics'.
    """

    weights: Path
    history: pd.DataFrame
    minutes: float
    version: str


def train_yolo(
    network: str,
    dataset: str | Path,
    data: FoldData,
    settings: YoloSettings,
    folder: str | Path,
    device: torch.device,
) -> YoloTrained:
    """Train a YOLO model and write everything below `folder`.

    Writes best/yolo.pt (weights in ultralytics' format), history.csv, ultralytics/ (args.yaml, results.csv) and, while
    it runs, resume.pt. With the same settings and data, an interrupted training goes on after its last finished epoch,
    and a finished one is taken up; otherwise, what is there moves to previous/ beside the folder. A resumed training
    gives other numbers than an uninterrupted one: ultralytics does not save the state of the random generators.

    Args:
        network: what `open_yolo` opens.
        dataset: the dataset.yaml that `utils.formats` writes of this fold.
        data: the images of this fold, from `Run.fold_data`.
        settings: everything else.
        folder: where results go; made if missing.
        device: from `utils.device.choose_device`.

    Raises:
        ModelError: as `open_yolo` raises it.
        DiskFullError: a file does not fit on the disk.
    """
    folder, started, version = Path(folder), time.monotonic(), import_ultralytics().__version__
    folder.mkdir(parents=True, exist_ok=True)
    delete_temporary(folder)
    arguments = settings.arguments(device, data.fold >= 0, data.flip.allowed and not data.flip.order)
    key = _key(network, arguments, dataset, data)
    if found := finished(folder, key, WEIGHTS):
        print(f"{shown(folder)} holds this training, finished: nothing is trained again")
        return YoloTrained(folder / WEIGHTS, pd.read_csv(folder / "history.csv"), found["minutes"], version)
    done = _saved_epochs(folder, key)
    if not done:
        set_aside(folder)
        _remove_resume_files(folder)
        shutil.rmtree(folder / RUN, ignore_errors=True)
        write_json(folder / RESUME_KEY, {"key": key})
    elif (folder / RESUME_BEST).exists():  # ultralytics' own file may have been cut off by a kill
        (folder / RUN / "weights").mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / RESUME_BEST, folder / RUN / "weights" / "best.pt")
    output, progress = sys.stdout, Progress("training")

    def keep(trainer: Any) -> None:
        """Keep the epoch, each file whole or not at all, which ultralytics' own are not."""
        if trainer.best_fitness == trainer.fitness:
            _copy(trainer.best, folder / RESUME_BEST)
        write_table(folder / "history.csv", _history(trainer.csv), index=False)
        _copy(trainer.last, folder / RESUME)
        with contextlib.redirect_stdout(output):
            progress(trainer.epoch + 1, trainer.epochs)

    best = folder / RESUME_BEST  # kept where only the end of a training was cut off; else ultralytics' smaller copy
    if done < arguments["epochs"]:
        model = open_yolo(folder / RESUME if done else network)
        model.add_callback("on_model_save", keep)
        given = {**arguments, "data": str(dataset), "save_dir": str(folder / RUN)}
        given |= {"resume": str(folder / RESUME)} if done else {"pretrained": str(network).endswith(".pt")}
        with without_bars():
            model.train(**given)
        best = folder / RUN / "weights" / "best.pt"
    with replacing_folder(folder / Path(WEIGHTS).parent) as made:
        shutil.copyfile(best, made / Path(WEIGHTS).name)
    minutes = (time.monotonic() - started) / 60
    mark_finished(folder, key, float("nan"), minutes)
    shutil.rmtree(folder / RUN / "weights", ignore_errors=True)
    _remove_resume_files(folder)
    return YoloTrained(folder / WEIGHTS, pd.read_csv(folder / "history.csv"), minutes, version)


def _key(network: str, arguments: dict[str, Any], dataset: str | Path, data: FoldData) -> str:
    """A digest of everything that shapes the training."""
    path = resolve(network)
    images = [data.cache.signature(name) for name in (*data.train["image_name"], *data.validation["image_name"])]
    return resume_key(
        network=[str(network), file_sha256(path) if path.is_file() else ""],
        arguments={name: value for name, value in arguments.items() if name not in ("device", "workers")},
        dataset=Path(dataset).read_text(encoding="utf-8"),
        images=[*images, len(data.validation)],
        version=import_ultralytics().__version__,
    )


def _copy(source: Path, target: Path) -> None:
    with replacing(target) as temporary:
        shutil.copyfile(source, temporary)


def _remove_resume_files(folder: Path) -> None:
    for name in (RESUME, RESUME_BEST, RESUME_KEY):
        (folder / name).unlink(missing_ok=True)


def _saved_epochs(folder: Path, key: str) -> int:
    """The epochs of this training that the folder holds; a line says what is done with them."""
    if not (folder / RESUME).exists():
        return 0
    if read_json(folder / RESUME_KEY, {}).get("key") != key:
        print(f"{shown(folder / RESUME)} is of a training with other parameters or data: training starts anew")
        return 0
    epochs = len(pd.read_csv(folder / "history.csv"))
    print(f"going on after epoch {epochs} of an interrupted training")
    return epochs


def _history(path: Path) -> pd.DataFrame:
    """ultralytics' results.csv, one row per epoch: the last where an epoch was interrupted.

    Added are the columns loss (the sum of its parts), lr and seconds.
    """
    table = pd.read_csv(path).rename(columns=str.strip)
    table["loss"] = table.filter(like="train/").sum(axis=1)
    table["lr"] = table["lr/pg0"]
    since = table["time"].diff()  # the time starts anew when a training is resumed
    table["seconds"] = since.where(since > 0, table["time"])
    return table.drop_duplicates("epoch", keep="last", ignore_index=True)
