"""Writes of every kind on a disk that gets full: python -m tests.full_disk SAMPLE FOLDER prints a line of JSON.

By kind of file: the error, whether what was there before can still be read, and the names left beside it.
"""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn

from utils.data.cache import Cache
from utils.data.competition import read_classes, read_index
from utils.files import read_json, write_json, write_table
from utils.inference.probabilities import ProbabilityStore
from utils.models.base import PaddedModel
from utils.models.checkpoint import Config, load_weights, read_config, save_checkpoint
from utils.training.settings import ResumeFile

LARGE = 600_000


def attempt(folder: Path, write: Callable[[Path, int], None], read: Callable[[Path], int]) -> dict:
    """Write something of size 1, then of size LARGE, which does not fit; read what is there then."""
    folder.mkdir()
    write(folder, 1)
    error = None
    try:
        write(folder, LARGE)
    except OSError as raised:
        error = [type(raised).__name__, str(raised)]
    found = {"error": error, "kept": read(folder) == 1, "files": sorted(path.name for path in folder.iterdir())}
    shutil.rmtree(folder)
    return found


def write_numbers(folder: Path, rows: int) -> None:
    write_table(folder / "a.csv", pd.DataFrame({"dice": np.random.default_rng(0).random(rows)}))


def write_store(folder: Path, pixels: int) -> None:
    noise = np.random.default_rng(0).random((1, 1, 2 * pixels), np.float32) * 0.9 + 0.1
    ProbabilityStore(folder).write("a.png", noise, (8, 8))


def network(numbers: int) -> PaddedModel:
    return PaddedModel(nn.Conv2d(3, numbers, 1), 32)


def write_checkpoint(folder: Path, numbers: int) -> None:
    save_checkpoint(folder / "best", network(numbers), Config("", "", ["a"], 64, epoch=numbers))


def read_checkpoint(folder: Path) -> int:
    load_weights(network(1), folder / "best")
    return read_config(folder / "best").epoch


def main(sample: str, disk: Path) -> dict:
    """What happened, by kind of file."""
    resume = ResumeFile()
    kinds = {
        "metrics": (
            lambda folder, n: write_json(folder / "a.json", ["number"] * n),
            lambda folder: len(read_json(folder / "a.json")),
        ),
        "table": (write_numbers, lambda folder: len(pd.read_csv(folder / "a.csv"))),
        "store": (write_store, lambda folder: ProbabilityStore(folder).read("a.png").regions.grid[1] // 2),
        "checkpoint": (write_checkpoint, read_checkpoint),
        "resume file": (
            lambda folder, n: resume.save_checkpoint({"a": torch.zeros(n)}, folder / "resume.ckpt"),
            lambda folder: len(torch.load(folder / "resume.ckpt", weights_only=True)["a"]),
        ),
    }
    found = {kind: attempt(disk / "folder", *functions) for kind, functions in kinds.items()}
    table, classes = read_index(sample), read_classes(sample)
    cache = Cache(disk, table, classes, 512)
    try:
        cache.build(threads=2)
        error = None
    except OSError as raised:
        error = [type(raised).__name__, str(raised)]
    there = [path.name.removesuffix(".npz") for path in cache.folder.glob("[!.]*.npz")]
    whole = 0 < len(there) < len(table) and all(cache.read(name).size == (256, 256) for name in there)
    found["cache"] = {"error": error, "kept": whole, "files": [path.name for path in cache.folder.glob(".*.part*")]}
    return found


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], Path(sys.argv[2]))))
