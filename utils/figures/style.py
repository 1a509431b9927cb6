"""Style of all figures: empty figures, titles and axes, bars with dots, legends, and saving.

Figures are made without pyplot, so nothing is shown twice and none stays in memory.
"""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.ticker import LogLocator, NullLocator

from utils.figures.colours import INK, LINE
from utils.files import replacing

DPI = 110
WIDTH = 11.0
"""Inches; a notebook's text is about as wide."""


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
    """Title, axis labels and light grid lines behind the ticks of the axis `grid` ("x", "y", "both"; "" for none).

    rows: names of a chart's horizontal rows, the first at the top.
    """
    ax.set_title(title, fontsize=10, color=INK)
    ax.set_xlabel(x, fontsize=9)
    ax.set_ylabel(y, fontsize=9)
    if grid:
        ax.grid(axis=grid, color=LINE, linewidth=0.7)
        ax.set_axisbelow(True)
    if len(rows):
        ax.set_yticks(range(len(rows)), rows, fontsize=9)
        ax.set(ylim=(len(rows) - 0.4, -0.6))


def draw_intervals(
    ax: Axes, low: Sequence[float], high: Sequence[float], middle: Sequence[float], colours: Sequence, label: str = ""
) -> None:
    """One row each, the first at the top: a bar from low to high, and a dot at the middle."""
    rows = range(len(middle))
    ax.hlines(rows, low, high, color=colours, linewidth=6, alpha=0.5)
    ax.scatter(middle, rows, s=28, color=colours, edgecolor=INK, linewidths=0.6, zorder=3, label=label or None)


def logarithmic(ax: Axes, unit: str = "") -> None:
    """Make the x axis logarithmic, with plain numbers, 1, 2 and 5 of every power of ten, and their unit."""
    ax.set_xscale("log")
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.xaxis.set_major_formatter(lambda value, _: f"{value:g}{unit}")
    ax.xaxis.set_minor_locator(NullLocator())


def legend(figure: Figure, place: str, columns: int, **options: Any) -> Legend:
    """A legend without a frame outside the axes, at `place` such as "upper left"; options: matplotlib's."""
    return figure.legend(loc=f"outside {place}", ncols=columns, fontsize=9, frameon=False, **options)


def signed(value: float, digits: int = 4) -> str:
    """A number with its sign and a true minus; zero never has one."""
    return f"{value:+z.{digits}f}".replace("-", "−")


def save(figure: Figure, path: str | Path) -> Figure:
    """Write the figure as PNG, whole or not at all, and return it, so that a cell that ends with this call shows it."""
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=DPI)
    return figure
