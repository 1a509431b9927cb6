"""Post-processing on runs, against scipy's labels of the whole mask."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage

from utils.files import Problems
from utils.inference.postprocess import build_postprocess
from utils.masks import rle
from utils.masks.masks import Masks
from utils.masks.pieces import find_pieces

MASKS = arrays(bool, st.tuples(st.integers(1, 12), st.integers(1, 12)))
CORNERS = np.ones((3, 3))


def largest(mask):
    label, count = ndimage.label(mask, CORNERS)
    areas = ndimage.sum_labels(mask, label, np.arange(1, count + 1))
    return {rle.encode(label == n + 1) for n in np.flatnonzero(areas == areas.max())} if count else {""}


def without_small(mask, pixels):
    label, count = ndimage.label(mask, CORNERS)
    areas = np.append(0, ndimage.sum_labels(mask, label, np.arange(1, count + 1)))
    return mask & (areas >= pixels)[label]


@given(mask=MASKS)
@example(mask=np.ones((3, 4), bool))
def test_pieces_are_those_of_the_pixels(mask):
    found = find_pieces(Masks.from_dense([mask]))
    piece, areas = found.piece, found.area
    label, count = ndimage.label(mask, CORNERS)
    assert len(areas) == count and len(set(piece)) == count
    assert sorted(areas) == sorted(ndimage.sum_labels(mask, label, np.arange(1, count + 1)))


@given(mask=MASKS, pixels=st.integers(1, 20))
def test_steps_do_what_they_do_on_pixels(mask, pixels):
    masks = Masks.from_dense([mask, mask[::-1], np.zeros_like(mask)])
    for text, each in zip(build_postprocess(["largest"])(masks).texts(), (mask, mask[::-1]), strict=False):
        assert text in largest(each)
    small = build_postprocess([f"min_area {pixels}"])(masks).texts()
    assert small == [rle.encode(without_small(each, pixels)) for each in (mask, mask[::-1])] + [""]
    filled = build_postprocess(["fill_holes"])(masks).texts()
    assert filled == [rle.encode(ndimage.binary_fill_holes(each)) for each in (mask, mask[::-1])] + [""]


def test_steps_follow_each_other_for_every_class():
    ring, speck = np.zeros((9, 9), bool), np.zeros((9, 9), bool)
    ring[1:6, 1:6], ring[2:5, 2:5], ring[3, 3], ring[8, 8] = True, False, True, True
    speck[0, 0] = True
    whole = np.zeros((9, 9), bool)
    whole[1:6, 1:6] = True
    tidy = build_postprocess(["fill_holes", "largest", "min_area 2"])
    masks = Masks.from_dense([ring, speck, np.zeros_like(ring)])
    assert tidy(masks).texts() == [rle.encode(whole), "", ""]
    assert build_postprocess([])(masks) is masks


def test_wrong_steps_are_refused_with_the_nearest():
    with pytest.raises(Problems) as caught:
        build_postprocess(["larges", "min_area", "largest 3", "min_area -2"])
    assert len(caught.value.problems) == 4 and "did you mean largest?" in caught.value.problems[0]
