"""Region-by-region upsampling against torch on the whole map."""

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests import reference
from utils.masks import upsampling
from utils.masks.masks import Masks

LENGTHS = st.integers(1, 40)
FULL = st.integers(1, 200)


@st.composite
def scores(draw: st.DrawFn) -> np.ndarray:
    """float32 (3, h, w): noise, blobs, few pixels at the border, ties (whole numbers, plateaus), empty and full."""
    shape = 3, draw(LENGTHS), draw(LENGTHS)
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    values = rng.normal(size=shape)
    kind = draw(st.sampled_from(["noise", "ties", "blob", "sparse", "constant"]))
    if kind == "ties":
        values = np.round(values)
    elif kind == "blob":
        y, x = np.mgrid[: shape[1], : shape[2]]
        values = 3 - np.hypot(y - rng.integers(0, shape[1]), x - rng.integers(0, shape[2])) + 0.1 * values
    elif kind == "sparse":
        values = np.where(rng.random(shape) < 0.02, values, -1)
        values[:, 0, -1] = values[:, -1, 0] = 2
    elif kind == "constant":
        values = np.broadcast_to(draw(st.sampled_from([-1, 0, 0.3, 1])), shape)
    return np.broadcast_to(values, shape).astype(np.float32)


def assert_close_to_torch(maps: np.ndarray, size: tuple[int, int], threshold: float) -> int:
    """Pixels that differ from torch; none may lie further than the docstring's tolerance from the threshold."""
    upsampled = reference.upsample(maps, size)
    expected = upsampled > np.float32(threshold)
    masks = upsampling.upsample_masks(maps, size, threshold)
    found = np.stack([masks.dense(number) for number in range(len(masks))])
    differ = found != expected
    tolerance = 1e-5 * np.abs(maps).max(axis=(1, 2), keepdims=True)
    assert not (differ & (np.abs(upsampled - np.float32(threshold)) > tolerance)).any()
    return int(differ.sum())


@given(scores(), FULL, FULL, st.sampled_from([-1, 0, 0.3, 0.5, 1]), st.sampled_from([1, 100, 2**15]))
def test_masks_equal_torchs(maps: np.ndarray, height: int, width: int, threshold: float, band: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(upsampling, "BAND_PIXELS", band)
        assert_close_to_torch(maps, (height, width), threshold)


@pytest.mark.parametrize(
    ("grid", "size"), [(512, (2048, 2048)), (384, (2048, 2048)), (500, (1777, 1401)), (640, (500, 333))]
)
def test_how_many_pixels_differ(grid: int, size: tuple[int, int], record_property: object) -> None:
    """On noise, where a pixel in a million lies within rounding of the threshold; the docstring quotes the counts."""
    noise = np.random.default_rng(0).normal(size=(6, grid, grid + 3)).astype(np.float32)
    differ = assert_close_to_torch(noise, size, 0)
    record_property("pixels that differ", differ)
    assert differ <= 5e-6 * 6 * size[0] * size[1]
    if torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512"):
        assert differ == 0


def test_strings_of_bones_equal_the_baselines() -> None:
    y, x = np.mgrid[:128, :128]
    centres = np.random.default_rng(0).uniform(0, 128, (8, 2, 1, 1))
    logits = (12 - np.hypot(y - centres[:, 0], x - centres[:, 1])).astype(np.float32)
    assert upsampling.upsample_masks(logits, (512, 600), 0).texts() == reference.logits_to_rle(logits, (512, 600))
    probabilities = torch.sigmoid(torch.from_numpy(logits)).numpy()
    expected = reference.encode_masks(probabilities, (512, 600), 0.5)
    assert upsampling.upsample_masks(torch.from_numpy(probabilities), (512, 600), [0.5] * 8).texts() == expected


def test_a_threshold_for_each_class() -> None:
    maps = np.random.default_rng(0).random((3, 10, 12), dtype=np.float32)
    thresholds = [0.2, 0.5, 2]
    found = upsampling.upsample_masks(maps, (90, 70), thresholds).texts()
    assert found == [upsampling.upsample_masks(maps[[i]], (90, 70), t).texts()[0] for i, t in enumerate(thresholds)]
    assert found[2] == ""


def test_full_masks_are_one_run() -> None:
    assert upsampling.upsample_masks(np.ones((1, 3, 3), np.float32), (600, 500), 0).texts() == ["1 300000"]
    assert upsampling.upsample_masks(np.zeros((1, 3, 3), np.float32), (600, 500), -0.1).texts() == ["1 300000"]


def test_views_and_read_only_arrays_are_accepted() -> None:
    maps = np.random.default_rng(0).random((2, 9, 9), dtype=np.float32)
    flipped = maps[:, ::-1]
    flipped.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert upsampling.upsample_masks(flipped, (80, 80), 0.5).texts() == reference.encode_masks(
            flipped.copy(), (80, 80), 0.5
        )


def test_infinite_scores_behave_as_in_torch() -> None:
    maps = np.array([[[1, -np.inf, 1], [1, 1, 1], [2, np.inf, 1]]], np.float32)
    assert upsampling.upsample_masks(maps, (90, 70), 0.5).texts() == reference.encode_masks(maps, (90, 70), 0.5)


def test_nan_and_other_input_is_refused() -> None:
    maps = np.zeros((4, 5, 5), np.float32)
    with pytest.raises(ValueError, match=r"expected float32 \(C, h, w\), found float64"):
        upsampling.upsample_masks(maps.astype(float), (9, 9), 0)
    with pytest.raises(ValueError, match=r"expected float32 \(C, h, w\), found float32 \(5, 5\)"):
        upsampling.upsample_masks(maps[0], (9, 9), 0)
    for threshold in ([0, 1], float("nan")):
        with pytest.raises(ValueError, match="threshold: expected a number or 4 of them"):
            upsampling.upsample_masks(maps, (9, 9), threshold)
    maps[1, 2, 2] = maps[3, 0, 0] = np.nan
    with pytest.raises(ValueError, match="NaN in 2 of 4 classes, at class index 1, 3"):
        upsampling.upsample_masks(maps, (9, 9), 0)


@given(scores(), FULL, FULL, st.data())
def test_regions_equal_crops_of_the_whole(maps: np.ndarray, height: int, width: int, data: st.DataObject) -> None:
    size, grid = (height, width), maps.shape[1:]

    def interval(end: int) -> list[int]:
        return sorted(data.draw(st.tuples(st.integers(0, end), st.integers(0, end))))

    (y, y_end), (x, x_end) = interval(grid[0]), interval(grid[1])
    (top, bottom), (left, right) = interval(height), interval(width)
    whole = np.zeros_like(maps)
    whole[:, y:y_end, x:x_end] = maps[:, y:y_end, x:x_end]
    upsampled = reference.upsample(whole, size)[0]
    tolerance = 1e-5 * np.abs(maps).max()  # for small images torch takes another route, with other last bits
    patch = maps[0, y:y_end, x:x_end]
    found = upsampling.upsample_region(patch, (y, x), grid, size, (top, left, bottom, right))
    assert found.dtype == np.float32
    assert found.shape == (bottom - top, right - left)
    assert (np.abs(found - upsampled[top:bottom, left:right]) <= tolerance).all()

    t, l, b, r = upsampling.reach((y, x), patch.shape, grid, size)  # noqa: E741
    outside = upsampled.copy()
    outside[t:b, l:r] = 0
    assert (np.abs(outside) <= tolerance).all()

    mask = upsampled > 0.1
    cut = np.zeros_like(mask)
    cut[top:bottom, left:right] = mask[top:bottom, left:right]
    assert Masks.from_regions([(mask[top:bottom, left:right], (top, left))], size).texts() == [reference.encode(cut)]


def test_large_regions_are_made_in_bands(monkeypatch: pytest.MonkeyPatch) -> None:
    patch = np.random.default_rng(0).random((60, 50), dtype=np.float32)
    whole = np.zeros((1, 100, 90), np.float32)
    whole[0, 30:90, 20:70] = patch
    region = patch, (30, 20), (100, 90), (777, 801), (100, 50, 760, 801)
    found = upsampling.upsample_region(*region)
    expected = reference.upsample(whole, (777, 801))[0, 100:760, 50:801]
    assert np.abs(found - expected).max() < 1e-5, "torch rounds otherwise on some processors"
    monkeypatch.setattr(upsampling, "BAND_PIXELS", 2**30)
    assert (upsampling.upsample_region(*region) == found).all(), "one band and many give the same bits"


def test_regions_that_do_not_fit_are_refused() -> None:
    patch = np.zeros((3, 4), np.float32)
    with pytest.raises(ValueError, match=r"patch .* = \(6, 0, 9, 4\) does not fit \(8, 8\)"):
        upsampling.upsample_region(patch, (6, 0), (8, 8), (20, 20), (0, 0, 5, 5))
    with pytest.raises(ValueError, match=r"box .* does not fit \(20, 20\)"):
        upsampling.upsample_region(patch, (0, 0), (8, 8), (20, 20), (0, 0, 5, 21))
    with pytest.raises(ValueError, match=r"mask .* does not fit"):
        Masks.from_regions([(patch > 0, (18, 0))], (20, 20))
    with pytest.raises(ValueError, match="expected a bool"):
        Masks.from_regions([(patch, (0, 0))], (20, 20))
