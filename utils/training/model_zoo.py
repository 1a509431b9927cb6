"""The architectures side by side: what each costs, and what the same short training makes of it."""

import json
import shutil
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pandas as pd
import torch

from utils.data.augment import Augmenter
from utils.data.augmentation import NO_AUGMENTATION, Augmentation
from utils.data.cache import Cache, Entry
from utils.data.fold_data import FoldData
from utils.data.loader import normalise, plain_loader
from utils.device import peak_memory
from utils.files import cores, kept_result, read_json, write_json
from utils.masks.masks import Masks
from utils.models import build_model
from utils.models.cam import SHARPNESS
from utils.models.checkpoint import load_checkpoint, versions
from utils.registry import find_part
from utils.training.fit import fit
from utils.training.losses import build_loss
from utils.training.optimizers import build_optimizer, build_schedule
from utils.training.settings import Settings

FAMILIES = (
    *("fully convolutional", "unpooling, dense blocks", "dilated", "U-Net and pyramids", "high resolution"),
    *("transformer, modern", "instances", "class activation", "other"),
)
"""The families that the architectures are registered with, in the order of the figure's legend."""

SMALLEST = (
    *("fcn32s", "fcn16s", "fcn8s", "fcn_resnet50", "deconvnet", "segnet", "fcdensenet56"),
    *("dilatednet", "deeplabv1", "deeplabv2", "deeplabv3", "deeplabv3plus", "deeplabv3plus_paper", "pspnet", "pan"),
    *("unet", "unet_paper", "residual_unet", "attention_unet", "unetplusplus", "unetplusplus_paper", "unet3plus"),
    *("resenc_unet", "eff_unet_b0", "mobile_unet", "linknet", "manet", "fpn", "hrnetv2_w18", "hrnet_ocr_w18"),
    *("segformer_b0", "upernet", "upernet_swin_t", "upernet_convnext_t", "upernet_pvtv2_b0"),
    *("mobilevit_deeplabv3_xxs", "mobilevitv2_deeplabv3_050", "dpt", "swin_unet", "mask2former_swin_t"),
    *("maskrcnn", "yolact"),
)
"""The smallest network of every kind; the others differ from one of these in size alone."""

LARGE = ("fcn32s", "fcn16s", "fcn8s", "deconvnet", "dilatednet", "resenc_unet")
QUARTER_WIDTH = {name: {"width": 0.25} for name in LARGE} | {"maskrcnn": {"channels": 64, "proposals": 128}}
"""Options for networks of more than a hundred million parameters, whose short training would mostly move memory, and
for one that computes a mask for each of hundreds of boxes."""


def training_options(name: str) -> dict[str, float]:
    """Options of an architecture in the short training: a quarter of the width for those in QUARTER_WIDTH."""
    return QUARTER_WIDTH.get(name, {})


def family(name: str) -> str:
    """The family of an architecture, one of FAMILIES; "other" for a plugin's that is none of them."""
    registered = find_part("model", name).family
    return registered if registered in FAMILIES else "other"


def costs(
    names: Iterable[str],
    classes: int,
    image_size: int,
    folder: str | Path,
    threads: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> pd.DataFrame:
    """What one image of image_size² costs each architecture on the CPU, a row each, index architecture.

    Columns: parameters (millions), multiply_adds (10⁹: convolutions, matrix products and attention), seconds (forward,
    median of three, with `threads`; 0 for all cores), memory (MB that weights and activations add to the process at its
    peak). Each is measured in a process of its own and kept in `folder`, so that nothing is measured twice.
    """
    names, rows = list(names), {}
    setting = {"classes": classes, "image_size": image_size, "threads": threads or cores(), "versions": versions()}
    for number, name in enumerate(names, 1):
        sizes = [str(setting[key]) for key in ("classes", "image_size", "threads")]
        command = [sys.executable, "-m", "utils.training.model_zoo", name, *sizes]
        found = kept_result(Path(folder) / f"{name}.json", setting, command)
        rows[name] = {key: found[key] for key in ("parameters", "multiply_adds", "seconds", "memory")}
        if progress:
            progress(number, len(names))
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("architecture")


def measure(name: str, classes: int, image_size: int, threads: int) -> dict[str, float]:
    """One architecture's row of `costs`, measured in this process."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    torch.set_num_threads(threads)
    before = peak_memory()
    model = build_model(name, classes, image_size=image_size).eval()
    image, times = torch.zeros(1, 3, image_size, image_size), []
    with torch.inference_mode():
        for _ in range(4):
            started = time.perf_counter()
            model(image)
            times.append(time.perf_counter() - started)
    memory = peak_memory() - before
    # fused attention is one operation that the counter may not know; its plain form consists of matrix products
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(image)
    return {
        "parameters": sum(p.numel() for p in model.parameters()) / 1e6,
        "multiply_adds": counter.get_total_flops() / 2e9,
        "seconds": median(times[1:]),
        "memory": memory,
    }


def train_once(
    architecture: str,
    data: FoldData,
    settings: Settings,
    folder: Path,
    loss: str = "bce_dice",
    lr: float = 1e-3,
    augmentation: Augmentation = NO_AUGMENTATION,
    encoder: str = "",
    **options: Any,
) -> dict[str, Any]:
    """`fit` with AdamW and a cosine, unless it has ended in `folder` with the same arguments: {"dice", "minutes"}.

    dice: full-size, of the best epoch on the validation images, whose weights are all that is kept, in `folder`/best.
    `options` are the architecture's own.
    """
    made_from = {"architecture": architecture, "encoder": encoder, "options": options, "loss": loss, "lr": lr}
    made_from |= {"settings": settings.shaping(), "augmentation": asdict(augmentation), "classes": data.cache.classes}
    names = [*data.train["image_name"], *data.validation["image_name"]]
    made_from = json.loads(json.dumps(made_from | {"images": [data.cache.signature(name) for name in names]}))
    done = folder / "metrics.json"
    found = read_json(done, {})
    if any(found.get(key) != value for key, value in made_from.items()):
        torch.manual_seed(settings.seed)
        network = build_model(architecture, len(data.cache.classes), encoder, image_size=data.cache.grid[0], **options)
        optimizer = build_optimizer("adamw", network.parameters(), lr, weight_decay=1e-2)
        schedule = build_schedule("cosine", optimizer, *settings.steps(data))
        quiet = replace(
            settings, resumable=False, on_epoch=lambda history: None
        )  # who trains many prints one line each
        result = fit(network, build_loss(loss), Augmenter(augmentation), optimizer, schedule, data, quiet, folder)
        shutil.rmtree(folder / "last")  # as large as the best, and nobody asks for it
        found = {"dice": result.score, "minutes": result.minutes, **made_from}
        write_json(done, found)
    return found


def activation_shares(checkpoint: str | Path, cache: Cache, names: list[str]) -> dict[str, np.ndarray]:
    """By image: the class activation maps of a trained `cam`, float32 (classes, h, w), as shares of their maxima."""
    model, config = load_checkpoint(checkpoint, torch.device("cpu"))
    shares = {}
    with torch.inference_mode():
        for batch in plain_loader(cache, names, batch_size=4):
            logits = model(normalise(batch["image"], config.mean, config.std)).numpy()
            for number, maps in zip(batch["index"].tolist(), logits, strict=True):
                shares[names[number]] = maps / SHARPNESS + model.network.cutoff
    return shares


def peaks_inside(maps: np.ndarray, truth: Masks) -> np.ndarray:
    """For each class of an image, whether the maximum of its map lies in its mask: float (classes,) of 0 and 1.

    maps: (classes, h, w); truth: at full size. NaN for a class that is not there. The pointing game of
    Zhang et al. 2018, "Top-Down Neural Attention by Excitation Backprop", without its margin of 15 pixels.
    """
    hits = np.full(len(maps), np.nan)
    for number, (plane, area) in enumerate(zip(maps, truth.areas, strict=True)):
        if area:
            peak = np.unravel_index(plane.argmax(), plane.shape)
            y, x = (int((p + 0.5) * full / cells) for p, full, cells in zip(peak, truth.size, plane.shape, strict=True))
            hits[number] = truth.dense(number)[y, x]
    return hits


def covered_share(entries: Iterable[Entry]) -> float:
    """The mean share of the image that a class's mask covers: how often a random point lies inside it."""
    shares = [area / (entry.size[0] * entry.size[1]) for entry in entries for area in entry.truth.areas if area]
    return float(np.mean(shares))


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], *map(int, sys.argv[2:]))))
