"""The convolutional classics, from FCN to DeepLab: their papers' counts, shapes, gradients and whether they learn."""

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F
from torchvision import models

from tests import zoo
from utils.models import ModelError, build_model
from utils.models.dilated import CONTEXTS, ContextModule
from utils.models.fcn import LearntUpsampling

THIN = {"width": 1 / 16}


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("fcn32s", THIN),
        ("fcn16s", THIN),
        ("fcn8s", THIN),
        ("fcn_resnet50", {}),
        ("deconvnet", THIN),
        ("segnet", THIN),
        ("fcdensenet56", {}),
        ("fcdensenet67", {}),
        ("fcdensenet103", {}),
        ("dilatednet", THIN),
        ("dilatednet", {"context": "large", **THIN}),
        ("deeplabv1", {}),
        ("deeplabv2", {"encoder": "vgg16"}),
        ("deeplabv2", {}),
        ("deeplabv3_paper", {"encoder": "resnet50"}),
        ("deeplabv3plus_paper", {"encoder": "resnet50"}),
        ("deeplabv3_resnet50", {}),
    ],
    ids=str,
)
def test_shapes_gradients_and_safetensors(name, options):
    zoo.check_model(name, **options)


@pytest.mark.parametrize(
    ("name", "classes", "millions", "options"),
    [
        ("fcn32s", 21, 134, {}),
        ("fcn16s", 21, 134, {}),
        ("fcn8s", 21, 134, {}),
        ("fcn_resnet50", 21, 35.32 - 2.36, {}),
        ("fcn_resnet101", 21, 54.31 - 2.36, {}),
        ("deconvnet", 21, 252, {}),
        ("segnet", 11, 29.5, {}),
        ("fcdensenet56", 11, 1.377, {}),  # the paper says 1.5, which its own description does not add up to
        ("fcdensenet67", 11, 3.5, {}),
        ("fcdensenet103", 11, 9.4, {}),
        ("dilatednet", 21, 134, {}),  # no total in the paper; VGG16 as FCN counts it
        ("deeplabv1", 21, 20.5, {}),
        ("deeplabv2", 21, 44.05, {}),  # from here on no paper gives a count: the sum of its layers
        ("deeplabv2", 21, 37.88, {"encoder": "vgg16"}),
        ("deeplabv3_paper", 21, 58.04, {}),
        ("deeplabv3plus_paper", 21, 59.34, {}),
        ("deeplabv3_resnet50", 21, 42.00 - 2.36, {}),
        ("deeplabv3_resnet101", 21, 61.00 - 2.36, {}),
    ],
    ids=str,
)
def test_parameters_are_the_papers(name, classes, millions, options):
    zoo.check_parameter_count(name, classes, millions, **options)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("fcn32s", {"width": 1 / 8, "size": 128, "steps": 70}),
        ("fcn8s", {"width": 1 / 8, "size": 128, "steps": 70}),
        ("deconvnet", {"width": 1 / 8, "size": 96, "steps": 100, "lr": 2e-2}),
        ("segnet", {}),
        ("fcdensenet56", {}),
        ("dilatednet", {"width": 1 / 8, "size": 96, "steps": 60}),
        ("deeplabv1", {"lr": 4e-4}),
    ],
    ids=str,
)
def test_two_images_are_learnt(name, options):
    zoo.check_overfits(name, **options)


@pytest.mark.parametrize("scale", [2, 8, 32])
def test_learnt_upsampling_starts_bilinear(scale):
    maps = torch.randn(1, 3, 4, 5)
    expected = F.interpolate(maps, scale_factor=scale, mode="bilinear", align_corners=False)
    assert torch.allclose(LearntUpsampling(3, scale)(maps), expected, atol=1e-5)


@pytest.mark.parametrize(("context", "weights"), [("basic", 64 * 21**2), ("large", 6_801_102)])
def test_the_context_module_starts_as_the_identity_and_has_the_papers_size(context, weights):
    module = ContextModule(21, CONTEXTS[context])
    assert sum(p.numel() for p in module.parameters() if p.dim() == 4) == weights
    scores = torch.rand(1, 21, 8, 8)
    assert (module(scores) - scores).abs().mean() < 0.1


def test_fcn_skips_start_at_the_coarse_prediction():
    model = build_model("fcn8s", 3, **THIN).eval()
    network, image = model.network, torch.randn(1, 3, 64, 96)
    with torch.inference_mode():
        expected = network.score(network.encoder.fully_connected(network.encoder(image)[-1]))
        for scale in (2, 2, 8):
            expected = F.interpolate(expected, scale_factor=scale, mode="bilinear")
        assert torch.allclose(model(image), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "encoder", "torchvisions"),
    [
        ("fcn8s", None, models.vgg16),
        ("dilatednet", None, models.vgg16),
        ("deconvnet", None, models.vgg16_bn),
        ("segnet", None, models.vgg16_bn),
        ("deeplabv1", None, models.vgg16),
        ("deeplabv2", "vgg16", models.vgg16),
        ("deeplabv2", None, models.resnet101),
        ("deeplabv3_paper", "resnet50", models.resnet50),
        ("deeplabv3plus_paper", None, models.resnet101),
    ],
)
def test_encoders_have_the_tensors_of_torchvisions(name, encoder, torchvisions):
    with torch.device("meta"):
        wanted = build_model(name, 3, encoder).network.encoder.state_dict()
        there = torchvisions().state_dict()
    assert wanted.keys() <= there.keys()
    for key, tensor in wanted.items():
        same = there[key].shape == tensor.shape
        assert same or (key.startswith("classifier") and there[key].numel() == tensor.numel()), key


@pytest.mark.parametrize("name", ["fcn8s", "dilatednet", "deconvnet"])
def test_weights_of_a_classifier_load_fully_connected_layers_included(tmp_path, name):
    state = build_model(name, 3, **THIN).network.encoder.state_dict()
    saved = {k: v.flatten(1) if k.startswith("classifier") and v.dim() == 4 else v for k, v in state.items()}
    saved["classifier.6.weight"] = torch.zeros(10, 256)
    save_file(saved, tmp_path / "vgg.safetensors")
    found = build_model(name, 3, None, str(tmp_path / "vgg.safetensors"), **THIN).network.encoder.state_dict()
    assert all(torch.equal(found[k], v) for k, v in state.items())
    with pytest.raises(ModelError, match="does not fit this encoder"):
        build_model(name, 3, None, str(tmp_path / "vgg.safetensors"), width=1 / 32)


@pytest.mark.parametrize("name", ["fcn16s", "segnet", "deeplabv2", "deeplabv3plus_paper"])
def test_imagenet_weights_out_of_reach(monkeypatch, tmp_path, name):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.download_url_to_file", lambda *a, **k: (_ for _ in ()).throw(OSError("no route")))
    with torch.device("meta"), pytest.raises(ModelError, match=r"can't be fetched.*checkpoints"):
        build_model(name, 2, None, "imagenet")


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("fcn8s", {"encoder": "resnet50"}, "no encoder to choose; found encoder='resnet50'"),
        ("deeplabv2", {"encoder": "resnet18"}, "unknown encoder of deeplabv2 'resnet18'.*There are resnet101, vgg16"),
        ("deeplabv3_resnet50", {"encoder": "resnet101"}, "no encoder to choose"),
        ("dilatednet", {"context": "larger"}, "did you mean large"),
        ("segnet", {"widht": 0.5}, "unknown option of segnet 'widht': did you mean width"),
        ("fcdensenet56", {"encoder_weights": "imagenet"}, "no encoder to load"),
    ],
    ids=str,
)
def test_what_can_not_work_is_refused_with_what_can(name, options, expected):
    with torch.device("meta"), pytest.raises(ModelError, match=expected):
        build_model(name, 2, **options)
