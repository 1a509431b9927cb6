"""Architectures, encoder weights, losses."""

import math
import pickle

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save_file
from torch.nn import functional as F

from utils.models import ModelError, build_model, list_models
from utils.models.base import start_from_prior
from utils.models.smp import DECODERS
from utils.training.losses import LOSSES, build_loss

THIN = "tu-mobilenetv3_small_050"


def build(name, **options):
    if name == "dpt":
        return build_model(name, 3, "tu-vit_tiny_patch16_224.augreg_in21k")
    encoder = None if name.startswith("fcn") else "mit_b0" if name == "segformer" else THIN
    return build_model(name, 3, encoder, image_size=64, **options)


@pytest.mark.parametrize("name", sorted({*DECODERS, "fcn_resnet50"}))
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
        ("fcn_resnet50", "resnet18", "own encoder"),
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
    assert {"unetplusplus", "deeplabv3plus", "fcn_resnet50", "fcn_resnet101"} <= set(list_models())


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


@pytest.mark.parametrize("encoder", ["resnet34", THIN])
def test_imagenet_weights_out_of_reach_fail_at_once_and_say_what_to_do(monkeypatch, encoder):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    with pytest.raises(ModelError, match=r"can't be reached.*copy its cache folder"):
        build_model("unet", 2, encoder, "imagenet")


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


@pytest.mark.parametrize("name", [*LOSSES, "bce_dice", "0.7*bce + 0.3*lovasz"])
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


@pytest.mark.parametrize("name", ["bce_dcie", "2*", "x*bce", "-1*bce", "bce +", ""])
def test_unknown_losses_are_refused(name):
    with pytest.raises(ValueError, match="Expected one of bce_dice"):
        build_loss(name)


def test_soft_labels_are_learnt_not_rounded():
    labels = torch.full((1, 1, 4, 4), 0.3)
    best = min(
        (build_loss("bce")(torch.full_like(labels, z), labels).item(), z) for z in torch.linspace(-3, 3, 61).tolist()
    )
    assert 1 / (1 + math.exp(-best[1])) == pytest.approx(0.3, abs=0.03)
