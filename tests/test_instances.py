"""Instances: from labels and logits, and back to one map per class."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from utils.models.base import PaddedModel, start_from_prior
from utils.models.instances import SMALLEST, Instances, class_logits, instances_of, targets


@st.composite
def labels(draw):
    """A soft label (classes, H, W) of random blobs, with pieces that touch by a corner, crumbs and empty classes."""
    random = np.random.default_rng(draw(st.integers(0, 10_000)))
    shape = draw(st.tuples(st.integers(1, 3), st.integers(3, 20), st.integers(3, 20)))
    noise = ndimage.gaussian_filter(random.normal(size=shape), (0, 1, 1)) * draw(st.sampled_from([0, 1, 4]))
    return torch.from_numpy(np.clip(noise, 0, 1).astype(np.float32))


@given(labels())
def test_the_instances_of_a_label_are_its_connected_pieces(label):
    """SciPy's labelling tells which pixels belong together; each piece is there once, with its box and class."""
    (found,) = targets(label[None])
    wanted = []
    for number, maps in enumerate(label.numpy()):
        pieces, count = ndimage.label(maps > 0.5, np.ones((3, 3)))
        wanted += [(number, pieces == piece) for piece in range(1, count + 1) if (pieces == piece).sum() >= SMALLEST]
    masks = found.masks.numpy() > 0.5
    assert sorted((n, m.tobytes()) for n, m in wanted) == sorted(
        (n, m.tobytes()) for n, m in zip(found.labels.tolist(), masks, strict=True)
    )
    for mask, box in zip(masks, found.boxes.tolist(), strict=True):
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        assert box == [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
    assert found.boxes.dtype == found.masks.dtype == torch.float32 and found.labels.dtype == torch.int64
    assert (found.scores == 1).all() and len(found.scores) == len(found)


def test_a_class_in_one_piece_keeps_its_soft_label():
    """Where a class is in pieces, each keeps the soft pixels around it, and none those of another."""
    label = torch.zeros(1, 2, 12, 12)
    label[0, 0, 2:6, 2:9], label[0, 0, 6, 2:9] = 1, 0.3
    label[0, 1, 0:3, 0:3], label[0, 1, 0:3, 3] = 1, 0.4
    label[0, 1, 5:9, 5:9], label[0, 1, 11, 11] = 0.9, 1  # the last is a crumb
    (found,) = targets(label)
    assert found.labels.tolist() == [0, 1, 1]
    assert torch.equal(found.masks[0], label[0, 0])
    assert found.masks[1].sum() == pytest.approx(9 + 1.2) and found.masks[2].sum() == pytest.approx(16 * 0.9)


@given(labels())
def test_the_union_of_the_instances_is_the_label_again(label):
    """Above 0.5, but for crumbs, which are no instances."""
    union = class_logits(targets(label[None]), len(label))[0].sigmoid()
    lost = (label > 0.5) & (union <= 0.5)
    for maps in lost.numpy():
        pieces, count = ndimage.label(maps, np.ones((3, 3)))
        assert all((pieces == piece).sum() < SMALLEST for piece in range(1, count + 1))
    assert not ((union > 0.5) & (label <= 0.5)).any()


def test_a_class_takes_the_best_of_its_instances():
    """At each pixel the largest product of mask and score; nothing for a class without instances."""
    masks = torch.zeros(2, 4, 4)
    masks[0, :2], masks[1, 1:] = 1.0, 0.5
    found = Instances(torch.zeros(2, 4), torch.tensor([1, 1]), torch.tensor([0.8, 0.9]), masks)
    probability = class_logits([found], 3).sigmoid()[0]
    assert torch.allclose(probability[1, :, 0], torch.tensor([0.8, 0.8, 0.45, 0.45]))
    assert probability[0].max() < 1e-5 and probability.shape == (3, 4, 4)


class Painter(torch.nn.Module):
    """A network whose logits are the image's channels."""

    def forward(self, image):
        """The image itself."""
        return image


class OneBox(Painter):
    """An instance model that finds the whole image, and a box in its last column."""

    def __init__(self):
        super().__init__()
        self.last = torch.nn.Conv2d(3, 2, 1)

    def instances(self, image):
        """Two instances in each image."""
        height, width = image.shape[-2:]
        boxes = torch.tensor([[0, 0, width, height], [width - 1, 0, width, height]]).float()
        both = Instances(boxes, torch.tensor([0, 1]), torch.ones(2), torch.ones(2, height, width))
        return [both] * len(image)


def test_padding_is_cut_off_instances():
    """An image of 5 × 7 is padded to 8 × 8; what lies in the padding alone is not there."""
    found = PaddedModel(OneBox(), 8).instances(torch.zeros(2, 3, 5, 7))
    assert [each.labels.tolist() for each in found] == [[0], [0]]
    assert found[0].boxes.tolist() == [[0, 0, 7, 5]] and found[0].masks.shape == (1, 5, 7)


def test_a_semantic_network_has_instances_too():
    """Its connected pieces, scored by their mean probability, best first."""
    image = torch.full((1, 2, 8, 8), -20.0)
    image[0, 0, :3, :3], image[0, 1, 4:, 4:] = 1.0, 3.0
    for found in (instances_of(image)[0], PaddedModel(Painter(), 4).instances(image)[0]):
        assert found.labels.tolist() == [1, 0]
        assert torch.allclose(found.scores, torch.tensor([3.0, 1.0]).sigmoid(), atol=1e-6)
        assert found.boxes.tolist() == [[4, 4, 8, 8], [0, 0, 3, 3]]


def test_an_instance_model_does_not_start_from_the_share_of_pixels():
    """Its last layer sees one object, of which the class covers about half."""
    model = PaddedModel(OneBox(), 8)
    before = model.network.last.bias.clone()
    start_from_prior(model, torch.tensor([0.01, 0.01]))
    assert torch.equal(before, model.network.last.bias)
