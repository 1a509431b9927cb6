"""Train one fold model: Lightning runs the loop; every epoch is validated at full size and can be resumed exactly."""

import copy
import logging
import math
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import albumentations as A
import lightning as L
import numpy as np
import pandas as pd
import torch
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.loggers import TensorBoardLogger
from torch import nn
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from utils.data.augment import Augmenter, as_augmenter
from utils.data.cache import Cache
from utils.data.loader import FoldData, plain_loader, training_loader
from utils.device import Precision, choose_device
from utils.files import interactive, resolve, shown
from utils.models.base import Loss, ModelError, PaddedModel, start_from_prior
from utils.models.checkpoint import (
    Config,
    describe_network,
    hash_people,
    load_weights,
    read_config,
)
from utils.training.module import RESUME, Settings, TrainingError, TrainingModule
from utils.training.precision import choose_precision
from utils.training.resume import NoSourceError, resume_key, saved_epochs


@dataclass(frozen=True)
class Trained:
    """A finished training. score: full-size validation Dice of the best epoch, NaN without validation images.

    model: the network with the weights of that epoch, on the CPU. history: one row per epoch. val_dice: images ×
    classes of the best epoch. checkpoint: its folder.
    """

    score: float
    model: PaddedModel
    history: pd.DataFrame
    val_dice: pd.DataFrame
    checkpoint: Path
    minutes: float


def fit(
    model: nn.Module,
    loss: Loss,
    augmentation: Augmenter | A.Compose,
    optimizer: torch.optim.Optimizer,
    schedule: LRScheduler | ReduceLROnPlateau | None,
    data: FoldData,
    settings: Settings,
    folder: str | Path,
) -> Trained:
    """Train a network on `data.train`, validate it on `data.validation`, and write everything below `folder`.

    Writes best/ and last/ (checkpoint folders), history.csv, val_dice.csv (images × classes of the best epoch), logs/
    (TensorBoard) and, while it runs, resume.ckpt: started again with the same parts, settings and data, training goes
    on after the last finished epoch with the same numbers as an uninterrupted one (bit for bit on a CPU with a fixed
    number of threads). With anything changed, it starts anew; so it does where the source of a part can't be read.

    Args:
        model: gives logits, float (N, classes, H, W), for normalised images, float (N, 3, H, W). From `build_model` or
            any module of your own, which is normalised by ImageNet's values unless it has `mean` and `std`.
        loss: any callable (logits, labels) -> scalar; both float32 (N, classes, H, W), labels in [0, 1].
        augmentation: from `build_augmentation`, or any albumentations.Compose that keeps the image's size and uint8.
        optimizer: any torch optimiser over parameters of `model`.
        schedule: any torch scheduler over `optimizer`, or None. It steps once per optimiser step; ReduceLROnPlateau
            gets each validation Dice, so it needs mode="max".
        data: the images of this fold, from `Run.fold_data`; its `sampler` may be any torch sampler over them.
        settings: everything else, see `Settings`.
        folder: where results go; made if missing.

    Returns:
        The finished training, with the best epoch's network.

    Raises:
        TypeError, ValueError: parts that do not fit together.
        ModelError: an init_checkpoint that does not fit or knows people of the validation images.
        TrainingError: a loss that is not finite, or logits of another shape than the labels.
        RuntimeError: a device that is not there.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    model = model if isinstance(model, PaddedModel) else PaddedModel(model, 32)
    _check_parts(model, loss, optimizer, schedule)
    people = set(hash_people(data.train["ID"]))
    if settings.init_checkpoint:
        people |= start_from(model, data, settings.init_checkpoint)
    elif settings.start_from_prior:
        start_from_prior(model, class_shares(data.cache, data.train["image_name"]))
    augmenter = as_augmenter(augmentation)
    if settings.precision == "auto":
        untouched = replace(data, sampler=copy.deepcopy(data.sampler))
        sample = training_loader(untouched, augmenter, settings.batch_size, settings.seed)
        shape, file = (settings.batch_size, data.cache.grid[0]), settings.precision_file or folder / "precision.json"
        device = choose_device(settings.device)
        precision = choose_precision(model, loss, lambda: next(iter(sample)), shape, device, Path(file))
        settings = replace(settings, precision=precision.name)
    config = Config(
        precision=settings.precision,
        classes=data.cache.classes,
        image_size=data.cache.grid[0],
        fold=data.fold,
        flip=data.flip.allowed,
        flip_order=list(data.flip.order),
        people=sorted(people),
        **describe_network(model),
    )
    names = data.validation["image_name"].tolist()
    settings, key = _key(model, loss, augmentation, optimizer, schedule, data, settings)
    done = saved_epochs(folder / RESUME, key)
    loader = training_loader(data, augmenter, settings.batch_size, settings.seed, settings.num_workers)
    loader.sampler.set_epoch(done)  # workers draw the first epoch's order before Lightning says which it is
    if settings.gradient_clip or isinstance(optimizer, torch.optim.SGD):
        # Lightning must scale float16 gradients back before they are clipped; and when the first step overflows, which
        # is usual, torch's fused SGD goes on with momentum that it never wrote
        optimizer._step_supports_amp_scaling = False
    module = TrainingModule(model, loss, optimizer, schedule, data, settings, folder, config, key)
    trainer = _trainer(settings, folder, bool(names))
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message=".*does not have many workers.*|.*smaller than the logging interval.*|.*treespec.*"
        )
        trainer.fit(
            module,
            loader,
            plain_loader(data.cache, names, settings.batch_size, settings.num_workers) if names else None,
            ckpt_path=folder / RESUME if done else None,
            weights_only=True,
        )
    module.save("last", module.best if names else None)
    if not names:
        module.save("best", None)
    (folder / RESUME).unlink(missing_ok=True)
    load_weights(model.cpu(), folder / "best")
    model._compiled_call_impl = None  # whoever uses it next does so on the CPU
    return Trained(
        score=module.best if names else float("nan"),
        model=model.eval(),
        history=pd.DataFrame(module.history),
        val_dice=pd.read_csv(folder / "val_dice.csv", index_col=0) if names else pd.DataFrame(columns=config.classes),
        checkpoint=folder / "best",
        minutes=(time.monotonic() - started) / 60,
    )


def class_shares(cache: Cache, names: pd.Series) -> torch.Tensor:
    """Mean share of the image's pixels that each class covers, float32 (classes,)."""
    shares = [[patch.sum() / 255 for patch, _ in cache.read(name).label.patches()] for name in names]
    return torch.tensor(np.mean(shares, axis=0) / math.prod(cache.grid), dtype=torch.float32)


def start_from(model: PaddedModel, data: FoldData, init_checkpoint: str) -> set[str]:
    """Load an earlier fold model's weights to fine-tune from; the hashes of the people it was trained on.

    `{fold}` in the path stands for this fold. Raises ModelError where the network is another one, or where the earlier
    one was trained on a person of the validation images: their score would be worth nothing.
    """
    folder = resolve(init_checkpoint.replace("{fold}", str(data.fold)))
    earlier = read_config(folder)
    wanted = describe_network(model) | {"classes": data.cache.classes}
    for name in ("architecture", "encoder", "options", "classes"):
        if getattr(earlier, name) != wanted[name]:
            raise ModelError(
                f"init_checkpoint {shown(folder)} has {name} {getattr(earlier, name)!r}, this training "
                f"{wanted[name]!r}: they must be the same"
            )
    known = [name for name in data.validation["ID"].unique() if hash_people([name])[0] in earlier.people]
    if known or (len(data.validation) and not earlier.people):
        whom = f"{len(known)} people of this fold, such as {known[0]}" if known else "people it does not name"
        raise ModelError(
            f"init_checkpoint {shown(folder)} (fold {earlier.fold}) was trained on {whom}: the validation score would "
            f"leak. Start from a fold model of the same fold; {{fold}} in the path stands for it"
        )
    load_weights(model, folder)
    model.mean, model.std = earlier.mean, earlier.std
    return set(earlier.people)


def _check_parts(model: PaddedModel, loss: Callable, optimizer: object, schedule: object) -> None:
    """Refuse parts that do not fit together, before any data is read."""
    if not isinstance(optimizer, torch.optim.Optimizer) or not callable(loss):
        raise TypeError(f"expected a torch optimiser and a callable loss, found {optimizer!r} and {loss!r}")
    own = {id(parameter) for parameter in model.parameters()}
    if not any(id(parameter) in own for group in optimizer.param_groups for parameter in group["params"]):
        raise ValueError("the optimiser holds no parameter of this model; build it from model.parameters() again")
    if schedule is not None and getattr(schedule, "optimizer", None) is not optimizer:
        raise ValueError("the schedule steps another optimiser; build it again for this one")
    if isinstance(schedule, ReduceLROnPlateau) and schedule.mode != "max":
        raise ValueError('ReduceLROnPlateau gets the validation Dice, which should grow: give it mode="max"')


def _key(model, loss, augmentation, optimizer, schedule, data: FoldData, settings: Settings) -> tuple[Settings, str]:
    """The settings, without resume where that is not possible, and the key of the resume file."""
    names = [*data.train["image_name"], *data.validation["image_name"]]
    parts = {"model": model, "loss": loss, "augmentation": augmentation, "optimizer": optimizer, "schedule": schedule}
    parts |= {"settings": settings.shaping(), "flip": data.flip.order, "sampler": data.sampler, "fold": data.fold}
    parts |= {"images": [data.cache.signature(name) for name in names], "validation": len(data.validation)}
    if settings.init_checkpoint:
        parts["start"] = dict(model.state_dict())
    try:
        return settings, resume_key(**parts)
    except NoSourceError as error:
        print(f"an interrupted training can't be resumed, because the source of a part can't be read: {error}")
        return replace(settings, resumable=False), ""


def _trainer(settings: Settings, folder: Path, validated: bool) -> L.Trainer:
    device = choose_device(settings.device)
    loggers = [TensorBoardLogger(folder, name="logs", version="")]
    if settings.wandb_project:
        loggers.append(_wandb(folder, settings.wandb_project))
    patience = math.ceil(settings.early_stopping / settings.validate_every)  # in validations, as Lightning counts
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
        callbacks=[EarlyStopping("val_dice", mode="max", patience=patience)] if patience and validated else [],
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
