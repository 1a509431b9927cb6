"""Register and find parts by name: models, losses, augmentations, optimisers, schedules, TTA, export formats.

A part is a function (or a class: losses, export formats) with a decorator. The built-in parts are registered where they
are defined; a plugin, a single Python file named in the parameter `plugins`, registers its own in the same way:

    from utils.registry import register_loss

    @register_loss("my_loss")
    def my_loss(logits, labels):
        return ((logits.sigmoid() - labels) ** 2).mean()
"""

import hashlib
import importlib.util
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from utils.files import Problems, resolve, shown, unknown

PARAMETERS = {"architecture": "model", "architectures": "model", "formats": "export"}
PARAMETERS |= {kind: kind for kind in ("loss", "augmentation", "optimizer", "schedule", "tta")}
"""The kind of part that a parameter of this name holds."""


class Part(NamedTuple):
    """A registered part. plugin: the file it came from as parameters name it, "" for a built-in part."""

    name: str
    kind: str
    build: Callable
    family: str
    plugin: str
    sha256: str


class UnknownPart(Problems):
    """A name that no part has; the message gives the nearest names and all names."""


_parts: dict[tuple[str, str], Part] = {}
_importing: tuple[str, str, str] = ("", "", "")
"""Module name, path and SHA-256 of the plugin that is being imported."""


def register_model(*names: str, family: str = "") -> Callable:
    """Decorate `f(classes, **options) -> nn.Module`, whose forward gives logits (N, classes, H, W).

    If `f` also has arguments called `encoder`, `encoder_weights`, `image_size` (pixels) or `name` (for a function that
    makes several networks), it gets them, too. `family` groups the networks in listings.
    """
    return _register("model", names, family)


def register_loss(*names: str) -> Callable:
    """Decorate `f(logits, labels) -> scalar`, both float (N, classes, H, W); a class that is called so works too."""
    return _register("loss", names)


def register_augmentation(*names: str) -> Callable:
    """Decorate `f(image_size) -> albumentations.Compose`, which gets the image as `image`, soft labels as `mask`."""
    return _register("augmentation", names)


def register_optimizer(*names: str) -> Callable:
    """Decorate `f(parameters, lr, weight_decay) -> torch.optim.Optimizer`."""
    return _register("optimizer", names)


def register_schedule(*names: str) -> Callable:
    """Decorate `f(optimizer, steps, warmup_steps) -> torch.optim.lr_scheduler.LRScheduler`, lengths in steps."""
    return _register("schedule", names)


def register_tta(*names: str) -> Callable:
    """Decorate `f(side) -> list of ttach transforms`; `side` is the network's resolution in pixels."""
    return _register("tta", names)


def register_export(*names: str) -> Callable:
    """Decorate a class like those in `utils.inference.export_formats`: `file`, `write(job, path)` and `runner`."""
    return _register("export", names)


def find_part(kind: str, name: str) -> Part:
    """The part of this kind and name. Raises UnknownPart with the nearest names and all names."""
    if (kind, name) not in _parts:
        title = "this part is neither built in nor registered by one of the plugins"
        raise UnknownPart(title, [unknown(kind, name, list_parts(kind))])
    return _parts[kind, name]


def build_part(kind: str, name: str, *arguments: Any) -> Any:
    """The object that the part makes from `arguments`; for a loss, the part itself. Raises UnknownPart.

    If it comes from a plugin, its attribute `part` holds the plugin's SHA-256, so that a training with an edited plugin
    is not resumed as if it were the same.
    """
    part = find_part(kind, name)
    built = part.build if kind == "loss" else part.build(*arguments)
    if part.plugin:
        with suppress(AttributeError):  # a list of TTA transforms can't have attributes
            built.part = part[:2] + part[3:]
    return built


def list_parts(kind: str) -> list[str]:
    """The names of all parts of a kind: model, loss, augmentation, optimizer, schedule, tta or export."""
    return sorted(name for its_kind, name in _parts if its_kind == kind)


def load_plugins(paths: Iterable[str | Path]) -> None:
    """Import plugin files, relative to the repository's root, so that their parts are registered.

    A file that has been imported already and has not changed since is left as it is. Raises Problems with every file
    that is missing or can't be imported.
    """
    global _importing
    problems = []
    for path in paths:
        try:
            digest = file_sha256(path)
            module = f"plugin_{hashlib.sha256(str(resolve(path)).encode()).hexdigest()[:12]}"
            if getattr(sys.modules.get(module), "SHA256", "") == digest:
                continue
            _importing = (module, str(path), digest)
            for key in [key for key, part in _parts.items() if part.plugin == str(path)]:
                del _parts[key]  # parts of an earlier version of the file
            spec = importlib.util.spec_from_file_location(module, resolve(path))
            sys.modules[module] = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(sys.modules[module])
            sys.modules[module].SHA256 = digest
        except Exception as error:  # whatever a plugin raises
            problems.append(f"{shown(resolve(path))}: {type(error).__name__}: {error}")
        finally:
            _importing = ("", "", "")
    if problems:
        raise Problems("these plugins can't be used (paths start at the repository's root)", problems)


def named_parts(parameters: Mapping[str, Any]) -> list[Part]:
    """The parts that a notebook's parameters name. Raises UnknownPart with all names that no part has."""
    parts, problems = [], []
    for parameter, kind in PARAMETERS.items():
        value = parameters.get(parameter, "")
        for name in loss_names(value) if kind == "loss" else [value] if isinstance(value, str) else value:
            try:
                parts += [find_part(kind, name)] if name and name != "all" else []
            except UnknownPart as error:
                problems += error.problems
    if problems:
        raise UnknownPart("these parts are neither built in nor registered by one of the plugins", problems)
    return parts


def loss_names(text: str) -> list[str]:
    """The names in a sum of losses such as "0.7*bce + 0.3*dice"."""
    return [term.rpartition("*")[2].strip() for term in text.split("+")] if text else []


def file_sha256(path: str | Path) -> str:
    """SHA-256 of a file; a relative path starts at the repository's root."""
    with resolve(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _register(kind: str, names: tuple[str, ...], family: str = "") -> Callable:
    def decorate(build: Callable) -> Callable:
        module = sys._getframe(1).f_globals.get("__name__", "")  # a plugin may be the first to import built-in parts
        origin = _importing[1:] if module == _importing[0] else ("", "")
        for name in names:
            known = _parts.get((kind, name))
            if known and (known.plugin != origin[0] or _module(known.build) != _module(build)):
                where = known.plugin or "built in"
                raise ValueError(f"the {kind} {name!r} exists already ({where}); choose another name")
            _parts[kind, name] = Part(name, kind, build, family, *origin)
        return build

    return decorate


def _module(build: Callable) -> str:
    return getattr(build, "__module__", "")
