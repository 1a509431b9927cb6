"""The images of one fold model: which ones it learns from and is validated on, and in which crops."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from torch.utils.data import Sampler

from utils.data.cache import Cache
from utils.data.flip import ANY_FLIP, FlipRule
from utils.data.wrist import CARPALS, Windows, carpal_numbers, has_wrist
from utils.files import Problems
from utils.masks import upsampling
from utils.masks.dice import dice_of_masks


@dataclass(frozen=True)
class FoldData:
    """The images of one fold model.

    cache: built, at the network's resolution. train, validation: rows of the index (ID, image_name); validation may be
    empty. fold: its number, -1 where nothing is held out. flip: see `data.flip`. sampler: any torch sampler over the
    rows of `train`; None takes each image once per epoch. crop: side of a random crop that is taken of each image for
    training, pixels of the cache, 0 for whole images. wrist_crops: further crops around the wrist in each epoch, as a
    share of the images (not with a sampler). known: hashed people that other models have seen which this one learns
    from. wrist_of: for a wrist stage, the model whose carpals it refines, else "": all crops are then around wrists,
    and it is validated on the carpals in `windows`, which that model has found.
    Raises Problems for crops that can't be made.
    """

    cache: Cache
    train: pd.DataFrame
    validation: pd.DataFrame
    fold: int = -1
    flip: FlipRule = ANY_FLIP
    sampler: Sampler | None = None
    crop: int = 0
    wrist_crops: float = 0.0
    known: Sequence[str] = ()
    wrist_of: str = ""
    windows: Windows | None = None

    def __post_init__(self) -> None:
        """Refuse crops that can't be made."""
        check_crops(self.crop, self.wrist_crops, self.cache.grid[0], self.cache.classes, self.wrist_of)

    @property
    def side(self) -> int:
        """Side of a training sample, pixels."""
        return self.crop or self.cache.grid[0]

    @property
    def judged(self) -> list[str]:
        """The classes that validation scores."""
        return list(CARPALS) if self.windows is not None else self.cache.classes

    def dice(self, name: str, scores: np.ndarray, threshold: float) -> np.ndarray:
        """The full-size Dice of each judged class from float32 scores (classes, h, w) of a validation image."""
        entry = self.cache.read(name)
        if self.windows is None:
            return dice_of_masks(upsampling.encode_masks(scores, entry.size, threshold), entry.truth)
        masks = self.windows.masks(name, scores, entry.size, threshold)
        return dice_of_masks(masks, [entry.truth[number] for number in carpal_numbers(self.cache.classes)])

    @property
    def around_wrists(self) -> int:
        """Number of crops around wrists in an epoch."""
        return round(self.wrist_crops * len(self.train))

    def samples(self) -> int:
        """Samples per epoch, before the last batch is filled."""
        return len(self.train) + self.around_wrists if self.sampler is None else len(self.sampler)


def check_crops(crop: int, wrist_crops: float, image_size: int, classes: Sequence[str], wrist_of: str = "") -> None:
    """Raise Problems for crops that do not fit the images, and for wrists in data that has none."""
    problems = []
    if crop and not 32 <= crop < image_size:
        problems.append(f"crop = {crop}: expected 0 (whole images), or from 32 to less than image_size = {image_size}")
    if wrist_crops < 0 or (wrist_crops and not crop):
        problems.append(f"wrist_crops = {wrist_crops}: expected 0, or a share of the images beside a crop above 0")
    for name, value in (("wrist_crops", wrist_crops), ("wrist_of", wrist_of)):
        if value and not has_wrist(classes):
            problems.append(f"{name} = {value}: the classes have no Radius, Ulna and carpals; leave it out")
    if wrist_of and (wrist_crops or not crop):
        problems.append(f"wrist_of = {wrist_of}: expected a crop above 0 and no wrist_crops: all crops are of wrists")
    if problems:
        raise Problems("these parameters can't be used:", problems)
