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
import torch
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from utils.data.fold_data import FoldData
from utils.data.loader import dense_labels, network_input
from utils.device import PRECISIONS, Precision
from utils.files import write_table
from utils.masks import upsampling
from utils.masks.dice import dice_table, mean_dice
from utils.models.base import Loss, PaddedModel
from utils.models.checkpoint import Config, save_checkpoint
from utils.training.averages import exponential_average, plain_mean
from utils.training.log import print_epoch
from utils.training.losses import BceDice
from utils.training.resume import RESUME

WITHOUT_EFFECT = ("num_workers", "device", "wandb_project", "resumable", "on_epoch", "precision_file")
"""Settings that change nothing in the result."""
RETRY_LR = 0.1
"""Factor on the learning rate from the retry after a loss that is not finite on."""


class TrainingError(RuntimeError):
    """Training can't go on; the message says where it stopped and what to try."""


class NonFiniteLossError(TrainingError):
    """The loss of a batch is NaN or infinite. loss: it. epoch, step: where, both from 0."""

    def __init__(self, loss: float, epoch: int, step: int):
        super().__init__(f"the loss became {loss} in epoch {epoch + 1}, batch {step + 1}")
        self.loss, self.epoch, self.step = loss, epoch, step


@dataclass(frozen=True)
class Settings:
    """How a fold model is trained, its parts aside. Lengths are in epochs; `accumulate` batches make an optimiser step.

    init_checkpoint: folder of a checkpoint to start from; "" starts from the network's own weights, whose last bias is
    set to the class prior with `start_from_prior` (see `models.base`). ema_decay: of the averaged weights that are
    validated and saved, warmed up from 0.1 so that short trainings profit; 0 switches averaging off. swa_epochs: in so
    many last epochs, the plain mean of the weights at their ends takes the place of those. gradient_clip: norm, 0 for
    none. early_stopping: epochs without a better validation Dice, 0 for never. validate_every: epochs between
    validations; the last epoch is always validated. precision: one of `utils.device.PRECISIONS` (float32 in its place
    where the device lacks it), or "auto" for the fastest here, which is measured once and kept in precision_file ("":
    precision.json in the training's folder). device: see `utils.device`. upsample: what is upsampled to full size in
    validation; the official baseline takes logits, everything else here probabilities. resumable: keep resume.ckpt
    after each epoch, the mark of a finished training, and what another training left in the folder. on_epoch: called
    with the history, one dictionary per epoch; None prints a line.
    """

    epochs: int = 30
    batch_size: int = 8
    accumulate: int = 1
    warmup_epochs: float = 1.0
    init_checkpoint: str = ""
    start_from_prior: bool = True
    ema_decay: float = 0.99
    swa_epochs: int = 0
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
        for name, known in (("upsample", ("probabilities", "logits")), ("precision", ("auto", *PRECISIONS))):
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
            found = f"logits {tuple(logits.shape)} for labels {tuple(labels.shape)}"
            raise TrainingError(f"the network gave {found}; expected the same shape, (N, classes, H, W)")
        return loss(logits if isinstance(loss, BceDice) else logits.float(), labels)  # BceDice computes in float32

    image = network_input(batch, model.mean, model.std, model.takes_person, precision.layout)
    return model.training_loss(image, dense_labels(batch, precision.layout), checked)


class TrainingModule(L.LightningModule):
    """A network with its loss, its averaged weights and its full-size validation; arguments as of `fit`.

    config: what its checkpoints say. key: of the resume file. retries: how often the training went back to the last
    good epoch after a loss that is not finite; from then on, the learning rate is RETRY_LR of the schedule's.
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
        self.average = exponential_average(model, settings.ema_decay) if settings.ema_decay else None
        self.swa = plain_mean(model) if settings.swa_epochs else None
        self.history: list[dict] = []
        self.best = -1.0
        self.retries = 0
        self.losses: list[torch.Tensor] = []
        self.rows: dict[str, np.ndarray] = {}

    def validated_model(self) -> PaddedModel:
        """The network that is validated and saved: the averaged one where there is one."""
        if self.swa is not None and int(self.swa.n_averaged):
            return self.swa.module
        return self.average.module if self.average is not None else self.model

    def on_train_start(self) -> None:
        """Save the state before the first epoch too, to go back to; stop where a resumed training had stopped early."""
        if not self.history:
            self._save_resume_file()
        self.trainer.should_stop = self._stops()

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

    def optimizer_step(self, *arguments: Any) -> None:
        """A step of the optimiser, after a retry at a lower rate than the schedule's, which goes on undisturbed."""
        groups = self.parts["optimizer"].param_groups
        rates = [group["lr"] for group in groups]
        for group, rate in zip(groups, rates, strict=True):
            group["lr"] = rate * RETRY_LR**self.retries
        super().optimizer_step(*arguments)
        for group, rate in zip(groups, rates, strict=True):
            group["lr"] = rate

    def on_train_batch_end(self, outputs: object, batch: object, index: int) -> None:
        """Average the weights after each optimiser step, and at the end of each of the last epochs."""
        if self.average is not None and self.global_step > int(self.average.n_averaged):
            self.average.update_parameters(self.model)
        last = self.current_epoch >= self.settings.epochs - self.settings.swa_epochs
        if self.swa is not None and last and index + 1 == self.trainer.num_training_batches:
            self.swa.update_parameters(self.model)

    def on_validation_epoch_start(self) -> None:
        """Stop here if the loss is not finite: what follows would be worth nothing."""
        self._mean_loss()
        self.validated_model().eval()

    def validation_step(self, batch: dict[str, torch.Tensor], index: int) -> None:
        """Full-size Dice of each image: sigmoid at network resolution, bilinear upsampling, threshold."""
        given = self.config.mean, self.config.std, self.model.takes_person
        logits = self.validated_model()(network_input(batch, *given, self.precision.layout))
        scores, limit = upsampling.to_scores(logits, self.settings.threshold, self.settings.upsample)
        for maps, number in zip(scores, batch["index"].tolist(), strict=True):
            self.rows[self.names[number]] = self.data.dice(self.names[number], maps, limit)

    def on_validation_epoch_end(self) -> None:
        """Keep the best weights with their scores."""
        table = dice_table(self.rows, self.data.judged)
        score = mean_dice(table)
        self.log("val_dice", score)
        if score > self.best:
            self.best = score
            self.save("best", score, self.current_epoch + 1)
            write_table(self.folder / "val_dice.csv", table)

    def on_train_epoch_end(self) -> None:
        """Add the epoch to the history, on disk too, step a schedule of epochs, and save what a resumed start needs."""
        row = {
            "epoch": self.current_epoch + 1,
            "of": self.settings.epochs,
            "loss": self._mean_loss(),
            "val_dice": mean_dice(dice_table(self.rows, self.data.judged)),
            "lr": self.parts["optimizer"].param_groups[0]["lr"] * RETRY_LR**self.retries,
            "seconds": time.monotonic() - self.started,
            "retries": self.retries,
        }
        self.history.append(row)
        if isinstance(self.parts["schedule"], ReduceLROnPlateau) and self.rows:
            self.parts["schedule"].step(row["val_dice"])
        self.log("loss", row["loss"])
        self.log("lr", row["lr"])
        write_table(self.folder / "history.csv", pd.DataFrame(self.history), index=False)
        self.trainer.should_stop = self.trainer.should_stop or self._stops()
        self._save_resume_file()
        (self.settings.on_epoch or print_epoch)(self.history)

    def configure_optimizers(self) -> dict:
        """The given optimiser; its schedule steps with it. One that waits for a plateau steps in on_train_epoch_end:
        Lightning would step it after the resume file is written."""
        optimizer, schedule = self.parts["optimizer"], self.parts["schedule"]
        if schedule is None or isinstance(schedule, ReduceLROnPlateau):
            return {"optimizer": optimizer}
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        """What Lightning would forget."""
        saved = {"key": self.key, "history": self.history, "best": self.best, "retries": self.retries}
        if isinstance(self.parts["schedule"], ReduceLROnPlateau):
            saved["plateau"] = self.parts["schedule"].state_dict()
        checkpoint["training"] = saved

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        """Take up the history where it stopped."""
        saved = checkpoint["training"]
        self.history, self.best = saved["history"], saved["best"]
        self.retries = max(self.retries, saved["retries"])
        if "plateau" in saved:
            self.parts["schedule"].load_state_dict(saved["plateau"])

    def save(self, name: str, score: float | None, epoch: int) -> None:
        """Write the validated network, after `epoch` epochs, as the checkpoint folder `name`."""
        thresholds = [self.settings.threshold] * len(self.config.classes)
        config = replace(self.config, thresholds=thresholds, epoch=epoch, score=score)
        save_checkpoint(self.folder / name, self.validated_model(), config)

    def _save_resume_file(self) -> None:
        if self.settings.resumable:
            self.trainer.save_checkpoint(self.folder / RESUME)

    def _stops(self) -> bool:
        """Whether `early_stopping` epochs have passed without a better validation Dice."""
        scored = {row["epoch"]: row["val_dice"] for row in self.history if math.isfinite(row["val_dice"])}
        patience = self.settings.early_stopping
        return bool(patience and scored) and max(scored) - max(scored, key=scored.get) >= patience

    def _mean_loss(self) -> float:
        losses = torch.stack(self.losses).double()
        mean = losses.mean().item()
        if not math.isfinite(mean):
            step = int(losses.isfinite().logical_not().nonzero()[0])
            raise NonFiniteLossError(losses[step].item(), self.current_epoch, step)
        return mean
