"""Style of all figures: colours, empty figures, titles and axes, and saving.

Figures are made without pyplot, so nothing is shown twice and none stays in memory. A class has the same colour in
every figure.
"""

import io
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from utils.data.competition import HAND_BONES
from utils.files import replacing

DPI = 110
WIDTH = 11.0
"""Inches; a notebook's text is about as wide."""

PALETTE = ("#E69F00", "#56B4E9", "#009E73", "#D55E00", "#CC79A7", "#0072B2", "#F0E442")
"""Okabe and Ito's colours, which people with any kind of colour vision can tell apart (jfly.uni-koeln.de/color)."""
INK, SOFT, LINE = "#1d2733", "#6b7a8a", "#dde3ea"
RAYS = ("#D55E00", "#56B4E9", "#E69F00", "#009E73", "#CC79A7")
"""One hue per finger, thumb first; the bones of a finger go from light (tip) to dark (metacarpal)."""
CARPALS_AND_ARM = (
    "#F0E442",
    "#5AA2D6",
    "#B8A800",
    "#A9D0EE",
    "#2F7FBF",
    "#F7F0A0",
    "#7DB8E0",
    "#D9C400",
    "#C98BFF",
    "#8E5BD0",
)
"""Carpals in yellows and blues so that neighbours differ; Radius and Ulna violet."""


class NotebookFigure(Figure):
    """A figure that a notebook shows whichever matplotlib backend is active."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=DPI)
        return buffer.getvalue()


def new_figure(width: float, height: float, rows: int = 1, columns: int = 1) -> tuple[NotebookFigure, list[Axes]]:
    """An empty figure of `width` × `height` inches and its axes, row by row, without upper and right borders."""
    figure = NotebookFigure(figsize=(width, height), dpi=DPI, layout="constrained", facecolor="white")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
        ax.tick_params(labelsize=9, colors=INK)
    return figure, axes


def describe(ax: Axes, title: str = "", x: str = "", y: str = "", grid: str = "both", rows: Sequence[str] = ()) -> None:
    """Title, axis labels and light grid lines at the ticks of the axis `grid` ("x", "y", "both"; "" for none).

    rows: names of a chart's horizontal rows, the first at the top.
    """
    ax.set_title(title, fontsize=10, color=INK)
    ax.set_xlabel(x, fontsize=9)
    ax.set_ylabel(y, fontsize=9)
    if grid:
        ax.grid(axis=grid, color=LINE, linewidth=0.7)
    if len(rows):
        ax.set_yticks(range(len(rows)), rows, fontsize=9)
        ax.set(ylim=(len(rows) - 0.4, -0.6))


def save(figure: Figure, path: str | Path) -> Figure:
    """Write the figure as PNG, whole or not at all, and return it, so that a cell that ends with this call shows it."""
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=DPI)
    return figure


def class_colours(classes: Sequence[str]) -> dict[str, tuple[float, float, float]]:
    """RGB (0 to 1) of every class: a hand bone always has the same colour; other classes get one by their position."""
    bones, others = _bone_colours(), [name for name in classes if name not in HAND_BONES]
    shades = (0, 0.45, -0.35, 0.65, -0.55)
    rest = {n: _shade(PALETTE[i % 7], shades[i // 7 % 5]) for i, n in enumerate(others)}
    return {name: bones.get(name) or rest[name] for name in classes}


def readable(colour: tuple[float, float, float]) -> tuple[float, float, float]:
    """The colour, darkened if it is too light for a white page."""
    light = 0.3 * colour[0] + 0.59 * colour[1] + 0.11 * colour[2]
    return tuple(c * min(1.0, 0.72 / light) for c in colour)


def _bone_colours() -> dict[str, tuple[float, float, float]]:
    steps = (0.6, 0.3, 0.0, -0.28)
    rays = [(hue, step) for number, hue in enumerate(RAYS) for step in (steps if number else steps[:3])]
    return dict(zip(HAND_BONES, [*(_shade(*ray) for ray in rays), *map(to_rgb, CARPALS_AND_ARM)], strict=True))


def _shade(colour: str, step: float) -> tuple[float, float, float]:
    """The colour, lighter (step up to 1, white) or darker (down to -1, black)."""
    return tuple(c + (1 - c) * step if step > 0 else c * (1 + step) for c in to_rgb(colour))
