"""Labels at the network's resolution against the full-size masks of 2048 × 2048 radiographs."""

import cv2
import numpy as np
import pytest

from utils.data.cache import make_entry
from utils.data.competition import HAND_BONES, read_annotation, read_index
from utils.data.warping import affine, flip, transform_matrix
from utils.masks import upsampling
from utils.masks.dice import dice_of_masks
from utils.masks.labels import draw
from utils.masks.masks import Masks
from utils.masks.sparse import SparseMaps
from utils.sample.generator import make_sample

CLASSES = list(HAND_BONES)


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    folder = make_sample(tmp_path_factory.mktemp("full") / "sample", train_people=2, test_people=1, image_size=2048)
    return [row for row in read_index(folder).itertuples() if row.annotation]


def kept(label, size, truth):
    """Mean Dice of a label uint8 (classes, h, w), upsampled and cut at one half, against the true masks."""
    return dice_of_masks(upsampling.upsample_masks(label / np.float32(255), size, 0.5), truth).mean()


@pytest.mark.parametrize(("side", "goal"), [(256, 0.990), (512, 0.995), (1024, 0.998)])
def test_labels_keep_the_full_size_masks(rows, side, goal):
    entries = [make_entry(row.image, row.annotation, CLASSES, (side, side)) for row in rows]
    assert np.mean([kept(e.label.dense(), e.size, e.truth) for e in entries]) >= goal


def test_flipped_labels_keep_the_flipped_masks(rows):
    for row in rows[:2]:
        entry = make_entry(row.image, row.annotation, CLASSES, (512, 512))
        label = SparseMaps.from_patches((512, 512), flip(entry.image, entry.label.patches())[1]).dense()
        shapes = read_annotation(row.annotation, CLASSES)
        flipped = Masks.from_dense([draw(shapes[name], entry.size)[:, ::-1] for name in CLASSES])
        plain = kept(entry.label.dense(), entry.size, entry.truth)
        assert kept(label, entry.size, flipped) == pytest.approx(plain, abs=1e-6)


@pytest.mark.parametrize(("angle", "scale", "shift"), [(12, 0.93, (7, -4)), (-15, 1.1, (-9, 11))])
def test_moved_labels_keep_the_moved_masks(rows, angle, scale, shift):
    scores = []
    for row in rows[:3]:
        entry = make_entry(row.image, row.annotation, CLASSES, (512, 512))
        matrix = transform_matrix((512, 512), angle, scale, shift)
        label = SparseMaps.from_patches((512, 512), affine(entry.image, entry.label.patches(), matrix)[1]).dense()
        step = entry.size[0] / 512  # the same motion in full-size pixels, whose centres lie at (p + 0.5) · step - 0.5
        full = matrix.copy()
        full[:, 2] = matrix[:, 2] * step + (step - 1) / 2 * (1 - matrix[:, :2].sum(1))
        shapes = read_annotation(row.annotation, CLASSES)
        masks = [draw(shapes[name], entry.size).astype(np.uint8) * 255 for name in CLASSES]
        moved = [cv2.warpAffine(mask, full, entry.size[::-1], flags=cv2.INTER_LINEAR) > 127 for mask in masks]
        scores.append(kept(label, entry.size, Masks.from_dense(moved)))
    assert np.mean(scores) >= 0.993
