"""How far a wrist is bent sideways, measured on polygons, masks or labels, and about which point it bends."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from utils.hand.bones import CARPALS, FOREARM, MIDDLE_METACARPAL, small_bones
from utils.masks.masks import Masks
from utils.masks.sparse import Patches, moments

ANGLE = "wrist_angle"
"""The column of a table that holds the angle, degrees."""
BENT_DEGREES = 12.0
"""A wrist counts as bent when hand and forearm differ by more than this."""
MEASURED = (*FOREARM, MIDDLE_METACARPAL)
"""The bones whose axes are measured."""
STRAIGHT, BENT = "straight wrists", "bent wrists"
"""What the two strata of images are called: bent are both images of a person if either wrist is."""
AUTO = -1.0
"""Instead of a given share: measure it."""
TRUSTED = 0.85
"""Lowest out-of-fold Dice of the three bones at which wrists are measured on predicted masks."""

Polygons = dict[str, list[np.ndarray]]


def angle_of(polygons: Polygons) -> float:
    """Angle in degrees between forearm and hand, 0 for a straight wrist; positive bends turn clockwise on screen.

    As radiologists measure it: between the long axis of the middle metacarpal and the mean of those of Radius and Ulna.
    The long axis of a bone is the first principal axis of its outline. `polygons`: points, (n, 2), of each class's
    outlines. NaN if one of the three bones is missing.
    """
    if not all(polygons.get(name) for name in MEASURED):
        return float("nan")
    radius, ulna, hand = (np.concatenate(polygons[name]).astype(float) for name in MEASURED)
    outwards = hand.mean(0) - (radius.mean(0) + ulna.mean(0)) / 2
    hand, forearm = _long_axis(hand, outwards), _long_axis(radius, outwards) + _long_axis(ulna, outwards)
    angle = np.arctan2(hand[1], hand[0]) - np.arctan2(forearm[1], forearm[0])
    return float(np.degrees((angle + np.pi) % (2 * np.pi) - np.pi))


def _long_axis(points: np.ndarray, towards: np.ndarray) -> np.ndarray:
    """Unit vector (x, y) of the first principal axis of an outline, on the side of `towards`."""
    values, vectors = np.linalg.eigh(np.cov((points - points.mean(0)).T))
    axis = vectors[:, values.argmax()]
    return axis if axis @ towards > 0 else -axis


def is_bent(polygons: Polygons) -> bool:
    """Whether the polygons of an image show a wrist that is bent by more than BENT_DEGREES."""
    return abs(angle_of(polygons)) > BENT_DEGREES


def stratum(classes: Sequence[str]) -> Callable[[Polygons], bool] | None:
    """By what folds are stratified, see `data.folds.read_folds`: `is_bent`, or None where there are no wrists."""
    return is_bent if set(MEASURED) <= set(classes) else None


def angle_of_masks(masks: Masks, classes: Sequence[str]) -> float:
    """`angle_of` of the masks of an image instead of polygons, in degrees; `classes`: of the masks.

    Of each bone the largest piece counts, because predictions can have false pixels elsewhere. NaN if one of the three
    bones is missing or empty.
    """
    regions = {name: masks.region(number) for number, name in enumerate(classes)}
    return angle_of({name: _largest_outline(*regions[name]) if name in regions else [] for name in MEASURED})


def _largest_outline(mask: np.ndarray, corner: tuple[int, int]) -> list[np.ndarray]:
    """The outline of a mask's largest piece as one polygon in a list, int (n, 2); [] for an empty mask."""
    if not mask.size:
        return []
    outlines, _ = cv2.findContours(mask.view(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    points = max(outlines, key=cv2.contourArea)[:, 0]
    return [points + np.array(corner[::-1])] if len(points) > 1 else []


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
    rows = rows[rows["class"].isin(MEASURED)]
    of_image = dict(list(rows.groupby("image_name")))
    table = images[images["image_name"].isin(of_image)][["ID", "image_name", "height", "width"]].reset_index(drop=True)
    table[ANGLE] = [
        angle_of_masks(Masks.from_texts(bones["rle"].tolist(), (row.height, row.width)), bones["class"].tolist())
        for row in table.itertuples()
        for bones in [of_image[row.image_name]]
    ]
    bent = (table[ANGLE].abs() > BENT_DEGREES).groupby(table["ID"]).transform("any")
    return table.drop(columns=["height", "width"]).assign(bent=bent)


def bent_share(share: float, submission: str | Path, images: pd.DataFrame, dice: pd.Series) -> tuple[float, str]:
    """The share (0 to 1) of test images with a bent wrist, and a sentence that says how it is known.

    Args:
        share: as given by the user, or AUTO to measure it on a submission, see `bent_wrists`.
        submission: the CSV file; only read for AUTO, as are the others.
        images: the test images' rows of the index (`read_index`).
        dice: out-of-fold Dice by class of who made the submission. Below TRUSTED for one of the three bones, their axes
            are not worth measuring.

    Returns:
        The share, NaN if it can't be measured, and the sentence.

    Raises:
        ValueError: for a number that is neither.
    """
    if share != AUTO:
        if not 0 <= share <= 1:
            raise ValueError(f"bent_share = {share:g}: expected 0 to 1, such as 0.57, or {AUTO:g} to measure it")
        return share, f"{share:.0%} of the test wrists are bent, as given"
    if not set(MEASURED) <= set(dice.index):
        return float("nan"), f"not re-weighted: there are no classes {', '.join(MEASURED)} to measure wrists on"
    if not Path(submission).is_file():
        return float("nan"), "not re-weighted: there is no submission to measure wrists on"
    worst = dice[list(MEASURED)].idxmin()
    if dice[worst] < TRUSTED:
        need = f"measuring wrists takes {TRUSTED:g}; or give bent_share"
        return float("nan"), f"not re-weighted: {worst} is predicted with Dice {dice[worst]:.2f}, and {need}"
    wrists = bent_wrists(submission, images).dropna(subset=[ANGLE])
    if wrists.empty:
        return float("nan"), "not re-weighted: no predicted mask shows a wrist"
    share = float(wrists["bent"].mean())
    return share, f"{share:.0%} of the test wrists are bent, measured on the predicted masks of {len(wrists)} images"


@dataclass(frozen=True)
class Joint:
    """Where the wrist bends, in pixel-centre coordinates (x, y).

    pivot: the centre of the carpals. axis: unit vector from the forearm to the carpals. reach: half the carpals' length
    along the axis, pixels. bend: angle between axis and hand, radians, positive if the hand turns clockwise on screen.
    """

    pivot: np.ndarray
    axis: np.ndarray
    reach: float
    bend: float


def find_joint(patches: Patches, classes: Sequence[str]) -> Joint | None:
    """The wrist of the hand whose labels these are, one patch per class; None if its bones are not all there."""
    if not small_bones(classes):
        return None
    of_class = dict(zip(classes, patches, strict=True))
    carpals, arm = ([of_class.pop(name) for name in names] for names in (CARPALS, FOREARM))
    if not all(patch.any() for patch, _ in [*carpals, *arm]):
        return None
    (pivot, spread), rest = moments(carpals), list(of_class.values())
    axis = pivot - moments(arm)[0]
    axis = axis / max(np.linalg.norm(axis), 1e-6)
    outwards = moments(rest)[0] - pivot if any(patch.any() for patch, _ in rest) else axis
    bend = np.arctan2(axis[0] * outwards[1] - axis[1] * outwards[0], axis @ outwards)
    return Joint(pivot, axis, float(np.sqrt(3 * axis @ spread @ axis)), float(bend))
