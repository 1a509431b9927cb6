"""A fold model while it trains: settings, loss, averaged weights and full-size validation, as a Lightning module."""

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pandas as pd
import psutil
import torch
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
from torch.optim.swa_utils import AveragedModel

from utils.data.loader import FoldData, dense_labels, normalise
from utils.device import PRECISIONS, Precision
from utils.files import replacing
from utils.masks import upsampling
from utils.masks.dice import dice_of_masks, dice_table, mean_dice
from utils.models.base import Loss, PaddedModel
from utils.models.checkpoint import Config, save_checkpoint
from utils.training.losses import BceDice

RESUME = "resume.ckpt"
WITHOUT_EFFECT = ("num_workers", "device", "wandb_project", "resumable", "on_epoch", "precision_file")
"""Settings that change nothing in the result."""


class TrainingError(RuntimeError):
    """Training can't go on; the message says where it stopped and what to try."""


@dataclass(frozen=True)
class Settings:
    """How a fold model is trained, its parts aside. Lengths are in epochs; `accumulate` batches make an optimiser step.

    init_checkpoint: folder of a checkpoint to start from; "" starts from the network's own weights, whose last bias is
    set to the class prior with `start_from_prior` (see `models.base`). ema_decay: of the averaged weights that are
    validated and saved, warmed up from 0.1 so that short trainings profit; 0 switches averaging off. gradient_clip:
    norm, 0 for none. early_stopping: epochs without a better validation Dice, 0 for never. validate_every: epochs
    between validations; the last epoch is always validated. precision: one of `utils.device.PRECISIONS`, or "auto" for
    the fastest here, which is measured once and kept in precision_file ("": precision.json in the training's folder).
    device: see `utils.device`. upsample: what is upsampled to full size in validation; the official baseline takes
    logits, everything else here probabilities. resumable: keep resume.ckpt after each epoch. on_epoch: called with the
    history, one dictionary per epoch; None prints a line.
    """

    epochs: int = 30
    batch_size: int = 8
    accumulate: int = 1
    warmup_epochs: float = 1.0
    init_checkpoint: str = ""
    start_from_prior: bool = True
    ema_decay: float = 0.99
    gradient_clip: float = 0.0
    early_stopping: int = 0
    validate_every: int = 1
    threshold: float = 0.5
    upsample: str = "probabilities"
    precision: str = "32-true"
    precision_file: str | Path = ""
    seed: int = 0
    device: str = "auto"
    num_workers: int = 0
    wandb_project: str = ""
    resumable: bool = True
    on_epoch: Callable[[list[dict]], None] | None = None

    def __post_init__(self) -> None:
        """Refuse names that are not known, before any data is read."""
        for name, known in (
            ("upsample", ("probabilities", "logits")),
            ("precision", ("auto", *PRECISIONS)),
        ):
            if getattr(self, name) not in known:
                raise ValueError(f"unknown {name} {getattr(self, name)!r}; known are {', '.join(known)}")

    def steps(self, data: FoldData) -> tuple[int, int]:
        """Optimiser steps of the whole training, and those of the warm-up."""
        batches = math.ceil(data.samples() / self.batch_size)
        steps = math.ceil(batches / self.accumulate) * self.epochs
        return steps, round(self.warmup_epochs * steps / self.epochs)

    def shaping(self) -> dict[str, Any]:
        """The settings that shape the result, as JSON values."""
        return {k: v for k, v in asdict(replace(self, on_epoch=None)).items() if k not in WITHOUT_EFFECT}


def batch_loss(model: PaddedModel, loss: Loss, batch: dict[str, Any], precision: Precision) -> torch.Tensor:
    """The scalar loss of a batch of `training_loader` that is on the network's device.

    Raises TrainingError for logits of another shape than the labels.
    """

    def checked(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        if logits.shape != labels.shape:
            raise TrainingError(
                f"the network gave logits {tuple(logits.shape)} for labels {tuple(labels.shape)}; expected the same "
                "shape, (N, classes, H, W)"
            )
        return loss(logits if isinstance(loss, BceDice) else logits.float(), labels)  # BceDice computes in float32

    image = normalise(batch["image"], model.mean, model.std).contiguous(memory_format=precision.layout)
    return model.training_loss(image, dense_labels(batch, precision.layout), checked)


class TrainingModule(L.LightningModule):
    """A network with its loss, its averaged weights and its full-size validation; arguments as of `fit`.

    config: what its checkpoints say. key: of the resume file.
    """

    def __init__(
        self,
        model: PaddedModel,
        loss: Loss,
        optimizer: torch.optim.Optimizer,
        schedule: LRScheduler | ReduceLROnPlateau | None,
        data: FoldData,
        settings: Settings,
        folder: Path,
        config: Config,
        key: str,
    ):
        super().__init__()
        self.precision = Precision(settings.precision)
        self.model, self.loss, self.config, self.key = self.precision.prepare(model), loss, config, key
        self.parts = {"optimizer": optimizer, "schedule": schedule}
        self.data, self.settings, self.folder = data, settings, folder
        self.names = data.validation["image_name"].tolist()
        self.average = (
            AveragedModel(model, multi_avg_fn=_ema(settings.ema_decay), use_buffers=True)
            if settings.ema_decay
            else None
        )
        if self.average is not None:
            self.average.requires_grad_(False)
        self.history: list[dict] = []
        self.best = -1.0
        self.losses: list[torch.Tensor] = []
        self.rows: dict[str, np.ndarray] = {}

    def validated_model(self) -> PaddedModel:
        """The network that is validated and saved: the averaged one where there is one."""
        return self.average.module if self.average is not None else self.model

    def on_train_epoch_start(self) -> None:
        """Start the epoch's clock and losses; the last epoch is validated whatever `validate_every` says."""
        self.losses, self.rows, self.started = [], {}, time.monotonic()
        if self.current_epoch + 1 == self.settings.epochs:
            self.trainer.check_val_every_n_epoch = 1

    def training_step(self, batch: dict[str, Any], index: int) -> torch.Tensor:
        """The loss of one batch; what torch draws in it (dropout) derives from (seed, epoch, batch)."""
        draw = np.random.SeedSequence((self.settings.seed, self.current_epoch, index))
        torch.manual_seed(int(draw.generate_state(1)[0]))
        loss = batch_loss(self.model, self.loss, batch, self.precision)
        self.losses.append(loss.detach())
        if index % 50 == 49:
            self._mean_loss()  # not every step: reading a value makes a GPU wait
        return loss

    def on_train_batch_end(self, *_: object) -> None:
        """Average the weights after each optimiser step."""
        if self.average is not None and self.global_step > int(self.average.n_averaged):
            self.average.update_parameters(self.model)

    def on_validation_epoch_start(self) -> None:
        """Stop here if the loss is not finite."""
        self._mean_loss()
        self.validated_model().eval()

    def validation_step(self, batch: dict[str, torch.Tensor], index: int) -> None:
        """Full-size Dice of each image: sigmoid at network resolution, bilinear upsampling, threshold."""
        image = normalise(batch["image"], self.config.mean, self.config.std)
        logits = self.validated_model()(image.contiguous(memory_format=self.precision.layout))
        scores, limit = upsampling.to_scores(logits, self.settings.threshold, self.settings.upsample)
        for maps, number in zip(scores, batch["index"].tolist(), strict=True):
            entry = self.data.cache.read(self.names[number])
            masks = upsampling.encode_masks(maps, entry.size, limit)
            self.rows[self.names[number]] = dice_of_masks(masks, entry.truth)

    def on_validation_epoch_end(self) -> None:
        """Keep the best weights with their scores."""
        table = dice_table(self.rows, self.config.classes)
        score = mean_dice(table)
        self.log("val_dice", score)
        if score > self.best:
            self.best = score
            self.save("best", score)
            with replacing(self.folder / "val_dice.csv") as temporary:
                table.to_csv(temporary)

    def on_train_epoch_end(self) -> None:
        """Add the epoch to the history, on disk too, and save what a resumed training needs."""
        row = {
            "epoch": self.current_epoch + 1,
            "of": self.settings.epochs,
            "loss": self._mean_loss(),
            "val_dice": mean_dice(dice_table(self.rows, self.config.classes)),
            "lr": self.parts["optimizer"].param_groups[0]["lr"],
            "seconds": time.monotonic() - self.started,
        }
        self.history.append(row)
        self.log("loss", row["loss"])
        self.log("lr", row["lr"])
        with replacing(self.folder / "history.csv") as temporary:
            pd.DataFrame(self.history).to_csv(temporary, index=False)
        if self.settings.resumable:
            self.trainer.save_checkpoint(self.folder / RESUME)
        (self.settings.on_epoch or print_epoch)(self.history)

    def configure_optimizers(self) -> dict:
        """The given optimiser; its schedule steps with it, or on each validation Dice if it waits for a plateau."""
        optimizer, schedule = self.parts["optimizer"], self.parts["schedule"]
        if schedule is None:
            return {"optimizer": optimizer}
        when = {"interval": "step"}
        if isinstance(schedule, ReduceLROnPlateau):
            when = {"interval": "epoch", "frequency": self.settings.validate_every, "monitor": "val_dice"}
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, **when}}

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        """What Lightning would forget."""
        checkpoint["training"] = {"key": self.key, "history": self.history, "best": self.best}

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        """Take up the history where it stopped."""
        self.history, self.best = checkpoint["training"]["history"], checkpoint["training"]["best"]

    def save(self, name: str, score: float | None) -> None:
        """Write the validated network as the checkpoint folder `name`."""
        thresholds = [self.settings.threshold] * len(self.config.classes)
        config = replace(self.config, thresholds=thresholds, epoch=self.current_epoch + 1, score=score)
        save_checkpoint(self.folder / name, self.validated_model(), config)

    def _mean_loss(self) -> float:
        loss = torch.stack(self.losses).mean().item()
        if not math.isfinite(loss):
            raise TrainingError(
                f"the loss became {loss} in epoch {self.current_epoch + 1}: try a smaller lr, gradient_clip=1 or "
                "precision='32-true'. The epochs before are kept."
            )
        return loss


def print_epoch(history: list[dict]) -> None:
    """One log line for the last epoch."""
    row = history[-1]
    left = row["of"] - row["epoch"]
    seconds = np.median([r["seconds"] for r in history])
    dice = "" if math.isnan(row["val_dice"]) else f"  val Dice {row['val_dice']:.4f}"
    print(
        f"epoch {row['epoch']:>3}/{row['of']}  loss {row['loss']:.4f}{dice}  lr {row['lr']:.1e}  {row['seconds']:.0f} s"
        f"  {left * seconds / 60:.0f} min left  {_peak_memory()}",
        flush=True,
    )


def _peak_memory() -> str:
    if torch.cuda.is_available():
        return f"GPU peak {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB"
    return f"memory {psutil.Process().memory_info().rss / 2**30:.1f} GiB"


def _ema(decay: float) -> Callable:
    """Exponential average whose decay grows to `decay` over the first steps: min(decay, (1 + n) / (10 + n)).

    Lightning's EMAWeightAveraging has a fixed decay, and keeps its weights where exact resume does not find them.
    """

    def average(averaged: list[torch.Tensor], current: list[torch.Tensor], n: torch.Tensor) -> None:
        if averaged[0].is_floating_point():
            torch._foreach_lerp_(averaged, current, 1 - min(decay, (1 + float(n)) / (10 + float(n))))
        else:  # batch norm's counters
            torch._foreach_copy_(averaged, current)

    return average
