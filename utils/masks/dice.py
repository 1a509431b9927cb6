"""Compute the Dice of each image and class at full size, from the runs of masks."""

import numpy as np
import pandas as pd

from utils.masks.masks import Masks


def dice_of_areas(intersection: np.ndarray, area_a: np.ndarray, area_b: np.ndarray) -> np.ndarray:
    """The competition's Dice, (2·|A∩B| + 1e-4) / (|A| + |B| + 1e-4), from areas in pixels (any shape).

    Between 0 and 1; 1 where both masks are empty.
    """
    return (2 * intersection + 1e-4) / (area_a + area_b + 1e-4)


def dice_of_masks(a: Masks, b: Masks) -> np.ndarray:
    """The Dice (`dice_of_areas`) of each mask of `a` with the one of the same number in `b`, float64 (masks,).

    The masks are the classes of one image, or all rows of two submissions.
    """
    return dice_of_areas(a.intersections(b), a.areas, b.areas)


def dice_table(rows: dict[str, np.ndarray], classes: list[str]) -> pd.DataFrame:
    """A table with one row per image and one column per class, from `{image_name: dice_of_masks(…)}`."""
    return pd.DataFrame.from_dict(rows, orient="index", columns=classes).rename_axis("image_name")


def mean_dice(table: pd.DataFrame) -> float:
    """The competition's score: the mean over all images and classes; NaN for an empty table."""
    return float(table.to_numpy().mean()) if len(table) else float("nan")
