"""Train one fold model: Lightning runs the loop; every epoch is validated at full size and can be resumed exactly."""

import copy
import math
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import albumentations as A
import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from utils.data.augment import Augmenter, as_augmenter
from utils.data.cache import Cache
from utils.data.fold_data import FoldData
from utils.data.loader import plain_loader, training_loader
from utils.device import choose_device, usable
from utils.files import delete_temporary, resolve, restore_folder, shown
from utils.models.additions import WithMetadata
from utils.models.base import Loss, ModelError, PaddedModel, start_from_prior
from utils.models.checkpoint import Config, check_unseen, describe_network, hash_people, load_weights, read_config
from utils.training import faults
from utils.training.module import RETRY_LR, NonFiniteLossError, Settings, TrainingError, TrainingModule
from utils.training.precision import choose_precision
from utils.training.resume import (
    RESUME,
    NoSourceError,
    finished,
    mark_finished,
    resume_key,
    saved_epochs,
    set_aside,
)
from utils.training.trainer import build_trainer


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
    number of threads). A finished training that is found again is taken up at once. With anything changed, the results
    that are there move to previous/<folder>-<number> beside the folder, and training starts anew; so it does where the
    source of a part can't be read.

    If a loss is not finite, its batch is saved as nonfinite-….npz, and training goes back to the last good epoch, once,
    and on at a tenth of the learning rate; the history's column `retries` says from which epoch on.

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
        TrainingError: a loss that is not finite, after the retry too; logits of another shape than the labels; a
            process that prepares batches has died; memory does not suffice, with what fits.
        DiskFullError: a file does not fit on the disk.
        RuntimeError: a device that is not there.
    """
    device, folder = choose_device(settings.device), Path(folder)
    model = model if isinstance(model, PaddedModel) else PaddedModel(model, 32)
    _check_parts(model, loss, optimizer, schedule)
    model.window = data.crop
    try:
        return _fit(model, loss, augmentation, optimizer, schedule, data, settings, folder, device)
    except Exception as error:
        if faults.dead_worker(error):
            raise TrainingError(faults.worker_advice(error, settings.num_workers)) from error
        if not faults.out_of_memory(error):
            raise
        found = str(error).strip().splitlines()[0][:200]
    faults.free_memory()  # here, because the error held what the failed step had allocated
    raise TrainingError(faults.memory_advice(model, loss, settings, len(data.cache.classes), data.side, device, found))


def _fit(model, loss, augmentation, optimizer, schedule, data, settings, folder: Path, device: torch.device) -> Trained:
    """`fit`, without what it says when memory does not suffice."""
    started = time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    delete_temporary(folder)
    for name in ("best", "last"):
        restore_folder(folder / name)
    people = set(hash_people(data.train["ID"])) | set(data.known)
    if settings.init_checkpoint:
        people |= start_from(model, data, settings.init_checkpoint)
    elif settings.start_from_prior:
        start_from_prior(model, class_shares(data.cache, data.train["image_name"]))
    if model.takes_person and not settings.init_checkpoint:
        known = np.stack([data.cache.people[name] for name in data.train["image_name"]])
        next(part for part in model.modules() if isinstance(part, WithMetadata)).standardise_by(known)
    augmenter = as_augmenter(augmentation)
    if settings.precision == "auto":
        untouched = replace(data, sampler=copy.deepcopy(data.sampler))
        sample = training_loader(untouched, augmenter, settings.batch_size, settings.seed)
        shape, file = (settings.batch_size, data.side), settings.precision_file or folder / "precision.json"
        precision = choose_precision(model, loss, lambda: next(iter(sample)), shape, device, Path(file))
        settings = replace(settings, precision=precision.name)
    elif (possible := usable(settings.precision, device).name) != settings.precision:
        print(f"precision {possible}, because this {device.type} computes no {settings.precision}")
        settings = replace(settings, precision=possible)
    config = Config(
        precision=settings.precision,
        classes=data.cache.classes,
        image_size=data.cache.grid[0],
        window=data.crop,
        wrist_of=data.refines,
        refines=list(data.region) if data.refines else [],
        fold=data.fold,
        flip=data.flip.allowed,
        flip_order=list(data.flip.order),
        people=sorted(people),
        **describe_network(model),
    )
    key = _key(model, loss, augmentation, optimizer, schedule, data, settings)
    if found := finished(folder, key):
        print(f"{shown(folder)} holds this training, finished: nothing is trained again")
        return _trained(folder, model, found["score"], found["minutes"])
    done = saved_epochs(folder / RESUME, key)
    if done is None and settings.resumable:
        set_aside(folder)
    if settings.gradient_clip or isinstance(optimizer, torch.optim.SGD):
        # Lightning must scale float16 gradients back before they are clipped; and when the first step overflows, which
        # is usual, torch's fused SGD goes on with momentum that it never wrote
        optimizer._step_supports_amp_scaling = False
    module = TrainingModule(model, loss, optimizer, schedule, data, settings, folder, config, key)
    modes = {each: each.training for each in module.modules()}
    while not _run(module, augmenter, done):
        done = len(module.history)
        for each, training in modes.items():
            each.training = training
    module.save("last", module.best if module.names else None, len(module.history))
    if not module.names:
        module.save("best", None, len(module.history))
    score, minutes = module.best if module.names else float("nan"), (time.monotonic() - started) / 60
    if settings.resumable:
        mark_finished(folder, key, score, minutes)
    (folder / RESUME).unlink(missing_ok=True)
    return _trained(folder, model, score, minutes)


def _run(module: TrainingModule, augmenter: Augmenter, done: int | None) -> bool:
    """Train to the end, after the `done` epochs in the resume file if not None: True, or False if it has to be retried.

    A loss that is not finite is retried once, then raised as TrainingError.
    """
    data, settings, folder = module.data, module.settings, module.folder
    loader = training_loader(data, augmenter, settings.batch_size, settings.seed, settings.num_workers)
    loader.sampler.set_epoch(done or 0)  # workers draw the first epoch's order before Lightning says which it is
    validation = plain_loader(data.cache, module.names, settings.batch_size, settings.num_workers, data.windows)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", message=".*does not have many workers.*|.*smaller than the logging interval.*|.*treespec.*"
            )
            build_trainer(settings, folder).fit(
                module,
                loader,
                validation if module.names else None,
                ckpt_path=None if done is None else folder / RESUME,
                weights_only=True,
            )
        return True
    except NonFiniteLossError as error:
        batch = folder / f"nonfinite-epoch{error.epoch + 1}-batch{error.step + 1}.npz"
        faults.save_batch(batch, loader, error.epoch, error.step, error.loss)
        what = f"{error} (saved in {shown(batch)})"
        if module.retries or not settings.resumable:
            tried = f", also at {RETRY_LR:g} of the learning rate" if module.retries else ""
            raise TrainingError(
                f"{what}{tried}: try a smaller lr, gradient_clip=1 or precision='32-true', and look at that batch. The "
                "epochs before are kept"
            ) from error
    module.retries += 1
    print(f"{what}: going back to the end of epoch {len(module.history)}, and on at {RETRY_LR:g} of the learning rate")
    return False


def _trained(folder: Path, model: PaddedModel, score: float, minutes: float) -> Trained:
    """What a finished training left in its folder."""
    load_weights(model.cpu(), folder / "best")
    model._compiled_call_impl = None  # whoever uses it next does so on the CPU
    classes = read_config(folder / "best").classes
    validated = not math.isnan(score)
    return Trained(
        score=score,
        model=model.eval(),
        history=pd.read_csv(folder / "history.csv", float_precision="round_trip"),
        val_dice=pd.read_csv(folder / "val_dice.csv", index_col=0) if validated else pd.DataFrame(columns=classes),
        checkpoint=folder / "best",
        minutes=minutes,
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
    advice = "Start from a fold model of the same fold; {fold} in the path stands for it"
    check_unseen(earlier, data.validation["ID"], f"init_checkpoint {shown(folder)}", advice)
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


def _key(model, loss, augmentation, optimizer, schedule, data: FoldData, settings: Settings) -> str:
    """The key of the resume file; "", with a line why, where the source of a part can't be read."""
    names = [*data.train["image_name"], *data.validation["image_name"]]
    parts = {"model": model, "loss": loss, "augmentation": augmentation, "optimizer": optimizer, "schedule": schedule}
    parts |= {"settings": settings.shaping(), "flip": data.flip.order, "sampler": data.sampler, "fold": data.fold}
    parts |= {"crops": [data.crop, data.region_crops, data.region]}
    if data.windows is not None:
        parts |= {"refines": data.refines, "windows": dict(data.windows.corners)}
    parts |= {"images": [data.cache.signature(name) for name in names], "validation": len(data.validation)}
    if model.takes_person:
        parts["people"] = [data.cache.people[name].tolist() for name in names]
    if settings.init_checkpoint:
        parts["start"] = dict(model.state_dict())
    try:
        return resume_key(**parts)
    except NoSourceError as error:
        print(f"an interrupted training can't be resumed, because the source of a part can't be read: {error}")
        return ""
