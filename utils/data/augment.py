"""Augment training samples: geometry and grey values of image and labels, or any albumentations Compose."""

import warnings
from collections.abc import Callable
from dataclasses import replace

import albumentations as A
import cv2
import numpy as np

from utils.data.augmentation import Augmentation, changed
from utils.data.flip import ANY_FLIP, FlipRule
from utils.errors import Problems
from utils.masks.sparse import SparseMaps
from utils.registry import build_part, register_augmentation

ELASTIC_GRID = 6
"""Control points of the elastic field along each side; so few that a bend is as wide as a palm, not as a bone."""


class Augmenter:
    """Applies an `Augmentation`; all random numbers derive from the generator that each call gets.

    rule: whether hands may be flipped at all, and which classes a flip swaps.
    """

    def __init__(self, settings: Augmentation, rule: FlipRule = ANY_FLIP):
        self.settings, self.rule = settings if rule.allowed else replace(settings, hflip=0.0), rule
        parts = []
        if settings.brightness or settings.contrast:
            parts.append(A.RandomBrightnessContrast(settings.brightness, settings.contrast, p=1.0))
        if settings.autocontrast:
            parts.append(A.AutoContrast(method="pil", p=settings.autocontrast))
        if settings.clahe:
            parts.append(A.CLAHE(clip_limit=2.0, tile_grid_size=(8, 8), p=settings.clahe))  # limit 4 lowers the Dice
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # albumentations only warns about arguments it does not know
            self.grey_values = A.Compose(parts) if parts else None

    def __call__(self, image: np.ndarray, label: SparseMaps, rng: np.random.Generator) -> tuple[np.ndarray, SparseMaps]:
        """The augmented image, uint8 (h, w[, 3]), and its soft labels."""
        settings = self.settings
        patches = label.patches()
        if rng.random() < settings.hflip:
            image, patches = flip(image, patches)
            patches = [patches[number] for number in self.rule.order] or patches
        matrix = self._draw_matrix(image.shape[:2], rng)
        field = draw_field(image.shape[:2], settings.elastic_shift, rng) if rng.random() < settings.elastic else None
        if field is not None:
            image, patches = warp(image, patches, matrix, field)
        elif not np.array_equal(matrix, np.eye(2, 3)):
            image, patches = affine(image, patches, matrix)
        if self.grey_values is not None:
            self.grey_values.set_random_seed(int(rng.integers(2**32)))
            image = self.grey_values(image=image.copy())["image"]  # AutoContrast writes into a grey input
        return np.ascontiguousarray(image), SparseMaps.from_patches(image.shape[:2], patches)

    def _draw_matrix(self, grid: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
        """Rotation and scale about the centre, then a shift: float64 (2, 3) from old to new pixel coordinates."""
        settings = self.settings
        angle = rng.uniform(-settings.rotate, settings.rotate)
        scale = rng.uniform(1 - settings.scale, 1 + settings.scale)
        shift = rng.uniform(-settings.shift, settings.shift, 2) * (grid[1], grid[0])
        return transform_matrix(grid, angle, scale, tuple(shift))


class ComposeAugmenter:
    """Applies an `albumentations.Compose` to the image (as RGB) and, with linear interpolation, to its soft labels.

    Called like an `Augmenter`. Raises ValueError if the Compose changes the image's size or its type uint8.
    """

    def __init__(self, compose: A.Compose):
        compose.set_mask_interpolation(cv2.INTER_LINEAR)
        self.compose = compose

    def __call__(self, image: np.ndarray, label: SparseMaps, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """The augmented image, uint8 (h, w, 3), and its soft labels, dense uint8 (classes, h, w)."""
        self.compose.set_random_seed(int(rng.integers(2**32)))
        colour = image if image.ndim == 3 else np.repeat(image[..., None], 3, axis=2)
        result = self.compose(image=colour, mask=np.ascontiguousarray(label.dense().transpose(1, 2, 0)))
        made, mask = result["image"], result["mask"]
        if not isinstance(made, np.ndarray) or made.dtype != np.uint8 or made.shape != colour.shape:
            raise ValueError(
                f"the Compose turned uint8 {colour.shape} into {made.dtype} {tuple(made.shape)}; neither may change: "
                "leave out Normalize and ToTensorV2, which training does itself, and everything that resizes"
            )
        return np.ascontiguousarray(made), np.ascontiguousarray(mask.reshape(*made.shape[:2], -1).transpose(2, 0, 1))


@register_augmentation("default")
def default(image_size: int, numbers: Augmentation, rule: FlipRule) -> Augmenter:
    """The built-in augmentation: geometry and grey values, changed as much as `numbers` say."""
    return Augmenter(numbers, rule)


def build_augmentation(
    name: str,
    image_size: int,
    numbers: Augmentation,
    rule: FlipRule = ANY_FLIP,
) -> Augmenter | A.Compose:
    """The augmentation `name`: "default", which follows `numbers` and `rule`, or one that a plugin registered.

    Raises UnknownPart for an unknown name, and Problems if `numbers` are changed while a plugin's augmentation, which
    would ignore them, is chosen.
    """
    if name == "default":
        return build_part("augmentation", name, image_size, numbers, rule)
    if unused := changed(numbers):
        title = f"augmentation {name!r} replaces the default one and ignores these in augment; leave them out"
        raise Problems(title, unused)
    return build_part("augmentation", name, image_size)


def as_augmenter(augmentation: Augmenter | A.Compose) -> Callable:
    """What the loader calls with (image, label, rng): a Compose is wrapped, anything else is returned unchanged."""
    return ComposeAugmenter(augmentation) if isinstance(augmentation, A.BaseCompose) else augmentation


Patches = list[tuple[np.ndarray, tuple[int, int]]]


def transform_matrix(grid: tuple[int, int], angle: float, scale: float, shift: tuple[float, float]) -> np.ndarray:
    """Turn by `angle` degrees (counter-clockwise on screen) and scale about the centre of `grid` (h, w), then move by
    `shift` (x, y) pixels: float64 (2, 3) mapping old to new pixel-centre coordinates."""
    matrix = cv2.getRotationMatrix2D(((grid[1] - 1) / 2, (grid[0] - 1) / 2), angle, scale)
    matrix[:, 2] += shift
    return matrix


def flip(image: np.ndarray, patches: Patches) -> tuple[np.ndarray, Patches]:
    """Mirror left to right, without interpolation."""
    width = image.shape[1]
    return image[:, ::-1], [(p[:, ::-1], (top, width - left - p.shape[1])) for p, (top, left) in patches]


def affine(image: np.ndarray, patches: Patches, matrix: np.ndarray) -> tuple[np.ndarray, Patches]:
    """Apply a matrix of `transform_matrix` with bilinear interpolation; outside the image all is black and unlabelled.

    Each class is transformed only inside the box around its transformed corners, so 29 classes take little more time
    than the image. OpenCV rounds source positions to 1/32 pixel.
    """
    grid = image.shape[:2]
    moved = cv2.warpAffine(np.ascontiguousarray(image), matrix, grid[::-1], flags=cv2.INTER_LINEAR)
    return moved, [_affine_patch(patch, corner, matrix, grid) for patch, corner in patches]


def _affine_patch(patch: np.ndarray, corner: tuple[int, int], matrix: np.ndarray, grid: tuple[int, int]):
    if patch.size == 0:
        return patch, (0, 0)
    (top, left), (height, width) = corner, patch.shape
    corners = np.array([(x, y, 1.0) for x in (left - 1, left + width) for y in (top - 1, top + height)])
    reached = corners @ matrix.T
    new_left, new_top = np.clip(np.floor(reached.min(0)).astype(int), 0, (grid[1], grid[0]))
    new_right, new_bottom = np.clip(np.ceil(reached.max(0)).astype(int) + 1, 0, (grid[1], grid[0]))
    if new_right <= new_left or new_bottom <= new_top:
        return patch[:0, :0], (0, 0)
    local = matrix.copy()
    local[:, 2] += matrix[:, :2] @ (left, top) - (new_left, new_top)
    size = (int(new_right - new_left), int(new_bottom - new_top))
    moved = cv2.warpAffine(np.ascontiguousarray(patch), local, size, flags=cv2.INTER_LINEAR)
    return moved, (int(new_top), int(new_left))


def draw_field(grid: tuple[int, int], amount: float, rng: np.random.Generator) -> np.ndarray:
    """A smooth random displacement, float32 (h, w, 2), in pixels (x, y).

    Its standard deviation at the control points is `amount` times the shorter side of `grid` (h, w).
    """
    points = rng.normal(0.0, amount * min(grid), (ELASTIC_GRID, ELASTIC_GRID, 2)).astype(np.float32)
    return cv2.resize(points, grid[::-1], interpolation=cv2.INTER_CUBIC)


def warp(image: np.ndarray, patches: Patches, matrix: np.ndarray, field: np.ndarray) -> tuple[np.ndarray, Patches]:
    """Apply an affine matrix and an elastic field together, in one bilinear resampling of image and labels.

    The new pixel p shows the old position matrix⁻¹(p) + field(p).
    """
    grid = image.shape[:2]
    inverse = cv2.invertAffineTransform(matrix).astype(np.float32)
    x, y = np.arange(grid[1], dtype=np.float32), np.arange(grid[0], dtype=np.float32)
    source_x = inverse[0, 0] * x + (inverse[0, 1] * y + inverse[0, 2])[:, None] + field[..., 0]
    source_y = inverse[1, 0] * x + (inverse[1, 1] * y + inverse[1, 2])[:, None] + field[..., 1]
    moved = cv2.remap(np.ascontiguousarray(image), source_x, source_y, cv2.INTER_LINEAR)
    return moved, [_warp_patch(patch, corner, source_x, source_y) for patch, corner in patches]


def _warp_patch(patch: np.ndarray, corner: tuple[int, int], source_x: np.ndarray, source_y: np.ndarray):
    if patch.size == 0:
        return patch, (0, 0)
    (top, left), (height, width) = corner, patch.shape
    inside = (source_x > left - 1) & (source_x < left + width) & (source_y > top - 1) & (source_y < top + height)
    rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
    if not len(rows):
        return patch[:0, :0], (0, 0)
    box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    moved = cv2.remap(np.ascontiguousarray(patch), source_x[box] - left, source_y[box] - top, cv2.INTER_LINEAR)
    return moved, (int(rows[0]), int(columns[0]))
