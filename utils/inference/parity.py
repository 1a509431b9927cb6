"""What exported files are worth beside PyTorch: largest difference, Dice, size and time on the CPU."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np
import pandas as pd
import torch

from utils.data.cache import Cache
from utils.data.loader import plain_loader
from utils.files import cores
from utils.inference.export import Exported, export_format, first_line
from utils.inference.exportable import Exportable, Runner, torch_runner
from utils.masks import upsampling
from utils.masks.dice import dice_of_masks, mean_dice
from utils.masks.masks import Masks


def open_exported(exported: Exported, network: Exportable, threads: int = 0) -> Runner:
    """A function that runs an exported file on the CPU with so many threads; 0 is one per core.

    network: what was exported. PyTorch's number of threads is the process's.
    """
    return export_format(exported.format).runner(exported.path, network, threads or cores())


@dataclass(frozen=True)
class Parity:
    """How exported files compare with PyTorch.

    table: a row per format, PyTorch first, with the columns megabytes (10⁶ bytes); difference (the largest, of
    probabilities); dice (mean at full size, with the truth; NaN without one); change (of `dice`, against PyTorch's);
    agreement (mean Dice with PyTorch's masks); milliseconds (median, one image); problem (why there is no file).
    masks: by format, then by image.
    """

    table: pd.DataFrame
    masks: dict[str, dict[str, Masks]]


def compare_exported(
    exported: Sequence[Exported],
    network: Exportable,
    cache: Cache,
    names: Sequence[str],
    thresholds: float | Sequence[float],
    batch_size: int = 4,
    threads: int = 0,
    rounds: int = 20,
) -> Parity:
    """Run PyTorch and every exported file on the same images, and time them in turns.

    Args:
        exported: what `export` returned. A format without a file keeps its row.
        network: what was exported.
        cache: built, at the network's resolution, with the true masks where there are some.
        names: the images, at least one.
        thresholds: 0 to 1, one number or one per class.
        batch_size: images at a time; the last batch may be smaller.
        threads: of each runtime; 0 is one per core.
        rounds: images that each format is timed on, see `milliseconds`.

    Returns:
        The table and the masks.
    """
    torch.set_num_threads(threads or cores())
    names = list(names)
    first = network.prepare(next(iter(plain_loader(cache, names[:1], 1)))["image"])
    runners, problems = open_all(exported, network, first, threads)
    masks = {name: {} for name in runners}
    difference = dict.fromkeys(runners, 0.0)
    for batch in plain_loader(cache, names, batch_size):
        image = network.prepare(batch["image"])
        maps = {name: network.probabilities(run(image)) for name, run in runners.items()}
        for name, found in maps.items():
            difference[name] = max(difference[name], float(np.abs(found - maps["pytorch"]).max()))
            for index, scores in zip(batch["index"].tolist(), found, strict=True):
                size = cache.read(names[index]).size
                masks[name][names[index]] = upsampling.upsample_masks(scores, size, thresholds)
    truth = {name: entry.truth for name in names if (entry := cache.read(name)).truth is not None}
    table = pd.DataFrame(index=pd.Index(["pytorch", *(file.format for file in exported)], name="format"))
    table["megabytes"] = pd.Series({"pytorch": megabytes(network)} | {file.format: file.megabytes for file in exported})
    table["difference"] = pd.Series(difference)
    table["dice"] = pd.Series({name: _mean_dice(found, truth) for name, found in masks.items()})
    table["change"] = table["dice"] - table.loc["pytorch", "dice"]
    table["agreement"] = pd.Series({name: _mean_dice(found, masks["pytorch"]) for name, found in masks.items()})
    table["milliseconds"] = pd.Series(milliseconds(runners, first, rounds))
    table["problem"] = pd.Series({"pytorch": ""} | problems)
    return Parity(table, masks)


def open_all(
    exported: Sequence[Exported], network: Exportable, image: np.ndarray, threads: int = 0
) -> tuple[dict[str, Runner], dict[str, str]]:
    """Functions that run PyTorch and the files by format, and for each format why it can't be run ("" if it can).

    image: the input that each is tried with.
    """
    runners, problems = {"pytorch": torch_runner(network)}, {}
    for file in exported:
        problems[file.format] = file.problem
        if not file.problem:
            try:
                run = open_exported(file, network, threads)
                run(image)
            except Exception as error:  # a runtime may refuse what another library wrote
                problems[file.format] = f"can't be run: {first_line(error)}"
            else:
                runners[file.format] = run
    return runners, problems


def megabytes(network: torch.nn.Module) -> float:
    """Size of a network's numbers in memory, in 10⁶ bytes."""
    return sum(tensor.nbytes for tensor in network.state_dict().values()) / 1e6


def milliseconds(runners: dict[str, Runner], image: np.ndarray, rounds: int) -> dict[str, float]:
    """Median time of each on one image, in turns, so that another program on the machine slows all of them alike."""
    times = {name: [] for name in runners}
    for number in range(rounds + 2):  # two to warm up
        for name, run in runners.items():
            started = time.perf_counter()
            run(image)
            if number >= 2:
                times[name].append(1000 * (time.perf_counter() - started))
    return {name: median(found) for name, found in times.items()}


def _mean_dice(masks: dict[str, Masks], truth: dict[str, Masks]) -> float:
    return mean_dice(pd.DataFrame([dice_of_masks(masks[name], expected) for name, expected in truth.items()]))
