"""Export a trained network to formats that run without this package: TorchScript, ONNX, OpenVINO and int8 ONNX.

The files take images (N, 3, side, side) of the size the network was trained at, any number N at a time, and give a map
for each class. The OpenVINO and int8 files are made from the ONNX file. The metadata of an ONNX file has an entry
"config", a JSON object with what its user needs: classes, image_size (pixels), thresholds, mean and std; config.json
beside the files has the same for the other formats.
"""

import importlib.metadata
import json
import logging
import tempfile
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import nn

from utils.data.loader import normalise
from utils.files import Problems, replacing_folder, unknown, write_json
from utils.inference.fold_norms import fold_norms
from utils.models.base import PaddedModel
from utils.models.checkpoint import Config, save_checkpoint

FILES = {
    "torchscript": "model.torchscript",
    "onnx": "model.onnx",
    "openvino": "openvino.xml",
    "int8": "model-int8.onnx",
    "half": "half",
}
"""The file or folder of each format; openvino.bin has OpenVINO's weights. `half` is a checkpoint of half the size."""

QUANTIZED = ("Conv", "ConvTranspose", "MatMul", "Gemm", "Relu", "Clip")
"""ONNX operators computed with 8-bit numbers: nearly all of a network's time. An activation function that is computed
with the convolution before it makes that one's range, and with it the rounding, smaller."""


def export_versions() -> dict[str, str]:
    """Versions of the packages that write and run the files."""
    return {name: importlib.metadata.version(name) for name in ("onnx", "onnxscript", "onnxruntime", "openvino")}


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
    formats: Sequence[str] = tuple(FILES),
    normalise: bool = True,
    sigmoid: bool = True,
    calibration: Iterable[torch.Tensor] = (),
) -> list[Exported]:
    """Write a network in several formats into `folder`, in place of what was there.

    Args:
        model: the network with its weights, as `load_checkpoint` returns it.
        config: its config.
        folder: the folder for the files and their config.json.
        formats: keys of FILES.
        normalise: whether the normalisation is inside, see `Exportable`.
        sigmoid: whether the sigmoid is inside.
        calibration: images, uint8 (N, 1 or 3, side, side), from which the ranges of the int8 file's numbers are taken:
            typical ones that the scores are not computed on.

    Returns:
        One entry per format, in the order of `formats`. A format that an exporter refuses has the reason in `problem`.

    Raises:
        Problems: for names that are not in FILES, and for int8 without calibration images.
    """
    problems = [unknown("format", name, FILES) for name in formats if name not in FILES]
    images = list(calibration)
    if "int8" in formats and not images:
        problems.append("int8 needs calibration images, found none")
    if problems:
        raise Problems("these formats can't be exported:", problems)
    network, folder = Exportable(model, normalise, sigmoid), Path(folder)
    about = {n: getattr(config, n) for n in ("architecture", "encoder", "classes", "image_size", "mean", "std")}
    about["thresholds"] = config.thresholds or [0.5] * len(config.classes)
    example = torch.from_numpy(
        network.prepare(torch.zeros(2, 1, config.image_size, config.image_size, dtype=torch.uint8))
    )
    with replacing_folder(folder) as new:
        base = new / FILES["onnx"]

        def write(name: str) -> None:
            path = new / FILES[name]
            if name == "torchscript":
                save_torchscript(network, example, path)
            elif name == "onnx":
                save_onnx(network, example, about, path)
            elif name == "openvino":
                save_openvino(base, path)
            elif name == "int8":
                save_int8(base, [network.prepare(image) for image in images], path)
            else:
                save_checkpoint(path, model, config, half=True)

        made = {}
        for name in dict.fromkeys(["onnx", *formats]):
            started, problem = time.monotonic(), ""
            if name in ("openvino", "int8") and made["onnx"].problem:
                problem = "made from the ONNX file, which is missing"
            else:
                try:
                    write(name)
                except Exception as error:  # exporters raise anything, and the other formats are still wanted
                    problem = first_line(error)
            made[name] = Exported(name, folder / FILES[name], time.monotonic() - started, problem)
        if "onnx" not in formats:
            base.unlink(missing_ok=True)
        write_json(new / "config.json", about)
    return [made[name] for name in formats]


def save_torchscript(network: Exportable, example: torch.Tensor, path: Path) -> None:
    """Trace the network with one input. The file holds code and weights, and runs in C++ too."""
    with without_warnings(), torch.no_grad():
        torch.jit.save(torch.jit.trace(network, example, check_trace=False), path)


def save_onnx(network: Exportable, example: torch.Tensor, about: dict, path: Path) -> None:
    """Write an ONNX file with a dynamic batch, checked by onnx, with `about` in its metadata."""
    with without_warnings(), torch.no_grad():
        program = torch.onnx.export(
            network,
            (example,),
            dynamo=True,
            input_names=["image"],
            output_names=[network.output],
            dynamic_shapes={"image": {0: torch.export.Dim("batch")}},
            verbose=False,
        )
    model = program.model_proto
    onnx.helper.set_model_props(model, {"config": json.dumps(about)})
    onnx.checker.check_model(model)
    onnx.save(model, path)


def save_openvino(source: Path, path: Path) -> None:
    """Write OpenVINO's two files, `path` (.xml) and the weights beside it, from an ONNX file; weights stay float32.

    onnxruntime first computes what does not depend on the image. OpenVINO would do it too, but it resizes
    DPT's position embeddings in another way than PyTorch and ONNX, which changes the logits by 2 %.
    """
    import openvino

    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(Path(folder) / source.name)
        onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        model = openvino.Core().read_model(options.optimized_model_filepath)
        openvino.save_model(model, path, compress_to_fp16=False)


def save_int8(source: Path, inputs: Sequence[np.ndarray], path: Path) -> None:
    """Quantise an ONNX file after training: weights per channel, activations by their mean ranges on `inputs`.

    Weights have 7 bits (`reduce_range`): with 8, sums may overflow on x86 processors without VNNI instructions.
    """
    with without_warnings(), tempfile.TemporaryDirectory() as folder:
        prepared = Path(folder) / path.name
        quant_pre_process(source, prepared, skip_symbolic_shape=True)
        quantize_static(
            prepared,
            path,
            _Inputs(inputs),
            op_types_to_quantize=list(QUANTIZED),
            per_channel=True,
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            extra_options={"CalibMovingAverage": True},
        )


class _Inputs(CalibrationDataReader):
    def __init__(self, inputs: Iterable[np.ndarray]):
        self.inputs: Iterator[np.ndarray] = iter(inputs)

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next batch, None at the end, as onnxruntime asks for them."""
        image = next(self.inputs, None)
        return None if image is None else {"image": image}


def first_line(error: Exception) -> str:
    """An exporter's or a runtime's error in one line: its cause, where it says one. Their messages fill pages."""
    while error.__cause__:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
    if "TorchScript interpreter" in lines[0]:
        return lines[-1][:200]  # after a traceback
    return f"{type(error).__name__}: {lines[0]}"[:200]


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
