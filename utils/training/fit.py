"""Train one fold model: Lightning runs the loop; every epoch is validated at full size and can be resumed exactly."""

import hashlib
import json
import logging
import math
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import lightning as L
import numpy as np
import pandas as pd
import psutil
import torch
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.loggers import TensorBoardLogger

from utils.data.augment import Augmentation, Augmenter
from utils.data.cache import Cache
from utils.data.loader import plain_loader, training_loader
from utils.device import choose_precision
from utils.files import interactive, shown
from utils.models.base import ModelError, PaddedModel, start_from_prior
from utils.models.checkpoint import Config, load_weights, read_config
from utils.training.module import RESUME, Settings, TrainingError, TrainingModule


@dataclass(frozen=True)
class Trained:
    """A finished training. score: full-size validation Dice of `best` (NaN without validation images)."""

    score: float
    history: pd.DataFrame
    val_dice: pd.DataFrame
    checkpoint: Path
    minutes: float


def fit(
    config: Config,
    settings: Settings,
    augmentation: Augmentation,
    cache: Cache,
    train: list[str],
    validation: list[str],
    folder: str | Path,
    device: torch.device,
    encoder_weights: str | None = None,
    init_checkpoint: str | Path | None = None,
    on_epoch: Callable[[list[dict]], None] | None = None,
    wandb_project: str = "",
    resumable: bool = True,
) -> Trained:
    """Train on the images named `train`, validate on `validation` (may be empty), write everything below `folder`.

    Writes best/ and last/ (checkpoint folders), history.csv, val_dice.csv (images × classes of the best epoch), logs/
    (TensorBoard) and, while it runs, resume.ckpt: started again with the same configuration and data, training goes on
    after the last finished epoch with the same numbers as an uninterrupted one (bit for bit on a CPU with a fixed
    number of threads). With anything changed, it starts anew. `on_epoch` gets the history after each epoch. Without
    `resumable` there is no resume.ckpt, which for a large network takes longer to write than a short epoch lasts.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    torch.manual_seed(settings.seed)
    model = config.build(encoder_weights)
    if init_checkpoint:
        start_from(model, config, init_checkpoint)
    elif settings.start_from_prior:
        start_from_prior(model, class_shares(cache, train))
    loader = training_loader(
        cache, train, Augmenter(augmentation), settings.batch_size, settings.seed, settings.num_workers
    )
    key = _resume_key(
        config, settings, augmentation, cache, [*train, "|", *validation], encoder_weights, init_checkpoint
    )
    resume = _resumable(folder / RESUME, key)
    fold_model = TrainingModule(
        model, config, settings, folder, cache, validation, key, on_epoch or print_epoch, resumable
    )
    trainer = _trainer(settings, folder, device, bool(validation), wandb_project)
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message=".*does not have many workers.*|.*smaller than the logging interval.*|.*treespec.*"
        )
        trainer.fit(
            fold_model,
            loader,
            plain_loader(cache, validation, settings.batch_size, settings.num_workers) if validation else None,
            ckpt_path=resume,
            weights_only=True,
        )
    fold_model.save("last", fold_model.best if validation else None)
    if not validation:
        fold_model.save("best", None)
    (folder / RESUME).unlink(missing_ok=True)
    scores = folder / "val_dice.csv"
    return Trained(
        score=fold_model.best if validation else float("nan"),
        history=pd.DataFrame(fold_model.history),
        val_dice=pd.read_csv(scores, index_col=0) if validation else pd.DataFrame(columns=config.classes),
        checkpoint=folder / "best",
        minutes=(time.monotonic() - started) / 60,
    )


def class_shares(cache: Cache, names: list[str]) -> torch.Tensor:
    """Mean share of the image's pixels that each class covers, float32 (classes,)."""
    shares = [[patch.sum() / 255 for patch, _ in cache.read(name).label.patches()] for name in names]
    return torch.tensor(np.mean(shares, axis=0) / math.prod(cache.grid), dtype=torch.float32)


def start_from(model: PaddedModel, config: Config, folder: str | Path) -> None:
    """Load an earlier fold model's weights to fine-tune from, for example at a higher resolution."""
    earlier = read_config(folder)
    for name in ("architecture", "encoder", "classes", "options"):
        if getattr(earlier, name) != getattr(config, name):
            raise ModelError(
                f"init_checkpoint {shown(folder)} has {name} {getattr(earlier, name)!r}, this training "
                f"{getattr(config, name)!r}: they must be the same"
            )
    load_weights(model, folder)


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


def _resume_key(
    config: Config, settings: Settings, augmentation: Augmentation, cache: Cache, names: list[str], *more
) -> str:
    """A digest of everything that shapes a training; a resume file with another one is of no use."""
    described = {k: v for k, v in asdict(config).items() if k != "versions"}
    parts = [described, asdict(settings), asdict(augmentation), [str(m or "") for m in more]]
    parts += [[name, cache.signature(name)] if name in cache.sources else name for name in names]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _resumable(path: Path, key: str) -> Path | None:
    """The resume file if it belongs to this training."""
    if not path.exists():
        return None
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True, mmap=True)["fold model"]
    except Exception as error:  # a damaged file must not cost the night
        print(f"{shown(path)} can't be read ({type(error).__name__}): training starts anew")
        return None
    if saved["key"] != key:
        print(f"{shown(path)} is of a training with other parameters or data: training starts anew")
        return None
    print(f"going on after epoch {len(saved['history'])} of an interrupted training")
    return path


def _trainer(settings: Settings, folder: Path, device: torch.device, validated: bool, wandb_project: str) -> L.Trainer:
    loggers = [TensorBoardLogger(folder, name="logs", version="")]
    if wandb_project:
        loggers.append(_wandb(folder, wandb_project))
    stop_early = settings.early_stopping and validated
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # its banner and hints, not its warnings
    return L.Trainer(
        accelerator="gpu" if device.type == "cuda" else "cpu",
        devices=[device.index or 0] if device.type == "cuda" else 1,
        precision=choose_precision(settings.precision, device),
        max_epochs=settings.epochs,
        accumulate_grad_batches=settings.accumulate,
        gradient_clip_val=settings.gradient_clip or None,
        check_val_every_n_epoch=settings.validate_every,
        callbacks=[EarlyStopping("val_dice", mode="max", patience=settings.early_stopping)] if stop_early else [],
        logger=loggers,
        log_every_n_steps=10,
        num_sanity_val_steps=0,
        enable_checkpointing=False,
        enable_progress_bar=interactive(),
        enable_model_summary=False,
        use_distributed_sampler=False,
    )


def _wandb(folder: Path, project: str):
    try:
        import wandb  # noqa: F401
        from lightning.pytorch.loggers import WandbLogger
    except ImportError as error:
        raise TrainingError(
            f"wandb_project={project!r} needs W&B: pip install wandb, or leave wandb_project empty"
        ) from error
    return WandbLogger(name="-".join(folder.parts[-2:]), project=project, save_dir=folder)
