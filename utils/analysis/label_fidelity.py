"""Measure how much of the true masks remains in labels at a network's resolution."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from utils.data.cache import RESAMPLE, make_entry
from utils.masks import upsampling
from utils.masks.dice import dice_of_masks


def label_fidelity(images: pd.DataFrame, classes: list[str], sizes: Sequence[int]) -> pd.DataFrame:
    """Mean Dice (0 to 1) between the true masks and their labels, upsampled bilinearly and thresholded at 0.5.

    `images`: annotated rows of the index; `sizes`: the labels' sides in pixels. One row per size, one column per way of
    resampling (`utils.data.cache.RESAMPLE`). It is the score of a network that reproduces its labels exactly. Raises
    what `utils.data.cache.make_entry` raises.
    """

    def kept(row: tuple, side: int, way: str) -> float:
        entry = make_entry(row.image, row.annotation, classes, (side, side), way)
        masks = upsampling.upsample_masks(entry.label.dense() / np.float32(255), entry.size, 0.5)
        return dice_of_masks(masks, entry.truth).mean()

    rows = {
        side: {way: np.mean([kept(row, side, way) for row in images.itertuples()]) for way in RESAMPLE}
        for side in sorted(set(sizes))
    }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("pixels")
