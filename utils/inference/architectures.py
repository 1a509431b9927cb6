"""A table of architectures × formats: which files each network can be exported to, how exact, large and fast they are.

Networks have random weights, so there is no Dice; notebook 10 compares the Dice of a trained one.
"""

import json
import resource
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import torch

from utils.files import cores, kept_result
from utils.inference.export import export, export_format, export_versions
from utils.inference.export_formats import BUILT_IN
from utils.inference.exportable import Exportable
from utils.inference.parity import megabytes, milliseconds, open_all
from utils.models import build_model
from utils.models.checkpoint import Config, versions
from utils.registry import find_part, load_plugins

SECONDS, MEMORY = 900, 0.9
"""What the trial of one architecture may take: seconds, and a share of the memory that is free when it begins."""
ROUNDS = 10
"""Images that each format is timed on."""
COLUMNS = ["architecture", "format", "difference", "megabytes", "milliseconds", "problem"]


def compare_architectures(
    names: Sequence[str],
    classes: int,
    image_size: int,
    folder: str | Path,
    progress: Callable[[int, int], None] | None = None,
    seconds: float = SECONDS,
    formats: Sequence[str] = (),
) -> pd.DataFrame:
    """Export architectures with random weights, each in a process of its own: exporters may crash, hang or fill memory.

    Args:
        names: architectures, built in or of the plugins that are loaded.
        classes: number of classes.
        image_size: side of the images, pixels.
        folder: where results are kept, one file per architecture, so that nothing is exported twice. A process that
            crashed or was stopped leaves none and is tried again.
        progress: called with (done, of) after each architecture.
        seconds: when a process is stopped.
        formats: to try besides the built-in ones, such as a plugin's.

    Returns:
        A row per architecture and format, PyTorch first. Columns: architecture, format, difference (the largest of the
        logits of one and of three images of noise, as a share of the largest logit; NaN without a file), megabytes
        (10⁶ bytes), milliseconds (median of one image on all cores), problem (why there is no file, or "").
    """
    tried = [name for name in dict.fromkeys((*BUILT_IN, *formats)) if not export_format(name).always_works]
    setting = {"classes": classes, "image_size": image_size, "versions": versions() | export_versions()}
    setting["formats"] = {name: find_part("export", name).sha256 for name in tried}
    rows = []
    for number, name in enumerate(names, 1):
        parts = [find_part("model", name), *(find_part("export", format) for format in tried)]
        trial = {"name": name, "classes": classes, "image_size": image_size, "formats": tried}
        trial["plugins"] = sorted({part.plugin for part in parts} - {""})
        command = [sys.executable, "-m", "utils.inference.architectures", json.dumps(trial)]
        try:
            found = kept_result(Path(folder) / f"{name}.json", setting, command, seconds)["found"]
        except RuntimeError as error:
            reason = str(error).splitlines()[-1].removeprefix(" ".join(command[1:])).strip()[:200]
            found = {format: {"problem": reason} for format in ("pytorch", *tried)}
        rows += [{"architecture": name, "format": format, **values} for format, values in found.items()]
        if progress:
            progress(number, len(names))
    return pd.DataFrame(rows, columns=COLUMNS)


def format_table(tried: pd.DataFrame) -> pd.DataFrame:
    """Architectures × formats as text, from `compare_architectures`: difference, MB and ms, or why there is no file."""
    text = [
        row.problem or f"{row.difference:.0e}, {row.megabytes:.1f} MB, {row.milliseconds:.0f} ms"
        for row in tried.itertuples()
    ]
    cells = tried.assign(text=text).pivot_table("text", "architecture", "format", aggfunc="first", sort=False)
    return cells.rename_axis(None, axis=1)


def try_formats(name: str, classes: int, image_size: int, formats: Sequence[str]) -> dict[str, dict[str, Any]]:
    """One architecture's rows of `compare_architectures` by format, computed in this process."""
    torch.set_num_threads(cores())
    torch.manual_seed(0)
    network = Exportable(build_model(name, classes, image_size=image_size), normalise=False, sigmoid=False)
    noise = torch.randint(0, 256, (3, 1, image_size, image_size), dtype=torch.uint8)
    images = [network.prepare(noise), network.prepare(noise[:1])]
    config = Config(name, "", [f"class {number}" for number in range(classes)], image_size)
    with tempfile.TemporaryDirectory() as folder:
        files = export(network.model, config, Path(folder) / "files", formats, False, False, [noise])
        runners, problems = open_all(files, network, images[0])
        maps = {format: [run(image) for image in images] for format, run in runners.items()}
        sizes = {file.format: file.megabytes for file in files} | {"pytorch": megabytes(network)}
        times = milliseconds(runners, images[1], ROUNDS)
    largest = np.abs(maps["pytorch"][0]).max()
    found = {}
    for format in ("pytorch", *formats):
        pairs = zip(maps.get(format, ()), maps["pytorch"], strict=False)
        differences = [np.abs(one - expected).max() / largest for one, expected in pairs]
        found[format] = {
            "difference": float(np.max(differences)) if differences else None,
            "megabytes": sizes[format] if differences else None,
            "milliseconds": times.get(format),
            "problem": problems.get(format, ""),
        }
    return found


def limit_memory(share: float = MEMORY) -> None:
    """Let this process take at most this share of the memory that is free now: too much is an error, not a crash."""
    most = int(share * psutil.virtual_memory().available)
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))


if __name__ == "__main__":
    trial = json.loads(sys.argv[1])
    limit_memory()
    load_plugins(trial.pop("plugins"))
    print(json.dumps({"found": try_formats(**trial)}))
