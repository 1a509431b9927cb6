"""Compute the Dice of each image and class at full size, from RLE intervals."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from utils.masks import rle


def dice_of_areas(intersection: np.ndarray, area_a: np.ndarray, area_b: np.ndarray) -> np.ndarray:
    """The competition's Dice, (2·|A∩B| + 1e-4) / (|A| + |B| + 1e-4), from areas in pixels (any shape).

    Between 0 and 1; 1 where both masks are empty.
    """
    return (2 * intersection + 1e-4) / (area_a + area_b + 1e-4)


def dice_of_masks(rles_a: Sequence[str | float | None], rles_b: Sequence[str | float | None]) -> np.ndarray:
    """The Dice (`dice_of_areas`) of many pairs of full-size RLE masks at once, float64 (pairs,).

    The pairs are the classes of one image, or all rows of two submissions. Raises ValueError for the first malformed
    mask, with its number, counted from 0.
    """
    ((starts_a, ends_a, row_a), (starts_b, ends_b, row_b)), _ = rle.on_one_axis([rles_a, rles_b])
    shared = rle.overlap((starts_a, ends_a), (starts_b, ends_b))
    pixels = ((row_a, shared), (row_a, ends_a - starts_a), (row_b, ends_b - starts_b))
    return dice_of_areas(*(np.bincount(row, counts, len(rles_a)) for row, counts in pixels))


def dice_table(rows: dict[str, np.ndarray], classes: list[str]) -> pd.DataFrame:
    """A table with one row per image and one column per class, from `{image_name: dice_of_masks(…)}`."""
    return pd.DataFrame.from_dict(rows, orient="index", columns=classes).rename_axis("image_name")


def mean_dice(table: pd.DataFrame) -> float:
    """The competition's score: the mean over all images and classes; NaN for an empty table."""
    return float(table.to_numpy().mean()) if len(table) else float("nan")
