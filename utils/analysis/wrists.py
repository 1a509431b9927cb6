"""Measure how many test wrists are bent, on predicted masks, because nobody has the test images' polygons."""

from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from utils.data.folds import BENT_DEGREES, FOREARM, MIDDLE_METACARPAL, wrist_angle
from utils.masks import rle

BONES = (*FOREARM, MIDDLE_METACARPAL)
AUTO = -1.0
"""Instead of a given share: measure it."""
TRUSTED = 0.85
"""Lowest out-of-fold Dice of the three bones at which wrists are measured on predicted masks."""


def masks_wrist_angle(masks: dict[str, str], size: tuple[int, int]) -> float:
    """`utils.data.folds.wrist_angle` of masks (full-size RLE by class) instead of polygons, in degrees.

    Of each bone the largest piece counts, because predictions can have false pixels elsewhere. NaN if one of the three
    bones is missing or empty. `size`: the image's (H, W).
    """
    return wrist_angle({name: _largest_outline(masks.get(name, ""), size) for name in BONES})


def bent_wrists(submission: str | Path, images: pd.DataFrame) -> pd.DataFrame:
    """The wrists of the images in a submission, measured on its masks.

    Args:
        submission: the CSV file (image_name, class, rle).
        images: rows of the index (`read_index`), with ID, image_name, height and width.

    Returns:
        One row per image that is in both: ID, image_name, wrist_angle (degrees), bent (bool: any image of the person
        shows a bent wrist, as in folds.csv). Empty where the classes have no forearm and middle metacarpal.
    """
    rows = pd.read_csv(submission, dtype=str, keep_default_na=False)
    rows = rows[rows["class"].isin(BONES)]
    masks = {name: dict(zip(group["class"], group["rle"], strict=True)) for name, group in rows.groupby("image_name")}
    found = images[images["image_name"].isin(masks)][["ID", "image_name", "height", "width"]].reset_index(drop=True)
    found["wrist_angle"] = [
        masks_wrist_angle(masks[row.image_name], (row.height, row.width)) for row in found.itertuples()
    ]
    over = found["wrist_angle"].abs() > BENT_DEGREES
    return found.drop(columns=["height", "width"]).assign(bent=over.groupby(found["ID"]).transform("any"))


def bent_share(given: float, submission: str | Path, images: pd.DataFrame, dice: pd.Series) -> tuple[float, str]:
    """The share (0 to 1) of test images with a bent wrist, and a sentence that says how it was found.

    Args:
        given: the share, or AUTO to measure it on a submission, see `bent_wrists`.
        submission: the CSV file; only read for AUTO, as are the others.
        images: the test images' rows of the index (`read_index`).
        dice: out-of-fold Dice by class of who made the submission. Below TRUSTED for one of the three bones, their axes
            are not worth measuring.

    Returns:
        The share, NaN if it can't be measured, and the sentence.

    Raises:
        ValueError: for a number that is neither.
    """
    if given != AUTO:
        if not 0 <= given <= 1:
            raise ValueError(f"bent_share = {given:g}: expected 0 to 1, such as 0.57, or {AUTO:g} to measure it")
        return given, f"{given:.0%} of the test wrists are bent, as given"
    if not set(BONES) <= set(dice.index):
        return float("nan"), f"not re-weighted: there are no classes {', '.join(BONES)} to measure wrists on"
    if not Path(submission).is_file():
        return float("nan"), "not re-weighted: there is no submission to measure wrists on"
    worst = dice[list(BONES)].idxmin()
    if dice[worst] < TRUSTED:
        need = f"measuring wrists takes {TRUSTED:g}; or give bent_share"
        return float("nan"), f"not re-weighted: {worst} is predicted with Dice {dice[worst]:.2f}, and {need}"
    wrists = bent_wrists(submission, images).dropna(subset=["wrist_angle"])
    if wrists.empty:
        return float("nan"), "not re-weighted: no predicted mask shows a wrist"
    share = float(wrists["bent"].mean())
    return share, f"{share:.0%} of the test wrists are bent, measured on the predicted masks of {len(wrists)} images"


def _largest_outline(text: str, size: tuple[int, int]) -> list[np.ndarray]:
    """The outline of the mask's largest piece as one polygon in a list, int (n, 2); [] for an empty mask."""
    mask, (top, left) = rle.mask_region(text, size)
    if not mask.size:
        return []
    outlines, _ = cv2.findContours(mask.view(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    points = max(outlines, key=cv2.contourArea)[:, 0]
    return [points + np.array([left, top])] if len(points) > 1 else []
