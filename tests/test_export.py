"""Exported files give PyTorch's masks, in a process without PyTorch too; what can't be exported is said."""

import json
import subprocess
import sys
from dataclasses import replace

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from timm.layers import resample_abs_pos_embed
from torch import nn

from tests import reference
from tests.small import fit, small_data
from utils import registry
from utils.data.augment import Augmenter
from utils.data.augmentation import NO_AUGMENTATION
from utils.data.loader import normalise
from utils.data.records import Ensemble, write_record
from utils.files import ROOT, Problems, read_json
from utils.inference.architectures import compare_architectures, format_table
from utils.inference.export import export, first_line, with_submitted_thresholds
from utils.inference.export_formats import BUILT_IN
from utils.inference.exportable import Exportable, torch_runner, without_warnings
from utils.inference.parity import compare_exported, open_exported
from utils.masks import upsampling
from utils.masks.dice import dice_of_masks
from utils.models import build_model
from utils.models.base import PaddedModel
from utils.models.checkpoint import Config, load_checkpoint, save_checkpoint

SCRIPT = ROOT / "notebooks" / "segment_onnx.py"
WITHOUT_TORCH = """
import runpy, sys
for name in ("torch", "utils", "lightning"):
    sys.modules[name] = None  # an import of it now raises ModuleNotFoundError
runpy.run_path(sys.argv.pop(1), run_name="__main__")
"""


@pytest.fixture(scope="module")
def data(sample, tmp_path_factory):
    return small_data(sample, tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    """A checkpoint that has learnt its few training images well enough for masks to have a shape."""
    options = {"epochs": 60, "lr": 1e-2, "validate_every": 60, "parts": {"augmentation": Augmenter(NO_AUGMENTATION)}}
    return fit(data, tmp_path_factory.mktemp("trained"), **options).checkpoint


def pixels(data, names):
    return torch.stack([torch.from_numpy(data.cache.read(name).image)[None] for name in names])


def plain_probabilities(network, config, data, names):
    """What this package's own inference starts from: the network as it was trained, nothing folded or exported."""
    with torch.inference_mode():
        return network(normalise(pixels(data, names), config.mean, config.std)).sigmoid().numpy()


@pytest.fixture(scope="module")
def files(trained, data, tmp_path_factory):
    network, config = load_checkpoint(trained)
    folder = tmp_path_factory.mktemp("export") / "files"
    calibration = [pixels(data, data.train["image_name"].tolist())]
    return {file.format: file for file in export(network, config, folder, calibration=calibration)}


@pytest.mark.parametrize("name", ["torchscript", "onnx", "openvino"])
def test_any_number_of_images_gives_pytorchs_probabilities(trained, data, files, name):
    network, config = load_checkpoint(trained)
    names = data.validation["image_name"].tolist()
    expected = plain_probabilities(network, config, data, names)
    like = Exportable(network)
    run = open_exported(files[name], like)
    for number in (1, 3, len(names)):
        found = run(like.prepare(pixels(data, names[:number])))
        assert found.shape == (number, 29, 64, 64) and found.dtype == np.float32
        assert np.abs(found - expected[:number]).max() < 1e-5


def test_dice_equals_pytorchs_and_int8_stays_near(trained, data, files):
    network, config = load_checkpoint(trained)
    names = data.validation["image_name"].tolist()
    parity = compare_exported(
        list(files.values()), Exportable(network), data.cache, names, config.thresholds, 3, 1, rounds=2
    )
    table = parity.table
    assert list(table.index) == ["pytorch", *BUILT_IN] and (table["problem"] == "").all()
    maps = plain_probabilities(network, config, data, names)
    dice = []
    for name, scores in zip(names, maps, strict=True):
        entry = data.cache.read(name)
        dice.append(dice_of_masks(upsampling.upsample_masks(scores, entry.size, config.thresholds), entry.truth).mean())
    assert 0.1 < np.mean(dice) < 1
    assert np.abs(table.loc[["pytorch", "torchscript", "onnx", "openvino"], "dice"] - np.mean(dice)).max() < 1e-4
    assert table.loc[["onnx", "openvino"], "agreement"].min() > 0.999
    assert 0.8 < table.loc["int8", "agreement"] < 1 and 0.99 < table.loc["half", "agreement"] < 1
    assert table.loc["int8", "megabytes"] < 0.5 * table.loc["onnx", "megabytes"]
    assert table.loc["half", "megabytes"] < 0.55 * table.loc["pytorch", "megabytes"]
    assert (table["milliseconds"] > 0).all()


def test_an_onnx_file_says_how_to_use_it(trained, files):
    _, config = load_checkpoint(trained)
    for name in ("onnx", "int8"):
        session = onnxruntime.InferenceSession(files[name].path, providers=["CPUExecutionProvider"])
        about = json.loads(session.get_modelmeta().custom_metadata_map["config"])
        assert about == read_json(files[name].path.parent / "config.json")
        assert about["classes"] == config.classes and about["thresholds"] == config.thresholds
        ((source,), (result,)) = session.get_inputs(), session.get_outputs()
        assert (source.type, source.shape) == ("tensor(uint8)", ["batch", 3, 64, 64]) and result.name == "probabilities"
    operators = {node.op_type for node in onnx.load(files["int8"].path).graph.node}
    assert "QuantizeLinear" in operators


@pytest.mark.parametrize("inside", [True, False])
def test_the_example_segments_a_png_without_torch(trained, data, files, tmp_path, inside):
    network, config = load_checkpoint(trained)
    model = files["onnx"].path
    if not inside:
        (file,) = export(network, config, tmp_path / "bare", ["onnx"], normalise=False, sigmoid=False)
        model = file.path
    name = data.validation["image_name"].iloc[0]
    png = data.cache.sources[name][0]
    arguments = [SCRIPT, model, png, tmp_path / "masks"]
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    drawn = {path.stem: cv2.imread(str(path), cv2.IMREAD_UNCHANGED) for path in (tmp_path / "masks").glob("*.png")}
    assert drawn.keys() == set(config.classes)
    maps = plain_probabilities(network, config, data, [name])[0]
    full = reference.upsample(maps, data.cache.read(name).size)
    found = np.stack([drawn[bone] > 0 for bone in config.classes])
    clear = np.abs(full - 0.5) > 1e-4
    assert 1000 < found.sum() < found.size / 2 and clear.mean() > 0.99
    assert np.array_equal(found[clear], (full > 0.5)[clear])


def test_the_example_is_as_short_as_it_says():
    assert len(SCRIPT.read_text(encoding="utf-8").splitlines()) <= 30


class Moody(nn.Module):
    """Depends on what it sees in a way that no graph can hold."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(3, 2, 1)

    def forward(self, image):
        return self.layer(image) if image.mean().item() > 0 else -self.layer(image)


def test_what_cant_be_exported_is_said_and_the_rest_is_written(tmp_path):
    config = Config("", "", ["a", "b"], 32)
    found = {
        file.format: file for file in export(PaddedModel(Moody(), 32), config, tmp_path / "files", ["onnx", "half"])
    }
    assert "data-dependent" in found["onnx"].problem and "\n" not in found["onnx"].problem  # the cause, not the step
    assert found["half"].problem == "" and (tmp_path / "files" / "half" / "model.safetensors").exists()
    assert not (tmp_path / "files" / "model.onnx").exists()


def test_a_batch_that_a_trace_cant_take_has_the_operations_own_message():
    with without_warnings():
        fixed = torch.jit.trace(lambda image: image.reshape(len(image), -1), torch.zeros(2, 3), check_trace=False)
    with pytest.raises(RuntimeError) as caught:
        fixed(torch.zeros(7))
    assert first_line(caught.value).startswith("RuntimeError: shape '[2, -1]' is invalid")


def test_a_file_that_a_runtime_cant_read_has_a_line_too(trained, data, files, tmp_path):
    network, _ = load_checkpoint(trained)
    (tmp_path / "bad.onnx").write_bytes(b"no network")
    bad = replace(files["onnx"], path=tmp_path / "bad.onnx")
    names = data.validation["image_name"][:1].tolist()
    table = compare_exported([bad, files["openvino"]], Exportable(network), data.cache, names, 0.5, rounds=1).table
    assert table.loc["onnx", "problem"].startswith("can't be run: ") and np.isnan(table.loc["onnx", "dice"])
    assert table.loc["openvino", "problem"] == "" and table.loc["openvino", "agreement"] > 0.999


class Placed(nn.Module):
    """Adds embeddings of positions that are resized with antialiasing, as DPT does."""

    def __init__(self):
        super().__init__()
        self.layer, self.positions = nn.Conv2d(3, 64, 8, stride=8), nn.Parameter(torch.randn(1, 14 * 14, 64))

    def forward(self, image):
        positions = resample_abs_pos_embed(self.positions, [4, 4], num_prefix_tokens=0)
        return self.layer(image) + positions.transpose(1, 2).reshape(1, 64, 4, 4)


def test_openvino_resizes_as_pytorch_does(tmp_path):
    torch.manual_seed(0)
    model = PaddedModel(Placed(), 32).eval()
    network = Exportable(model, normalise=False, sigmoid=False)
    (file,) = export(model, Config("", "", ["a", "b"], 32), tmp_path / "files", ["openvino"], False, False)
    image = np.zeros((1, 3, 32, 32), np.float32)
    difference = open_exported(file, network)(image) - torch_runner(network)(image)
    assert np.abs(difference).max() < 1e-5


def test_with_metadata_and_deep_supervision_any_number_of_images_is_taken(tmp_path):
    torch.manual_seed(0)
    model = build_model("unet", 2, "tu-mobilenetv3_small_050", metadata=True, deep_supervision=True).eval()
    torch.nn.init.normal_(model.network.network.film[-1].weight, std=0.1)
    network, config = Exportable(model, normalise=False, sigmoid=False), Config("unet", "", ["a", "b"], 64)
    images = np.random.default_rng(0).standard_normal((3, 3, 64, 64)).astype(np.float32)
    for file in export(model, config, tmp_path / "files", ["torchscript", "onnx"], False, False):
        run = open_exported(file, network)
        for number in (1, 3):
            expected = torch_runner(network)(images[:number])
            assert np.abs(run(images[:number]) - expected).max() < 1e-4 * np.abs(expected).max()


def test_files_threshold_as_the_submission_does(tmp_path):
    config = Config("unet", "resnet18", ["a", "b"], 32, thresholds=[0.4, 0.4])
    assert with_submitted_thresholds(config, tmp_path).thresholds == [0.4, 0.4]
    assert with_submitted_thresholds(replace(config, thresholds=[]), tmp_path).thresholds == [0.5, 0.5]
    write_record(Ensemble(thresholds={"b": 0.65, "a": 0.3}), tmp_path / "05_ensemble")
    assert with_submitted_thresholds(config, tmp_path).thresholds == [0.3, 0.65]


def test_wrong_formats_are_named_all_at_once(tmp_path):
    network, config = PaddedModel(nn.Conv2d(3, 2, 1), 32), Config("", "", ["a", "b"], 32)
    with pytest.raises(Problems) as caught:
        export(network, config, tmp_path / "files", ["onxn", "int8"])
    assert "onnx" in str(caught.value) and "calibration" in str(caught.value) and not list(tmp_path.iterdir())


def test_half_precision_keeps_what_it_cant_hold(tmp_path):
    network = build_model("linknet", 2)
    norm = next(module for module in network.modules() if isinstance(module, nn.BatchNorm2d))
    norm.running_var.fill_(1e6)
    save_checkpoint(tmp_path / "half", network, Config("linknet", "", ["a", "b"], 32), half=True)
    again, _ = load_checkpoint(tmp_path / "half")
    for name, tensor in again.state_dict().items():
        assert tensor.dtype == network.state_dict()[name].dtype
        assert torch.allclose(tensor, network.state_dict()[name], rtol=1e-3, atol=1e-6), name


TROUBLE = """
import os
import numpy as np
import psutil
from utils.registry import register_model

@register_model("crashing")
def crashing(classes):
    os._exit(7)

@register_model("greedy")
def greedy(classes):
    return np.empty(int(0.95 * psutil.virtual_memory().available), np.uint8)
"""


def test_architectures_that_crash_hang_or_fill_the_memory_leave_a_line(tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "_parts", dict(registry._parts))
    (tmp_path / "trouble.py").write_text(TROUBLE)
    registry.load_plugins([tmp_path / "trouble.py"])
    table = compare_architectures(["crashing", "greedy"], 2, 32, tmp_path / "kept")
    hanging = compare_architectures(["linknet"], 2, 32, tmp_path / "kept", seconds=1)
    for rows, name, words in (
        (table, "crashing", "ended with status 7"),
        (table, "greedy", "Unable to allocate"),
        (hanging, "linknet", "was stopped after 1 s"),
    ):
        rows = rows[rows["architecture"] == name]
        assert rows["format"].tolist() == ["pytorch", *BUILT_IN[:-1]] and rows["difference"].isna().all()
        assert rows["problem"].str.contains(words).all(), rows["problem"].iloc[0]
        assert words in format_table(rows).loc[name, "onnx"]
    assert not (tmp_path / "kept").exists()  # so a second start tries them again


def test_networks_that_unpool_can_be_traced():
    network = Exportable(build_model("segnet", 2, width=0.1))
    image = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        with without_warnings():
            traced = torch.jit.trace(network, image, check_trace=False)
        assert torch.equal(traced(image.flip(3)), network(image.flip(3)))


OWN = """
import torch
from utils.inference.exportable import ExportFormat, torch_runner
from utils.registry import register_export

@register_export("pt2")
class Program(ExportFormat):
    file = "model.pt2"

    def write(self, job, path):
        batch = {"image": {0: torch.export.Dim.DYNAMIC}}
        torch.export.save(torch.export.export(job.network, (job.example,), dynamic_shapes=batch), path)

    def runner(self, path, network, threads):
        return torch_runner(torch.export.load(path).module())

@register_export("zipped onnx")
class Zipped(ExportFormat):
    file, made_from = "model.zip", "onnx"

    def write(self, job, path):
        path.write_bytes(job.source.read_bytes()[:100])

    def runner(self, path, network, threads):
        raise OSError("it is cut off")
"""


def test_a_format_of_a_plugin_is_written_compared_and_tried_with_architectures(data, trained, tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "_parts", dict(registry._parts))
    plugin = tmp_path / "own.py"
    plugin.write_text(OWN)
    registry.load_plugins([plugin])
    assert [part.plugin for part in registry.named_parts({"formats": ["pt2"]})] == [str(plugin)]
    network, config = load_checkpoint(trained)
    exported = export(network, config, tmp_path / "files", ["pt2", "zipped onnx"])
    assert sorted(path.name for path in (tmp_path / "files").iterdir()) == ["config.json", "model.pt2", "model.zip"]
    names = data.validation["image_name"][:2].tolist()
    parity = compare_exported(exported, Exportable(network), data.cache, names, config.thresholds, rounds=1)
    assert parity.table.loc["pt2", "agreement"] > 0.999 and parity.table.loc["pt2", "megabytes"] > 0.1
    assert parity.table.loc["zipped onnx", "problem"] == "can't be run: OSError: it is cut off"
    tried = compare_architectures(["linknet"], 2, 32, tmp_path / "kept", formats=["pt2", "half"]).set_index("format")
    assert list(tried.index) == ["pytorch", *BUILT_IN[:-1], "pt2"]
    assert tried.loc["pt2", "problem"] == "" and tried.loc["pt2", "difference"] < 1e-4
