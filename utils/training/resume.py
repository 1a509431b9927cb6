"""What a training leaves for its next start: the resume file, its state, and the mark of a finished one."""

import itertools
import math
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pandas as pd
import torch
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from utils.files import read_json, shown, write_json, write_table
from utils.models.checkpoint import WEIGHTS
from utils.training.losses import NonFiniteLossError, TrainingError
from utils.training.settings import Settings

RESUME, FINISHED = "resume.ckpt", "finished.json"
RESULTS = (RESUME, FINISHED, "best", "last", "logs", "history.csv", "val_dice.csv", "metrics.json")
RESULTS += ("ultralytics", "export", "oof", "test", "oof_dice.csv", "scores.csv")  # of notebook 09
PICTURES = ("curves.png", "classes.png", "worst*.png", "submission.*")
"""What a training, and the notebook around it, writes into its folder."""

RETRY_LR = 0.1
"""Factor on the learning rate from the retry after a loss that is not finite on."""


class ResumableModule(L.LightningModule):
    """What lets a training go on exactly as if it had not been interrupted; `training.fit` has the training itself.

    key: of the resume file. column: of the history, whose best value so far `best` tells of. retries: how often the
    training went back to the last good epoch after a loss that is not finite; from then on, the learning rate is
    RETRY_LR of the schedule's.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        schedule: LRScheduler | ReduceLROnPlateau | None,
        settings: Settings,
        folder: Path,
        column: str,
    ):
        super().__init__()
        self.parts = {"optimizer": optimizer, "schedule": schedule}
        self.settings, self.folder, self.column, self.key = settings, folder, column, ""
        self.history: list[dict[str, Any]] = []
        self.best: dict[str, Any] = {}
        self.losses: list[torch.Tensor] = []
        self.stopped, self.retries = False, 0

    def configure_optimizers(self) -> dict[str, Any]:
        """The given optimiser; its schedule steps with it. One that waits for a plateau steps in `keep`: Lightning
        would step it after the resume file is written."""
        optimizer, schedule = self.parts["optimizer"], self.parts["schedule"]
        if schedule is None or isinstance(schedule, ReduceLROnPlateau):
            return {"optimizer": optimizer}
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def optimizer_step(self, *arguments: Any) -> None:
        """A step of the optimiser, after a retry at a lower rate than the schedule's, which goes on undisturbed."""
        groups = self.parts["optimizer"].param_groups
        rates = [group["lr"] for group in groups]
        for group, rate in zip(groups, rates, strict=True):
            group["lr"] = rate * RETRY_LR**self.retries
        super().optimizer_step(*arguments)
        for group, rate in zip(groups, rates, strict=True):
            group["lr"] = rate

    def rate(self) -> float:
        """The learning rate of the next step."""
        return self.parts["optimizer"].param_groups[0]["lr"] * RETRY_LR**self.retries

    def mean_loss(self) -> float:
        """The mean of the epoch's losses; NonFiniteLossError if one is not finite."""
        losses = torch.stack(self.losses).double()
        mean = losses.mean().item()
        if not math.isfinite(mean):
            step = int(losses.isfinite().logical_not().nonzero()[0])
            raise NonFiniteLossError(losses[step].item(), self.current_epoch, step)
        return mean

    def on_fit_start(self) -> None:
        """Write the best epoch again if it was the last one: a kill may have come between the resume file and it."""
        if self.best and self.best["epoch"] == len(self.history):
            self.save_best()

    def on_train_start(self) -> None:
        """Save the state before the first epoch too, to go back to; stop where a resumed training had stopped early."""
        if not self.history:
            self._save_resume_file()
        self.trainer.should_stop = self.stopped

    def keep(self, row: dict[str, Any], images: dict[str, list[float]]) -> bool:
        """Add an epoch to the history, on disk too, and save the state; whether it is the best epoch so far.

        images: the Dice of each class, by validation image; empty where the epoch was not validated.
        """
        value = row[self.column]
        if images and not math.isfinite(value):
            raise TrainingError(f"{self.column} became {value} in epoch {row['epoch']}: a metric must give numbers")
        self.history.append(row)
        if isinstance(self.parts["schedule"], ReduceLROnPlateau) and images:
            self.parts["schedule"].step(value)
        write_table(self.folder / "history.csv", pd.DataFrame(self.history), index=False)
        improved = bool(images) and value > self.best.get("value", -math.inf)
        if improved:
            self.best = {"epoch": row["epoch"], "value": value, "dice": row["val_dice"], "images": images}
        self.stopped = self.trainer.should_stop = self.trainer.should_stop or self._stops()
        self._save_resume_file()
        return improved

    def save_best(self) -> None:
        """Write the network as it is now as the best one."""
        raise NotImplementedError

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """What Lightning would forget."""
        saved = {name: getattr(self, name) for name in ("key", "history", "best", "stopped", "retries")}
        if isinstance(self.parts["schedule"], ReduceLROnPlateau):
            saved["plateau"] = self.parts["schedule"].state_dict()
        checkpoint["training"] = saved

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take up the history where it stopped."""
        saved = checkpoint["training"]
        self.history, self.best, self.stopped = saved["history"], saved["best"], saved["stopped"]
        self.retries = max(self.retries, saved["retries"])
        if "plateau" in saved:
            self.parts["schedule"].load_state_dict(saved["plateau"])

    def _save_resume_file(self) -> None:
        if self.settings.resumable:
            self.trainer.save_checkpoint(self.folder / RESUME)

    def _stops(self) -> bool:
        """Whether `early_stopping` epochs have passed without a better value."""
        scored = {row["epoch"]: row[self.column] for row in self.history if math.isfinite(row[self.column])}
        patience = self.settings.early_stopping
        return bool(patience and scored) and max(scored) - max(scored, key=scored.get) >= patience


def saved_epochs(path: Path, key: str) -> int | None:
    """The finished epochs in the resume file, or None, with a line why, if this training can't go on from it.

    key: of this training; "" goes on from no file. No pickled code of the file runs.
    """
    if not path.exists():
        return None
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True, mmap=True)["training"]
        epochs, fits = len(saved["history"]), saved["key"] == key != ""
    except Exception as error:  # a damaged file must not cost the night
        print(f"{shown(path)} can't be read ({type(error).__name__}): training starts anew")
        return None
    if not fits:
        print(f"{shown(path)} is of a training with other parameters, parts or data: training starts anew")
        return None
    print(f"going on after epoch {epochs} of an interrupted training")
    return epochs


def mark_finished(folder: Path, key: str, score: float, minutes: float) -> None:
    """Write that the training with this key has ended and that its results in `folder` are whole."""
    score = None if np.isnan(score) else score
    write_json(folder / FINISHED, {"key": key, "score": score, "minutes": minutes})


def finished(folder: Path, key: str, weights: str = f"best/{WEIGHTS}") -> dict[str, Any] | None:
    """What `mark_finished` wrote for the training with this key, with its score as a number; None without one.

    weights: the file that such a training leaves.
    """
    found = read_json(folder / FINISHED, {})
    if not key or found.get("key") != key or not (folder / weights).is_file():
        return None
    return found | {"score": float("nan") if found["score"] is None else found["score"]}


def set_aside(folder: Path) -> None:
    """Move the results of another training, if any epoch of one is in `folder`, to previous/<folder>-<number> beside.

    Files that are not a training's, such as the log of a run, stay.
    """
    if not (folder / "history.csv").exists():
        return
    numbered = (folder.parent / "previous" / f"{folder.name}-{number}" for number in itertools.count(1))
    aside = next(path for path in numbered if not path.exists())
    aside.mkdir(parents=True)
    for path in [path for name in (*RESULTS, *PICTURES) for path in folder.glob(name)]:
        path.rename(aside / path.name)
    print(f"{shown(folder)} holds another training: its results are now in {shown(aside)}")
