"""Choose the fastest precision and order of feature maps for a network by timing real training steps."""

import copy
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from lightning.fabric.utilities import move_data_to_device

from utils.device import Precision, candidates
from utils.files import read_json, shown, write_json
from utils.models.base import Loss, PaddedModel
from utils.models.checkpoint import describe_network
from utils.training.faults import out_of_memory
from utils.training.module import batch_loss

STEPS = 4
"""Steps in each precision; the first warms up, the fastest of the others counts."""
GAIN = 0.95
"""Another precision than the plain one is taken below this share of its time."""


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
            plain, fastest = min(seconds, key=names.index, default="32-true"), min(seconds, key=seconds.get, default="")
            chosen = fastest if fastest and seconds[fastest] < GAIN * seconds[plain] else plain
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
                with precision.autocast(device):
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
