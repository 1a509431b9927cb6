"""What a training leaves for its next start: the resume file, the mark of a finished one, and the key of both, which
tells everything that shapes a training, parts given as objects included."""

import functools
import hashlib
import inspect
import itertools
import json
import sys
import sysconfig
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import nn

from utils.files import ROOT, read_json, replacing, shown, write_json
from utils.models.checkpoint import WEIGHTS

RESUME, FINISHED = "resume.ckpt", "finished.json"
RESULTS = (RESUME, FINISHED, "best", "last", "logs", "history.csv", "val_dice.csv", "metrics.json")
RESULTS += ("ultralytics", "export", "oof", "test", "oof_dice.csv", "scores.csv")  # of notebook 09
PICTURES = ("curves.png", "classes.png", "worst*.png", "submission.*")
"""What a training, and the notebook around it, writes into its folder."""

LIBRARIES = (str(ROOT / "utils"), *(sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")))
OWN_TO_TORCH = frozenset(vars(nn.Module())) | {"_compiled_call_impl"}


class NoSourceError(Exception):
    """The source of a part can't be read, so that a changed one could not be told from the same."""


def resume_key(**parts: Any) -> str:
    """A digest of everything that shapes a training. Raises NoSourceError naming the part whose source is not known."""
    described = {}
    for name, part in parts.items():
        try:
            described[name] = describe(part)
        except (OSError, TypeError) as error:
            raise NoSourceError(f"{name}: {error}") from error
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()


def describe(value: Any, within: tuple[int, ...] = ()) -> Any:
    """What an object is made from, as JSON values: its source, its settings, and those of all it refers to.

    Libraries' and this repository's own classes and functions stand for themselves by name; a plugin's by the SHA-256
    of its file; others, such as those of a notebook's cell, by their source and what it uses. Weights are left out.
    Raises OSError or TypeError where there is no source.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if id(value) in within:
        return "…"
    inner = functools.partial(describe, within=(*within, id(value)))
    if isinstance(value, Mapping):
        return sorted(([str(key), inner(item)] for key, item in value.items()), key=lambda pair: pair[0])
    if isinstance(value, list | tuple):
        return [inner(item) for item in value]
    if isinstance(value, set | frozenset):
        return sorted((inner(item) for item in value), key=json.dumps)
    if isinstance(value, torch.Tensor | np.ndarray):
        array = value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else value
        return [list(array.shape), hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()]
    if isinstance(value, ModuleType):
        return value.__name__
    if isinstance(value, Path | Enum | torch.dtype | torch.device | np.dtype | np.generic):
        return str(value)
    if isinstance(value, functools.partial):
        return [inner(value.func), inner(value.args), inner(value.keywords)]
    if inspect.ismethod(value):
        return [value.__name__, inner(value.__self__)]
    if isinstance(value, type) or inspect.isroutine(value):
        return _code(value, inner)
    if isinstance(value, torch.optim.Optimizer):
        groups = [[len(g["params"]), {k: v for k, v in g.items() if k != "params"}] for g in value.param_groups]
        return [inner(type(value)), inner(groups), inner(getattr(value, "part", None))]
    settings = {k: v for k, v in getattr(value, "__dict__", {}).items() if not k.startswith("__")}
    if isinstance(value, nn.Module):
        settings = {k: v for k, v in settings.items() if k not in OWN_TO_TORCH}
        tensors = {**dict(value.named_parameters(recurse=False)), **dict(value.named_buffers(recurse=False))}
        settings |= {"tensors": [[name, list(tensor.shape)] for name, tensor in tensors.items()]}
        settings |= {"children": dict(value.named_children())}
    return [inner(type(value)), inner(settings)]


def _code(value: Any, inner: Any) -> Any:
    """A class or a function: its name, and where it is somebody's own, its source with what it refers to."""
    name = f"{value.__module__}.{getattr(value, '__qualname__', '')}"
    module = sys.modules.get(value.__module__ or "builtins")
    file = getattr(module, "__file__", None)
    if digest := getattr(module, "SHA256", ""):  # a plugin
        return [name, digest]
    if value.__module__ != "__main__" and (file is None or file.startswith(LIBRARIES)):
        return name
    if isinstance(value, type):  # a class of a notebook has no source as a whole before Python 3.13, its functions have
        own = {k: v for k, v in vars(value).items() if k not in ("__dict__", "__weakref__", "__doc__", "__module__")}
        own = {k: getattr(v, "__func__", getattr(v, "fget", v)) for k, v in own.items()}
        return [name, inner(own), inner(value.__bases__)]
    if not hasattr(value, "__code__"):
        return name
    used = inspect.getclosurevars(value)
    defaults = [value.__defaults__, value.__kwdefaults__]
    return [inspect.getsource(value), inner(used.nonlocals), inner(used.globals), inner(defaults)]


class ResumeFile(TorchCheckpointIO):
    """Writes Lightning's checkpoint beside its final place and renames it: a kill meanwhile keeps the former one.

    Lightning's own way makes the file in memory, then in the system's temporary folder, and copies it from there.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write a checkpoint; DiskFullError says so where it does not fit."""
        with replacing(path) as temporary, temporary.open("wb") as file:
            torch.save(checkpoint, file)


def saved_epochs(path: Path, key: str) -> int | None:
    """The finished epochs in the resume file, or None, with a line why, if this training can't go on from it.

    key: of this training; "" goes on from no file. No pickled code of the file runs.
    """
    if not path.exists():
        return None
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True, mmap=True)["training"]
        epochs, fits = len(saved["history"]), saved["key"] == key != ""
    except Exception as error:  # a damaged file must not cost the night
        print(f"{shown(path)} can't be read ({type(error).__name__}): training starts anew")
        return None
    if not fits:
        print(f"{shown(path)} is of a training with other parameters, parts or data: training starts anew")
        return None
    print(f"going on after epoch {epochs} of an interrupted training")
    return epochs


def mark_finished(folder: Path, key: str, score: float, minutes: float) -> None:
    """Write that the training with this key has ended and that its results in `folder` are whole."""
    score = None if np.isnan(score) else score
    write_json(folder / FINISHED, {"key": key, "score": score, "minutes": minutes})


def finished(folder: Path, key: str, weights: str = f"best/{WEIGHTS}") -> dict[str, Any] | None:
    """What `mark_finished` wrote for the training with this key, with its score as a number; None without one.

    weights: the file that such a training leaves.
    """
    found = read_json(folder / FINISHED, {})
    if not key or found.get("key") != key or not (folder / weights).is_file():
        return None
    return found | {"score": float("nan") if found["score"] is None else found["score"]}


def set_aside(folder: Path) -> None:
    """Move the results of another training, if any epoch of one is in `folder`, to previous/<folder>-<number> beside.

    Files that are not a training's, such as the log of a run, stay.
    """
    if not (folder / "history.csv").exists():
        return
    numbered = (folder.parent / "previous" / f"{folder.name}-{number}" for number in itertools.count(1))
    aside = next(path for path in numbered if not path.exists())
    aside.mkdir(parents=True)
    for path in [path for name in (*RESULTS, *PICTURES) for path in folder.glob(name)]:
        path.rename(aside / path.name)
    print(f"{shown(folder)} holds another training: its results are now in {shown(aside)}")
