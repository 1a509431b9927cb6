"""Benchmarks of samples, cache, probability store and training steps; `tests/bench.py` runs them."""

import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import cache as once
from itertools import cycle
from pathlib import Path
from statistics import median

import albumentations as A
import cv2
import numpy as np
import torch

from tests import reference
from tests.bench_tools import seconds, side_by_side
from utils.data.augment import Augmenter
from utils.data.augmentation import NO_AUGMENTATION, Augmentation
from utils.data.cache import Cache
from utils.data.competition import read_annotation, read_classes, read_index
from utils.data.fold_data import FoldData
from utils.data.loader import dense_labels, normalise, training_loader
from utils.device import peak_memory
from utils.files import ROOT
from utils.inference import ensemble
from utils.inference.probabilities import ProbabilityStore
from utils.masks.dice import dice_of_masks
from utils.masks.masks import Masks
from utils.models import build_model
from utils.pipeline.profile import profile_path, read_profile
from utils.sample.generator import make_sample
from utils.training.losses import build_loss


@once
def data() -> tuple:
    """(table of 40 training images at 2048², classes, folder for temporary files)."""
    folder = make_sample(ROOT / "outputs/benchmark-sample", train_people=20, test_people=1)
    table = read_index(folder)
    return table[table["split"] == "train"].reset_index(drop=True), read_classes(folder), folder


@once
def warm_cache(image_size: int) -> Cache:
    table, classes, _ = data()
    cache = Cache(ROOT / "outputs/benchmark-cache", table, classes, image_size)
    cache.build()
    return cache


def training_samples() -> list[dict]:
    """One training sample at 512: from our cache, beside the baseline's `__getitem__` with the same augmentations."""
    table, classes, _ = data()
    cache, side = warm_cache(512), 512
    polygons = [read_annotation(path, classes) for path in table["annotation"]]
    resize, flip = A.Resize(side, side), A.HorizontalFlip(p=0.5)
    affine = A.Affine(scale=(0.9, 1.1), rotate=(-15, 15), translate_percent=(-0.05, 0.05), p=1)
    grey = [A.CLAHE(clip_limit=2.0, p=1), A.RandomBrightnessContrast(0.2, 0.2, p=1)]
    moved = {"rotate": 15, "scale": 0.1, "shift": 0.05, "clahe": 1.0, "brightness": 0.2, "contrast": 0.2}
    elastic = A.ElasticTransform(alpha=40, sigma=20, p=1)
    ways = [
        ("no augmentation", {}, [resize]),
        ("flip", {"hflip": 0.5}, [resize, flip]),
        ("flip, rotation, scale, CLAHE, contrast", {"hflip": 0.5, **moved}, [resize, flip, affine, *grey]),
        ("the same and elastic", {"hflip": 0.5, **moved, "elastic": 1.0}, [resize, flip, affine, elastic, *grey]),
    ]
    rows = []
    for name, settings, transforms in ways:
        augmenter = Augmenter(Augmentation(**(vars(NO_AUGMENTATION) | settings)))
        plain = A.Compose(transforms)
        numbers = cycle(range(len(table)))

        def ours(augmenter: Augmenter = augmenter, numbers: cycle = numbers) -> None:
            entry = cache.read(table["image_name"][next(numbers)])
            augmenter(entry.image, entry.label, np.random.default_rng(0))[1].dense()

        def theirs(plain: A.Compose = plain, numbers: cycle = numbers) -> None:
            number = next(numbers)
            reference.training_sample(table["image"][number], polygons[number], plain)

        rows.append(side_by_side(f"training sample at 512: {name}", ours, theirs, 11, note="warm cache, soft labels"))
    return rows


def cache_building() -> list[dict]:
    """Building the cache beside decoding the same PNGs alone, both with as many threads as cores."""
    table, classes, _ = data()

    def build() -> None:
        with tempfile.TemporaryDirectory() as folder:
            Cache(folder, table, classes, 512).build()

    def decode() -> None:
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda path: cv2.imread(path, cv2.IMREAD_ANYCOLOR), table["image"]))

    return [side_by_side("cache of 40 images at 512", build, decode, 5, note="reference: decoding the PNGs alone")]


def soft_maps(label: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Probabilities like a fold model's: the soft label moved a little, its edge widened, a faint haze around it."""
    shifted = np.roll(label, rng.integers(-1, 2, 2), (1, 2)).astype(np.float32) / 255
    blurred = np.stack([cv2.GaussianBlur(plane, (0, 0), 1.5) for plane in shifted])
    logits = np.clip(8 * (blurred - 0.5) / 0.5, -8, 8) + rng.normal(0, 0.3, label.shape)
    return (1 / (1 + np.exp(-logits))).astype(np.float32)


def stored_probabilities() -> list[dict]:
    """Soft voting from the store beside float32 at full size: time, Dice, bytes and memory."""
    table, _, _ = data()
    names, rows = table["image_name"].tolist()[:4], []
    with tempfile.TemporaryDirectory() as folder:
        for title, sides in (
            ("2 fold models at 512", (512, 512)),
            ("fold models at 512, 384 and 256", (512, 384, 256)),
        ):
            stores, maps = [], {name: [] for name in names}
            for number, side in enumerate(sides):
                stores.append(ProbabilityStore(Path(folder, title, str(number))))
                for name in names:
                    entry = warm_cache(side).read(name)
                    maps[name].append(soft_maps(entry.label.dense(), np.random.default_rng((number, side))))
                    stores[-1].write(name, maps[name][-1], entry.size)
            turn = cycle(names)
            row = side_by_side(
                f"soft vote of {title}",
                lambda stores=stores, turn=turn: vote(stores, next(turn)),
                lambda maps=maps, turn=turn: reference.soft_vote(maps[next(turn)], (2048, 2048), 0.5),
                3,
            )
            truth = {name: warm_cache(512).read(name).truth for name in names}
            ours = np.mean([dice_of_masks(vote(stores, name), truth[name]).mean() for name in names])
            exact = [
                dice_of_masks(Masks.from_texts(reference.soft_vote(maps[n], (2048, 2048), 0.5)), truth[n]).mean()
                for n in names
            ]
            size = np.mean([stores[0].path(name).stat().st_size for name in names]) / 1000
            row["note"] = (
                f"Dice {ours:.6f}, float32 {np.mean(exact):.6f}; {size:.0f} KB per image and fold model at 512"
            )
            rows.append(row)
        for fold_models in (2, 10):
            command = [sys.executable, "-m", "tests.bench_training", str(stores[0].folder), str(fold_models)]
            peak = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
            note = f"peak memory of the process {peak} MB"
            rows.append(
                {
                    "name": f"soft vote of {fold_models} fold models at 512",
                    "ours_s": None,
                    "reference_s": None,
                    "ratio": None,
                    "note": note,
                }
            )
    return rows


def vote(stores: list[ProbabilityStore], name: str) -> Masks:
    return ensemble.soft_vote([store.read(name) for store in stores], [1.0] * len(stores), 0.5)


def fed_steps() -> list[dict]:
    """A training step of the sample profile's models fed by the loader, beside the same step on a fixed batch."""
    table, classes, _ = data()
    profile = read_profile(profile_path("sample"))
    batch_size = profile.train["batch_size"]
    rows = []
    for name, options in profile.models.items():
        options = profile.train | options
        size = options.get("image_size", 512)
        cache = warm_cache(size)
        torch.manual_seed(0)
        model = build_model(
            options["architecture"], len(classes), options.get("encoder"), **options.get("model_options", {})
        ).train()
        optimizer, loss = torch.optim.AdamW(model.parameters(), 1e-4), build_loss("bce_dice")
        loader = training_loader(FoldData(cache, table, table[:0]), Augmenter(Augmentation()), batch_size, seed=0)

        def step(batch: dict, model=model, optimizer=optimizer, loss=loss) -> None:
            image = normalise(batch["image"], [0.5] * 3, [0.2] * 3)
            optimizer.zero_grad()
            model.training_loss(image, dense_labels(batch), loss).backward()
            optimizer.step()

        batches = endless(loader)
        fixed = next(batches)
        turns = [
            (seconds(lambda: step(next(batches))), seconds(lambda: step(fixed)))  # noqa: B023
            for _ in range(14)
        ][2:]
        fed, alone = (median(times) for times in zip(*turns, strict=True))
        note = f"fed by the loader / on a fixed batch: {fed / alone:.3f}"
        rows.append(
            {
                "name": f"training step, {name} at {size}",
                "ours_s": fed,
                "reference_s": alone,
                "ratio": alone / fed,
                "note": note,
            }
        )
    return rows


def endless(loader: torch.utils.data.DataLoader):
    epoch = 0
    while True:
        loader.sampler.set_epoch(epoch)
        yield from loader
        epoch += 1


if __name__ == "__main__":  # in a process of its own: the peak memory of a soft vote, in MB
    store, count = ProbabilityStore(sys.argv[1]), int(sys.argv[2])
    for stored in store.names():
        vote([store] * count, stored)
    print(round(peak_memory()))
