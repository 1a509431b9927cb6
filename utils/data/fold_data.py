"""The images of one fold model: which ones it learns from and is validated on, and in which crops."""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from utils.data.cache import Cache
from utils.data.flip import ANY_FLIP, FlipRule
from utils.data.windows import Windows
from utils.masks.masks import Masks


@dataclass(frozen=True)
class FoldData:
    """The images of one fold model.

    cache: built, at the network's resolution. train, validation: rows of the index (ID, image_name); validation may be
    empty. fold: its number, -1 where nothing is held out. flip: see `data.flip`. crop: side of a random crop that is
    taken of each image for training, pixels of the cache, 0 for whole images. region: classes around which crops lie
    that are not anywhere. region_crops: further crops of this kind in each epoch, as a share of the images. known:
    hashed people that other models have seen which this one learns from. refines: the model whose `region` this one
    refines, else "": all crops are then around the region, and it is validated on these classes in `windows`, which
    that model has found.
    """

    cache: Cache
    train: pd.DataFrame
    validation: pd.DataFrame
    fold: int = -1
    flip: FlipRule = ANY_FLIP
    crop: int = 0
    region: Sequence[str] = ()
    region_crops: float = 0.0
    known: Sequence[str] = ()
    refines: str = ""
    windows: Windows | None = None

    @property
    def side(self) -> int:
        """Side of a training sample, pixels."""
        return self.crop or self.cache.grid[0]

    @property
    def judged(self) -> list[str]:
        """The classes that validation scores."""
        return list(self.region) if self.windows is not None else self.cache.classes

    def truth(self, name: str) -> Masks:
        """The true masks of the judged classes of an image, at full size."""
        masks = self.cache.read(name).truth
        return masks if self.windows is None else masks.select(self.region_numbers)

    @property
    def region_numbers(self) -> list[int]:
        """The places of the region's classes among all of them."""
        return [self.cache.classes.index(name) for name in self.region]

    @property
    def further_crops(self) -> int:
        """Number of further crops around the region in an epoch."""
        return round(self.region_crops * len(self.train))

    def __len__(self) -> int:
        """Samples per epoch, before the last batch is filled."""
        return len(self.train) + self.further_crops
