"""Make batches of cached images; all random numbers derive from (seed, epoch, index), whatever the workers."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from utils.data.augment import Augmenter
from utils.data.cache import Cache
from utils.data.fold_data import FoldData
from utils.data.people import FIELDS
from utils.data.warping import cut, draw_corner
from utils.data.windows import Windows, middle
from utils.masks.sparse import SparseMaps

CPU = torch.device("cpu")


class TrainingSet(Dataset):
    """Augmented training samples, looked up by (epoch, index), so that no worker needs a random state of its own.

    A sample is `image` uint8 (channels, h, w), channels 1 or 3, `label`, SparseMaps on the same grid, 255 = full
    coverage, and `person`, see `person_of`. `augmenter` may also give dense labels, uint8 (classes, h, w). crop: side
    of the random crop that is taken of each image, 0 for whole images. region: numbers of the classes around which
    further crops lie, those of random images. further: how many. region_only: the crop of each image lies there, too.
    """

    def __init__(
        self,
        cache: Cache,
        names: list[str],
        augmenter: Callable,
        seed: int,
        crop: int = 0,
        region: Sequence[int] = (),
        further: int = 0,
        region_only: bool = False,
    ):
        self.cache, self.names, self.augmenter, self.seed = cache, names, augmenter, seed
        self.crop, self.region, self.further, self.region_only = crop, region, further, region_only

    def __len__(self) -> int:
        """Number of samples: one for each image, and the further crops."""
        return len(self.names) + self.further

    def __getitem__(self, key: tuple[int, int]) -> dict[str, torch.Tensor | SparseMaps]:
        """The sample of (epoch, index)."""
        index = key[1]
        rng, name = self._draw(key)
        around = self.region if index >= len(self.names) or self.region_only else ()
        entry = self.cache.read(name)
        image, label, more = entry.image, entry.label, {}
        if isinstance(self.augmenter, Augmenter):  # it cuts after rotating, so that no corner of a crop is black
            more = {"other": lambda: self._draw_other(rng), "crop": self.crop, "around": around}
        elif self.crop:
            corner = draw_corner(image.shape[:2], self.crop, rng, middle(label.patches(), around))
            image, patches = cut(image, label.patches(), corner, self.crop)
            label = SparseMaps.from_patches(image.shape[:2], patches)
        image, label = self.augmenter(image, label, rng, **more)
        label = label if isinstance(label, SparseMaps) else SparseMaps.from_dense(label)
        return {"image": channels_first(image), "label": label, "person": person_of(self.cache, name)}

    def name_of(self, key: tuple[int, int]) -> str:
        """The image that the sample of (epoch, index) is made from."""
        return self._draw(key)[1]

    def _draw(self, key: tuple[int, int]) -> tuple[np.random.Generator, str]:
        """The random generator of a sample, and its image."""
        rng = np.random.default_rng((self.seed, *key))
        further = key[1] >= len(self.names)
        return rng, self.names[int(rng.integers(len(self.names))) if further else key[1]]

    def _draw_other(self, rng: np.random.Generator) -> tuple[np.ndarray, SparseMaps]:
        """A random image of the same fold's training images, with its labels."""
        entry = self.cache.read(self.names[int(rng.integers(len(self.names)))])
        return entry.image, entry.label


class EpochSampler(Sampler[tuple[int, int]]):
    """All (epoch, index) pairs of one epoch, shuffled by (seed, epoch); the trainer calls `set_epoch`.

    An incomplete last batch is filled with the first images of another shuffle, so that all batches have the same size
    and an epoch has every image. With `sampler`, its indices are used in its order instead; the random numbers that it
    takes from torch, or from a torch generator of its own, derive from (seed, epoch), so that resume is exact.
    """

    def __init__(self, size: int, batch_size: int, seed: int, sampler: Sampler | None = None):
        self.size, self.seed, self.epoch, self.sampler = size, seed, 0, sampler
        self.length = -(-size // batch_size) * batch_size if sampler is None else len(sampler)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration yields."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Samples per epoch; without `sampler`, a multiple of the batch size."""
        return self.length

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """Pairs (epoch, index)."""
        rng = np.random.default_rng((self.seed, self.epoch))
        if self.sampler is not None:
            draw = int(rng.integers(2**62))
            torch.manual_seed(draw)
            if isinstance(generator := getattr(self.sampler, "generator", None), torch.Generator):
                generator.manual_seed(draw)
            return iter([(self.epoch, int(index)) for index in self.sampler])
        order: list[int] = []
        while len(order) < self.length:
            order += rng.permutation(self.size).tolist()
        return iter([(self.epoch, index) for index in order[: self.length]])


class PlainSet(Dataset):
    """Images, or their parts in `windows`, without augmentation: `image` uint8 (channels, h, w), `index`, `person`."""

    def __init__(self, cache: Cache, names: Sequence[str], windows: Windows | None = None):
        self.cache, self.names, self.windows = cache, names, windows

    def __len__(self) -> int:
        """Number of images."""
        return len(self.names)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor | int]:
        """One image."""
        name = self.names[index]
        image = self.cache.read(name).image
        if self.windows is not None:
            image = self.windows.cut(name, image)
        return {"image": channels_first(image), "index": index, "person": person_of(self.cache, name)}


def channels_first(image: np.ndarray) -> torch.Tensor:
    """uint8 (h, w) or (h, w, 3) to a tensor (1, h, w) or (3, h, w)."""
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(np.atleast_3d(image), 2, 0)))


def person_of(cache: Cache, image_name: str) -> torch.Tensor:
    """The numbers of an image's person, float32 (8,), see `data.people`; zeros, which mean unknown, for a stand-in."""
    known = getattr(cache, "people", {}).get(image_name)
    return torch.zeros(2 * len(FIELDS)) if known is None else torch.from_numpy(known)


def stack(samples: list[dict]) -> dict[str, Any]:
    """Stack samples into a batch; if some images are coloured, the grey ones get three equal channels.

    Labels stay sparse until they are on the device, where `dense_labels` pastes them: `boxes` int64 (N, classes, 4) and
    `values` uint8 (n,), as in SparseMaps. Whole float32 maps of 29 classes would be some hundred times the bytes.
    """
    batch: dict[str, Any] = {}
    for key, first in samples[0].items():
        values = [sample[key] for sample in samples]
        if key == "image":
            channels = max(v.shape[0] for v in values)
            values = [v.expand(channels, -1, -1) for v in values]
        if isinstance(first, SparseMaps):
            arrays = [maps.arrays() for maps in values]
            boxes = torch.from_numpy(np.stack([a["boxes"] for a in arrays]).astype(np.int64))
            batch[key] = {"boxes": boxes, "values": torch.from_numpy(np.concatenate([a["values"] for a in arrays]))}
        else:
            batch[key] = torch.stack(values) if isinstance(first, torch.Tensor) else torch.tensor(values)
    return batch


def dense_labels(batch: dict[str, Any], layout: torch.memory_format = torch.contiguous_format) -> torch.Tensor:
    """A batch's soft labels, float32 (N, classes, h, w) from 0 to 1, on its device and in the given order of memory."""
    boxes, values = batch["label"]["boxes"], batch["label"]["values"]
    (n, classes, _), (height, width) = boxes.shape, batch["image"].shape[-2:]
    top, left, rows, columns = boxes.view(-1, 4).T
    sizes = rows * columns
    number = torch.arange(n * classes, device=boxes.device).repeat_interleave(sizes, output_size=len(values))
    within = torch.arange(len(values), device=boxes.device) - (sizes.cumsum(0) - sizes)[number]
    y, x = top[number] + within // columns[number], left[number] + within % columns[number]
    labels = torch.empty((n, classes, height, width), device=boxes.device, memory_format=layout).zero_()
    image, kind = number // classes, number % classes
    step = labels.stride()
    flat = labels.as_strided((labels.numel(),), (1,))
    flat[image * step[0] + kind * step[1] + y * step[2] + x * step[3]] = values.float() / 255
    return labels


def normalise(image: torch.Tensor, mean: list[float], std: list[float]) -> torch.Tensor:
    """uint8 (N, 1 or 3, h, w) to float32 (N, 3, h, w): (image / 255 - mean) / std."""
    scale = torch.tensor([1 / (255 * s) for s in std], device=image.device).view(1, 3, 1, 1)
    offset = torch.tensor([-m / s for m, s in zip(mean, std, strict=True)], device=image.device).view(1, 3, 1, 1)
    return image.float() * scale + offset


def network_input(
    batch: Mapping[str, Any],
    mean: Sequence[float],
    std: Sequence[float],
    takes_person: bool = False,
    layout: torch.memory_format = torch.contiguous_format,
) -> torch.Tensor:
    """The normalised images of a batch, float32 (N, 3, h, w), in the given order of memory.

    With `takes_person`, the numbers of each image's person follow as further channels, (N, 3 + 8, h, w), the same at
    each pixel; a batch without them means unknown people.
    """
    image = normalise(batch["image"], mean, std)
    if takes_person and "person" in batch:
        image = torch.cat([image, batch["person"][..., None, None].expand(-1, -1, *image.shape[-2:])], 1)
    return image.contiguous(memory_format=layout)


def training_loader(
    data: FoldData,
    augmenter: Callable,
    batch_size: int,
    seed: int,
    num_workers: int = 0,
    sampler: Sampler | None = None,
    device: torch.device = CPU,
) -> DataLoader:
    """Batches for training; the same with any number of workers.

    augmenter: see `data.augment`. sampler: see `EpochSampler`. device: a GPU gets its batches from pinned memory.
    """
    names = data.train["image_name"].tolist()
    crops = data.crop, data.region_numbers, data.further_crops, bool(data.refines)
    samples = TrainingSet(data.cache, names, augmenter, seed, *crops)
    return _loader(samples, batch_size, num_workers, device, EpochSampler(len(samples), batch_size, seed, sampler))


def plain_loader(
    cache: Cache,
    names: Sequence[str],
    batch_size: int,
    num_workers: int = 0,
    windows: Windows | None = None,
    device: torch.device = CPU,
) -> DataLoader:
    """Batches of unaugmented images, or of their parts in `windows`, in the order of `names`."""
    return _loader(PlainSet(cache, names, windows), batch_size, num_workers, device)


def _loader(
    dataset: Dataset, batch_size: int, num_workers: int, device: torch.device, sampler: Sampler | None = None
) -> DataLoader:
    return DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=sampler,
        num_workers=num_workers,
        collate_fn=stack,
        pin_memory=device.type == "cuda",  # not without need: it opens a context on a GPU that nobody has chosen yet
        persistent_workers=num_workers > 0,
        worker_init_fn=_start_worker,
    )


def _start_worker(worker: int) -> None:
    cv2.setNumThreads(0)  # one core per worker; OpenCV's own threads would compete with the other workers
    os.environ.setdefault("OMP_NUM_THREADS", "1")
