"""The settings of a training, Lightning's trainer with them, the line after each epoch, and what comes out."""

import logging
import math
from collections.abc import Callable, Iterator, Sequence, Sized
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pandas as pd
import psutil
import torch
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.plugins.io import TorchCheckpointIO

from utils.device import Precision, choose_device
from utils.files import interactive, replacing
from utils.masks.masks import Masks
from utils.models.base import PaddedModel
from utils.params import WITHOUT_EFFECT
from utils.training.losses import TrainingError

NOT_SHAPING = (*WITHOUT_EFFECT, "resumable", "on_epoch", "precision_file")
"""Settings that change nothing in the result."""

Metric = Callable[[Masks, Masks], Any]
"""Predicted and true masks of an image's classes, at full size, to a number or one per class; higher is better."""


@dataclass(frozen=True)
class Settings:
    """How a fold model is trained, its parts aside. Lengths are in epochs; `accumulate` batches make an optimiser step.

    init_checkpoint: folder of a checkpoint to start from; "" starts from the network's own weights, whose last bias is
    set to the class prior with `start_from_prior` (see `models.base`). ema_decay: of the averaged weights that are
    validated and saved, warmed up from 0.1 so that short trainings profit; 0 switches averaging off. swa_epochs: in so
    many last epochs, the plain mean of the weights at their ends takes the place of those. gradient_clip: norm, 0 for
    none. early_stopping: epochs without a better metric, 0 for never. validate_every: epochs between validations; the
    last epoch is always validated. precision: one of `utils.device.PRECISIONS` (float32 in its place where the device
    lacks it), or "auto" for the fastest here, which is measured once and kept in precision_file ("": precision.json in
    the training's folder). device: see `utils.device`. resumable: keep resume.ckpt after each epoch, the mark of a
    finished training, and what another training left in the folder. on_epoch: called with the history, one dictionary
    per epoch; None prints a line. Defaults are those of notebook 03.
    """

    epochs: int = 10
    batch_size: int = 4
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
    precision: str = "auto"
    precision_file: str | Path = ""
    seed: int = 0
    device: str = "auto"
    num_workers: int = 0
    wandb_project: str = ""
    resumable: bool = True
    on_epoch: Callable[[list[dict]], None] | None = None

    def __post_init__(self) -> None:
        """Refuse an unknown precision, before any data is read."""
        if self.precision != "auto":
            Precision(self.precision)

    def steps(self, samples: Sized) -> tuple[int, int]:
        """Optimiser steps of the whole training, and those of the warm-up. samples: a FoldData, or an own sampler."""
        batches = math.ceil(len(samples) / self.batch_size)
        steps = math.ceil(batches / self.accumulate) * self.epochs
        return steps, round(self.warmup_epochs * steps / self.epochs)

    def shaping(self) -> dict[str, Any]:
        """The settings that shape the result, as JSON values."""
        return {k: v for k, v in asdict(replace(self, on_epoch=None)).items() if k not in NOT_SHAPING}


@dataclass(frozen=True)
class Trained:
    """A finished training. score: full-size validation Dice of the best epoch, NaN without validation images.

    model: the network with the weights of that epoch, on the CPU. history: one row per epoch. val_dice: images ×
    classes of the best epoch. checkpoint: its folder. predict: gives name and full-size masks of each image that it is
    told the name of, made as validation makes them.
    """

    score: float
    model: PaddedModel
    history: pd.DataFrame
    val_dice: pd.DataFrame
    checkpoint: Path
    minutes: float
    predict: Callable[[Sequence[str]], Iterator[tuple[str, Masks]]]


class ResumeFile(TorchCheckpointIO):
    """Writes Lightning's checkpoint beside its final place and renames it: a kill meanwhile keeps the former one.

    Lightning's own way makes the file in memory, then in the system's temporary folder, and copies it from there.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write a checkpoint; DiskFullError says so where it does not fit."""
        with replacing(path) as temporary, temporary.open("wb") as file:
            torch.save(checkpoint, file)


def build_trainer(settings: Settings, folder: Path, callbacks: Sequence[L.Callback] = ()) -> L.Trainer:
    """A trainer that logs below `folder` and writes resume files there, whole or not at all.

    Raises TrainingError where W&B is asked for and not installed, RuntimeError for a device that is not there.
    """
    device = choose_device(settings.device)
    loggers = [TensorBoardLogger(folder, name="logs", version="")]
    if settings.wandb_project:
        loggers.append(_wandb(folder, settings.wandb_project))
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # its banner and hints, not its warnings
    return L.Trainer(
        accelerator="gpu" if device.type == "cuda" else "cpu",
        devices=[device.index or 0] if device.type == "cuda" else 1,
        precision=Precision(settings.precision).lightning,
        benchmark=True,  # cuDNN's fastest convolutions; batches are all of one size
        max_epochs=settings.epochs,
        accumulate_grad_batches=settings.accumulate,
        gradient_clip_val=settings.gradient_clip or None,
        check_val_every_n_epoch=settings.validate_every,
        plugins=[ResumeFile()],
        callbacks=list(callbacks),
        logger=loggers,
        log_every_n_steps=10,
        num_sanity_val_steps=0,
        enable_checkpointing=False,
        enable_progress_bar=interactive(),
        enable_model_summary=False,
        use_distributed_sampler=False,
    )


def _wandb(folder: Path, project: str) -> Logger:
    try:
        import wandb  # noqa: F401
        from lightning.pytorch.loggers import WandbLogger
    except ImportError as error:
        raise TrainingError(
            f"wandb_project={project!r} needs W&B: pip install wandb, or leave wandb_project empty"
        ) from error
    return WandbLogger(name="-".join(folder.parts[-2:]), project=project, save_dir=folder)


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
