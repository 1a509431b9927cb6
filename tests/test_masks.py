"""Masks and their labels at the network's resolution, against OpenCV at full size."""

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from utils.masks.labels import coverage, draw, draw_region, nearest, shrink, soft_label
from utils.masks.sparse import SparseMaps
from utils.masks.upsampling import upsample_region

points = st.lists(st.tuples(st.integers(-20, 70), st.integers(-20, 70)), min_size=3, max_size=8)
polygons = st.lists(points.map(lambda p: np.array(p, np.int32)), min_size=0, max_size=3)
sizes = st.tuples(st.integers(1, 60), st.integers(1, 60))


def full(region, corner, size):
    mask = np.zeros(size, region.dtype)
    mask[corner[0] : corner[0] + region.shape[0], corner[1] : corner[1] + region.shape[1]] = region
    return mask


@given(polygons, sizes)
def test_a_region_holds_the_pixels_of_the_whole_drawing(shapes, size):
    region, corner = draw_region(shapes, size)
    assert np.array_equal(full(region, corner, size), draw(shapes, size))


def test_polygons_of_a_class_are_united_not_subtracted():
    outer = np.array([[2, 2], [20, 2], [20, 20], [2, 20]], np.int32)
    inner = np.array([[5, 5], [10, 5], [10, 10], [5, 10]], np.int32)
    assert draw([outer, inner], (30, 30)).sum() == draw([outer], (30, 30)).sum()


@given(polygons, st.sampled_from([1, 2, 3, 4, 8]), st.integers(1, 12), st.integers(1, 12))
def test_coverage_is_the_area_average(shapes, step, h, w):
    size, grid = (h * step, w * step), (h, w)
    region, corner = draw_region(shapes, size)
    expected = full(region, corner, size).reshape(h, step, w, step).mean((1, 3)) * 255
    assert np.array_equal(full(*coverage(region, corner, size, grid), grid), np.rint(expected))


@given(polygons, sizes, st.tuples(st.integers(1, 80), st.integers(1, 80)))
def test_coverage_keeps_the_area_at_any_scale(shapes, size, grid):
    region, corner = draw_region(shapes, size)
    small = full(*coverage(region, corner, size, grid), grid) / 255
    assert small.mean() == pytest.approx(full(region, corner, size).mean(), abs=0.5 / 255 + 1e-6)


@given(st.integers(20, 100), st.booleans())
def test_a_straight_edge_comes_back_where_it_was(edge, across):
    size, grid = (160, 160), (20, 20)
    mask = np.zeros(size, bool)
    mask[:, :edge] = True
    mask = mask if across else mask.T
    label, place = soft_label(mask, (0, 0), size, grid)
    upsampled = upsample_region(full(label, place, grid) / np.float32(255), (0, 0), grid, size, (0, 0, *size))
    line = (upsampled > 0.5)[80] if across else (upsampled > 0.5)[:, 80]
    assert abs(line.sum() - edge) <= 0.5 + 1e-6  # of 8 pixels a cell


@given(polygons, sizes, st.tuples(st.integers(1, 60), st.integers(1, 60)))
def test_nearest_is_what_opencv_does(shapes, size, grid):
    region, corner = draw_region(shapes, size)
    mask = full(region, corner, size).astype(np.uint8) * 255
    expected = cv2.resize(mask, grid[::-1], interpolation=cv2.INTER_NEAREST)
    assert np.array_equal(full(*nearest(region, corner, size, grid), grid), expected)


@given(hnp.arrays(np.uint8, (3, 9, 7), elements=st.sampled_from([0, 0, 0, 1, 255])))
def test_regions_hold_what_they_were_made_from(maps):
    regions = SparseMaps.from_dense(maps)
    assert np.array_equal(regions.dense(), maps)
    assert np.array_equal(SparseMaps.from_arrays(regions.arrays()).dense(), maps)


def test_damaged_regions_are_refused():
    regions = SparseMaps.from_dense(np.ones((1, 3, 3), np.uint8))
    with pytest.raises(ValueError, match="damaged"):
        SparseMaps(regions.grid, regions.boxes, regions.values[:-1])


def test_images_shrink_by_area_and_grow_linearly():
    image = np.arange(64, dtype=np.uint8).reshape(8, 8)
    assert np.array_equal(shrink(image, (8, 8)), image)
    assert np.abs(shrink(image, (2, 4)) - image.reshape(2, 4, 4, 2).mean((1, 3))).max() <= 0.5
    mixed = shrink(np.repeat(image[:, :, None], 3, 2), (2, 16))
    assert mixed.shape == (2, 16, 3) and mixed[0, 0, 0] < mixed[1, -1, 0]
