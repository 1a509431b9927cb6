"""Make full-size masks from low-resolution scores, with the same pixels as bilinear upsampling of the whole map.

An upsampled score lies between those of its four neighbours, so only the parts of the image near scores above the
threshold are computed: 29 bones cover about a tenth of a radiograph. Source indices, weights and the order of
operations are those of `torch.nn.functional.interpolate(mode="bilinear", align_corners=False)` on contiguous float32
CPU tensors (half-pixel centres, no antialiasing; ATen's UpSample.h and UpSampleKernel.cpp): first along the row, then
down the column, each as `first·w0 + second·w1` by `addcmul`, which rounds once where torch's own upsampling rounds
once. Sizes are (height, width), corners (top, left), boxes (top, left, bottom, right), the last two exclusive.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch

from utils.masks.masks import Masks, Runs, check_fits, region_runs

BAND_PIXELS = 2**15
"""Number of full-size pixels that are computed at a time. This limits the memory, keeps the data in the processor's
cache, and is so small that torch starts no threads, which would wait for each other on a busy processor."""

Box = tuple[int, int, int, int]


class Axis(NamedTuple):
    """For each full-size position: the indices of its two neighbours in the low-resolution map, and their weights."""

    first: np.ndarray  # int64
    second: np.ndarray
    first_weight: np.ndarray  # float32
    second_weight: np.ndarray


def upsample_masks(
    scores: np.ndarray | torch.Tensor, size: tuple[int, int], threshold: float | Sequence[float]
) -> Masks:
    """The masks `bilinear_upsample(scores, size) > threshold` of each class.

    `scores`: float32 (C, h, w), logits or probabilities; `size`: the image's (H, W), larger or smaller; `threshold`:
    one number, or one per class. Raises ValueError for NaN (naming the classes), another dtype or shape.

    Pixels equal torch's except where the upsampled score lies within 1e-5 · max|score| of the threshold. On x86 CPUs
    with AVX2 none of the 66 million pixels of noise that `tests/test_upsampling.py` counts differs; without fused
    multiply and add, 1 in 33 million did. (Up to H + W = 128, torch computes differently and its last bits differ.)
    """
    scores = scores.detach().cpu().numpy() if isinstance(scores, torch.Tensor) else np.asarray(scores)
    if scores.dtype != np.float32 or scores.ndim != 3 or not scores.size:
        raise ValueError(f"scores: expected float32 (C, h, w), found {scores.dtype} {scores.shape}")
    thresholds = np.asarray(threshold, dtype=np.float32)
    if thresholds.shape not in ((), scores.shape[:1]) or np.isnan(thresholds).any():
        raise ValueError(f"threshold: expected a number or {len(scores)} of them, one per class, found {threshold!r}")
    # (C, h), NaN for every row that contains NaN; torch takes a fifth of NumPy's time
    peaks = torch.from_numpy(np.require(scores, requirements=["C", "W"])).amax(2).numpy()
    bad = np.flatnonzero(np.isnan(peaks).any(axis=1))
    if bad.size:
        where = ", ".join(map(str, bad))
        raise ValueError(f"scores hold NaN in {bad.size} of {len(scores)} classes, at class index {where}")
    of_classes = zip(scores, peaks, np.broadcast_to(thresholds, len(scores)), strict=True)
    return Masks.from_runs([_class_runs(*of_class, size) for of_class in of_classes], size)


def upsample_region(
    patch: np.ndarray, corner: tuple[int, int], grid: tuple[int, int], size: tuple[int, int], box: Box
) -> np.ndarray:
    """Pixels of `box` in the bilinear upsampling of a `grid` map to `size`: float32 (bottom - top, right - left).

    The map holds `patch`, float32 (ph, pw), with its first pixel at `corner`, and zeros elsewhere. Raises ValueError
    if the patch does not fit into the grid, or the box into the image.
    """
    check_fits("patch", (*corner, corner[0] + patch.shape[0], corner[1] + patch.shape[1]), grid)
    check_fits("box", box, size)
    top, left, bottom, right = box
    upsampled = np.empty((bottom - top, right - left), np.float32)
    columns = _part(_axis(grid[1], size[1]), left, right)
    for begin, end in _bands(box):
        rows = _part(_axis(grid[0], size[0]), begin, end)
        source = _window(patch, corner, (*_span(rows), *_span(columns)))
        upsampled[begin - top : end - top] = _interpolate(source, rows, columns)
    return upsampled


def reach(corner: tuple[int, int], shape: tuple[int, int], grid: tuple[int, int], size: tuple[int, int]) -> Box:
    """The box of full-size pixels that have a neighbour in the patch of `shape` at `corner` of a map of shape `grid`.

    Outside it, upsampling a map that is zero (or below a threshold) outside the patch gives zero (or below it). The box
    may be empty where the image is smaller than the grid.
    """
    spans = []
    for start, length, n, full in zip(corner, shape, grid, size, strict=True):
        axis = _axis(n, full)
        begin = int(axis.second.searchsorted(start))
        spans.append((begin, max(begin, int(axis.first.searchsorted(start + length)))))
    return spans[0][0], spans[1][0], spans[0][1], spans[1][1]


def _class_runs(scores: np.ndarray, peaks: np.ndarray, threshold: np.float32, size: tuple[int, int]) -> Runs:
    """Intervals of one class: scores (h, w) and their maximum over each row, peaks (h,)."""
    bands = [(np.empty(0, np.int64), np.empty(0, np.int64))]
    hot = np.flatnonzero(peaks > threshold)
    box = _hot_box(scores, hot[0], hot[-1] + 1, threshold, size) if hot.size else (0, 0, 0, 0)
    for begin, end in _bands(box):
        rows = _part(_axis(scores.shape[0], size[0]), begin, end)
        y, y_end = _span(rows)
        # a band of several may be narrower than the whole
        _, left, _, right = box if (begin, end) == box[::2] else _hot_box(scores, y, y_end, threshold, size)
        if left >= right:
            continue
        columns = _part(_axis(scores.shape[1], size[1]), left, right)
        source = scores[y:y_end, slice(*_span(columns))].copy()
        bands.append(region_runs(_interpolate(source, rows, columns) > threshold, (begin, left), size))
    starts, ends = map(np.concatenate, zip(*bands, strict=True))
    return starts, ends


def _hot_box(scores: np.ndarray, y: int, y_end: int, threshold: np.float32, size: tuple[int, int]) -> Box:
    """The box of full-size pixels that the scores above the threshold in rows y … y_end reach."""
    columns = np.flatnonzero(scores[y:y_end].max(axis=0) > threshold)
    if not columns.size:
        return 0, 0, 0, 0
    return reach((y, columns[0]), (y_end - y, columns[-1] + 1 - columns[0]), scores.shape, size)


def _interpolate(source: np.ndarray, rows: Axis, columns: Axis) -> np.ndarray:
    """Bilinear values (len(rows), len(columns)) from the part of the map that begins at the axes' first neighbours."""
    return _blend(_blend(torch.from_numpy(source), 1, columns), 0, rows).numpy()


def _blend(values: torch.Tensor, dim: int, axis: Axis) -> torch.Tensor:
    """Linear interpolation along one dimension of a map that begins at the axis' first neighbour."""
    shape = (-1, 1) if dim == 0 else (1, -1)
    first, second = (torch.from_numpy(index - axis.first[0]) for index in axis[:2])
    first_weight, second_weight = (torch.from_numpy(weight).reshape(shape) for weight in axis[2:])
    blended = values.index_select(dim, second).mul_(second_weight)
    return blended.addcmul_(values.index_select(dim, first), first_weight)


def _window(patch: np.ndarray, corner: tuple[int, int], rows_columns: Box) -> np.ndarray:
    """Rows y … y_end and columns x … x_end of a map that holds `patch` at `corner` and zeros elsewhere."""
    y, y_end, x, x_end = rows_columns
    window = np.zeros((y_end - y, x_end - x), np.float32)
    top, left = max(y, corner[0]), max(x, corner[1])
    bottom, right = min(y_end, corner[0] + patch.shape[0]), min(x_end, corner[1] + patch.shape[1])
    if top < bottom and left < right:
        inside = patch[top - corner[0] : bottom - corner[0], left - corner[1] : right - corner[1]]
        window[top - y : bottom - y, left - x : right - x] = inside
    return window


def _bands(box: Box) -> list[tuple[int, int]]:
    """The rows (begin, end) of a box in bands of about BAND_PIXELS; none for an empty box."""
    top, left, bottom, right = box
    if left >= right:
        return []
    step = max(1, BAND_PIXELS // (right - left))
    return [(begin, min(begin + step, bottom)) for begin in range(top, bottom, step)]


def _span(axis: Axis) -> tuple[int, int]:
    """Begin and end (exclusive) of the low-resolution indices that an axis refers to."""
    return int(axis.first[0]), int(axis.second[-1]) + 1


def _part(axis: Axis, begin: int, end: int) -> Axis:
    return Axis(*(values[begin:end] for values in axis))


@lru_cache(maxsize=64)
def _axis(length: int, full: int) -> Axis:
    """Neighbours and weights of `full` positions over `length` samples, in float32 as ATen computes them."""
    position = np.arange(full)
    if length == full:
        return Axis(position, position, np.ones(full, np.float32), np.zeros(full, np.float32))
    scale = np.float32(length) / np.float32(full)
    source = np.maximum(scale * (position.astype(np.float32) + np.float32(0.5)) - np.float32(0.5), np.float32(0))
    first = np.minimum(source.astype(np.int64), length - 1)
    weight = np.clip(source - first.astype(np.float32), np.float32(0), np.float32(1))
    second = np.minimum(first + 1, length - 1)
    return Axis(first, second, 1 - weight, weight)
