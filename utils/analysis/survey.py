"""Measure every image and annotation of a data set once, and return the results as tables."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, combinations

import cv2
import numpy as np
import pandas as pd
import shapely

from utils.data.cache import read_image
from utils.data.competition import read_annotation
from utils.files import cores
from utils.hand.bend import ANGLE, BENT_DEGREES, angle_of
from utils.hand.plausibility import side_letters
from utils.masks.dice import dice_of_areas
from utils.masks.labels import coverage, draw_region
from utils.masks.sparse import Patch

BINS = 64
"""Bins of the grey value histograms, over 0 … 255."""
WIDTHS = [f"width_{number}" for number in range(12)]
"""Columns of a bone's widths along its long axis, from the end nearer to the middle of the hand."""


@dataclass(frozen=True)
class Survey:
    """The measurements of all images and annotations of a data set.

    images: the index's rows with grey_mean, grey_std, grey_low and grey_high (1st and 99th percentile), colour (bool);
    for annotated ones labelled and multi_label (shares of the pixels with at least one and two classes), the ANGLE
    of `hand.bend` (degrees), bent, and side ("R", "L", "" without fingers).
    bones: one row per annotated image and class that is present: image_name, ID, class, area (pixels), x, y (centroid),
    top, left, bottom, right (pixels, the last two exclusive), polygons, pieces and holes of the drawn mask, crossing
    (see `crossing_loop`), kept_smaller and kept_first (Dice of the mask
    after arg-max, see `statistics.argmax_cost`), WIDTHS (see `widths`).
    pairs: one row per image and pair of classes (a before b) whose masks overlap: intersection (pixels), iou.
    density: float32 (classes, grid, grid), the mean coverage over annotated images. histograms: float32
    (images, BINS), the share of pixels per grey value. All sizes are those of the original images.
    """

    classes: list[str]
    images: pd.DataFrame
    bones: pd.DataFrame
    pairs: pd.DataFrame
    density: np.ndarray
    histograms: np.ndarray


def survey(table: pd.DataFrame, classes: Sequence[str], grid: int = 128, threads: int = 0) -> Survey:
    """Measure every image of the index `table` (columns of `read_index`); raises what `read_annotation` raises.

    `grid`: side of the density maps; `threads`: 0 for one per core. Masks are drawn at full size but only inside their
    boxes. One core takes about 70 ms per image of 2048 × 2048 with 29 classes, most of it for decoding the PNG.
    """
    classes = list(classes)
    with ThreadPoolExecutor(threads or cores()) as pool:
        results = list(pool.map(lambda row: _measure(row, classes, grid), table.itertuples()))
    measured, bones, pairs, patches, histograms = zip(*results, strict=True)
    bones = pd.DataFrame(chain.from_iterable(bones), columns=BONE_COLUMNS)
    pairs = pd.DataFrame(chain.from_iterable(pairs), columns=["image_name", "a", "b", "intersection", "iou"])
    density = np.zeros((len(classes), grid, grid), np.float32)
    for number, patch in chain.from_iterable(found.items() for found in patches):
        _part(density[number], patch)[:] += patch[0]
    density /= 255 * max(1, int((table["annotation"] != "").sum()))
    images = pd.concat([table, pd.DataFrame(measured, index=table.index)], axis=1)
    images["bent"] = images[ANGLE].abs() > BENT_DEGREES
    images["side"] = side_letters(bones, images["image_name"])
    return Survey(classes, images, bones, pairs, density, np.array(histograms))


BONE_COLUMNS = [
    *("image_name", "ID", "class", "area", "x", "y", "top", "left", "bottom", "right"),
    *("polygons", "pieces", "holes", "crossing", "kept_smaller", "kept_first"),
    *WIDTHS,
]


def _measure(row: tuple, classes: list[str], grid: int) -> tuple[dict, list, list, dict[int, Patch], np.ndarray]:
    """One image: its row, its bones, its overlapping pairs, coverage maps by class number, grey histogram."""
    pixels = read_image(row.image)
    size = pixels.shape[:2]
    grey = pixels if pixels.ndim == 2 else cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    counts = cv2.calcHist([grey], [0], None, [256], [0, 256]).ravel()
    measured = {**_grey_statistics(counts), "colour": pixels.ndim == 3}
    histogram = counts.reshape(BINS, -1).sum(axis=1) / counts.sum()
    if not row.annotation:
        return measured | dict.fromkeys(("labelled", "multi_label", ANGLE), np.nan), [], [], {}, histogram
    polygons = read_annotation(row.annotation, classes, size)
    drawn = {n: patch for n, name in enumerate(classes) if (patch := draw_region(polygons[name], size))[0].any()}
    areas = {number: int(np.count_nonzero(mask)) for number, (mask, _) in drawn.items()}
    orders = sorted(drawn, key=lambda n: (-areas[n], -n)), sorted(drawn)[::-1]
    kept = [_keep_one(drawn, order, size) for order in orders]
    bones, middle = [], _middle(drawn)
    for number, (mask, (top, left)) in drawn.items():
        shapes = polygons[classes[number]]
        moments = cv2.moments(mask.view(np.uint8), binaryImage=True)
        x, y = left + moments["m10"] / moments["m00"], top + moments["m01"] / moments["m00"]
        inset_x, inset_y, width, height = cv2.boundingRect(mask.view(np.uint8))  # a cut polygon's box may be larger
        box = (top + inset_y, left + inset_x, top + inset_y + height, left + inset_x + width)
        dice = [float(dice_of_areas(k[number], k[number], areas[number])) for k in kept]
        crossing = max(crossing_loop(points) for points in shapes)
        values = (areas[number], x, y, *box, len(shapes), *pieces_and_holes(mask), crossing, *dice)
        away = np.array([x, y]) - middle
        bones.append((row.image_name, row.ID, classes[number], *values, *widths(mask, away)))
    depth = np.zeros(size, np.uint8)
    for patch in drawn.values():
        _part(depth, patch)[:] += patch[0]
    measured["labelled"] = np.count_nonzero(depth) / depth.size
    measured["multi_label"] = np.count_nonzero(depth > 1) / depth.size
    measured[ANGLE] = angle_of(polygons)
    shared = [
        (row.image_name, classes[a], classes[b], both, both / (areas[a] + areas[b] - both))
        for a, b, both in _overlaps(drawn)
    ]
    patches = {number: coverage(*patch, size, (grid, grid)) for number, patch in drawn.items()}
    return measured, bones, shared, patches, histogram


def _part(whole: np.ndarray, patch: Patch) -> np.ndarray:
    """A view of the part of `whole` that the patch covers."""
    (height, width), (top, left) = patch[0].shape, patch[1]
    return whole[top : top + height, left : left + width]


def _grey_statistics(counts: np.ndarray) -> dict[str, float]:
    """Mean, standard deviation, 1st and 99th percentile of the grey values, from their 256 counts."""
    values = np.arange(256)
    mean = float(np.average(values, weights=counts))
    cumulated = np.cumsum(counts) / counts.sum()
    low, high = np.searchsorted(cumulated, [0.01, 0.99]).tolist()
    deviation = float(np.sqrt(np.average((values - mean) ** 2, weights=counts)))
    return {"grey_mean": mean, "grey_std": deviation, "grey_low": low, "grey_high": high}


def _keep_one(drawn: dict[int, Patch], order: list[int], size: tuple[int, int]) -> dict[int, int]:
    """Pixels that each class keeps if the classes are painted over each other in this order (the last one wins)."""
    canvas = np.full(size, 255, np.uint8) if len(order) < 255 else np.full(size, 65535, np.uint16)
    for place, number in enumerate(order):
        _part(canvas, drawn[number])[drawn[number][0]] = place
    counts = np.bincount(canvas.ravel(), minlength=len(order))
    return {number: int(counts[place]) for place, number in enumerate(order)}


def _overlaps(drawn: dict[int, Patch]) -> list[tuple[int, int, int]]:
    """(a, b, shared pixels) of the pairs of classes whose masks overlap, a < b."""
    found = []
    for (a, (one, (top, left))), (b, (other, (y, x))) in combinations(drawn.items(), 2):
        low = max(top, y), max(left, x)
        high = min(top + one.shape[0], y + other.shape[0]), min(left + one.shape[1], x + other.shape[1])
        if low[0] < high[0] and low[1] < high[1]:
            here = one[low[0] - top : high[0] - top, low[1] - left : high[1] - left]
            there = other[low[0] - y : high[0] - y, low[1] - x : high[1] - x]
            if shared := np.count_nonzero(here & there):
                found.append((a, b, shared))
    return found


def _middle(drawn: dict[int, Patch]) -> np.ndarray:
    """The mean of the middles of all boxes, (x, y) in pixels."""
    boxes = [(left + mask.shape[1] / 2, top + mask.shape[0] / 2) for mask, (top, left) in drawn.values()]
    return np.mean(boxes, axis=0) if boxes else np.zeros(2)


def widths(mask: np.ndarray, away: np.ndarray) -> np.ndarray:
    """How wide a bool mask that is not empty is along its long axis, float (12,), as multiples of its mean width.

    away: (x, y), from the middle of the hand to the bone; the widths are ordered in this direction.
    """
    y, x = np.nonzero(mask)
    x, y = x - x.mean(), y - y.mean()
    _, vectors = np.linalg.eigh(np.cov(x, y, bias=True))
    axis = vectors[:, 1] * (1 if vectors[:, 1] @ away >= 0 else -1)
    along = x * axis[0] + y * axis[1]
    place = (along - along.min()) / max(np.ptp(along), 1e-9) * (len(WIDTHS) - 1)
    below = np.minimum(place.astype(int), len(WIDTHS) - 2)
    share = place - below  # a pixel counts for the two nearest places, or rows of pixels would show as steps
    counts = np.bincount(below, 1 - share, len(WIDTHS)) + np.bincount(below + 1, share, len(WIDTHS))
    counts[[0, -1]] *= 2
    return counts / counts.mean()


def pieces_and_holes(mask: np.ndarray) -> tuple[int, int]:
    """The number of 8-connected pieces of a bool mask that is not empty, and of holes in them."""
    _, hierarchy = cv2.findContours(np.pad(mask.view(np.uint8), 1), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    outer = int(np.count_nonzero(hierarchy[0][:, 3] < 0))
    return outer, len(hierarchy[0]) - outer


def crossing_loop(points: np.ndarray) -> float:
    """The share of its area that a polygon, int (n, 2), cuts off by crossing or touching itself; 0 for none.

    That is the second largest of the pieces that its outline divides the plane into.
    """
    ring = shapely.linearrings(points)
    if shapely.is_valid(shapely.polygons(ring)):
        return 0.0
    areas = np.sort(shapely.area(shapely.get_parts(shapely.polygonize([shapely.node(ring)]))))
    return float(areas[-2] / areas.sum()) if len(areas) > 1 else 0.0
