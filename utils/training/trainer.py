"""Lightning's trainer as `fit` uses it."""

import logging
from pathlib import Path

import lightning as L
from lightning.pytorch.loggers import TensorBoardLogger

from utils.device import Precision, choose_device
from utils.files import interactive
from utils.training.module import Settings, TrainingError
from utils.training.resume import ResumeFile


def build_trainer(settings: Settings, folder: Path) -> L.Trainer:
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
