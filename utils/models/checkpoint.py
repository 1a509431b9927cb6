"""A checkpoint is a folder of two files, model.safetensors and config.json; reading it runs no pickled code."""

import hashlib
import importlib.metadata
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from pydantic import ConfigDict, TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch.overrides import TorchFunctionMode

from utils.files import replacing_folder, shown, write_json
from utils.hand.bones import small_bones
from utils.models.base import ModelError, PaddedModel, build_model
from utils.registry import find_part, list_parts

WEIGHTS, CONFIG = "model.safetensors", "config.json"
LARGEST_CONFIG = 2**24
"""Bytes; the config of a model with 29 classes and a thousand people has some 30,000."""
LARGEST_SIDE = 8192
"""Pixels of an image_size that a config may have."""

INLINE = """{where} holds a network that was given inline, without a name to build it again by. Write it to a file:

    # notebooks/plugins/mine.py
    from utils.registry import register_model

    @register_model("my_net", family="mine")
    def my_net(classes, **options):
        return MyNet(classes)  # the class, or an import of it, goes into this file too

then train with -p architecture my_net -p plugins '[notebooks/plugins/mine.py]'; or, to use these weights, write
"architecture": "my_net" and "plugin": "notebooks/plugins/mine.py" into config.json and name the plugin here."""


@dataclass
class Config:
    """Everything needed to build the network again and to use it as it was validated.

    architecture: its registered name, "" for a network that was given inline. options: the architecture's own, such as
    decoder_channels. image_size: side of the square the images were shrunk to, pixels. window: side of the crops it was
    trained on, 0 for whole images. wrist_of: the model of which it refines some classes, those in refines. mean,
    std: of the normalisation, on the scale 0 to 1. plugin, plugin_sha256: the file that registered the architecture, as
    `plugins` named it.
    precision: what it was validated in, see `utils.device`. flip: whether images may be mirrored; flip_order: the class
    each class becomes then, [] for itself. thresholds: one per class. fold: the one held out, -1 for none. people: a
    hash for each person it was trained on, those of the checkpoint it started from included. metric: what chose the
    best epoch. score: full-size mean Dice on the held-out fold, of a model that refines another that of its classes;
    None without one.
    """

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    architecture: str
    encoder: str
    classes: list[str]
    image_size: int
    options: dict[str, Any] = field(default_factory=dict)
    mean: list[float] = field(default_factory=lambda: list(PaddedModel.mean))
    std: list[float] = field(default_factory=lambda: list(PaddedModel.std))
    window: int = 0
    wrist_of: str = ""
    refines: list[str] = field(default_factory=list)
    plugin: str = ""
    plugin_sha256: str = ""
    precision: str = "32-true"
    flip: bool = True
    flip_order: list[int] = field(default_factory=list)
    thresholds: list[float] = field(default_factory=list)
    fold: int = -1
    people: list[str] = field(default_factory=list)
    epoch: int = 0
    metric: str = "dice"
    score: float | None = None
    versions: dict[str, str] = field(default_factory=lambda: versions())

    @property
    def first(self) -> str:
        """The model that it refines, "" for none."""
        return self.wrist_of

    @property
    def refined_numbers(self) -> list[int]:
        """The places of the classes in `refines` among all of them."""
        return [self.classes.index(name) for name in self.refines]


def hash_people(people: Iterable[str]) -> list[str]:
    """A short SHA-256 for each person's ID, sorted: enough to tell whether somebody is among them."""
    return sorted({hashlib.sha256(str(person).encode()).hexdigest()[:16] for person in people})


def check_unseen(config: Config, people: Iterable[str], where: str, advice: str) -> None:
    """Raise ModelError if a fold model was trained on some of these people, or does not say on whom it was.

    where: names its checkpoint in the message. advice: what to do instead.
    """
    people = list(dict.fromkeys(people))
    known = [name for name in people if hash_people([name])[0] in config.people]
    if known or (people and not config.people):
        whom = f"{len(known)} people of this fold, such as {known[0]}" if known else "people it does not name"
        leak = f"{where} (fold {config.fold}) was trained on {whom}: the validation score would leak"
        raise ModelError(f"{leak}. {advice}")


def describe_network(model: PaddedModel) -> dict[str, Any]:
    """What a checkpoint's config says about a network; the architecture is "" for one that no registered name made."""
    made = getattr(model, "made_from", {})
    values = {"options": {}, **dict.fromkeys(("architecture", "encoder", "plugin", "plugin_sha256"), "")}
    return {k: made.get(k, v) for k, v in values.items()} | {"mean": list(model.mean), "std": list(model.std)}


def versions() -> dict[str, str]:
    """Versions of the packages that shape a result."""
    names = ("torch", "torchvision", "segmentation-models-pytorch", "timm", "lightning", "albumentations", "numpy")
    return {name: importlib.metadata.version(name) for name in names}


def save_checkpoint(folder: str | Path, model: PaddedModel, config: Config, half: bool = False) -> None:
    """Write the checkpoint beside `folder`, then put it in place of an older one. DiskFullError keeps the older one.

    half: store weights as float16, except tensors with values beyond its range; `load_checkpoint` makes them float32.
    """
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    if half:
        state = {name: _halved(tensor) for name, tensor in state.items()}
    with replacing_folder(folder) as new:
        save_file(state, new / WEIGHTS)
        write_json(new / CONFIG, asdict(config))


def _halved(tensor: torch.Tensor) -> torch.Tensor:
    smaller = tensor.half() if tensor.dtype == torch.float32 else tensor
    return smaller if smaller.isfinite().all() else tensor


def read_config(folder: str | Path) -> Config:
    """The config of a checkpoint folder, with every value of the type and in the range that this version writes.

    Raises FileNotFoundError or ModelError saying what is missing, unknown or out of range.
    """
    path = Path(folder) / CONFIG
    if not path.is_file():
        raise FileNotFoundError(f"{shown(folder)} is no checkpoint: expected {CONFIG} and {WEIGHTS} in it")
    try:
        if path.stat().st_size > LARGEST_CONFIG:
            raise ValueError(f"it has {path.stat().st_size / 1e6:.0f} MB, expected at most {LARGEST_CONFIG / 1e6:.0f}")
        config = TypeAdapter(Config).validate_json(path.read_bytes())
        if config.wrist_of and not config.refines:  # as earlier versions wrote it
            config.refines = small_bones(config.classes)
        if problems := _problems(config):
            raise ValueError("; ".join(problems))
        return config
    except ValueError as error:
        found = error.errors(include_url=False) if isinstance(error, ValidationError) else []
        text = "; ".join(": ".join([*map(str, each["loc"]), each["msg"]]) for each in found[:5]) or error
        raise ModelError(f"{shown(path)} is not a config this version understands: {text}") from error


def check_classes(config: Config, classes: Sequence[str], where: str) -> None:
    """Raise ModelError unless a checkpoint's classes are those of the data, in the same order.

    where: names the checkpoint in the message.
    """
    if config.classes == list(classes):
        return
    pairs = enumerate(zip(config.classes, classes, strict=False), 1)
    difference = next((f"class {n} is {a!r} there, {b!r} here" for n, (a, b) in pairs if a != b), "")
    counts = f"{len(config.classes)} classes, the data have {len(classes)}"
    raise ModelError(
        f"{where} was trained on other classes than these data have: {difference or counts}. Its masks would get wrong "
        "names: use the data it was trained on, the same classes.txt, or another output_dir"
    )


def load_checkpoint(folder: str | Path, device: str | torch.device = "cpu") -> tuple[PaddedModel, Config]:
    """Read a checkpoint. Nothing is downloaded, and no code is run from it.

    Args:
        folder: the checkpoint folder, with model.safetensors and config.json.
        device: the device for the network, such as "cpu" or "cuda:0".

    Returns:
        The network in evaluation mode, with its weights, and its config. It maps images, float (N, 3, H, W), normalised
        with the config's mean and std, to logits, float (N, classes, H, W).

    Raises:
        FileNotFoundError: if there is no config.json.
        ModelError: if the config can't be understood, its architecture is unknown, was given inline or belongs to a
            plugin that is not loaded, or if model.safetensors is missing or does not fit the network.
    """
    config = read_config(folder)
    path = Path(folder) / WEIGHTS
    with _AtMost(path.stat().st_size if path.is_file() else 0, shown(folder)):
        model = build_network(config, shown(folder))
    load_weights(model, folder)
    return model.to(device).eval(), config


def build_network(config: Config, where: str = "") -> PaddedModel:
    """The network of a config with random weights. No code is imported for it: a plugin must have been named before.

    Raises ModelError, with the lines to add, for a network given inline and for one of a plugin that was not named.
    """
    if not config.architecture:
        raise ModelError(INLINE.format(where=where))
    if config.plugin and config.architecture not in list_parts("model"):
        raise ModelError(
            f"{where} holds {config.architecture!r} of the plugin {config.plugin}, which is not among `plugins`. Add "
            f"-p plugins '[{config.plugin}]', or to a profile `parameters: {{plugins: [{config.plugin}]}}`"
        )
    found = find_part("model", config.architecture).sha256 if config.plugin else ""
    if config.plugin_sha256 not in ("", found):
        was = f"SHA-256 {config.plugin_sha256[:8]}, now {found[:8]}"
        print(f"{config.plugin} has changed since {where} was trained ({was}): does it still build the same network?")
    side = config.window or config.image_size
    try:
        model = build_model(config.architecture, len(config.classes), config.encoder, image_size=side, **config.options)
    except (TypeError, ValueError, RuntimeError, ArithmeticError) as error:
        if isinstance(error, ModelError):
            raise
        raise ModelError(f"{where} holds no network that can be built: {error}") from error
    model.mean, model.std, model.window = config.mean, config.std, config.window
    return model


def load_weights(model: PaddedModel, folder: str | Path) -> None:
    """Load a checkpoint's weights into a model of the same architecture; ModelError names what does not fit."""
    path = Path(folder) / WEIGHTS
    if not path.is_file():
        raise ModelError(f"{shown(path)} is missing: copy the whole checkpoint folder, {WEIGHTS} and {CONFIG}")
    try:
        state = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{shown(path)} is no safetensors file that can be read: {error}") from error
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise ModelError(f"{shown(path)} does not fit the model: {error}") from error


def _problems(config: Config) -> list[str]:
    """What is out of range in a config whose values have the right types."""
    count = len(config.classes)
    wrong = {
        "classes: expected different names": not count or len(set(config.classes)) < count or "" in config.classes,
        f"image_size {config.image_size}: expected 1 to {LARGEST_SIDE}": not 1 <= config.image_size <= LARGEST_SIDE,
        "mean, std: expected three numbers each, std above 0": [len(config.mean), len(config.std)] != [3, 3]
        or min(config.std) <= 0,
        f"wrist_of {config.wrist_of!r}: expected a model's name, a window, and classes": bool(config.wrist_of)
        and ("/" in config.wrist_of or not 0 < config.window <= config.image_size or not config.refines),
        "refines: expected some of the classes": not set(config.refines) <= set(config.classes),
        "thresholds: expected a number from 0 to 1 per class": len(config.thresholds) not in (0, count)
        or not all(0 <= t <= 1 for t in config.thresholds),
        "flip_order: expected each class once": bool(config.flip_order)
        and sorted(config.flip_order) != list(range(count)),
        "options: encoder, weights, classes and sizes are named outside of them": bool(
            {"name", "classes", "encoder", "encoder_weights", "image_size"} & set(config.options)
        ),
    }
    return [problem for problem, is_there in wrong.items() if is_there]


class _AtMost(TorchFunctionMode):
    """Refuses a network that is far larger than its weight file, before a damaged config fills the memory with it."""

    FACTORIES = (torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn)

    def __init__(self, file_bytes: int, where: str):
        super().__init__()
        self.left, self.where = 4 * file_bytes + 2**28, where

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func in self.FACTORIES:
            size = (kwargs or {}).get("size", args)
            size = size[0] if size and isinstance(size[0], Sequence) else size
            self.left -= math.prod(n for n in size if isinstance(n, int))
            if self.left < 0:
                raise ModelError(f"{self.where}: {CONFIG} describes a network far larger than {WEIGHTS}")
        return func(*args, **(kwargs or {}))
