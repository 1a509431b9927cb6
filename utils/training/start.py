"""What is settled before the first epoch: parts that fit, the weights to start from, the precision, the config."""

import copy
import math
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from filelock import FileLock
from lightning.fabric.utilities import move_data_to_device
from torch.optim.lr_scheduler import ReduceLROnPlateau

from utils.data.cache import Cache
from utils.data.fold_data import FoldData
from utils.data.loader import training_loader
from utils.device import Precision, candidates, usable
from utils.files import read_json, resolve, shown, write_json
from utils.masks.dice import dice_of_masks
from utils.models.additions import WithMetadata
from utils.models.base import Loss, ModelError, PaddedModel, start_from_prior
from utils.models.checkpoint import Config, check_unseen, describe_network, hash_people, load_weights, read_config
from utils.training.faults import out_of_memory
from utils.training.losses import batch_loss
from utils.training.settings import Metric, Settings

STEPS = 4
"""Steps in each precision; the first warms up, the fastest of the others counts."""
GAIN = 0.95
"""Another precision than the plain one is taken below this share of its time."""


def check_parts(
    model: PaddedModel, loss: Callable, optimizer: object, schedule: object, data: FoldData, sampler: object
) -> None:
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
    if sampler is not None and data.region_crops:
        raise ValueError("a sampler chooses among whole images; leave out the further crops, or the sampler")


def load_start(model: PaddedModel, settings: Settings, data: FoldData) -> set[str]:
    """Give the network its first weights, see `Settings`; the hashes of the people that a checkpoint has seen."""
    if settings.init_checkpoint:
        return start_from(model, data, settings.init_checkpoint)
    if settings.start_from_prior:
        start_from_prior(model, class_shares(data.cache, data.train["image_name"]))
    if model.takes_person:
        known = np.stack([data.cache.people[name] for name in data.train["image_name"]])
        next(part for part in model.modules() if isinstance(part, WithMetadata)).standardise_by(known)
    return set()


def build_config(model: PaddedModel, metric: Metric, settings: Settings, data: FoldData, people: set[str]) -> Config:
    """What the checkpoints of a training say. people: whom the weights it starts from have seen."""
    return Config(
        precision=settings.precision,
        classes=data.cache.classes,
        image_size=data.cache.grid[0],
        window=data.crop,
        wrist_of=data.refines,
        refines=list(data.region) if data.refines else [],
        fold=data.fold,
        flip=data.flip.allowed,
        flip_order=list(data.flip.order),
        people=sorted({*hash_people(data.train["ID"]), *data.known, *people}),
        metric=metric_name(metric),
        **describe_network(model),
    )


def metric_name(metric: Metric) -> str:
    """The name by which history and checkpoints call a metric; ValueError for one that has no name of its own."""
    if metric is dice_of_masks:
        return "dice"
    name = getattr(metric, "__name__", type(metric).__name__)
    if name == "dice" or not name.isidentifier():
        raise ValueError(f"the metric is called {name!r}: define it as a function with a name of its own")
    return name


def settle_precision(
    model: PaddedModel,
    loss: Loss,
    augmenter: Callable,
    settings: Settings,
    data: FoldData,
    device: torch.device,
    folder: Path,
) -> Settings:
    """The settings with the precision to train in: the fastest one for "auto", float32 where the device lacks it."""
    if settings.precision == "auto":
        sample = training_loader(data, augmenter, settings.batch_size, settings.seed)
        shape, file = (settings.batch_size, data.side), settings.precision_file or folder / "precision.json"
        precision = choose_precision(model, loss, lambda: next(iter(sample)), shape, device, Path(file))
    elif (precision := usable(settings.precision, device)).name != settings.precision:
        print(f"precision {precision.name}, because this {device.type} computes no {settings.precision}")
    return replace(settings, precision=precision.name)


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


def choose_precision(
    model: PaddedModel,
    loss: Loss,
    sample: Callable[[], dict[str, Any]],
    shape: tuple[int, int],
    device: torch.device,
    path: Path,
) -> Precision:
    """The precision that `path` says for this network and batch; without it, the fastest, which is then written there.

    All fold models of a run share the file, and a resumed training and inference compute as it says, so that noise in
    the timing changes no result. sample: gives a batch from the loader, called only where something is timed. shape:
    number and side of its images. Prints the choice.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    names = candidates(device)
    made_from = describe_network(model) | {"parameters": sum(p.numel() for p in model.parameters())}
    made_from |= {"batch": list(shape), "candidates": names}
    with FileLock(path.with_name(f".{path.name}.lock"), mode=0o666):  # folds may start together
        found = read_json(path, {})
        if any(found.get(key) != value for key, value in made_from.items()):
            batch = move_data_to_device(sample(), device)
            seconds = {name: seconds_per_step(model, loss, batch, Precision(name), device) for name in names}
            seconds = {name: value for name, value in seconds.items() if value < float("inf")}
            if not seconds:  # a GPU on which no half precision works
                seconds["32-true"] = seconds_per_step(model, loss, batch, Precision("32-true"), device)
            plain, fastest = next(iter(seconds)), min(seconds, key=seconds.get)  # `names` has the plain one first
            chosen = fastest if seconds[fastest] < GAIN * seconds[plain] else plain
            found = made_from | {"precision": chosen, "seconds_per_step": seconds}
            write_json(path, found)
    times = ", ".join(f"{name} {seconds:.3f} s" for name, seconds in found["seconds_per_step"].items())
    print(f"precision {found['precision']} ({shown(path)}; seconds per step: {times})")
    return Precision(found["precision"])


def seconds_per_step(
    model: PaddedModel, loss: Loss, batch: dict[str, Any], precision: Precision, device: torch.device
) -> float:
    """Seconds of the fastest of a few training steps of a copy of the network; infinite where it can't compute so."""
    torch.backends.cudnn.benchmark = True  # as in training
    seconds, finite = [], True
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        try:
            network = precision.prepare(copy.deepcopy(model).to(device)).train()
            for _ in range(STEPS):
                began = time.perf_counter()
                with precision.computing(device):
                    value = batch_loss(network, loss, batch, precision)
                value.backward()
                finite = finite and bool(value.isfinite())  # and waits for a GPU
                network.zero_grad()
                seconds.append(time.perf_counter() - began)
        except RuntimeError as error:  # such as an operation without bfloat16
            if precision.name == "32-true" or out_of_memory(error):
                raise
            print(f"{precision.name} does not work with this network: {str(error).splitlines()[0]}")
            return float("inf")
    return min(seconds[1:]) if finite else float("inf")
