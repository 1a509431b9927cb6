"""The formats that networks are exported to: TorchScript, ONNX, OpenVINO, int8 ONNX, a checkpoint in half precision.

Another one is a class like these, here or in a plugin: a file's name, `write` and `runner`.
"""

import json
import tempfile
from pathlib import Path

import numpy as np
import torch

from utils.inference.exportable import Exportable, ExportFormat, ExportJob, Runner, torch_runner, without_warnings
from utils.models.checkpoint import load_checkpoint, save_checkpoint
from utils.registry import register_export

BUILT_IN = ("torchscript", "onnx", "openvino", "int8", "half")
"""In the order in which they are shown."""

QUANTIZED = ("Conv", "ConvTranspose", "MatMul", "Gemm", "Relu", "Clip")
"""ONNX operators computed with 8-bit numbers: nearly all of a network's time. An activation function that is computed
with the convolution before it makes that one's range, and with it the rounding, smaller."""


@register_export("torchscript")
class TorchScript(ExportFormat):
    """A trace of the network with one input. The file holds code and weights, and runs in C++ too."""

    file = "model.torchscript"

    def write(self, job: ExportJob, path: Path) -> None:
        """Trace and save."""
        with without_warnings(), torch.no_grad():
            torch.jit.save(torch.jit.trace(job.network, job.example, check_trace=False), path)

    def runner(self, path: Path, network: Exportable, threads: int) -> Runner:
        """By torch.jit."""
        with without_warnings():
            return torch_runner(torch.jit.load(path, "cpu"))


@register_export("onnx")
class Onnx(ExportFormat):
    """An ONNX file with a dynamic batch, checked by onnx, with `about` in its metadata's entry "config"."""

    file = "model.onnx"

    def write(self, job: ExportJob, path: Path) -> None:
        """By torch.export."""
        import onnx

        with without_warnings(), torch.no_grad():
            program = torch.onnx.export(
                job.network,
                (job.example,),
                dynamo=True,
                input_names=["image"],
                output_names=[job.network.output],
                dynamic_shapes={"image": {0: torch.export.Dim("batch")}},
                verbose=False,
            )
        model = program.model_proto
        onnx.helper.set_model_props(model, {"config": json.dumps(job.about)})
        onnx.checker.check_model(model)
        onnx.save(model, path)

    def runner(self, path: Path, network: Exportable, threads: int) -> Runner:
        """By onnxruntime."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        return lambda image: session.run(None, {"image": image})[0]


@register_export("openvino")
class OpenVino(ExportFormat):
    """OpenVINO's two files, .xml and the weights beside it (.bin), from the ONNX file; weights stay float32.

    onnxruntime first computes what does not depend on the image. OpenVINO would do it too, but it resizes
    DPT's position embeddings in another way than PyTorch and ONNX, which changes the logits by 2 %.
    """

    file = "openvino.xml"
    made_from = "onnx"

    def write(self, job: ExportJob, path: Path) -> None:
        """By onnxruntime and OpenVINO."""
        import onnxruntime
        import openvino

        with tempfile.TemporaryDirectory() as folder:
            options = onnxruntime.SessionOptions()
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
            options.optimized_model_filepath = str(Path(folder) / job.source.name)
            onnxruntime.InferenceSession(job.source, options, providers=["CPUExecutionProvider"])
            model = openvino.Core().read_model(options.optimized_model_filepath)
            openvino.save_model(model, path, compress_to_fp16=False)

    def runner(self, path: Path, network: Exportable, threads: int) -> Runner:
        """By OpenVINO, which, left to itself, computes in bfloat16 where the processor can."""
        import openvino

        settings = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
        compiled = openvino.Core().compile_model(path, "CPU", settings)
        return lambda image: compiled(image)[0]


@register_export("int8")
class Int8(Onnx):
    """The ONNX file quantised after training: weights per channel, activations by their mean ranges on typical images.

    Weights have 7 bits (`reduce_range`): with 8, sums may overflow on x86 processors without VNNI instructions.
    """

    file = "model-int8.onnx"
    made_from = "onnx"
    calibrated = True

    def write(self, job: ExportJob, path: Path) -> None:
        """By onnxruntime."""
        from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
        from onnxruntime.quantization.shape_inference import quant_pre_process

        class Inputs(CalibrationDataReader):
            inputs = iter(job.calibration)

            def get_next(self) -> dict[str, np.ndarray] | None:
                image = next(self.inputs, None)
                return None if image is None else {"image": image}

        with without_warnings(), tempfile.TemporaryDirectory() as folder:
            prepared = Path(folder) / path.name
            quant_pre_process(job.source, prepared, skip_symbolic_shape=True)
            quantize_static(
                prepared,
                path,
                Inputs(),
                op_types_to_quantize=list(QUANTIZED),
                per_channel=True,
                reduce_range=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                extra_options={"CalibMovingAverage": True},
            )


@register_export("half")
class Half(ExportFormat):
    """A checkpoint of half the size, for an upload."""

    file = "half"
    always_works = True

    def write(self, job: ExportJob, path: Path) -> None:
        """As a folder."""
        save_checkpoint(path, job.model, job.config, half=True)

    def runner(self, path: Path, network: Exportable, threads: int) -> Runner:
        """By PyTorch, built as `network` was."""
        return torch_runner(Exportable(load_checkpoint(path)[0], network.normalise, network.sigmoid))
