"""What the comparison of architectures measures, and that nothing is measured or trained twice."""

import io

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from tests.test_figures import cropped
from utils import figures
from utils.data.cache import Cache
from utils.data.competition import read_classes, read_index
from utils.data.fold_data import FoldData
from utils.files import read_json
from utils.masks.masks import Masks
from utils.models import build_model, list_models
from utils.training import model_zoo
from utils.training.settings import Settings

NAMES = ["linknet", "fpn"]


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    folder = tmp_path_factory.mktemp("costs")
    return model_zoo.costs(NAMES, 5, 64, folder, threads=1), folder


def test_every_architecture_has_a_family_and_every_family_is_compared():
    families = {name: model_zoo.family(name) for name in list_models()}
    known = set(model_zoo.FAMILIES) - {"other"}
    assert set(families.values()) == known
    assert set(model_zoo.SMALLEST) < set(families) and len(set(model_zoo.SMALLEST)) == len(model_zoo.SMALLEST)
    assert {families[name] for name in model_zoo.SMALLEST} == known - {"class activation"}


def multiply_adds_of_convolutions(model, image):
    found = []

    def count(layer, inputs, output):
        found.append(output.numel() * layer.weight[0].numel())

    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(count)
    with torch.inference_mode():
        model(image)
    return sum(found) / 1e9


def test_costs_are_those_of_the_network(measured):
    table, _ = measured
    model = build_model("fpn", 5).eval()
    assert list(table.index) == NAMES
    assert table["parameters"]["fpn"] == sum(p.numel() for p in model.parameters()) / 1e6
    expected = multiply_adds_of_convolutions(model, torch.zeros(1, 3, 64, 64))  # it has nothing else that is counted
    assert table["multiply_adds"]["fpn"] == pytest.approx(expected, rel=1e-6)
    weights = 4 * table["parameters"]
    assert (table["memory"] > weights).all() and (table["memory"] < 500).all() and (table["seconds"] > 0).all()


def test_costs_are_measured_once_for_each_setting(measured, monkeypatch):
    table, folder = measured

    def refuse(*_, **__):
        raise InterruptedError("measured again")

    monkeypatch.setattr("subprocess.run", refuse)
    assert model_zoo.costs(NAMES, 5, 64, folder, threads=1).equals(table)
    for changed in ({"classes": 6}, {"image_size": 96}, {"threads": 2}):
        with pytest.raises(InterruptedError):
            model_zoo.costs(NAMES, **({"classes": 5, "image_size": 64, "folder": folder, "threads": 1} | changed))


def test_a_network_that_can_not_be_measured_says_why(tmp_path):
    with pytest.raises(RuntimeError, match=r"(?s)dtp 5 64 .*ended with status 1.*did you mean dpt"):
        model_zoo.costs(["dtp"], 5, 64, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_finished_training_is_not_repeated(sample, tmp_path):
    table, classes = read_index(sample), read_classes(sample)
    cache = Cache(tmp_path / "cache", table, classes, 64)
    cache.build()
    rows = table[table["split"] == "train"]
    data = FoldData(cache, rows[:8], rows[8:])

    def once(**changed):
        settings = Settings(epochs=1, batch_size=4, device="cpu")
        given = {"encoder": "tu-mobilenetv3_small_050", "decoder_channels": 16} | changed
        return model_zoo.train_once("deeplabv3plus", data, settings, tmp_path / "thin", **given)

    first = once()
    written = (tmp_path / "thin" / "best" / "model.safetensors").stat().st_mtime_ns
    assert once() == first == read_json(tmp_path / "thin" / "metrics.json") and 0 <= first["dice"] <= 1
    assert (tmp_path / "thin" / "best" / "model.safetensors").stat().st_mtime_ns == written
    once(lr=1e-4)
    assert (tmp_path / "thin" / "best" / "model.safetensors").stat().st_mtime_ns > written


def test_every_name_in_the_figure_can_be_read():
    rng = np.random.default_rng(0)
    names = list(model_zoo.SMALLEST)
    table = pd.DataFrame(
        {
            "family": [model_zoo.family(name) for name in names],
            "multiply_adds": np.exp(rng.normal(4, 1.5, len(names))),
            "parameters": rng.uniform(1, 130, len(names)),
            "dice": rng.beta(2, 2, len(names)) * 0.5,
        },
        index=names,
    )
    table.loc[names[0], "dice"] = np.nan
    figure = figures.dice_against_cost(table, list(model_zoo.FAMILIES), 512)
    figure.savefig(io.BytesIO(), format="png", dpi=figures.DPI)
    (ax,) = figure.axes
    texts = {text.get_text(): text.get_window_extent() for text in ax.texts}
    assert set(texts) == set(names[1:]) and cropped(figure) == 0
    boxes = [box.padded(-1) for box in texts.values()]
    assert not any(box.count_overlaps(boxes[:number]) for number, box in enumerate(boxes))


def test_activation_maps_show_outline_and_peak():
    mask = np.zeros((60, 80), bool)
    mask[10:30, 20:50] = True
    shares = np.zeros((3, 15, 20), np.float32)
    shares[:, 4, 7] = 1
    truth = Masks.from_dense([mask, mask.T.reshape(60, 80), np.zeros_like(mask)])
    figure = figures.activations(np.zeros((15, 20), np.uint8), shares, truth, ["a", "b", "c"])
    assert [ax.get_title() for ax in figure.axes] == ["a", "b", "c"] and cropped(figure) == 0
    for ax, outlined in zip(figure.axes, (1, 1, 0), strict=True):
        assert len(ax.collections) == outlined
        (peak,) = ax.lines
        assert (peak.get_xdata()[0], peak.get_ydata()[0]) == (30, 18)
