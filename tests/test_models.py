"""Architectures, encoder weights, losses."""

import math
import os
import pickle
import re
import shutil
import subprocess
import sys

import pytest
import segmentation_models_pytorch as smp
import torch
from huggingface_hub import constants
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from utils import registry
from utils.files import ROOT, Problems
from utils.models import ModelError, build_model, list_models
from utils.models.base import PaddedModel, start_from_prior
from utils.models.pretrained import normalisation
from utils.models.smp import timm_name
from utils.training.losses import build_loss

THIN = "tu-mobilenetv3_small_050"
IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


def build(name, **options):
    if name == "dpt":
        return build_model(name, 3, "tu-vit_tiny_patch16_224.augreg_in21k")
    encoder = None if name.startswith("fcn") else "mit_b0" if name == "segformer" else THIN
    return build_model(name, 3, encoder, image_size=64, **options)


@pytest.mark.parametrize("name", sorted({*smp.MODEL_ARCHITECTURES_MAPPING, "fcn_resnet50"}))
def test_logits_have_the_images_size_at_any_size(name):
    model = build(name).train()
    for height, width in ((64, 64), (70, 97)):
        logits = model(torch.randn(2, 3, height, width))
        assert logits.shape == (2, 3, height, width)
    logits.square().mean().backward()
    without = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not [n for n in without if ".encoder." not in n], without  # encoders carry unused last blocks


@pytest.mark.parametrize(
    ("decoder", "encoder"),
    [
        ("unetplusplus", "tu-hrnet_w18_small"),
        ("fpn", "tu-swin_tiny_patch4_window7_224"),
        ("upernet", "mit_b0"),
        ("unet", "tu-pvt_v2_b0"),
    ],
)
def test_timm_families_that_work(decoder, encoder):
    model = build_model(decoder, 2, encoder, image_size=64).eval()
    with torch.inference_mode():
        assert model(torch.randn(1, 3, 64, 64)).shape == (1, 2, 64, 64)


@pytest.mark.parametrize(
    ("name", "encoder", "expected"),
    [
        ("unetplusplusplus", None, "did you mean unetplusplus"),
        ("unet", "resnet43", "did you mean resnet34"),
        ("unet", "tu-hrnet_w481", "did you mean tu-hrnet_w48"),
        ("deeplabv3plus", "tu-hrnet_w18", "Try one of .*resnet34"),
        ("pan", "tu-swin_tiny_patch4_window7_224", "can be dilated"),
        ("unetplusplus", "mit_b0", "half resolution"),
        ("dpt", "resnet34", "vision transformers"),
        ("fpn", "tu-swin_tiny_patch4_window7_224", "give image_size"),
        ("fcn_resnet50", "resnet18", "no encoder to choose; found encoder='resnet18', expected ''"),
    ],
)
def test_what_can_not_work_is_refused_with_what_can(name, encoder, expected):
    with pytest.raises(ModelError, match=expected):
        build_model(name, 2, encoder)


def test_unknown_options_are_refused():
    with pytest.raises(ModelError, match="did you mean decoder_channels"):
        build_model("unet", 2, THIN, decoder_chanels=(8, 8, 8, 8, 8))
    with pytest.raises(ModelError, match="option of fcn_resnet50"):
        build_model("fcn_resnet50", 2, aux=True)


def test_every_module_of_the_package_is_discovered(tmp_path):
    shutil.copytree(ROOT / "utils", tmp_path / "utils", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "utils" / "models" / "one_new_file.py").write_text(
        "from torch import nn\n"
        "from utils.registry import register_model\n"
        "@register_model('one_new_name')\n"
        "def build(classes):\n"
        "    return nn.Conv2d(3, classes, 1)\n"
    )
    program = "from utils.models import build_model, list_models; print(*list_models()); build_model('one_new_name')"
    command = [sys.executable, "-c", program]
    found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout.split()
    assert "one_new_name" in found and {*smp.MODEL_ARCHITECTURES_MAPPING, "fcn_resnet50", "unet3plus"} < set(found)


@pytest.fixture
def plugin():
    """Registers builders as a plugin does, and removes them again."""
    before = dict(registry._parts)
    yield registry.register_model
    registry._parts.clear()
    registry._parts.update(before)


def test_a_plain_network_of_a_plugin_is_padded(plugin):
    given = {}

    @plugin("plain")
    def make(classes, **options):
        given.update(options)
        return nn.Sequential(nn.MaxPool2d(32), nn.Conv2d(3, classes, 1), nn.Upsample(scale_factor=32))

    model = build_model("plain", 2, image_size=64, depth=(1, 2), empty="", nothing=None)
    assert given == {"depth": (1, 2)}  # and no image_size, which the builder does not name
    assert isinstance(model, PaddedModel) and model(torch.zeros(1, 3, 33, 70)).shape == (1, 2, 33, 70)
    assert (model.mean, model.std) == IMAGENET
    assert model.made_from == {
        "architecture": "plain",
        "encoder": "",
        "encoder_weights": "",
        "image_size": 64,
        "options": {"depth": [1, 2], "empty": "", "nothing": None},
        "plugin": "",  # a file that `load_plugins` imported
        "plugin_sha256": "",
    }
    for option, verb in (("encoder", "choose"), ("encoder_weights", "load")):
        with pytest.raises(ModelError, match=f"plain has no encoder to {verb}; found {option}='resnet18'"):
            build_model("plain", 2, **{option: "resnet18"})
    assert "plain" in list_models()


def test_a_builder_gets_what_its_signature_names(plugin):
    given = []

    @plugin("one", "two")
    def make(name, classes, encoder, encoder_weights, image_size, depth=3):
        given.append((name, classes, encoder, encoder_weights, image_size, depth))
        model = PaddedModel(nn.Conv2d(3, classes, 1), 8)
        model.mean, model.std = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
        return model

    model = build_model("two", 4, "", "", 96, depth=5)
    build_model("one", 4, "resnet18", "imagenet", depth="")
    assert given == [("two", 4, None, None, 96, 5), ("one", 4, "resnet18", "imagenet", None, 3)]
    assert model.multiple == 8 and (model.mean, model.std) == ([0.5] * 3, [0.25] * 3)
    with pytest.raises(ModelError, match=r"unknown option of one 'dept': did you mean depth\? There are depth$"):
        build_model("one", 4, dept="")


@pytest.mark.parametrize(
    ("encoder", "mean", "std"),
    [
        ("resnet34", *IMAGENET),
        ("mit_b0", *IMAGENET),
        ("efficientnet-b3", *IMAGENET),
        ("timm-efficientnet-b0", *IMAGENET),
        ("xception", [0.5] * 3, [0.5] * 3),
        ("inceptionv4", [0.5] * 3, [0.5] * 3),
        ("inceptionresnetv2", [0.5] * 3, [0.5] * 3),
        ("timm-tf_efficientnet_lite3", [0.5] * 3, [0.5] * 3),
        ("dpn92", [124 / 255, 117 / 255, 104 / 255], [1 / (0.0167 * 255)] * 3),
        ("tu-convnext_tiny", *IMAGENET),
        ("tu-swin_tiny_patch4_window7_224", *IMAGENET),
        ("tu-mobilevit_s", [0.0] * 3, [1.0] * 3),
        ("tu-vit_tiny_patch16_224.augreg_in21k", [0.5] * 3, [0.5] * 3),
        ("tu-tf_efficientnet_lite0", [0.5] * 3, [0.5] * 3),
    ],
)
def test_encoders_have_the_normalisation_of_their_weights(encoder, mean, std):
    found = normalisation(timm_name(encoder))
    assert found[0] == pytest.approx(mean) and found[1] == pytest.approx(std)


@pytest.mark.parametrize(
    ("name", "encoder"),
    [("unet", "tu-tf_efficientnet_lite0"), ("cam", "tu-tf_efficientnet_lite0"), ("mobilevit_deeplabv3_xxs", "")],
)
def test_a_network_expects_the_normalisation_of_loaded_weights_only(tmp_path, name, encoder):
    random = build_model(name, 2, encoder)
    assert (random.mean, random.std) == IMAGENET
    save_file(random.network.encoder.state_dict(), tmp_path / "weights.safetensors")
    model = build_model(name, 2, encoder, str(tmp_path / "weights.safetensors"))
    assert (model.mean, model.std) == (([0.5] * 3, [0.5] * 3) if encoder else ([0.0] * 3, [1.0] * 3))
    assert model.made_from["encoder_weights"] == str(tmp_path / "weights.safetensors")


@pytest.mark.parametrize("encoder", ["resnet18", "tu-resnet18", THIN])
@pytest.mark.parametrize("kind", ["safetensors", "pth", "wrapped"])
def test_encoder_weights_load_from_a_file(tmp_path, encoder, kind):
    source = build_model("unet", 2, encoder).network.encoder.state_dict()
    state = {k: torch.full_like(v, 0.25) if v.is_floating_point() else v for k, v in source.items()}
    state["fc.weight"] = torch.zeros(10, 8)
    path = tmp_path / f"weights.{'pth' if kind != 'safetensors' else kind}"
    if kind == "safetensors":
        save_file(state, path)
    else:
        torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}} if kind == "wrapped" else state, path)
    model = build_model("unet", 2, encoder, str(path))
    assert all((p == 0.25).all() for p in model.network.encoder.parameters())


def test_a_wrong_weight_file_is_refused(tmp_path):
    with pytest.raises(ModelError, match="no file"):
        build_model("unet", 2, "resnet18", "imagenett")
    path = tmp_path / "other.safetensors"
    save_file(build_model("unet", 2, THIN).network.encoder.state_dict(), path)
    with pytest.raises(ModelError, match="does not fit this encoder"):
        build_model("unet", 2, "resnet18", str(path))
    pickled = tmp_path / "evil.pth"
    pickled.write_bytes(pickle.dumps(print, protocol=2))
    with pytest.raises(ModelError, match=r"no weight file that can be read safely"):
        build_model("unet", 2, "resnet18", str(pickled))


@pytest.mark.parametrize("encoder", ["resnet18", THIN])
def test_imagenet_weights_out_of_reach_fail_at_once_and_the_advice_works(monkeypatch, tmp_path, encoder):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    with pytest.raises(ModelError, match=r"can't be reached.*`hf download [^`]+`") as caught:
        build_model("unet", 2, encoder, "imagenet")
    named = re.search(r"`hf download (\S+?)(?: --revision (\S+))?`.* the folder (\S+) from", str(caught.value))
    repository, revision, folder = named.groups()
    snapshot = tmp_path / folder / "snapshots" / (revision or "0" * 40)  # as `hf download` makes them
    snapshot.mkdir(parents=True)
    if not revision:
        (tmp_path / folder / "refs").mkdir()
        (tmp_path / folder / "refs" / "main").write_text(snapshot.name)
    assert folder == "models--" + repository.replace("/", "--")
    weights = build_model("unet", 2, encoder).network.encoder.state_dict()
    weights = {key.removeprefix("model."): torch.full_like(value, 0.25) for key, value in weights.items()}
    save_file(weights, snapshot / "model.safetensors")
    (snapshot / "config.json").write_text("{}")
    code = "import sys; from utils.models import build_model; m = build_model('unet', 2, sys.argv[1], 'imagenet');"
    code += "print(min(p.min().item() for p in m.network.encoder.parameters()))"
    offline = os.environ | {"HF_HUB_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", code, encoder]
    ended = subprocess.run(command, cwd=ROOT, env=offline, capture_output=True, text=True)
    assert ended.stdout.split() == ["0.25"], ended.stderr


def test_imagenet_weights_of_torchvision_out_of_reach(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.download_url_to_file", lambda *a, **k: (_ for _ in ()).throw(OSError("no route")))
    with pytest.raises(ModelError, match=r"can't be fetched.*checkpoints"):
        build_model("fcn_resnet50", 2, None, "imagenet")


def test_a_model_first_predicts_the_prior():
    prior = torch.tensor([0.001, 0.01, 0.2])
    model = build("unet").eval()
    start_from_prior(model, prior)
    assert torch.allclose(model.network.segmentation_head[0].bias.sigmoid(), prior, rtol=1e-4)


def labels_and_logits(seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = (torch.rand(2, 3, 9, 7, generator=generator) > 0.7).float()
    return labels, torch.randn(2, 3, 9, 7, generator=generator)


@pytest.mark.parametrize("name", ["bce", "dice", "focal", "tversky", "lovasz", "bce_dice", "0.7*bce + 0.3*lovasz"])
def test_losses_fall_towards_the_truth(name):
    labels, logits = labels_and_logits()
    loss = build_loss(name)
    right, wrong = loss((labels * 2 - 1) * 8, labels), loss((1 - labels * 2) * 8, labels)
    assert 0 <= right < 0.05 < wrong and right < loss(logits, labels) < wrong
    logits.requires_grad_()
    loss(logits, labels).backward()
    assert logits.grad.abs().sum() > 0


def test_losses_follow_their_formulas():
    labels, logits = labels_and_logits()
    p = logits.sigmoid()
    bce = F.binary_cross_entropy(p, labels)
    dice = (1 - 2 * (p * labels).sum((0, 2, 3)) / (p + labels).sum((0, 2, 3))).mean()
    tp, fp, fn = (p * labels).sum((0, 2, 3)), (p * (1 - labels)).sum((0, 2, 3)), ((1 - p) * labels).sum((0, 2, 3))
    tversky = (1 - tp / (tp + 0.3 * fp + 0.7 * fn)).mean()
    focal = ((1 - torch.where(labels > 0, p, 1 - p)) ** 2 * F.binary_cross_entropy(p, labels, reduction="none")).mean()
    for name, value in (
        ("bce", bce),
        ("dice", dice),
        ("tversky", tversky),
        ("focal", focal),
        ("0.5*bce+2*dice", bce / 2 + 2 * dice),
    ):
        assert build_loss(name)(logits, labels).item() == pytest.approx(value.item(), rel=1e-4), name
    assert build_loss("bce_dice")(logits, labels).item() == pytest.approx((bce + dice).item(), rel=1e-4)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("bce_dcie", "unknown loss 'bce_dcie': did you mean bce_dice"),
        ("2*", "unknown loss ''"),
        ("bce +", "unknown loss ''"),
        ("", "unknown loss ''"),
        ("x*bce", "'x' is no positive number"),
        ("-1*bce", "'-1' is no positive number"),
    ],
)
def test_unknown_losses_are_refused(text, expected):
    with pytest.raises(Problems, match=expected):
        build_loss(text)


def test_soft_labels_are_learnt_not_rounded():
    labels = torch.full((1, 1, 4, 4), 0.3)
    best = min(
        (build_loss("bce")(torch.full_like(labels, z), labels).item(), z) for z in torch.linspace(-3, 3, 61).tolist()
    )
    assert 1 / (1 + math.exp(-best[1])) == pytest.approx(0.3, abs=0.03)
