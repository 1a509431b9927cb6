"""A checkpoint is a folder of two files, model.safetensors and config.json; reading it runs no pickled code."""

import importlib.metadata
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from utils.files import read_json, shown, write_json
from utils.models import build_model
from utils.models.base import ModelError, PaddedModel

WEIGHTS, CONFIG = "model.safetensors", "config.json"


@dataclass
class Config:
    """Everything needed to build the network again and to use it as it was validated.

    options: the architecture's own, such as decoder_channels. image_size: side of the square the images were shrunk
    to, pixels. mean, std: of the normalisation, on the scale 0 to 1. thresholds: one per class. score: full-size mean
    Dice on the validation fold (None where nothing was held out).
    """

    architecture: str
    encoder: str
    classes: list[str]
    image_size: int
    options: dict = field(default_factory=dict)
    mean: list[float] = field(default_factory=lambda: [0.485, 0.456, 0.406])
    std: list[float] = field(default_factory=lambda: [0.229, 0.224, 0.225])
    thresholds: list[float] = field(default_factory=list)
    fold: int = -1
    epoch: int = 0
    score: float | None = None
    versions: dict[str, str] = field(default_factory=lambda: versions())

    def build(self, encoder_weights: str | None = None) -> PaddedModel:
        """The network, with random weights or those of `encoder_weights` in its encoder."""
        return build_model(
            self.architecture,
            len(self.classes),
            self.encoder,
            encoder_weights,
            image_size=self.image_size,
            **self.options,
        )


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
    """The network with its weights, in evaluation mode, and its config. Needs no network access."""
    config = read_config(folder)
    model = config.build()
    load_weights(model, folder)
    return model.to(device).eval(), config


def load_weights(model: PaddedModel, folder: str | Path) -> None:
    """Load a checkpoint's weights into a model of the same architecture; ModelError names what does not fit."""
    path = Path(folder) / WEIGHTS
    try:
        model.load_state_dict(load_file(path))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise ModelError(f"{shown(path)} does not fit the model: {error}") from error
