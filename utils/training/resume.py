"""The key of a resume file: everything that shapes a training, parts given as objects included."""

import functools
import hashlib
import inspect
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
from torch import nn

from utils.files import ROOT, shown

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
        return sorted([str(key), json.dumps(inner(item), sort_keys=True)] for key, item in value.items())
    if isinstance(value, list | tuple):
        return [inner(item) for item in value]
    if isinstance(value, set | frozenset):
        return sorted(json.dumps(inner(item)) for item in value)
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


def saved_epochs(path: Path, key: str) -> int:
    """The epochs that the resume file holds, if it belongs to the training with this key; else 0, with a line why."""
    if not path.exists():
        return 0
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True, mmap=True)["training"]
    except Exception as error:  # a damaged file must not cost the night
        print(f"{shown(path)} can't be read ({type(error).__name__}): training starts anew")
        return 0
    if saved["key"] != key:
        print(f"{shown(path)} is of a training with other parameters, parts or data: training starts anew")
        return 0
    print(f"going on after epoch {len(saved['history'])} of an interrupted training")
    return len(saved["history"])
