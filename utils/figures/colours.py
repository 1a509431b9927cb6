"""The colours of all figures; a class has the same one in each."""

from collections.abc import Sequence

from matplotlib.colors import to_rgb

from utils.data.competition import HAND_BONES

PALETTE = ("#E69F00", "#56B4E9", "#009E73", "#D55E00", "#CC79A7", "#0072B2", "#F0E442")
"""Okabe and Ito's colours, which people with any kind of colour vision can tell apart (jfly.uni-koeln.de/color)."""
INK, SOFT, LINE = "#1d2733", "#6b7a8a", "#dde3ea"
RAYS = ("#D55E00", "#56B4E9", "#E69F00", "#009E73", "#CC79A7")
"""One hue per finger, thumb first; the bones of a finger go from light (tip) to dark (metacarpal)."""
OTHERS = ("#F0E442", "#5AA2D6", "#B8A800", "#A9D0EE", "#2F7FBF", "#F7F0A0", "#7DB8E0", "#D9C400", "#C98BFF", "#8E5BD0")
"""Carpals in yellows and blues so that neighbours differ; Radius and Ulna violet."""


def class_colours(classes: Sequence[str]) -> dict[str, tuple[float, float, float]]:
    """RGB (0 to 1) of every class: a hand bone always has the same colour; other classes get one by their position."""
    bones, others = _bone_colours(), [name for name in classes if name not in HAND_BONES]
    shades = (0, 0.45, -0.35, 0.65, -0.55)
    rest = {n: _shade(PALETTE[i % 7], shades[i // 7 % 5]) for i, n in enumerate(others)}
    return {name: bones.get(name) or rest[name] for name in classes}


def row_colours(classes: Sequence[str]) -> list[tuple[float, float, float]]:
    """The colour of each class, readable on a white page."""
    return [readable(colour) for colour in class_colours(classes).values()]


def readable(colour: tuple[float, float, float]) -> tuple[float, float, float]:
    """The colour, darkened if it is too light for a white page."""
    light = 0.3 * colour[0] + 0.59 * colour[1] + 0.11 * colour[2]
    return tuple(c * min(1.0, 0.72 / light) for c in colour)


def _bone_colours() -> dict[str, tuple[float, float, float]]:
    steps = (0.6, 0.3, 0.0, -0.28)
    rays = [(hue, step) for number, hue in enumerate(RAYS) for step in (steps if number else steps[:3])]
    return dict(zip(HAND_BONES, [*(_shade(*ray) for ray in rays), *map(to_rgb, OTHERS)], strict=True))


def _shade(colour: str, step: float) -> tuple[float, float, float]:
    """The colour, lighter (step up to 1, white) or darker (down to -1, black)."""
    return tuple(c + (1 - c) * step if step > 0 else c * (1 + step) for c in to_rgb(colour))
