"""Training on crops of the images, and sliding windows over whole images in validation and prediction."""

from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tests.small import CPU, fit, small_data
from utils.data.augment import Augmenter, ComposeAugmenter
from utils.data.augmentation import NO_AUGMENTATION, Augmentation
from utils.data.fold_data import FoldData
from utils.data.loader import dense_labels, normalise, training_loader
from utils.data.warping import draw_corner
from utils.files import Problems
from utils.hand.bones import CARPALS, check_crops
from utils.inference.predict import Predictor, predict_masks
from utils.masks.dice import dice_of_masks
from utils.models.base import PaddedModel
from utils.models.checkpoint import load_checkpoint
from utils.models.windows import _starts, sliding_windows


@pytest.fixture(scope="module")
def data(sample, tmp_path_factory):
    return small_data(sample, tmp_path_factory.mktemp("cache"))


@given(length=st.integers(1, 200), window=st.integers(1, 200))
def test_windows_cover_the_image_and_end_at_its_border(length, window):
    window = min(window, length)
    starts = _starts(length, window)
    assert starts[0] == 0 and starts[-1] + window == length
    assert all(a < b <= a + max(1, window // 2) for a, b in pairwise(starts))


@given(height=st.integers(20, 70), width=st.integers(20, 70), window=st.integers(16, 80))
def test_windows_of_a_network_without_context_give_its_logits(height, width, window):
    torch.manual_seed(0)
    image, network = torch.randn(2, 3, height, width), nn.Conv2d(3, 4, 1)
    with torch.no_grad():
        assert torch.allclose(sliding_windows(network, image, window), network(image), atol=1e-5)


def test_windows_are_averaged_with_gaussian_weights():
    def network(part):  # what it gives depends on the place in the window
        return part[:, :1] * torch.arange(8.0) + torch.arange(8.0)[:, None]

    image = torch.rand(1, 3, 20, 14)
    axis = np.exp(-0.5 * ((np.arange(8) - 3.5) / (0.125 * 8)) ** 2)
    weight = np.maximum(np.outer(axis, axis), 1e-3)
    total, weights = np.zeros((20, 14)), np.zeros((20, 14))
    for top in (0, 4, 8, 12):
        for left in (0, 4, 6):
            part = slice(top, top + 8), slice(left, left + 8)
            total[part] += weight * network(image[(..., *part)])[0, 0].numpy()
            weights[part] += weight
    assert sliding_windows(network, image, 8)[0, 0].numpy() == pytest.approx(total / weights, abs=1e-5)


def test_a_model_takes_windows_only_in_evaluation_of_larger_images():
    seen = []

    class Network(nn.Module):
        def forward(self, image):
            seen.append(tuple(image.shape))
            return image

    model, image = PaddedModel(Network(), 8), torch.zeros(2, 3, 40, 24)
    model.window = 24
    model.train()(image)
    model.eval()(image[:, :, :24])
    assert seen == [(2, 3, 40, 24), (2, 3, 24, 24)]
    model.eval()(image)
    assert seen[2:] == [(2, 3, 24, 24)] * 3


@pytest.mark.parametrize("amounts", [{}, {"rotate": 20, "scale": 0.2}, {"elastic": 1, "wrist_bend": 30, "hflip": 1}])
def test_a_crop_is_a_part_of_the_augmented_image(data, amounts):
    entry = data.cache.read(data.train["image_name"].iloc[0])
    augmenter = Augmenter(Augmentation(**(vars(NO_AUGMENTATION) | amounts)), classes=data.cache.classes)
    whole, labels = augmenter(entry.image, entry.label, np.random.default_rng(2))
    crop, label = augmenter(entry.image, entry.label, np.random.default_rng(2), crop=40)
    assert crop.shape == (40, 40) and label.grid == (40, 40)
    windows = np.lib.stride_tricks.sliding_window_view(whole.astype(int), (40, 40))
    difference = np.abs(windows - crop).max((2, 3))
    top, left = np.unravel_index(difference.argmin(), difference.shape)
    assert difference[top, left] <= (8 if amounts else 0)  # OpenCV rounds positions to 1/32 pixel
    there = labels.dense()[:, top : top + 40, left : left + 40].astype(int)
    assert np.abs(there - label.dense()).max() <= (8 if amounts else 0)


def test_crops_lie_anywhere_or_around_a_point():
    rng = np.random.default_rng(0)
    corners = np.array([draw_corner((64, 50), 30, rng) for _ in range(500)])
    assert corners.min(0).tolist() == [0, 0] and corners.max(0).tolist() == [34, 20]
    near = np.array([draw_corner((64, 50), 30, rng, np.array([20.0, 40.0])) for _ in range(200)]) + 15
    assert np.abs(near[:, 0] - 40).max() <= 8 and near[:, 1].min() == 15 and near[:, 1].max() <= 28
    assert draw_corner((64, 64), 32, rng, np.array([63.0, 0.0])) == (0, 32)


@pytest.mark.parametrize("own", [False, True], ids=["default", "compose"])
def test_an_epoch_has_crops_of_all_images_and_crops_around_wrists(data, own):
    import albumentations as A

    cropped = FoldData(data.cache, data.train, data.validation, 0, crop=32, region=CARPALS, region_crops=0.5)
    assert len(cropped) == 12 and cropped.side == 32
    augmenter = (
        ComposeAugmenter(A.Compose([A.HorizontalFlip()]))
        if own
        else Augmenter(Augmentation(wrist_bend=20), classes=data.cache.classes)
    )
    loader = training_loader(cropped, augmenter, 4, seed=1)
    indices = [index for _, index in loader.sampler]
    assert sorted(indices) == list(range(12))
    labels = torch.cat([dense_labels(batch) for batch in loader])
    assert labels.shape == (12, 29, 32, 32)
    lunate = data.cache.classes.index("Lunate")
    assert all(labels[place, lunate].sum() > 1 for place, index in enumerate(indices) if index >= 8)
    again = torch.cat([dense_labels(batch) for batch in training_loader(cropped, augmenter, 4, seed=1, num_workers=2)])
    assert torch.equal(labels, again)


def test_impossible_crops_are_refused_before_data_is_read():
    with pytest.raises(Problems) as caught:
        check_crops(64, 0.5, 64, ["nucleus"])
    assert len(caught.value.problems) == 2 and "crop = 64: expected 0" in caught.value.problems[0]
    with pytest.raises(Problems, match=r"wrist_crops = 0\.5: expected 0"):
        check_crops(0, 0.5, 64, ["Radius"])


def test_a_training_on_crops_is_validated_and_predicts_in_windows(data, tmp_path):
    cropped = FoldData(data.cache, data.train, data.validation, 0, crop=32, region=CARPALS, region_crops=0.25)
    result = fit(cropped, tmp_path, precision="32-true")
    model, config = load_checkpoint(result.checkpoint)
    assert (config.image_size, config.window, model.window) == (64, 32, 32)
    names = data.validation["image_name"].tolist()
    dice = {
        n: dice_of_masks(masks, data.cache.read(n).truth) for n, masks in predict_masks(model, data.cache, names, 0.5)
    }
    assert np.array(list(dice.values())).mean() == pytest.approx(result.score, abs=1e-6)
    (name, maps), *_ = Predictor(result.checkpoint, CPU, "hflip").predict(data.cache, names[:1], 1)
    image = torch.from_numpy(data.cache.read(name).image)[None, None]
    with torch.no_grad():
        image = normalise(image, config.mean, config.std)
        both = [sliding_windows(model.network, i, 32).sigmoid() for i in (image, image.flip(3))]
    assert maps == pytest.approx(((both[0] + both[1].flip(3)) / 2)[0].numpy(), abs=1e-4)
    assert pd.read_csv(tmp_path / "history.csv")["loss"].notna().all()
