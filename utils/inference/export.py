"""Export a trained network to files that run without this package; `utils.inference.export_formats` has the formats.

The files take images (N, 3, side, side) of the size the network was trained at, any number N at a time, and give a map
for each class. The metadata of an ONNX file has an entry "config", a JSON object with what its user needs: classes,
image_size (pixels), thresholds, mean and std; config.json beside the files has the same for the other formats.
"""

import importlib.metadata
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from utils.data.records import Ensemble, read_record
from utils.files import Problems, replacing_folder, unknown, write_json
from utils.inference.export_formats import BUILT_IN
from utils.inference.exportable import Exportable, ExportFormat, ExportJob
from utils.models.base import PaddedModel
from utils.models.checkpoint import Config
from utils.registry import find_part, list_parts


def export_versions() -> dict[str, str]:
    """Versions of the packages that write and run the files."""
    return {name: importlib.metadata.version(name) for name in ("onnx", "onnxscript", "onnxruntime", "openvino")}


def export_format(name: str) -> ExportFormat:
    """The format of this name, built in or of a plugin. Raises UnknownPart."""
    return find_part("export", name).build()


def with_submitted_thresholds(config: Config, output_dir: str | Path) -> Config:
    """The config with the thresholds that the run in `output_dir` submitted with, which may be tuned for each class.

    Without a vote of these classes, the checkpoint's own, or 0.5 for every class.
    """
    submitted = read_record(Path(output_dir) / Ensemble.notebook, Ensemble, empty=True).thresholds
    own = config.thresholds or [0.5] * len(config.classes)
    return replace(config, thresholds=[submitted.get(c, t) for c, t in zip(config.classes, own, strict=True)])


@dataclass(frozen=True)
class Exported:
    """A file, or the reason why there is none. path: the file, or the folder of a checkpoint. seconds: to make it."""

    format: str
    path: Path
    seconds: float
    problem: str = ""

    @property
    def megabytes(self) -> float:
        """Size of all its files, in 10⁶ bytes."""
        files = self.path.iterdir() if self.path.is_dir() else (self.path, self.path.with_suffix(".bin"))
        return sum(file.stat().st_size for file in files if file.exists()) / 1e6


def export(
    model: PaddedModel,
    config: Config,
    folder: str | Path,
    formats: Sequence[str] = BUILT_IN,
    normalise: bool = True,
    sigmoid: bool = True,
    calibration: Iterable[torch.Tensor] = (),
) -> list[Exported]:
    """Write a network in several formats into `folder`, in place of what was there.

    Args:
        model: the network with its weights, as `load_checkpoint` returns it.
        config: its config.
        folder: the folder for the files and their config.json.
        formats: names of formats, built in or of the plugins that are loaded.
        normalise: whether the normalisation is inside, see `Exportable`.
        sigmoid: whether the sigmoid is inside.
        calibration: images, uint8 (N, 1 or 3, side, side), from which the ranges of the int8 file's numbers are taken:
            typical ones that the scores are not computed on.

    Returns:
        One entry per format, in the order of `formats`. A format that an exporter refuses has the reason in `problem`.

    Raises:
        Problems: for names of no format, and for int8 without calibration images.
    """
    known = list_parts("export")
    problems = [unknown("format", name, known) for name in formats if name not in known]
    chosen = {name: export_format(name) for name in formats if name in known}
    images = list(calibration)
    calibrated = [name for name in chosen if chosen[name].calibrated and not images]
    problems += [f"{name} needs calibration images, found none" for name in calibrated]
    if problems:
        raise Problems("these formats can't be exported:", problems)
    network, folder = Exportable(model, normalise, sigmoid), Path(folder)
    about = {n: getattr(config, n) for n in ("architecture", "encoder", "classes", "image_size", "mean", "std")}
    about["thresholds"] = config.thresholds or [0.5] * len(config.classes)
    blank = torch.zeros(2, 1, config.image_size, config.image_size, dtype=torch.uint8)
    inputs = [network.prepare(image) for image in (blank, *images)]
    job = ExportJob(network, model, config, torch.from_numpy(inputs[0]), inputs[1:], about)
    made: dict[str, Exported] = {}

    def make(name: str, kind: ExportFormat, new: Path) -> None:
        source = kind.made_from
        if source and source not in made:
            make(source, export_format(source), new)
        started, problem = time.monotonic(), ""
        if source and made[source].problem:
            problem = f"made from {made[source].path.name}, which is missing"
        else:
            try:
                kind.write(replace(job, source=new / made[source].path.name if source else None), new / kind.file)
            except Exception as error:  # exporters raise anything, and the other formats are still wanted
                problem = first_line(error)
        made[name] = Exported(name, folder / kind.file, time.monotonic() - started, problem)

    with replacing_folder(folder) as new:
        for name, kind in chosen.items():
            if name not in made:
                make(name, kind, new)
        for name in made.keys() - chosen.keys():  # only others were made from it
            (new / made[name].path.name).unlink(missing_ok=True)
        write_json(new / "config.json", about)
    return [made[name] for name in formats]


def first_line(error: Exception) -> str:
    """An exporter's or a runtime's error in one line: its cause, where it says one. Their messages fill pages."""
    while error.__cause__:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
    if "TorchScript interpreter" in lines[0]:
        return lines[-1][:200]  # after a traceback
    return f"{type(error).__name__}: {lines[0]}"[:200]
