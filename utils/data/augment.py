"""Augment training samples: geometry and grey values of image and labels, or any albumentations Compose."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace

import albumentations as A
import cv2
import numpy as np

from utils.data.augmentation import Augmentation, changed
from utils.data.flip import ANY_FLIP, FlipRule
from utils.data.mixing import cut_mix, paste_bones
from utils.data.warping import affine, cut, draw_bend, draw_corner, draw_field, flip, transform_matrix, warp
from utils.data.windows import middle
from utils.files import Problems
from utils.hand.bend import find_joint
from utils.masks.sparse import Patches, SparseMaps
from utils.registry import build_part, register_augmentation


class Augmenter:
    """Applies an `Augmentation`; all random numbers derive from the generator that each call gets.

    rule: whether images may be flipped at all, and which classes a flip swaps. classes: their names, by which the joint
    is found that can be bent.
    """

    def __init__(self, settings: Augmentation, rule: FlipRule = ANY_FLIP, classes: Sequence[str] = ()):
        self.settings, self.rule = settings if rule.allowed else replace(settings, hflip=0.0), rule
        self.classes = list(classes)
        parts = []
        if settings.brightness or settings.contrast:
            parts.append(A.RandomBrightnessContrast(settings.brightness, settings.contrast, p=1.0))
        if settings.gamma:
            parts.append(A.RandomGamma((100 * (1 - settings.gamma), 100 * (1 + settings.gamma)), p=1.0))
        if settings.autocontrast:
            parts.append(A.AutoContrast(method="pil", p=settings.autocontrast))
        if settings.clahe:
            parts.append(A.CLAHE(clip_limit=2.0, tile_grid_size=(8, 8), p=settings.clahe))  # limit 4 lowers the Dice
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # albumentations only warns about arguments it does not know
            self.grey_values = A.Compose(parts) if parts else None

    def __call__(
        self,
        image: np.ndarray,
        label: SparseMaps,
        rng: np.random.Generator,
        other: Callable[[], tuple[np.ndarray, SparseMaps]] | None = None,
        crop: int = 0,
        around: Sequence[int] = (),
    ) -> tuple[np.ndarray, SparseMaps]:
        """The augmented image, uint8 (h, w[, 3]), and its soft labels.

        other: gives another training image with its labels; without it, nothing is mixed. crop: side of the square that
        is cut out of the moved image, 0 for all of it. around: numbers of the classes around which it lies, () for
        anywhere.
        """
        settings = self.settings
        image, patches = self._move(image, label, rng, crop, around)
        if other and settings.copy_paste and rng.random() < settings.copy_paste:
            donor, bones = other()
            image, patches = paste_bones(image, patches, donor, bones.patches(), rng)
        if other and settings.cutmix and rng.random() < settings.cutmix:
            image, patches = cut_mix(image, patches, *self._move(*other(), rng, crop, around), rng)
        if self.grey_values is not None:
            self.grey_values.set_random_seed(int(rng.integers(2**32)))
            image = self.grey_values(image=image.copy())["image"]  # AutoContrast writes into a grey input
        return np.ascontiguousarray(image), SparseMaps.from_patches(image.shape[:2], patches)

    def _move(
        self, image: np.ndarray, label: SparseMaps, rng: np.random.Generator, crop: int, around: Sequence[int]
    ) -> tuple[np.ndarray, Patches]:
        """Flip, then all other changes of geometry, and the crop, in one resampling."""
        settings, grid = self.settings, image.shape[:2]
        patches = label.patches()
        if rng.random() < settings.hflip:
            image, patches = flip(image, patches)
            patches = [patches[number] for number in self.rule.order] or patches
        matrix = self._draw_matrix(grid, rng)
        field = draw_field(grid, settings.elastic_shift, rng) if rng.random() < settings.elastic else None
        joint = find_joint(patches, self.classes) if settings.wrist_bend else None
        bend = draw_bend(joint, settings.wrist_bend, rng) if joint else None
        still = field is None and bend is None and np.array_equal(matrix, np.eye(2, 3))
        if crop:
            place = middle(patches, around)
            top, left = draw_corner(grid, crop, rng, None if place is None else matrix @ (*place, 1))
            if still:
                return cut(image, patches, (top, left), crop)
            matrix[:, 2] -= left, top
            field = field[top : top + crop, left : left + crop] if field is not None else None
            grid = crop, crop
        if field is not None or bend:
            return warp(image, patches, matrix, field, bend, grid)
        return (image, patches) if still else affine(image, patches, matrix, grid)

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
def default(image_size: int, amounts: Augmentation, rule: FlipRule, classes: Sequence[str]) -> Augmenter:
    """The built-in augmentation: geometry and grey values, changed as much as `amounts` say."""
    return Augmenter(amounts, rule, classes)


def build_augmentation(
    name: str,
    image_size: int,
    amounts: Augmentation,
    rule: FlipRule = ANY_FLIP,
    classes: Sequence[str] = (),
) -> Augmenter | A.Compose:
    """The augmentation `name`: "default", which follows the other arguments, or one that a plugin registered.

    Raises UnknownPart for an unknown name, and Problems if `amounts` are changed while a plugin's augmentation, which
    would ignore them, is chosen.
    """
    if name == "default":
        return build_part("augmentation", name, image_size, amounts, rule, classes)
    if unused := changed(amounts):
        title = f"augmentation {name!r} replaces the default one and ignores these in augment; leave them out"
        raise Problems(title, unused)
    return build_part("augmentation", name, image_size)


def as_augmenter(augmentation: Augmenter | A.Compose) -> Callable:
    """What the loader calls with (image, label, rng): a Compose is wrapped, anything else is returned unchanged."""
    return ComposeAugmenter(augmentation) if isinstance(augmentation, A.BaseCompose) else augmentation
