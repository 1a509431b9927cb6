"""Compute the Dice of each image and class at full size, from RLE intervals."""

import numpy as np
import pandas as pd

from utils.masks import rle


def dice_per_class(predicted: list[str], truth: list[str]) -> np.ndarray:
    """The competition's Dice of each class of one image, float64 (classes,), from two lists of full-size RLE strings.

    Values are between 0 and 1; 1 where both masks are empty. Raises ValueError for a malformed string.
    """
    return rle.dice_column(predicted, truth)


def dice_table(rows: dict[str, np.ndarray], classes: list[str]) -> pd.DataFrame:
    """A table with one row per image and one column per class, from `{image_name: dice_per_class(…)}`."""
    return pd.DataFrame.from_dict(rows, orient="index", columns=classes).rename_axis("image_name")


def mean_dice(table: pd.DataFrame) -> float:
    """The competition's score: the mean over all images and classes; NaN for an empty table."""
    return float(table.to_numpy().mean()) if len(table) else float("nan")
