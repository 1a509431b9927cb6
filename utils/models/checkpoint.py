"""A checkpoint is a folder of two files, model.safetensors and config.json; reading it runs no pickled code."""

import hashlib
import importlib.metadata
import shutil
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from utils.files import read_json, shown, write_json
from utils.models.base import ModelError, PaddedModel
from utils.models.build import build_model
from utils.registry import find_part, list_parts

WEIGHTS, CONFIG = "model.safetensors", "config.json"

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
    decoder_channels. image_size: side of the square the images were shrunk to, pixels. mean, std: of the normalisation,
    on the scale 0 to 1. plugin, plugin_sha256: the file that registered the architecture, as `plugins` named it.
    precision: what it was validated in, see `utils.device`. flip: whether images may be mirrored; flip_order: the class
    each class becomes then, [] for itself. thresholds: one per class. fold: the one held out, -1 for none. people: a
    hash for each person it was trained on, those of the checkpoint it started from included. score: full-size mean Dice
    on the held-out fold, None without one.
    """

    architecture: str
    encoder: str
    classes: list[str]
    image_size: int
    options: dict = field(default_factory=dict)
    mean: list[float] = field(default_factory=lambda: list(PaddedModel.mean))
    std: list[float] = field(default_factory=lambda: list(PaddedModel.std))
    plugin: str = ""
    plugin_sha256: str = ""
    precision: str = "32-true"
    flip: bool = True
    flip_order: list[int] = field(default_factory=list)
    thresholds: list[float] = field(default_factory=list)
    fold: int = -1
    people: list[str] = field(default_factory=list)
    epoch: int = 0
    score: float | None = None
    versions: dict[str, str] = field(default_factory=lambda: versions())


def hash_people(people: Iterable[str]) -> list[str]:
    """A short SHA-256 for each person's ID, sorted: enough to tell whether somebody is among them."""
    return sorted({hashlib.sha256(str(person).encode()).hexdigest()[:16] for person in people})


def describe_network(model: PaddedModel) -> dict[str, Any]:
    """What a checkpoint's config says about a network; the architecture is "" for one that no registered name made."""
    made = getattr(model, "made_from", {})
    values = {name: made.get(name, "") for name in ("architecture", "encoder", "plugin", "plugin_sha256")}
    values["options"] = made.get("options", {})
    return values | {"mean": list(model.mean), "std": list(model.std)}


def versions() -> dict[str, str]:
    """Versions of the packages that shape a result."""
    names = ("torch", "torchvision", "segmentation-models-pytorch", "timm", "lightning", "albumentations", "numpy")
    return {name: importlib.metadata.version(name) for name in names}


def save_checkpoint(folder: str | Path, model: PaddedModel, config: Config) -> None:
    """Write the checkpoint beside `folder`, then put it in place of an older one."""
    folder = Path(folder)
    temporary, old = folder.with_name(f".{folder.name}.part"), folder.with_name(f".{folder.name}.old")
    for leftover in (temporary, old):
        shutil.rmtree(leftover, ignore_errors=True)
    temporary.mkdir(parents=True)
    save_file({k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}, temporary / WEIGHTS)
    write_json(temporary / CONFIG, asdict(config))
    if folder.exists():
        folder.rename(old)
    temporary.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def read_config(folder: str | Path) -> Config:
    """The config of a checkpoint folder. Raises FileNotFoundError or ModelError saying what is missing or unknown."""
    path = Path(folder) / CONFIG
    if not path.is_file():
        raise FileNotFoundError(f"{shown(folder)} is no checkpoint: expected {CONFIG} and {WEIGHTS} in it")
    try:
        return Config(**read_json(path))
    except (TypeError, ValueError) as error:
        raise ModelError(f"{shown(path)} is not a config this version understands: {error}") from error


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
    model = build_model(
        config.architecture, len(config.classes), config.encoder, image_size=config.image_size, **config.options
    )
    model.mean, model.std = config.mean, config.std
    return model


def load_weights(model: PaddedModel, folder: str | Path) -> None:
    """Load a checkpoint's weights into a model of the same architecture; ModelError names what does not fit."""
    path = Path(folder) / WEIGHTS
    try:
        model.load_state_dict(load_file(path))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise ModelError(f"{shown(path)} does not fit the model: {error}") from error
