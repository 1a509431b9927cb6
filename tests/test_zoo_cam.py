"""Class activation maps: what the classifier is shown, what it finds, and that no outline ever reaches it."""

import numpy as np
import pytest
import torch

from tests import zoo
from utils.masks.masks import Masks
from utils.models import ModelError, build_model
from utils.models.cam import SHARPNESS, VISIBLE, random_crops
from utils.training.model_zoo import covered_share, peaks_inside

THIN = {"encoder": "tu-resnet10t", "width": 32}


def test_shapes_gradients_and_safetensors():
    zoo.check_model("cam", **THIN)


def test_a_crops_label_is_what_it_holds():
    rows, columns = torch.meshgrid(torch.arange(60.0), torch.arange(80.0), indexing="ij")
    image = torch.stack([torch.stack([rows, columns, torch.full_like(rows, n)]) for n in range(2)])
    label = torch.zeros(2, 3, 60, 80)
    label[0, 0, 10:20, 10:20] = 1
    label[1, 1, 40:60, 50:55] = 0.5  # the third class is nowhere
    crops, held = random_crops(image, label, (32, 40), 50)
    assert crops.shape == (100, 3, 32, 40) and held.shape == (100, 3)
    for crop, found in zip(crops, held, strict=True):
        top, left, number = (int(plane[0, 0]) for plane in crop)
        window = label[number, :, top : top + 32, left : left + 40].sum((1, 2))
        share = window / label[number].sum((1, 2)).clamp(min=1e-6)
        assert found.tolist() == (share >= VISIBLE).float().tolist()
        assert torch.equal(crop[0, :, 0], torch.arange(top, top + 32.0))
    assert 0 < held[:50, 0].mean() < 1 and 0 < held[50:, 1].mean() < 1 and not held[:, 2].any()


def test_the_outline_never_reaches_the_classifier():
    model = build_model("cam", 2, crop=1.0, **THIN).train()
    image = torch.randn(2, 3, 64, 64)
    label = torch.zeros(2, 2, 64, 64)
    label[0, 0, 10:20, 10:20] = label[1, 1, 30:40, 5:9] = 1
    moved = label.flip(2, 3)
    losses = [model.training_loss(image, some, None) for some in (label, moved, label * 0.5)]
    assert losses[0] == losses[1] == losses[2]
    assert model.training_loss(image, label.flip(1), None) != losses[0]  # but which class is where does


def test_logits_say_how_far_a_map_exceeds_the_cutoff_of_its_maximum():
    model = build_model("cam", 3, cutoff=0.3, **THIN).eval()
    image = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        maps = model.network.activation(image)[0]
        logits = model(image)[0]
    assert maps.shape == (3, 8, 8)
    for plane, map_ in zip(logits, maps, strict=True):
        assert plane.min() >= -0.3 * SHARPNESS - 1e-4 and plane.max() <= 0.7 * SHARPNESS + 1e-4
        inside = plane[4::8, 4::8] > 0  # near the cells' centres
        clear = (map_ / map_.max() - 0.3).abs() > 0.2
        assert torch.equal(inside[clear], (map_ > 0.3 * map_.max())[clear]) or map_.max() <= 0
    with torch.no_grad():
        model.network.classifier.weight.zero_()
        assert not (model(image) > 0).any()  # a flat map marks nothing


@pytest.mark.slow
def test_crop_labels_are_enough_to_find_shapes():
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    image, label = torch.zeros(16, 3, 96, 96), torch.zeros(16, 3, 96, 96)
    for number in range(16):  # a coloured square of each class, in another corner of every image
        for kind, corner in enumerate(rng.permutation(4)[:3]):
            y, x = rng.integers(4, 20, 2) + 48 * np.array(divmod(corner, 2))
            label[number, kind, y : y + 20, x : x + 20] = 1
            image[number, kind, y : y + 20, x : x + 20] = 2
    image += 0.1 * torch.randn(image.shape)
    model = build_model("cam", 3, crop=0.34, crops=4, **THIN).train()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=100)  # with three seeds: 0.98 to 1
    for _ in range(100):
        optimizer.zero_grad()
        model.training_loss(image, label, None).backward()
        optimizer.step()
        schedule.step()
    with torch.inference_mode():
        logits = model.eval()(image).numpy()
    truth = [Masks.from_dense(masks) for masks in (label > 0).numpy()]
    hits = [peaks_inside(maps, masks) for maps, masks in zip(logits, truth, strict=True)]
    assert np.mean(hits) >= 0.8  # by chance 0.04


def test_peaks_are_judged_at_full_size():
    maps = np.zeros((3, 4, 8))
    maps[0, 1, 6] = maps[1, 1, 6] = 1
    mask = np.zeros((40, 160), bool)
    mask[10:20, 120:140] = True  # the cell of that peak
    truth = Masks.from_dense([mask, ~mask, np.zeros_like(mask)])
    assert np.array_equal(peaks_inside(maps, truth), [1, 0, np.nan], equal_nan=True)


def test_the_chance_of_a_random_point():
    class Image:
        size, truth = (10, 20), Masks.from_dense([np.arange(200).reshape(10, 20) < n for n in (20, 60, 0)])

    assert covered_share([Image(), Image()]) == pytest.approx(0.2)


def test_an_encoder_that_can_not_be_dilated_is_refused():
    with torch.device("meta"), pytest.raises(ModelError, match="can be dilated"):
        build_model("cam", 2, "tu-swin_tiny_patch4_window7_224")
