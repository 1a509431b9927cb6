"""U-Net's descendants, HRNet and the transformers: their papers' counts, shapes, gradients and whether they learn."""

from functools import partial

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from tests import zoo
from utils.models import ModelError, build_model
from utils.models.mask2former import class_logits
from utils.training.losses import build_loss

FEW = {"queries": 8}
SMALLEST = {
    "unet_paper": {"width": 1 / 8},
    "residual_unet": {"width": 1 / 8},
    "attention_unet": {"width": 1 / 8},
    "resenc_unet": {"width": 1 / 8, "levels": 4},
    "unetplusplus_paper": {},
    "unet3plus": {},
    "hrnetv2_w18": {},
    "hrnet_ocr_w18": {},
    "segformer_b0": {},
    "upernet_swin_t": {},
    "upernet_convnext_t": {},
    "upernet_pvtv2_b0": {},
    "eff_unet_b0": {},
    "eff_unetplusplus_b0": {},
    "mobile_unet": {},
    "mobilevit_deeplabv3_xxs": {},
    "mobilevitv2_deeplabv3_050": {},
    "swin_unet": {},
    "mask2former_resnet50": FEW,
    "mask2former_swin_t": FEW,
}


@pytest.mark.parametrize("name", SMALLEST)
def test_shapes_gradients_and_round_trip(name):
    zoo.check_model(name, **SMALLEST[name])


@pytest.fixture
def real_linspace(monkeypatch):
    """smp's mit encoders ask a tensor of drop rates for its values, which the meta device can't give."""
    monkeypatch.setattr(torch, "linspace", partial(torch.linspace, device="cpu"))


@pytest.mark.parametrize(
    ("name", "classes", "millions"),
    [
        ("unet_paper", 2, 31.0),
        ("residual_unet", 1, 7.8),
        ("attention_unet", 1, 34.9),
        ("resenc_unet", 29, 140.057),  # dynamic-network-architectures 0.4.4 and its untrained head: 140.072
        ("unetplusplus_paper", 1, 9.04),
        ("unet3plus", 1, 26.97),
        ("hrnetv2_w18", 19, 9.6),
        ("hrnetv2_w48", 19, 65.9),
        ("hrnet_ocr_w48", 19, 70.3),
        *((f"segformer_b{i}", 150, millions) for i, millions in enumerate((3.8, 13.7, 27.5, 47.3, 64.1, 84.7))),
        ("upernet_swin_t", 150, 60),
        ("upernet_swin_s", 150, 81),
        ("upernet_swin_b", 150, 121),
        ("upernet_convnext_t", 150, 60),
        ("upernet_convnext_s", 150, 82),
        ("upernet_convnext_b", 150, 122),
        ("mobilevit_deeplabv3_xxs", 21, 1.855),  # "1.9": see the docstring
        ("mobilevit_deeplabv3_xs", 21, 2.9),
        ("mobilevit_deeplabv3_s", 21, 6.4),
        ("mobilevitv2_deeplabv3_050", 150, 6.3),
        ("mobilevitv2_deeplabv3_075", 150, 9.6),
        ("mobilevitv2_deeplabv3_100", 150, 13.4),
        ("mobilevitv2_deeplabv3_125", 150, 17.7),
        ("mobilevitv2_deeplabv3_150", 150, 22.6),
        ("mobilevitv2_deeplabv3_175", 150, 28.1),
        ("mobilevitv2_deeplabv3_200", 150, 34.0),
        ("swin_unet", 9, 27.17),
        ("mask2former_resnet50", 150, 44),
        ("mask2former_swin_t", 150, 47),
        ("mask2former_swin_s", 150, 69),
        ("mask2former_swin_b", 150, 107),
    ],
)
def test_parameters_are_the_papers(name, classes, millions, real_linspace):
    queries = {"queries": 150} if name.startswith("mask2former") else {}
    zoo.check_parameter_count(name, classes, millions, **queries)


@pytest.mark.parametrize(
    "name",
    [
        *(f"{kind}_w{width}" for kind in ("hrnetv2", "hrnet_ocr") for width in (18, 32, 48, 64)),
        *(f"upernet_pvtv2_b{i}" for i in range(6)),
        *(f"{kind}_b{i}" for kind in ("eff_unet", "eff_unetplusplus") for i in range(8)),
        "mobile_unet",
        "mobile_unetplusplus",
    ],
)
def test_variants_without_a_figure_of_their_own_build(name):
    with torch.device("meta"):
        assert build_model(name).made_from["architecture"] == name


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "training"),
    [
        ("unet_paper", {"size": 32, "steps": 30}),
        ("residual_unet", {"steps": 20}),
        ("attention_unet", {"size": 32, "steps": 28}),
        ("resenc_unet", {"steps": 60, "lr": 4e-3, "width": 0.25, "levels": 4}),
        ("unetplusplus_paper", {"steps": 30}),
        ("unet3plus", {"size": 32, "steps": 20}),
        ("hrnetv2_w18", {"steps": 70, "lr": 5e-3}),
        ("hrnet_ocr_w18", {"steps": 80, "lr": 5e-3}),
        ("segformer_b0", {}),
        ("upernet_pvtv2_b0", {"steps": 20}),
        ("mobile_unet", {"steps": 80, "lr": 5e-3}),
        ("mobilevit_deeplabv3_xxs", {"steps": 80}),
        ("mobilevitv2_deeplabv3_050", {"steps": 60}),
        ("swin_unet", {"steps": 30}),
        ("mask2former_resnet50", {"steps": 40, "lr": 1e-3, **FEW}),
    ],
)
def test_two_images_are_learnt(name, training):
    zoo.check_overfits(name, **training)


@pytest.mark.parametrize(("prune", "millions"), [(1, 0.1), (2, 0.5), (3, 2.2), (4, 9.04)])
def test_a_pruned_unetplusplus_computes_its_part_only(prune, millions):
    with torch.device("meta"):
        model = build_model("unetplusplus_paper", 1, prune=prune)
        model(torch.zeros(2, 3, 16, 16)).sum().backward()
    used = sum(p.numel() for p in model.parameters() if p.grad is not None) / 1e6
    assert used == pytest.approx(millions, rel=0.05)  # figures of one digit
    with pytest.raises(ModelError, match="1 to 4; found 5"):
        build_model("unetplusplus_paper", 1, prune=5)


def test_pruning_takes_the_same_weights():
    torch.manual_seed(0)
    image, full = torch.randn(1, 3, 32, 32), build_model("unetplusplus_paper", 2).eval()
    pruned = build_model("unetplusplus_paper", 2, prune=2).eval()
    pruned.load_state_dict(full.state_dict())
    with torch.inference_mode():
        second = full.network.heads[1](full.network._outputs(image, 4)[1])
        assert torch.allclose(pruned(image), second, atol=1e-6)


def test_unet3plus_rules_absent_classes_out():
    model = build_model("unet3plus", 2).eval()
    classifier = model.network.present[1]
    with torch.no_grad():
        classifier.weight.zero_()
        classifier.bias.copy_(torch.tensor([1.0, -1.0]))
        logits = model(torch.randn(1, 3, 32, 32))
        assert (logits[:, 0] > -20).all() and (logits[:, 1] <= -20).all()
        assert (model.train()(torch.randn(2, 3, 32, 32))[:, 1] > -20).all()


def test_absent_classes_are_what_unet3plus_learns_to_rule_out():
    model, image = build_model("unet3plus", 2), torch.randn(2, 3, 32, 32)
    label = torch.zeros(2, 2, 32, 32)
    label[:, 0, 8:20, 8:20] = 1
    with torch.no_grad():
        for there, bias in ((label, [9.0, -9.0]), (label, [-9.0, 9.0])):
            model.network.present[1].weight.zero_()
            model.network.present[1].bias.copy_(torch.tensor(bias))
            loss = model.training_loss(image, there, lambda logits, _: logits.sum() * 0)
            assert loss.item() == pytest.approx(0 if bias[0] > 0 else 9, abs=0.01)


@pytest.mark.parametrize("name", ["attention_unet", "unetplusplus_paper", "unet3plus", "hrnet_ocr_w18"])
def test_auxiliary_outputs_have_the_labels_size(name):
    shapes = []

    def loss(logits, label):
        shapes.append((tuple(logits.shape), tuple(label.shape)))
        return F.mse_loss(logits, label)

    build_model(name, 2).training_loss(torch.randn(2, 3, 40, 33), torch.zeros(2, 2, 40, 33), loss)
    assert len(shapes) > 1
    assert len({shape for pair in shapes for shape in pair}) == 1


def test_ocr_weighs_each_region_by_itself():
    model = build_model("hrnet_ocr_w18", 2).eval()
    image = torch.randn(1, 3, 64, 64)
    seen = {}
    model.network.key.register_forward_hook(lambda _, inputs, __: seen.update(objects=inputs[0]))
    model.network.pixels.register_forward_hook(lambda _, __, output: seen.update(pixels=output))
    last = model.network.regions[-1]
    with torch.no_grad():
        last.weight.zero_()  # regions without contrast: each object is the mean over all pixels
        model(image)
    mean = seen["pixels"].mean((2, 3))
    assert torch.allclose(seen["objects"][..., 0], mean[..., None].expand(-1, -1, 2), atol=1e-5)


def test_queries_become_classes_by_their_best():
    classes = torch.tensor([[[0.7, 0.1, 0.2], [0.2, 0.2, 0.6], [0.1, 0.8, 0.1]]]).log()
    masks = torch.tensor([[[4.0, -4.0], [4.0, 4.0], [-4.0, 4.0]]])[:, :, None]
    found = class_logits(classes, masks).sigmoid()
    inside, outside = torch.sigmoid(torch.tensor([4.0, -4.0]))
    expected = torch.stack([torch.stack([0.7 * inside, 0.2 * inside]), torch.stack([0.2 * inside, 0.8 * inside])])
    assert found.shape == (1, 2, 1, 2) and torch.allclose(found[0, :, 0], expected, atol=1e-5)
    sure = class_logits(torch.tensor([[[90.0, 0, 0]]]), torch.full((1, 1, 1, 1), 90.0))
    assert sure.isfinite().all() and outside < 0.5


def test_mask2former_learns_from_images_with_few_or_no_classes():
    model = build_model("mask2former_swin_t", 3, **FEW).train()
    images, labels = zoo.shapes(64)
    for keep in ([0, 0, 0], [1, 0, 0]):
        label = labels * torch.tensor([[1.0] * 3, keep]).view(2, 3, 1, 1)
        loss = model.training_loss(images, label * (sum(keep) > 0), build_loss("bce_dice"))
        loss.backward()
        assert loss.isfinite()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    with pytest.raises(ModelError, match="a query for each of the 9 classes"):
        build_model("mask2former_swin_t", 9, **FEW)


@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("hrnetv2_w18", "hrnet_w18"),
        ("mobilevit_deeplabv3_xxs", "mobilevit_xxs"),
        ("mobilevitv2_deeplabv3_050", "mobilevitv2_050"),
        ("swin_unet", "swin_tiny_patch4_window7_224"),
    ],
)
def test_encoder_weights_are_those_of_timms_classifier(tmp_path, name, body):
    state = timm.create_model(body).state_dict()
    save_file({k: torch.full_like(v, 0.25) if v.is_floating_point() else v for k, v in state.items()}, tmp_path / "a")
    (tmp_path / "a").rename(tmp_path / "a.safetensors")
    model = build_model(name, 2, None, str(tmp_path / "a.safetensors"))
    assert all((p == 0.25).all() for p in model.network.encoder.parameters())
    save_file({"conv.weight": torch.zeros(3)}, tmp_path / "b.safetensors")
    with pytest.raises(ModelError, match="does not fit this encoder"):
        build_model(name, 2, None, str(tmp_path / "b.safetensors"))


@pytest.mark.parametrize("backbone", ["swin_t", "resnet50"])
def test_mask2former_takes_a_classifier_that_transformers_saved(tmp_path, backbone):
    from transformers import ResNetConfig, ResNetForImageClassification, SwinConfig, SwinForImageClassification

    if backbone == "swin_t":
        classifier = SwinForImageClassification(SwinConfig(window_size=7))
    else:
        classifier = ResNetForImageClassification(ResNetConfig())
    with torch.no_grad():
        for parameter in classifier.parameters():
            parameter.fill_(0.25)
    classifier.save_pretrained(tmp_path)
    name = f"mask2former_{backbone}"
    model = build_model(name, 3, None, str(tmp_path / "model.safetensors"), **FEW)
    encoder = model.network.model.model.pixel_level_module.encoder
    different = [n for n, p in encoder.named_parameters() if not (p == 0.25).all()]
    assert all("hidden_states_norms" in n for n in different), different
    save_file({"conv.weight": torch.zeros(3)}, tmp_path / "b.safetensors")
    with pytest.raises(ModelError, match="does not fit this backbone"):
        build_model(name, 3, None, str(tmp_path / "b.safetensors"), **FEW)


@pytest.mark.parametrize("name", ["unet_paper", "residual_unet", "attention_unet", "unetplusplus_paper", "unet3plus"])
def test_networks_without_an_encoder_refuse_one(name):
    with pytest.raises(ModelError, match="found encoder='resnet34'"):
        build_model(name, 2, "resnet34")
    with pytest.raises(ModelError, match="found encoder_weights='imagenet'"):
        build_model(name, 2, None, "imagenet")


def test_an_encoder_in_the_name_can_not_be_another():
    for name in ("segformer_b0", "upernet_swin_t", "hrnetv2_w18", "mobilevit_deeplabv3_s", "mask2former_swin_t"):
        with pytest.raises(ModelError, match=f"{name} has no encoder to choose"):
            build_model(name, 2, "resnet34")


@pytest.mark.parametrize("name", ["hrnetv2_w18", "mobilevit_deeplabv3_s", "swin_unet", "mask2former_swin_t"])
def test_weights_out_of_reach_fail_at_once(name):
    with pytest.raises(ModelError, match="can't be reached"):
        build_model(name, 29, None, "imagenet")
