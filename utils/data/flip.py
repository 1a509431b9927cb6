"""Decide whether images may be mirrored: not if classes differ only by their side, as a left and a right kidney."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from utils.data.cache import Cache
from utils.files import Problems, unknown

SAME_SIDE = 0.95
"""Classes keep their side if one lies left of the other in at least this share of the images that have both."""


@dataclass(frozen=True)
class FlipRule:
    """Whether images may be mirrored left to right, and what happens to the classes.

    allowed: whether images may be mirrored. order: the class number that each class becomes in a mirrored image; () if
    every class stays the same. why: the reason, as a text for people.
    """

    allowed: bool = True
    order: tuple[int, ...] = ()
    why: str = ""


ANY_FLIP = FlipRule()


def flip_rule(flip: str, pairs: Sequence[Sequence[str]], cache: Cache, images: Sequence[str]) -> FlipRule:
    """The rule for left-right flips, in training and in test-time augmentation.

    Args:
        flip: "on", "off", or "auto", which looks at the labels of the training images.
        pairs: classes that a flip turns into each other, such as [["left kidney", "right kidney"]]; [] for none.
        cache: the built cache that holds `images`.
        images: names of the training images.

    Returns:
        The rule. With "auto", flips are off only if two classes mirror each other, are not both named in `pairs`, and
        keep their sides in at least 95 % of the images.

    Raises:
        Problems: for any other `flip`, and if `pairs` are not pairs of known classes with each class at most once.
    """
    classes = cache.classes
    problems = [] if flip in ("auto", "on", "off") else [unknown("flip", flip, ("auto", "on", "off"))]
    named = [name for pair in pairs for name in pair]
    problems += [unknown("class in flip_pairs", str(name), classes) for name in named if name not in classes]
    if any(len(pair) != 2 for pair in pairs) or len(set(named)) != len(named):
        problems.append(f"flip_pairs = {pairs}: expected pairs of classes, each class at most once")
    if problems:
        raise Problems("these parameters can't be used:", problems)
    order = list(range(len(classes)))
    for a, b in pairs:
        order[classes.index(a)], order[classes.index(b)] = classes.index(b), classes.index(a)
    swapped = tuple(order) if pairs else ()
    if flip != "auto":
        return FlipRule(flip == "on", swapped, f"flip = {flip}")
    found = [pair for pair in sided_pairs(cache, images) if not {classes[i] for i in pair} <= set(named)]
    if not found:
        return FlipRule(True, swapped, "no two classes mirror each other and keep their sides")
    shown = ", ".join(f"{classes[a]} and {classes[b]}" for a, b in found[:3])
    more = f" and {len(found) - 3} more pairs" if len(found) > 3 else ""
    return FlipRule(False, swapped, f"{shown}{more} mirror each other and keep their sides; flip_pairs may name them")


def sided_pairs(cache: Cache, images: Sequence[str]) -> list[tuple[int, int]]:
    """Pairs of class numbers that mirror each other and keep their sides.

    Two classes mirror each other if, in the median over the images that have both, the middle between them lies near
    the middle of all labels (within a quarter of their horizontal distance), they lie at about the same height (within
    half of that distance), and one is at most twice as large as the other.
    """
    x, y, area, middle = [], [], [], []
    for name in images:
        label = cache.read(name).label
        top, left, height, width = label.boxes.astype(float).T
        there = height > 0
        x.append(np.where(there, left + width / 2, np.nan))
        y.append(np.where(there, top + height / 2, np.nan))
        area.append(np.where(there, [max(float(patch.sum()), 1.0) for patch, _ in label.patches()], np.nan))
        middle.append((left[there].min(initial=np.inf) + (left + width)[there].max(initial=-np.inf)) / 2)
    x, y, area, middle = np.array(x), np.array(y), np.array(area), np.array(middle)
    found = []
    for a in range(x.shape[1]):
        for b in range(a + 1, x.shape[1]):
            both = ~np.isnan(x[:, a] + x[:, b])
            if not both.any():
                continue
            apart = x[both, b] - x[both, a]
            if max((apart > 0).mean(), (apart < 0).mean()) < SAME_SIDE:
                continue
            distance = np.median(np.abs(apart))
            off = np.median(np.abs((x[both, a] + x[both, b]) / 2 - middle[both]))
            level = np.median(np.abs(y[both, a] - y[both, b]))
            larger = np.median(np.abs(np.log(area[both, a] / area[both, b])))
            if off <= distance / 4 and level <= distance / 2 and larger <= np.log(2):
                found.append((a, b))
    return found
