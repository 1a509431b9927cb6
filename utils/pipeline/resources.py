"""Estimate the disk and the shared memory that a run needs, from a few of its images and the sizes of its networks."""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from utils.data.cache import make_entry
from utils.pipeline.steps import Step

MEASURED = 3
"""Training images, spread over all, whose cache entries are made to see how large they are."""
PREFETCHED = 2
"""Batches that each worker of torch's DataLoader prepares ahead."""
SHARED_MEMORY = Path("/dev/shm")


class Bytes(NamedTuple):
    """Mean size of one image at the network's resolution: grey values or colours, soft labels, full-size RLE."""

    image: float
    label: float
    truth: float


class Disk(NamedTuple):
    """What a run writes, in bytes; see `disk_needed`."""

    cache: float
    stores: float
    checkpoints: float
    resume: float

    def __str__(self) -> str:
        """The sum and its parts."""
        parts = ", ".join(f"{name} {in_units(value)}" for name, value in self._asdict().items() if value)
        return f"about {in_units(sum(self))} ({parts})"


def measure(table: pd.DataFrame, classes: list[str], image_sizes: Iterable[int]) -> dict[int, Bytes]:
    """The size of an image at each resolution, the mean over MEASURED training images of the index `table`."""
    train = table[table["split"] == "train"]
    some = train.iloc[np.linspace(0, len(train) - 1, min(MEASURED, len(train))).astype(int)]
    sizes = {}
    for side in set(image_sizes):
        entries = [make_entry(row.image, row.annotation, classes, (side, side)) for row in some.itertuples()]
        labels = [sum(array.nbytes for array in e.label.arrays().values()) for e in entries]
        each = [
            (e.image.nbytes, label, sum(array.nbytes for array in e.truth.arrays().values()))
            for e, label in zip(entries, labels, strict=True)
        ]
        sizes[side] = Bytes(*np.mean(each, axis=0).tolist())
    return sizes


def disk_needed(
    steps: list[Step],
    sizes: dict[int, Bytes],
    images: dict[str, int],
    parameters: dict[str, int],
    jobs: int,
) -> Disk:
    """Bytes that a run writes at most, with (image, label, truth) as in `Bytes`.

    cache: Σ over resolutions of train · (image + label + truth) + test · image.
    stores: Σ over fold models of (train / n_folds + test) · 2 · label, as probabilities have 16 bits in about the boxes
    of the labels; compression usually halves that.
    checkpoints: Σ over fold models of 2 · 4 · parameters, best/ and last/ in float32.
    resume: jobs · 2 · 16 · parameters of the largest network: weights, their average and two moments of the optimiser,
    twice while a new file replaces the old one. They are deleted when a training ends.

    Args:
        steps: the run's steps.
        sizes: see `measure`. images: number of images by split. parameters: of each training step's network.
        jobs: steps at the same time.
    """
    cache = stores = 0.0
    side_of = {}
    for step in steps:
        given = step.all_parameters()
        if "image_size" in given:
            side_of[step.name] = given["image_size"]
        predicting = step.name if "network" in given else step.after[0] if "tta" in given else ""
        if predicting in side_of:
            oof = images["train"] / given["n_folds"] if given["fold"] >= 0 else 0
            stores += (oof + images["test"]) * 2 * sizes[side_of[predicting]].label
    for side in set(side_of.values()):
        cache += images["train"] * sum(sizes[side]) + images["test"] * sizes[side].image
    counts = [parameters.get(name, 0) for name in side_of]
    return Disk(cache, stores, 8 * sum(counts), 32 * jobs * max(counts, default=0))


def shared_memory_needed(step: Step, sizes: dict[int, Bytes], side: int) -> float:
    """Bytes of the batches that a step's workers hold in shared memory: workers · 2 · batch size · bytes of an image.

    A training has workers for training images with their labels and, beside them, for validation images.
    """
    given = step.all_parameters()
    one = 2 * sizes[side].image + sizes[side].label if "epochs" in given else sizes[side].image
    return given.get("num_workers", 0) * PREFETCHED * given.get("batch_size", 1) * one


def used(*folders: Path) -> int:
    """Bytes of all files below these folders."""
    return sum(p.stat().st_size for folder in folders for p in folder.rglob("*") if p.is_file())


def in_units(size: float) -> str:
    """A number of bytes as text, such as "3.2 GB"."""
    power = min(int(math.log(max(size, 1), 1000)), 4)
    return f"{size / 1000**power:.1f} {('bytes', 'KB', 'MB', 'GB', 'TB')[power]}"
