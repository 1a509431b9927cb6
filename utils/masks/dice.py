"""Dice per image and class at full size, from RLE intervals."""

import numpy as np
import pandas as pd

from utils.masks import rle


def dice_per_class(predicted: list[str], truth: list[str]) -> np.ndarray:
    """The competition's Dice of each class of one image, float64 (classes,), from two lists of RLE strings."""
    return rle.dice_column(predicted, truth)


def dice_table(rows: dict[str, np.ndarray], classes: list[str]) -> pd.DataFrame:
    """Images × classes from `{image_name: dice_per_class(…)}`; its mean over everything is the competition's score."""
    return pd.DataFrame.from_dict(rows, orient="index", columns=classes).rename_axis("image_name")


def mean_dice(table: pd.DataFrame) -> float:
    """The competition's score: the mean over all images and classes; NaN for an empty table."""
    return float(table.to_numpy().mean()) if len(table) else float("nan")
