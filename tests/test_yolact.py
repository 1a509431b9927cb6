"""YOLACT: boxes, anchors and their matching, fast suppression, the losses, and whether it learns."""

import math
import re

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F
from torchvision.ops import box_iou, nms

from tests import zoo
from tests.strategies import floats
from utils.inference.export import export
from utils.inference.exportable import Exportable, torch_runner
from utils.inference.parity import open_exported
from utils.models import ModelError, build_model
from utils.models.boxes import BACKGROUND, NEUTRAL, anchors, decode, encode, fast_nms, match
from utils.models.checkpoint import Config
from utils.models.instances import class_logits, targets
from utils.models.yolact_losses import Found, losses

SMALL = {"channels": 32, "smallest_anchor": 4}
corner, length = floats(-50, 300), floats(0.5, 400)
box = st.builds(lambda x, y, w, h: [x, y, x + w, y + h], corner, corner, length, length)
boxes_ = st.lists(box, min_size=1, max_size=12).map(torch.tensor)


def test_anchors_lie_at_the_centres_of_their_cells():
    found = anchors([(2, 4), (1, 2)], 16, 32, (24, 48), (1.0, 0.5, 2.0))
    assert found.shape == ((8 + 2) * 3, 4)
    size, centre = found[:, 2:] - found[:, :2], (found[:, 2:] + found[:, :2]) / 2
    assert torch.allclose(size.prod(1).sqrt(), torch.tensor([24.0] * 24 + [48.0] * 6))
    assert torch.allclose(size[:, 0] / size[:, 1], torch.tensor([1.0, 0.5, 2.0]).repeat(10))
    expected = [[x, y] for y in (4.0, 12.0) for x in (4.0, 12.0, 20.0, 28.0)] + [[8.0, 8.0], [24.0, 8.0]]
    assert torch.allclose(centre[::3], torch.tensor(expected))


def test_anchors_are_the_papers():
    """24 to 384 pixels, on maps of 69, 35, 18, 9 and 5 cells for an image of 550; 32 is the next multiple, 576."""
    model = build_model("yolact", 2, channels=8, prototypes=4).network.eval()
    with torch.inference_mode():
        found = model.predict(torch.zeros(1, 3, 576, 576)).places
    square = found[::3, 2:] - found[::3, :2]
    assert [side.item() for side in square[:, 0].round().unique()] == [24, 48, 96, 192, 384]
    assert len(square) == 72**2 + 36**2 + 18**2 + 9**2 + 5**2 and torch.allclose(square[:, 0], square[:, 1], atol=1e-3)


@given(box, box)
def test_offsets_lead_back_to_the_box(wanted, place):
    wanted, place = torch.tensor([wanted], dtype=torch.float64), torch.tensor([place], dtype=torch.float64)
    if (((wanted[:, 2:] - wanted[:, :2]) / (place[:, 2:] - place[:, :2])) < 1000 / 16).all():
        assert torch.allclose(decode(encode(wanted, place), place), wanted, atol=1e-6)
    assert torch.allclose(encode(place, place), torch.zeros(1, 4, dtype=torch.float64), atol=1e-9)


def test_offsets_have_ssds_units():
    """A tenth of the anchor's width beside it is 1; so is e^0.2 times its height."""
    place = torch.tensor([[10.0, 20, 30, 60]])
    moved = torch.tensor([[12.0, 40 - 20 * math.exp(0.2), 32, 40 + 20 * math.exp(0.2)]])
    assert torch.allclose(encode(moved, place), torch.tensor([[1.0, 0, 0, 1]]), atol=1e-5)
    assert decode(torch.tensor([[0.0, 0, 1e6, 1e6]]), place).isfinite().all()


@given(boxes_, boxes_)
def test_anchors_are_matched_as_the_authors_do(truth, places):
    overlaps = box_iou(truth, places)
    expected = []
    for column in overlaps.T.tolist():
        best = max(column)
        expected.append(column.index(best) if best >= 0.5 else BACKGROUND if best < 0.4 else NEUTRAL)
    free_boxes, free_places = set(range(len(truth))), set(range(len(places)))
    while free_boxes and free_places:
        _, number, place = min((-overlaps[b, p].item(), b, p) for b in free_boxes for p in free_places)
        expected[place] = number
        free_boxes.remove(number)
        free_places.remove(place)
    assert match(truth, places).tolist() == expected


def test_an_image_without_objects_is_background():
    assert match(torch.zeros(0, 4), torch.rand(5, 4)).tolist() == [BACKGROUND] * 5


@given(boxes_)
def test_fast_suppression_against_its_definition_and_the_plain_one(found):
    overlaps = box_iou(found, found)
    expected = [not any(overlaps[j, i] > 0.5 for j in range(i)) for i in range(len(found))]
    stays = fast_nms(found)
    assert stays.tolist() == expected
    plain = nms(found, torch.arange(len(found), 0, -1).float(), 0.5).tolist()
    assert set(stays.nonzero()[:, 0].tolist()) <= set(plain)  # it takes away more, never less
    assert torch.equal(fast_nms(torch.stack([found, found.flip(0)]))[1], fast_nms(found.flip(0)))


def test_fast_suppression_lets_a_suppressed_box_suppress():
    chain = torch.tensor([[0.0, 0, 30, 10], [8, 0, 38, 10], [16, 0, 46, 10]])  # IoU 0.58 from one to the next
    assert nms(chain, torch.tensor([3.0, 2, 1]), 0.5).tolist() == [0, 2]
    assert fast_nms(chain).tolist() == [True, False, False]


@pytest.fixture
def predicted():
    """What a network may say of two 32 × 48 images, and their labels: three classes, the second image without any."""
    torch.manual_seed(0)
    label = torch.zeros(2, 3, 32, 48)
    label[0, 0, 4:20, 6:18], label[0, 1, 8:28, 20:44], label[0, 1, 8, 20:44] = 1, 1, 0.6
    places = anchors([(4, 6), (2, 3)], 32, 48, (16, 32), (1.0, 0.5, 2.0))
    number = len(places)
    shapes = [(2, number, 4), (2, number, 4), (2, number, 5), (2, 5, 8, 12), (2, 3, 4, 6)]
    parts = [torch.randn(shape, requires_grad=True) for shape in shapes]
    return Found(parts[0], parts[1], parts[2].tanh(), parts[3].relu(), parts[4], places), label


def slow_losses(found, label):
    """The sums of the paper, one anchor at a time."""
    classes = boxes = masks = positives = 0.0
    for i, truth in enumerate(targets(label)):
        matched = match(truth.boxes, found.places).tolist()
        entropy = -found.classes[i].log_softmax(-1)
        mine = [a for a, number in enumerate(matched) if number >= 0]
        others = sorted((a for a, n in enumerate(matched) if n == BACKGROUND), key=lambda a: -entropy[a, -1].item())
        classes += sum(entropy[a, truth.labels[matched[a]]] for a in mine)
        classes += sum(entropy[a, -1] for a in others[: 3 * len(mine)])
        positives += len(mine)
        for a in mine:
            wanted = truth.boxes[matched[a]]
            difference = (found.offsets[i, a] - encode(wanted[None], found.places[a][None])[0]).abs()
            boxes += torch.where(difference < 1, difference**2 / 2, difference - 0.5).sum()
            left, top, right, bottom = (wanted / 4).tolist()
            logits = sum(c * p for c, p in zip(found.coefficients[i, a], found.prototypes[i], strict=True))
            goal = truth.masks[matched[a]].view(8, 4, 12, 4).mean((1, 3))
            total = 0.0
            for y in range(8):
                for x in range(12):
                    if left - 1 <= x < right + 1 and top - 1 <= y < bottom + 1:
                        p = logits[y, x].sigmoid()
                        total -= goal[y, x] * p.log() + (1 - goal[y, x]) * (1 - p).log()
            masks += total / ((right - left) * (bottom - top))
    coverage = label.view(2, 3, 4, 8, 6, 8).mean((3, 5))
    p = found.segmentation.sigmoid()
    segmentation = -(coverage * p.log() + (1 - coverage) * (1 - p).log()).sum(1).mean()
    sums = (classes / positives, 1.5 * boxes / positives, 6.125 * masks / positives, segmentation)
    return dict(zip(("classes", "boxes", "masks", "segmentation"), sums, strict=True))


def test_losses_are_the_papers(predicted):
    fast, slow = losses(*predicted), slow_losses(*predicted)
    assert fast.keys() == slow.keys()
    for name, value in fast.items():
        assert value.item() == pytest.approx(slow[name].item(), rel=1e-5), name


def test_losses_are_finite_without_any_object(predicted):
    found, label = predicted
    values = losses(found, label * 0)
    assert values["classes"] == values["boxes"] == values["masks"] == 0
    sum(values.values()).backward()


def test_masks_of_some_anchors_stand_for_all(predicted, monkeypatch):
    """With more anchors than are drawn, the mean over draws is the loss of all."""
    wanted = losses(*predicted)["masks"].item()
    monkeypatch.setattr("utils.models.yolact_losses.MASKS_LEARNT", 3)
    drawn = [losses(*predicted)["masks"].item() for _ in range(200)]
    assert max(drawn) > min(drawn)
    assert sum(drawn) / len(drawn) == pytest.approx(wanted, rel=0.05)


def test_shapes_gradients_and_round_trip():
    zoo.check_model("yolact", **SMALL)


@pytest.fixture(scope="module")
def taught():
    """A network that has learnt two images of three large shapes by heart, the images and their labels."""
    return zoo.check_overfits("yolact", steps=120, channels=64, smallest_anchor=24)


def test_two_images_are_learnt_and_instances_make_the_same_masks(taught):
    """Their union is what `forward` gives, but that it resizes the union and not each mask."""
    model, images, labels = taught
    found = model.instances(images)
    with torch.inference_mode():
        union, logits = class_logits(found, 3).sigmoid(), model(images).sigmoid()
    assert (union <= logits + 1e-5).all() and (logits - union).mean() < 0.01
    assert zoo.mean_dice(union > 0.5, labels > 0) >= 0.9
    for each, truth in zip(found, targets(labels), strict=True):
        assert (each.scores[:-1] >= each.scores[1:]).all() and each.masks.shape[1:] == (64, 64)
        for label, wanted in zip(truth.labels, truth.boxes, strict=True):
            best = (each.labels == label).nonzero()[0, 0]  # the one with the highest score
            assert box_iou(each.boxes[best][None], wanted[None]).item() > 0.7


@pytest.mark.slow
def test_exported_it_finds_the_same_in_any_number_of_images(taught, tmp_path):
    model, images, _ = taught
    images = torch.cat([images, images.flip(3)]).numpy()
    network, config = Exportable(model, normalise=False, sigmoid=True), Config("yolact", "", ["a", "b", "c"], 64)
    files = export(model, config, tmp_path / "files", ["torchscript", "onnx"], False, True)
    assert [file.problem for file in files] == ["", ""]
    for number in (1, 2, 4):
        expected = torch_runner(network)(images[:number])
        assert (expected[:2] > 0.5).any((2, 3)).all()
        for file in files:
            found = open_exported(file, network)(images[:number])
            assert np.abs(found - expected).max() < 1e-4, file.format


def test_parameters_are_the_authors():
    """OpenVINO's model zoo prints 36.829 M for ResNet-50: the shared head five times, and 19,248 anchors."""
    with torch.device("meta"):
        model, larger = (build_model(f"yolact_resnet{depth}", 80).network for depth in (50, 101))
    shared, number = [*model.tower.parameters(), *model.heads.parameters()], 19_248 * 4
    number += sum(p.numel() for p in model.parameters()) + 4 * sum(p.numel() for p in shared)
    assert number / 1e6 == pytest.approx(36.829, rel=1e-3)
    resnets = [sum(p.numel() for p in m.encoder.parameters()) for m in (larger, model)]
    assert resnets[0] - resnets[1] == 18_992_128  # ResNet-101's and ResNet-50's difference
    assert larger.state_dict().keys() > model.state_dict().keys()


def test_half_precision_keeps_the_losses_in_float32():
    torch.manual_seed(0)
    model = build_model("yolact", 3, **SMALL).train()
    images, labels = zoo.shapes(64)
    whole = model.training_loss(images, labels, F.mse_loss)
    with torch.autocast("cpu", torch.bfloat16):
        half = model.training_loss(images, labels, F.mse_loss)
        logits, found = model.eval()(images), model.instances(images)
    assert half.dtype == logits.dtype == found[0].masks.dtype == torch.float32
    assert half.item() == pytest.approx(whole.item(), rel=0.05)


def test_the_authors_weights_are_taken_but_for_the_classes(tmp_path, capsys):
    """A file with the names and shapes of theirs, for 80 classes and background."""
    body = {n: t for n, t in torchvision.models.resnet50().state_dict().items() if not n.startswith("fc")}
    body = {f"backbone.{re.sub(r'layer([1-4])', lambda m: f'layers.{int(m[1]) - 1}', n)}": t for n, t in body.items()}
    shapes = {f"fpn.lat_layers.{i}": (256, number, 1, 1) for i, number in enumerate((2048, 1024, 512))}
    shapes |= {f"fpn.pred_layers.{i}": (256, 256, 3, 3) for i in range(3)}
    shapes |= {f"fpn.downsample_layers.{i}": (256, 256, 3, 3) for i in range(2)}
    shapes |= {f"proto_net.{i}": (256, 256, 3, 3) for i in (0, 2, 4, 8)} | {"proto_net.10": (32, 256, 1, 1)}
    head = {"upfeature.0": 256, "bbox_layer": 12, "conf_layer": 243, "mask_layer": 96}
    shapes |= {f"prediction_layers.0.{n}": (number, 256, 3, 3) for n, number in head.items()}
    shapes["semantic_seg_conv"] = (80, 256, 1, 1)
    layers = {f"{n}.weight": torch.zeros(s) for n, s in shapes.items()}
    layers |= {f"{n}.bias": torch.zeros(s[0]) for n, s in shapes.items()}
    file = tmp_path / "yolact_resnet50_54_800000.pth"
    torch.save({n: t * 0 + 0.25 for n, t in (body | layers).items()}, file)
    model = build_model("yolact_resnet50", 3, None, str(file)).network
    different = {n for n, p in model.named_parameters() if not (p == 0.25).all()}
    assert different == {f"{n}.{kind}" for n in ("heads.1", "segmentation") for kind in ("weight", "bias")}
    assert "start at random" in capsys.readouterr().out
    with pytest.raises(ModelError, match=r"does not fit this network: .* such as encoder.layer3.6.conv1.weight"):
        build_model("yolact_resnet101", 3, None, str(file))
    with pytest.raises(ModelError, match="Download the authors' file"):
        build_model("yolact_resnet50", 3, None, "coco")


def test_encoders_and_options():
    model = build_model("yolact", 2, "tu-tf_efficientnet_lite0", "pip", channels=16)
    assert model.mean == [0.5, 0.5, 0.5]
    swin = build_model("yolact", 2, "tu-swin_tiny_patch4_window7_224", image_size=64, channels=16).eval()
    with torch.inference_mode():
        assert swin(torch.randn(1, 3, 64, 96)).shape == (1, 2, 64, 96)
    for name, options, message in (
        ("yolact", {"chanels": 8}, "did you mean channels"),
        ("yolact_resnet50", {"encoder": "resnet18"}, "no encoder to choose"),
        ("yolact", {"encoder": "tu-vit_tiny_patch16_224"}, "lacks"),
    ):
        with pytest.raises(ModelError, match=message):
            build_model(name, 2, **options)
