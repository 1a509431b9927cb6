"""Mask2Former as an instance model: what it finds, what it learns from, and weights of whole networks."""

import pytest
import torch
from safetensors.torch import save_file
from torchvision.ops import box_iou

from tests import zoo
from utils.models import ModelError, build_model
from utils.models.instances import class_logits, targets

SMALL = {"queries": 8, "width": 32, "pixel_layers": 1, "layers": 2, "points": 256}


def test_shapes_gradients_and_round_trip_on_any_encoder():
    zoo.check_model("mask2former", **SMALL)


def test_two_images_are_learnt_and_instances_are_their_objects():
    model, images, labels = zoo.check_overfits("mask2former", steps=150, lr=3e-3, **SMALL | {"width": 64})
    found = model.instances(images)
    with torch.inference_mode():
        union, logits = class_logits(found, 3).sigmoid(), model(images).sigmoid()
    # a score also counts the mask's own certainty, and each mask is resized, not the union
    assert zoo.mean_dice(union > 0.5, logits > 0.5) >= 0.95
    assert zoo.mean_dice(union > 0.5, labels > 0) >= 0.85
    for each, truth in zip(found, targets(labels), strict=True):
        assert (each.scores[:-1] >= each.scores[1:]).all() and each.masks.shape[1:] == (64, 64)
        for label, wanted in zip(truth.labels, truth.boxes, strict=True):
            best = (each.labels == label).nonzero()[0, 0]  # the one with the highest score
            assert box_iou(each.boxes[best][None], wanted[None]).item() > 0.7


def test_instances_are_pairs_of_a_query_and_a_class(monkeypatch):
    """Scored by P(class | query) times the mean of the mask within itself; empty masks are left out."""
    model = build_model("mask2former", 2, **SMALL | {"queries": 3}).eval()
    chances = torch.tensor([[0.7, 0.2, 0.1], [0.6, 0.001, 0.399], [0.9, 0.05, 0.05]])
    masks = torch.full((3, 8, 8), -4.0)
    masks[0, 2:4, 1:6], masks[1, 5:, :] = 4.0, 1.0
    answer = type("Answer", (), {"class_queries_logits": chances.log()[None], "masks_queries_logits": masks[None]})
    monkeypatch.setattr(model.network.model, "forward", lambda **_: answer)
    (found,) = model.network.instances(torch.zeros(1, 3, 8, 8))
    clear, faint = torch.sigmoid(torch.tensor([4.0, 1.0])).tolist()
    assert found.labels.tolist() == [0, 0, 1]
    assert found.scores.tolist() == pytest.approx([0.7 * clear, 0.6 * faint, 0.2 * clear], abs=1e-5)
    assert found.boxes.tolist() == [[1, 2, 6, 4], [0, 5, 8, 8], [1, 2, 6, 4]]


def test_each_piece_of_a_class_is_learnt_by_a_query_of_its_own(monkeypatch):
    model, given = build_model("mask2former", 2, **SMALL), {}
    label = torch.zeros(1, 2, 64, 64)
    label[0, 0, 4:20, 4:20], label[0, 0, 40:60, 30:50], label[0, 1, 10:50, 5:60] = 1, 1, 1
    original = model.network.model.get_loss_dict

    def watched(**arguments):
        given.update(arguments)
        return original(**arguments)

    monkeypatch.setattr(model.network.model, "get_loss_dict", watched)
    model.training_loss(torch.randn(1, 3, 64, 64), label, None).backward()
    assert given["class_labels"][0].tolist() == [0, 0, 1]
    assert given["mask_labels"][0].sum((1, 2)).tolist() == [256, 400, 2200]
    assert len(given["auxiliary_predictions"]) == SMALL["layers"]


@pytest.fixture
def whole(tmp_path):
    """A file of a whole Swin-T network of two decoder layers, trained on five classes, as transformers saves it."""
    options = {"queries": 8, "pixel_layers": 1, "layers": 2}
    trained = build_model("mask2former_swin_t", 5, **options)
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.fill_(0.25)
    file = tmp_path / "whole.safetensors"
    save_file({k: v.contiguous() for k, v in trained.network.model.state_dict().items()}, file)
    return str(file), options


def test_a_whole_network_is_taken_but_for_the_heads(whole, capsys):
    file, options = whole
    model = build_model("mask2former_swin_t", 3, None, file, **options)
    different = {n for n, p in model.network.model.named_parameters() if not (p == 0.25).all()}
    assert different == {"class_predictor.weight", "class_predictor.bias"}
    assert model.network.model.criterion.empty_weight.tolist() == pytest.approx([1, 1, 1, 0.1])
    assert "these start at random: class_predictor.weight" in capsys.readouterr().out
    same = build_model("mask2former_swin_t", 5, None, file, **options)
    assert all((p == 0.25).all() for p in same.parameters())
    assert not capsys.readouterr().out
    with pytest.raises(ModelError, match="Choose the architecture and the model_options it was made with"):
        build_model("mask2former_swin_t", 3, None, file, **options | {"layers": 3})


def test_coco_weights_and_encoders_that_are_not_there():
    for name in ("mask2former_swin_t", "mask2former_swin_b"):
        with pytest.raises(
            ModelError, match=r"encoder_weights='coco' needs facebook/mask2former-swin-.* can't be reached"
        ):
            build_model(name, 3, None, "coco")
    with pytest.raises(ModelError, match="no mask2former_resnet50 trained on COCO; there are mask2former_swin_t"):
        build_model("mask2former_resnet50", 3, None, "coco")
    with pytest.raises(ModelError, match="multiple of 32; found width=48"):
        build_model("mask2former", 3, width=48)
    with pytest.raises(ModelError, match="did you mean layers"):
        build_model("mask2former", 3, layer=3)
    model = build_model("mask2former", 3, "tu-tf_efficientnet_lite0", "pip", **SMALL)
    assert model.mean == [0.5, 0.5, 0.5]
