"""Probabilities of a fold model at network resolution, with test-time augmentation, into the store."""

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import ttach
from torch import nn

from utils.data.cache import Cache
from utils.data.fold_data import FoldData
from utils.data.loader import network_input, plain_loader
from utils.data.windows import Windows
from utils.device import usable
from utils.inference.fold_norms import fold_norms
from utils.inference.in_order import in_order
from utils.inference.probabilities import ProbabilityStore
from utils.inference.tta import build_tta
from utils.masks import upsampling
from utils.masks.masks import Masks
from utils.models.base import PaddedModel
from utils.models.checkpoint import WEIGHTS, load_checkpoint
from utils.models.instances import Instances
from utils.registry import file_sha256, find_part


class Probabilities(nn.Module):
    """A network with a sigmoid behind it, so that ttach averages probabilities."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Float32 probabilities (N, classes, h, w) of normalised images (N, 3, h, w)."""
        return self.model(image).float().sigmoid_()  # in place: 29 maps at 2048² are half a gigabyte


class Predictor:
    """A fold model ready to predict. The mean over TTA is of probabilities, not of logits.

    tta: a registered name, see `inference.tta`. precision: one of `utils.device.PRECISIONS`, or "auto" for the one that
    the fold model was validated in, or float32 where this device lacks it.
    """

    def __init__(self, checkpoint: str | Path, device: torch.device, tta: str = "none", precision: str = "auto"):
        model, self.config = load_checkpoint(checkpoint)
        self.device, self.tta, self.takes_person = device, tta, model.takes_person
        self.weights_digest = file_sha256(Path(checkpoint) / WEIGHTS)
        self.precision = usable(self.config.precision if precision == "auto" else precision, device)
        self.model = self.precision.prepare(fold_norms(model).to(device))
        network = Probabilities(self.model)
        side = self.config.window if self.config.refines else self.config.image_size
        transforms = ttach.Compose(build_tta(tta, side, self.config.flip, self.config.flip_order))
        self.network = ttach.SegmentationTTAWrapper(network, transforms, "mean") if len(transforms) > 1 else network

    @torch.inference_mode()
    def __call__(self, image: torch.Tensor, person: torch.Tensor | None = None) -> np.ndarray:
        """Float32 (N, classes, h, w) probabilities of uint8 (N, 1 or 3, h, w) images at the network's resolution.

        person: float32 (N, 8), see `data.people`, for a network that takes it; None: unknown.
        """
        image = self._input({"image": image} if person is None else {"image": image, "person": person})
        with self.precision.computing(self.device):
            return self.network(image).cpu().numpy()

    def _input(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """What the network takes of a batch, on its device."""
        batch = {name: tensor.to(self.device, non_blocking=True) for name, tensor in batch.items() if name != "index"}
        return network_input(batch, self.config.mean, self.config.std, self.takes_person, self.precision.layout)

    @torch.inference_mode()
    def instances(
        self, cache: Cache, names: list[str], batch_size: int, num_workers: int = 0
    ) -> Iterator[tuple[str, Instances]]:
        """Each image's name and instances, on the CPU, in the order of `names`; without TTA, as boxes have no mean."""
        for batch in plain_loader(cache, names, batch_size, num_workers, device=self.device):
            image = self._input(batch)
            with self.precision.computing(self.device):
                found = self.model.instances(image)
            for index, each in zip(batch["index"].tolist(), found, strict=True):
                yield names[index], each.to("cpu")

    def predict(
        self,
        cache: Cache,
        names: list[str],
        batch_size: int,
        num_workers: int = 0,
        windows: Windows | None = None,
    ) -> Iterator[tuple[str, np.ndarray]]:
        """Each image's name and probabilities (classes, h, w), of its part in `windows` if given, in their order."""
        for batch in plain_loader(cache, names, batch_size, num_workers, windows, self.device):
            for index, maps in zip(batch["index"].tolist(), self(batch["image"], batch["person"]), strict=True):
                yield names[index], maps

    def fill(
        self,
        store: ProbabilityStore,
        cache: Cache,
        names: list[str],
        batch_size: int,
        num_workers: int = 0,
        progress: Callable[[int, int], None] | None = None,
    ) -> float:
        """Predict every image that the store lacks; the seconds taken. An interrupted run goes on where it stopped.

        The images of one batch are compressed and written by another thread while the network works on the next one.
        """
        started = time.monotonic()
        made_from = {"weights": self.weights_digest, "tta": self.tta, "plugin": find_part("tta", self.tta).sha256}
        made_from |= {"precision": self.precision.name}
        made_from |= {"people": _people_digest(cache, names)} if self.takes_person else {}
        made_from |= {"flip": [self.config.flip, *self.config.flip_order], "images": _names_digest(cache, names)}
        store.begin(made_from)
        stored = set(store.names())
        missing = [name for name in names if name not in stored]

        def write(predicted: tuple[str, np.ndarray]) -> None:
            name, maps = predicted
            store.write(name, maps, cache.read(name).size)

        predictions = self.predict(cache, missing, batch_size, num_workers, store.windows(missing))
        with closing(in_order(write, predictions, threads=1, ahead=batch_size)) as written:
            for number, _ in enumerate(written, 1):
                if progress:
                    progress(number, len(missing))
        return time.monotonic() - started


@dataclass(frozen=True)
class Example:
    """One image with its truth and a fold model's masks (of the judged classes, full size); pixels as in the cache."""

    name: str
    pixels: np.ndarray
    truth: Masks
    predicted: Masks


def predict_masks(
    model: PaddedModel,
    cache: Cache,
    names: list[str],
    threshold: float,
    device: torch.device | str = "cpu",
) -> Iterator[tuple[str, Masks]]:
    """Each image's name and full-size masks from one network, in float32, image by image."""
    model.to(device).eval()
    for batch in plain_loader(cache, names, batch_size=1):
        with torch.inference_mode():
            batch = {key: tensor.to(device) for key, tensor in batch.items()}
            logits = model(network_input(batch, model.mean, model.std, model.takes_person))
        name = names[batch["index"].item()]
        yield name, upsampling.upsample_masks(logits[0].sigmoid().cpu(), cache.read(name).size, threshold)


def worst_images(
    predict: Callable[[Sequence[str]], Iterator[tuple[str, Masks]]],
    data: FoldData,
    val_dice: pd.DataFrame,
    number: int,
) -> Iterator[Example]:
    """The `number` images with the lowest mean Dice in `val_dice` (images × classes), predicted again to look at.

    predict: of the finished training, see `training.settings.Trained`.
    """
    worst = val_dice.mean(axis=1).sort_values().index[:number].tolist()
    for name, masks in predict(worst):
        yield Example(name, data.cache.read(name).image, data.truth(name), masks)


def _names_digest(cache: Cache, names: list[str]) -> str:
    return hashlib.sha256("".join(cache.signature(name) for name in names).encode()).hexdigest()


def _people_digest(cache: Cache, names: list[str]) -> str:
    return hashlib.sha256(b"".join(cache.people[name].tobytes() for name in names)).hexdigest()
