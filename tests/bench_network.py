"""Benchmarks of the network itself, beside a plain loop: each measurement in a process of its own, in turns.

The plain loop is PyTorch as most write it: float32, contiguous, smp's losses, the C library's own memory handling.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

import numpy as np
import torch
from segmentation_models_pytorch.losses import DiceLoss
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from tests.bench_tools import seconds
from tests.bench_training import data, warm_cache
from utils.data.augment import Augmenter
from utils.data.augmentation import Augmentation
from utils.data.fold_data import FoldData
from utils.data.loader import dense_labels, normalise, training_loader
from utils.device import tune_process
from utils.files import ROOT, read_json
from utils.inference.predict import Predictor, Probabilities
from utils.models import build_model
from utils.models.checkpoint import Config, describe_network, load_checkpoint, save_checkpoint
from utils.training.losses import batch_loss, build_loss
from utils.training.start import choose_precision

CPU = torch.device("cpu")
NETWORKS = {
    "attention U-Net (quarter width)": ("attention_unet", "", {"width": 0.25}),
    "U-Net, MobileNetV2": ("unet", "mobilenet_v2", {}),
    "U-Net, EfficientNet-Lite0 (sample's)": ("unet", "tu-tf_efficientnet_lite0", {}),
    "UNet++, MobileNetV3": (
        "unetplusplus",
        "tu-mobilenetv3_small_100",
        {"decoder_channels": [64, 48, 32, 24, 16]},
    ),
}
TURNS, STEPS, WARM_UP = 2, 8, 3
KINDS = {"convolutions": "conv", "batch norms": "batch_norm", "upsampling": "upsample", "optimiser": "adam"}


def build(name: str) -> torch.nn.Module:
    architecture, encoder, options = NETWORKS[name]
    torch.manual_seed(0)
    return build_model(architecture, 29, encoder, **options)


def batches(number: int) -> list[dict[str, torch.Tensor]]:
    table, _, _ = data()
    loader = training_loader(FoldData(warm_cache(256), table, table[:0]), Augmenter(Augmentation()), 4, seed=0)
    return [batch for batch, _ in zip(loader, range(number), strict=False)]


def plain_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return F.binary_cross_entropy_with_logits(logits, labels) + DICE(logits, labels)


DICE = DiceLoss(mode="multilabel", from_logits=True)


def make_step(name: str, way: str, folder: Path):
    """A training step on the next of a few real batches, ours or the plain one."""
    if way == "ours":
        tune_process()
    model, real = build(name).train(), batches(5)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    if way == "ours":
        precision = choose_precision(
            model, build_loss("bce_dice"), lambda: real[0], (4, 256), CPU, folder / f"{name}.json"
        )
        model = precision.prepare(model)
    turn = iter(range(10**9))

    def step() -> None:
        batch = real[next(turn) % len(real)]
        if way == "ours":
            with precision.computing(CPU):
                loss = batch_loss(model, build_loss("bce_dice"), batch, precision)
        else:
            image = normalise(batch["image"], model.mean, model.std)
            loss = model.training_loss(image, dense_labels(batch), plain_loss)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def make_prediction(name: str, way: str, folder: Path):
    """Probabilities of one batch from a checkpoint, flip included, ours or the plain one."""
    precision, image = read_json(folder / f"{name}.json")["precision"], batches(1)[0]["image"]
    checkpoint = folder / name
    if not checkpoint.exists():
        model = build(name)
        config = Config(classes=[str(i) for i in range(29)], image_size=256, **describe_network(model))
        config.precision = precision
        save_checkpoint(checkpoint, model, config)
    if way == "ours":
        predictor = Predictor(checkpoint, CPU, "hflip")
        return lambda: predictor(image)
    network = Probabilities(load_checkpoint(checkpoint)[0])

    @torch.inference_mode()
    def predict() -> np.ndarray:
        maps = normalise(image, [0.5] * 3, [0.5] * 3)
        return ((network(maps) + network(maps.flip(3)).flip(3)) / 2).numpy()

    return predict


def time_apart(name: str, what: str, way: str, folder: Path) -> tuple[float, float]:
    """Median seconds, and the kernel's share of the processor time, in a process of its own."""
    command = [sys.executable, "-m", "tests.bench_network", name, what, way, str(folder)]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    return float(found[-2]), float(found[-1])


def network_steps() -> list[dict]:
    """Training steps and predictions at 256, batches of 4, two threads."""
    rows = []
    batches(1)  # the cache is built before anything is timed
    with tempfile.TemporaryDirectory() as folder:
        for what in ("step", "predict"):
            for name in NETWORKS:
                turns = [[time_apart(name, what, way, Path(folder)) for way in ("ours", "plain")] for _ in range(TURNS)]
                ours, plain = (median(turn[i][0] for turn in turns) for i in (0, 1))
                kernel = [median(turn[i][1] for turn in turns) for i in (0, 1)]
                note = read_json(Path(folder, f"{name}.json"))["precision"]
                note += f"; time in the kernel {kernel[0]:.0%}, plain {kernel[1]:.0%}"
                title = {"step": "training step", "predict": "prediction with a flip"}[what]
                row = {"name": f"{title}: {name}", "ours_s": ours, "reference_s": plain, "ratio": plain / ours}
                rows.append(row | {"note": note})
    return rows


def network_profile() -> list[dict]:
    """Where the time of an attention U-Net's training step goes, ours beside the plain loop's."""
    name, spent = next(iter(NETWORKS)), {}
    with tempfile.TemporaryDirectory() as folder:
        for way in ("plain", "ours"):  # plain first: the memory setting stays
            step = make_step(name, way, Path(folder))
            for _ in range(WARM_UP):
                step()
            with profile(activities=[ProfilerActivity.CPU]) as found:
                for _ in range(3):
                    step()
            times = {event.key.lower(): event.self_cpu_time_total / 3e6 for event in found.key_averages()}
            spent[way] = {k: sum(t for key, t in times.items() if word in key) for k, word in KINDS.items()}
            spent[way]["loss, activations, copies, other"] = sum(times.values()) - sum(spent[way].values())
    return [
        {
            "name": f"in a step of {name.partition(' (')[0]}: {kind}",
            "ours_s": ours,
            "reference_s": spent["plain"][kind],
            "ratio": spent["plain"][kind] / ours,
            "note": "self time of the operations in a profile",
        }
        for kind, ours in spent["ours"].items()
    ]


def main(name: str, what: str, way: str, folder: str) -> None:
    torch.set_num_threads(2)
    run = {"step": make_step, "predict": make_prediction}[what](name, way, Path(folder))
    for _ in range(WARM_UP):
        run()
    before = os.times()
    found = median(seconds(run) for _ in range(STEPS))
    user, system = (after - begin for after, begin in zip(os.times()[:2], before[:2], strict=True))
    print(found, system / (user + system))


if __name__ == "__main__":
    main(*sys.argv[1:])
