"""Build every part that a run's steps name and train each network for one tiny step, before the run starts.

A process of its own (`python -m utils.pipeline.try_parts FILE`), so that the run's own process stays small and holds no
GPU. `utils.pipeline.preflight` starts it.
"""

import importlib.util
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import torch

import utils.models  # noqa: F401  (registers the built-in networks)
from utils.data.augment import as_augmenter
from utils.data.cache import Cache, Entry
from utils.data.flip import ANY_FLIP, flip_rule
from utils.data.loader import TrainingSet, stack
from utils.device import Precision, choose_device, tune_process
from utils.files import Problems, read_json, resolve, write_json
from utils.hand.bones import check_crops
from utils.inference.tta import build_tta
from utils.inference.weights import model_weights
from utils.masks.sparse import SparseMaps
from utils.models.checkpoint import read_config
from utils.models.yolo import describe_yolo
from utils.params import pick
from utils.pipeline.leftovers import end_with_run
from utils.pipeline.steps import Step
from utils.registry import load_plugins
from utils.training.losses import batch_loss
from utils.training.parts import Parts
from utils.training.settings import Settings
from utils.training.train_yolo import YoloSettings, check_yolo_options

SIDE = 128
"""Pixels of the tiny step's images. Whether batch norm fails on pooled maps depends on the batch, not on this."""


def try_parts(steps: list[Step], classes: list[str], images: int) -> tuple[list[str], dict[str, int]]:
    """Everything that is wrong with the parts of the steps, and the number of parameters of each network, by step.

    classes: their names; images: number of training images. Networks of several folds are tried once.
    """
    problems: list[str] = []
    counts: dict[str, int] = {}
    sizes = {step.name: step.all_parameters().get("image_size", 256) for step in steps}
    tried: dict[str, str] = {}
    for step in steps:
        notebook, _, fold_model = step.name.partition("/")
        where = f"{notebook} {fold_model.partition('/')[0]}".strip()
        p = step.all_parameters()
        same = json.dumps(
            [notebook, {k: v for k, v in p.items() if k not in ("model", "fold")}], sort_keys=True, default=str
        )
        with noted(problems, where):
            _try_start(p)
        if same in tried:
            counts |= {step.name: counts[tried[same]]} if tried[same] in counts else {}
            continue
        tried[same] = step.name
        with noted(problems, where):
            load_plugins(p.get("plugins", []))
        if p.get("device", "auto") not in ("auto", "cpu"):
            with noted(problems, where):
                choose_device(p["device"])
        if p.get("precision", "auto") != "auto":
            with noted(problems, where):
                Precision(p["precision"])
        if "architecture" in p:
            if count := try_training(where, p, classes, images, problems):
                counts[step.name] = count
        elif "network" in p:
            with noted(problems, where):
                pick(YoloSettings, p)
                _, counts[step.name] = describe_yolo(p["network"])
                check_yolo_options(p["options"])
        elif "tta" in p:
            with noted(problems, where):
                build_tta(p["tta"], next((sizes[before] for before in step.after if before in sizes), 256))
        elif "weights" in p:
            with noted(problems, where):
                model_weights([], p["models"], p["weights"])
    return list(dict.fromkeys(problems)), counts


def try_training(where: str, p: dict[str, Any], classes: list[str], images: int, problems: list[str]) -> int:
    """Try what a training step names; add what is wrong to `problems`; return the network's number of parameters."""
    size = p.get("image_size", 256)
    validate_every, epochs = p.get("validate_every", 1), p.get("epochs", 1)
    if not 1 <= validate_every <= epochs:
        problems.append(f"{where}: validate_every = {validate_every}: expected 1 to epochs = {epochs}")
    if p.get("wandb_project") and not importlib.util.find_spec("wandb"):
        problems.append(f"{where}: wandb_project = {p['wandb_project']!r} needs W&B: pip install wandb")
    criterion = settings = network = optimizer = None
    flip = p.get("flip", "on")
    cache = Cache("", pd.DataFrame(), classes, size)  # only its classes are looked at
    with noted(problems, where):
        check_crops(p.get("crop", 0), p.get("wrist_crops", 0), size, classes, p.get("wrist_of", ""))
    rule = ANY_FLIP
    with noted(problems, where):
        rule = flip_rule("on" if flip == "auto" else flip, p.get("flip_pairs", ()), cache, ())
    parts = Parts(p, classes, p.get("crop") or size, rule)
    with noted(problems, where):
        criterion = parts.loss()
    with noted(problems, where):
        settings = pick(Settings, p)
    with noted(problems, where):
        entry = Entry(*_noise(parts.side, len(classes)), None)
        TrainingSet(SimpleNamespace(read=lambda name: entry), [""], as_augmenter(parts.augmentation()), 0)[0, 0]
    torch.manual_seed(0)
    with noted(problems, where):
        network = parts.network()
    if network is None:
        return 0
    with noted(problems, where):
        optimizer = parts.optimizer(network)
        if settings:
            parts.schedule(optimizer, settings.steps(range(images)))
    if criterion is not None and optimizer is not None:
        with noted(problems, where):
            _one_step(network, criterion, optimizer, min(p.get("batch_size", 1), 2), min(SIDE, size), len(classes))
    return sum(tensor.numel() for tensor in network.parameters())


@contextmanager
def noted(problems: list[str], where: str) -> Iterator[None]:
    """Whatever is raised inside becomes problems, one each, beginning with `where`."""
    try:
        yield
    except Problems as error:
        problems += [f"{where}: {problem}" for problem in error.problems]
    except Exception as error:  # whatever a library or a plugin raises
        name = "" if type(error).__module__.startswith("utils.") else f"{type(error).__name__}: "
        problems.append(f"{where}: {name}{error}")


def _try_start(p: dict[str, Any]) -> None:
    """Read the checkpoint to start from, unless this run makes it."""
    start = p.get("init_checkpoint", "").replace("{fold}", str(p.get("fold")))
    if start and not resolve(start).is_relative_to(resolve(p["output_dir"])):
        read_config(resolve(start))


def _noise(size: int, classes: int) -> tuple[np.ndarray, tuple[int, int], SparseMaps]:
    """A grey image, uint8 (size, size), its size, and soft labels with a filled square for each class."""
    image = np.random.default_rng(0).integers(0, 256, (size, size), np.uint8)
    square = np.full((size // 4, size // 4), 255, np.uint8)
    return image, image.shape, SparseMaps.from_patches(image.shape, [(square, (size // 4, size // 4))] * classes)


def _one_step(network, criterion, optimizer, batch_size: int, side: int, classes: int) -> None:
    """One training step on noise, on the CPU."""
    image, _, label = _noise(side, classes)
    samples = [{"image": torch.from_numpy(image)[None], "label": label}] * batch_size
    network.train()
    try:
        loss = batch_loss(network, criterion, stack(samples), Precision("32-true"))
    except ValueError as error:
        if batch_size > 1 or "more than 1 value per channel" not in str(error):
            raise
        advice = "expected at least 2; to save memory, use a smaller image_size, and accumulate for the same step"
        raise Problems("", [f"batch_size = 1: batch norm on pooled maps needs several images; {advice}"]) from error
    if not torch.isfinite(loss):
        raise Problems("", [f"the loss of a first step is {loss.item()}"])
    loss.backward()
    optimizer.step()


def main() -> None:
    """Read what to try from the file, put what was found in its place."""
    end_with_run()
    given = read_json(sys.argv[1])
    tune_process()
    torch.set_num_threads(1)  # of such small maps, other threads would do little but wait
    problems, counts = try_parts([Step(**step) for step in given["steps"]], given["classes"], given["images"])
    write_json(sys.argv[1], {"key": given["key"], "problems": problems, "parameters": counts})


if __name__ == "__main__":
    main()
