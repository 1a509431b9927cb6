"""Test-time augmentations by name. A new one is a function here or in a plugin: `f(side) -> list of ttach transforms`.

Quarter turns and vertical flips are left out: hands are never seen so, and they cost Dice.
"""

from collections.abc import Sequence

import torch
import ttach

from utils.registry import build_part, register_tta

SCALES = (0.75, 1.0, 1.25)


@register_tta("none")
def none(side: int) -> list:
    """The image as it is."""
    return []


@register_tta("hflip")
def hflip(side: int) -> list:
    """The image and its mirror image."""
    return [ttach.HorizontalFlip()]


@register_tta("scale")
def scale(side: int) -> list:
    """0.75, 1 and 1.25 times the network's resolution."""
    # ttach.Scale interpolates by nearest and crashes where sizes are not whole multiples; Resize takes sizes.
    sizes = [(round(side * scale), round(side * scale)) for scale in SCALES]
    return [ttach.Resize(sizes, original_size=(side, side), interpolation="bilinear", align_corners=False)]


@register_tta("hflip+scale")
def hflip_scale(side: int) -> list:
    """Both, six versions of each image."""
    return [*hflip(side), *scale(side)]


class SwappingFlip(ttach.HorizontalFlip):
    """A left-right flip that gives each class of the mirrored image to the class it mirrors."""

    def __init__(self, order: Sequence[int]):
        super().__init__()
        self.order = list(order)

    def apply_deaug_mask(self, mask: torch.Tensor, apply: bool = False, **_: object) -> torch.Tensor:
        """Maps (N, classes, h, w), flipped back, their classes swapped."""
        return super().apply_deaug_mask(mask, apply)[:, self.order] if apply else mask


def build_tta(name: str, side: int, flip: bool = True, flip_order: Sequence[int] = ()) -> list:
    """The ttach transforms of `name` for images of `side` pixels; UnknownPart where there is none.

    Flips follow the rule of the training (`data.flip`): left out where classes are told apart by their side, and
    swapping the classes that mirror each other where `flip_order` names them.
    """
    transforms = build_part("tta", name, side)
    if not flip:
        return [t for t in transforms if not isinstance(t, ttach.HorizontalFlip)]
    return [SwappingFlip(flip_order) if flip_order and type(t) is ttach.HorizontalFlip else t for t in transforms]
