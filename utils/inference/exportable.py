"""A network as it is exported, and what a format of export is."""

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from utils.data.loader import normalise
from utils.inference.fold_norms import fold_norms
from utils.models.base import PaddedModel
from utils.models.checkpoint import Config

Runner = Callable[[np.ndarray], np.ndarray]
"""Input (N, 3, side, side) to maps (N, classes, side, side), as the exported network has them."""


class Exportable(nn.Module):
    """A network as it is exported. The caller does what is not inside: `prepare` before it, `probabilities` after it.

    normalise: inside, so that the input is uint8 RGB; else float32, normalised. sigmoid: inside, so that the output,
    float32 (N, classes, side, side), is probabilities; else logits.
    """

    def __init__(self, model: PaddedModel, normalise: bool = True, sigmoid: bool = True):
        super().__init__()
        self.model, self.mean, self.std = fold_norms(model.eval()), model.mean, model.std
        self.normalise, self.sigmoid = normalise, sigmoid

    @property
    def output(self) -> str:
        """What the output is, and its name in an ONNX file."""
        return "probabilities" if self.sigmoid else "logits"

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Images (N, 3, side, side) to maps (N, classes, side, side)."""
        maps = self.model(normalise(image, self.mean, self.std) if self.normalise else image)
        return maps.sigmoid() if self.sigmoid else maps

    def prepare(self, image: torch.Tensor) -> np.ndarray:
        """The input made from images as the cache has them, uint8 (N, 1 or 3, side, side)."""
        if self.normalise:
            return image.expand(-1, 3, -1, -1).contiguous().numpy()
        return normalise(image, self.mean, self.std).numpy()

    def probabilities(self, maps: np.ndarray) -> np.ndarray:
        """The probabilities that an output stands for, float32 of the same shape."""
        return maps if self.sigmoid else torch.from_numpy(maps).sigmoid().numpy()


@dataclass(frozen=True)
class ExportJob:
    """What a format is written from.

    network: as it is exported. model, config: as `load_checkpoint` gives them. example: an input of two images.
    calibration: typical inputs, see `export`. about: what a user of the file needs to know, for its metadata. source:
    the file of the format that this one is made from, None for a format made from the network itself.
    """

    network: Exportable
    model: PaddedModel
    config: Config
    example: torch.Tensor
    calibration: Sequence[np.ndarray]
    about: dict[str, Any]
    source: Path | None = None


class ExportFormat:
    """A format of export, made known by `utils.registry.register_export`; its first line of text describes it.

    file: the name of its file or folder. made_from: the format whose file it is made from, "" for the network itself.
    calibrated: it needs calibration images. always_works: with every network, so that no table of architectures shows
    it.
    """

    file: str
    made_from = ""
    calibrated = False
    always_works = False

    def write(self, job: ExportJob, path: Path) -> None:
        """Write the file; an error of any type is noted and leaves the other formats as they are."""
        raise NotImplementedError

    def runner(self, path: Path, network: Exportable, threads: int) -> Runner:
        """A function that runs the file on the CPU with so many threads. network: what was exported.

        PyTorch's number of threads is that of the process and is set already.
        """
        raise NotImplementedError


def torch_runner(network: nn.Module) -> Runner:
    """A function that runs a PyTorch or TorchScript network."""

    def run(image: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return network(torch.from_numpy(image)).numpy()

    return run


@contextmanager
def without_warnings() -> Iterator[None]:
    """Silence warnings and log lines: of traced shapes, and that PyTorch no longer develops TorchScript."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
