"""What tells a training from every other one: its parts by name with all values they hold, its settings and its images.

A training is resumed, or a finished one taken up, only where this key is the same. The code of a part of your own, from
a notebook's cell or a file beside the repository, may change under the same name: it counts as the same only as long as
its `version` is. Write `my_loss.version = 1` behind a function, `version = 1` into a class, and another number whenever
its code changes. A plugin's parts have the SHA-256 of its file.
"""

import functools
import hashlib
import inspect
import json
import sys
import sysconfig
from collections.abc import Mapping
from dataclasses import fields
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import numpy as np
import torch
from torch import nn

from utils.data.fold_data import FoldData
from utils.files import ROOT, resolve
from utils.models.base import PaddedModel
from utils.models.checkpoint import WEIGHTS, describe_network
from utils.registry import file_sha256
from utils.training.settings import Settings

LIBRARIES = (str(ROOT / "utils"), *(sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")))
TORCHS_OWN = frozenset(vars(nn.Module())) - {"_parameters", "_buffers", "_modules"} | {"_compiled_call_impl"}
CHANGED_BY_TRAINING = ("network", "optimizer", "schedule", "callbacks")

_before: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()
"""How parts were described before they were trained."""
_trained: WeakSet[Any] = WeakSet()


class NoVersionError(Exception):
    """A part of one's own without a `version`, so that a changed one could not be told from the same."""


def describe(value: Any, within: tuple[int, ...] = ()) -> Any:
    """JSON values that tell an object from others: its class or function by name, and the values that it holds.

    Tensors, and so the weights of networks, are told by a digest. What an own object with a `version` holds that can't
    be described is covered by its version. Raises NoVersionError for an own object without one.
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
        digest = hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()
        return [list(array.shape), digest, getattr(value, "requires_grad", False)]
    if inspect.ismethod(value):
        return [value.__name__, inner(value.__self__)]
    if isinstance(value, PaddedModel) and hasattr(value, "made_from"):
        return _built(value, inner)
    name, version = _name_and_version(value)
    held: Any = _held(value)
    if version is not None:
        held = {key: _covered(inner, item) for key, item in held.items()} if isinstance(held, dict) else held
    return [name, version, inner(held)]


def resume_key(**parts: Any) -> str:
    """A digest of everything that shapes a training. Raises NoVersionError."""
    return hashlib.sha256(json.dumps(describe(parts), sort_keys=True).encode()).hexdigest()


def describe_parts(parts: Mapping[str, Any]) -> dict[str, Any] | None:
    """The description of the arguments of `fit`; None, and a line that says what to write, without a version.

    Parts that a training changes are described as they were when `fit` first got them.
    """
    described = {}
    for name, part in parts.items():
        try:
            described[name] = _first_description(part) if name in CHANGED_BY_TRAINING else describe(part)
        except NoVersionError as error:
            print(
                f"{name}: {error} has no version, which would tell whether it has changed: this training can't be "
                f"resumed, nor be taken up when it is finished. Write `version = 1` into the class, or "
                f"`{str(error).strip('<>')}.version = 1` behind the function, and another number whenever you change it"
            )
            return None
    return described


def training_key(described: dict[str, Any] | None, settings: Settings, data: FoldData, takes_person: bool) -> str:
    """The key of a training with these parts, from `describe_parts`; "" where they could not be described.

    takes_person: whether the network is told about each image's person.
    """
    if described is None:
        return ""
    names = [*data.train["image_name"], *data.validation["image_name"]]
    images = {"images": [data.cache.signature(name) for name in names], "validation": len(data.validation)}
    images["people"] = [data.cache.people[name].tolist() for name in names] if takes_person else []
    how = {
        f.name: getattr(data, f.name) for f in fields(data) if f.name not in ("cache", "train", "validation", "known")
    }
    start = resolve(settings.init_checkpoint.replace("{fold}", str(data.fold))) / WEIGHTS
    started = file_sha256(start) if settings.init_checkpoint else ""
    return resume_key(parts=described, settings=settings.shaping(), images=images, how=how, start=started)


def refuse_used_parts(parts: Mapping[str, Any]) -> None:
    """Raise ValueError for a network, optimiser or schedule that has been trained; take note of those that will be."""
    own = {name: parts[name] for name in ("network", "optimizer", "schedule") if parts[name] is not None}
    if used := [name for name, part in own.items() if part in _trained]:
        raise ValueError(
            f"{', '.join(used)}: trained before, with other parameters or to another folder. Training would go on from "
            "there, not start: run the cell that builds the parts again. To go on from trained weights, name their "
            "checkpoint in init_checkpoint"
        )
    _trained.update(own.values())


def _first_description(part: Any) -> Any:
    if isinstance(part, list):
        return [_first_description(each) for each in part]
    if part is None:
        return None
    if part not in _before:
        _before[part] = describe(part)
    return _before[part]


def _built(model: PaddedModel, inner: Any) -> Any:
    """A network of `build_model`: by what it was built from, not by its weights, which differ between processors."""
    weights = model.made_from["encoder_weights"]
    path = resolve(weights) if weights else None
    digest = file_sha256(path) if path and path.is_file() else ""
    tensors = [[name, list(p.shape), p.requires_grad] for name, p in model.named_parameters()]
    classes = {_name_and_version(part) for part in model.modules()}
    return inner([model.made_from, describe_network(model), digest, tensors, classes])


def _covered(inner: Any, item: Any) -> Any:
    try:
        return inner(item)
    except NoVersionError:
        return "covered by the version"


def _name_and_version(value: Any) -> tuple[str, Any]:
    """The name of a class, function, or object's class; its version, or a plugin's SHA-256. NoVersionError without."""
    code = value if isinstance(value, type) or inspect.isroutine(value) else type(value)
    home = getattr(code, "__module__", None) or "builtins"
    name, module = f"{home}.{getattr(code, '__qualname__', type(value).__qualname__)}", sys.modules.get(home)
    if digest := getattr(module, "SHA256", ""):  # a plugin
        return name, digest
    file = getattr(module, "__file__", None)
    known = home != "__main__" and (file is None or file.startswith(LIBRARIES))
    version = getattr(value, "__dict__", {}).get("version") if known else getattr(value, "version", None)
    if isinstance(version, int | str):
        return name, version
    if known:
        return name, None
    raise NoVersionError(code.__qualname__.rpartition(".")[2])


def _held(value: Any) -> Any:
    """The values that an object holds: attributes, a function's closure and defaults, a partial's arguments."""
    if isinstance(value, functools.partial):
        return {"func": value.func, "args": value.args, "keywords": value.keywords}
    if isinstance(value, torch.optim.Optimizer):
        groups = [group | {"params": [list(p.shape) for p in group["params"]]} for group in value.param_groups]
        return {"groups": groups, "part": getattr(value, "part", None)}
    if inspect.isfunction(value):
        closure = inspect.getclosurevars(value).nonlocals
        return {"closure": closure, "defaults": [value.__defaults__, value.__kwdefaults__]}
    if isinstance(value, type) or inspect.isroutine(value):
        return {}
    if inspect.ismodule(value):
        return value.__name__
    held = getattr(value, "__dict__", None)
    if held is None:
        text = repr(value)
        return "" if " at 0x" in text else text
    return {key: item for key, item in held.items() if key not in TORCHS_OWN}
