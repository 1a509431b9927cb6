"""Draw the figures of the analysis: Dice by class with intervals, paired differences, Dice over minutes."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from utils.analysis.ablation import Ablation
from utils.analysis.comparison import Comparison
from utils.figures.charts import KINDS
from utils.figures.model_zoo import name_points
from utils.figures.style import INK, LINE, PALETTE, SOFT, WIDTH, class_colours, describe, new_figure, readable

BETTER, WORSE = PALETTE[2], PALETTE[3]
WIDE = 0.03
"""Difference of Dice above which the axis of an ablation becomes logarithmic from a third of it on."""


def class_scores(table: pd.DataFrame) -> Figure:
    """Dice of each class with its interval, on straight and bent wrists if known; beside it the distance of the
    outlines if it was measured: HD95 (bar) and the mean (dot).

    table: one row per class with the columns of `utils.analysis.scores.by_class`.
    """
    panels = 1 + ("hd95" in table)
    figure, axes = new_figure(WIDTH if panels > 1 else WIDTH * 0.8, 1.4 + 0.24 * len(table), 1, panels)
    rows, colours = np.arange(len(table)), class_colours(table.index)
    shown = [readable(colours[name]) for name in table.index]
    axes[0].hlines(rows, table["low"], table["high"], color=shown, linewidth=6, alpha=0.5)
    axes[0].scatter(table["dice"], rows, s=26, color=shown, edgecolor=INK, linewidths=0.6, zorder=3, label="all images")
    for column, marker in (("straight", "|"), ("bent", "x")):
        if column in table:
            label = f"{column} wrists"
            axes[0].scatter(table[column], rows, s=30, marker=marker, color=INK, linewidths=1.1, zorder=4, label=label)
    title = f"mean {table['dice'].mean():.4f}"
    describe(axes[0], title, "Dice: mean (dot) with its 95 % interval (bar)", grid="x", rows=table.index)
    if panels > 1:
        axes[1].barh(rows, table["hd95"], height=0.6, color=shown, alpha=0.8)
        axes[1].scatter(table["msd"], rows, s=22, color="white", edgecolor=INK, linewidths=0.8, zorder=3)
        title = f"mean {table['hd95'].mean():.2f} px, {table['msd'].mean():.2f} px"
        describe(axes[1], title, "HD95 (bar), mean distance (dot), in pixels", grid="x", rows=table.index)
        axes[1].tick_params(labelleft=False)
        axes[1].set_axisbelow(True)
    if "bent" in table:
        figure.legend(loc="outside upper left", ncols=3, fontsize=9, frameon=False)
    return figure


def differences(comparisons: Sequence[Comparison]) -> Figure:
    """The difference of mean Dice of each comparison, b - a, with its 95 % interval; green: b is better, red: a is."""
    figure, (ax,) = new_figure(WIDTH * 0.8, 1.3 + 0.42 * len(comparisons))
    found = np.array([c.estimate for c in comparisons], float)
    for row, (one, (mean, low, high)) in enumerate(zip(comparisons, found, strict=True)):
        colour = {one.b: BETTER, one.a: WORSE}.get(one.winner, SOFT)
        ax.hlines(row, low, high, color=colour, linewidth=6, alpha=0.5)
        ax.scatter(mean, row, s=34, color=colour, edgecolor=INK, linewidths=0.6, zorder=3)
        text = f"{mean:+z.4f}".replace("-", "−")
        ax.annotate(text, (mean, row), (0, 7), textcoords="offset points", ha="center", fontsize=8, color=INK)
    ax.axvline(0, color=INK, linewidth=1)
    describe(
        ax, x="difference of mean Dice, with its 95 % interval", grid="x", rows=[f"{c.b} − {c.a}" for c in comparisons]
    )
    ax.margins(x=0.12)
    ax.set_axisbelow(True)
    return figure


def ablation(found: Ablation) -> Figure:
    """The difference of each technique from the base, with its 95 % interval; green: better, red: worse, grey: neither.

    The band is how far trainings of the base lie apart by their seeds alone; a cross is the difference on bent wrists.
    """
    table = found.table
    figure, (ax,) = new_figure(WIDTH * 0.8, 1.5 + 0.25 * len(table))
    if not np.isnan(found.noise):
        ax.axvspan(-found.noise, found.noise, color=LINE, alpha=0.6, linewidth=0, label="another seed alone (95 %)")
    rows = np.arange(len(table))
    colours = table["verdict"].map({"better": BETTER, "worse": WORSE}).fillna(SOFT).tolist()
    ax.hlines(rows, table["low"], table["high"], color=colours, linewidth=5, alpha=0.5)
    ax.scatter(table["difference"], rows, s=26, color=colours, edgecolor=INK, linewidths=0.6, zorder=3)
    if table["bent"].notna().any():
        ax.scatter(table["bent"], rows, s=22, marker="x", color=INK, linewidths=1, zorder=4, label="bent wrists")
    ax.axvline(0, color=INK, linewidth=1)
    text = f"out-of-fold Dice minus that of {found.base} ({found.dice:.4f}), with its 95 % interval"
    describe(ax, x=text, grid="x", rows=table["technique"])
    if table[["low", "high"]].abs().max(axis=None) > WIDE:  # one bad technique would hide the differences of the others
        ax.set_xscale("symlog", linthresh=WIDE / 3)
        ax.xaxis.set_major_formatter(lambda value, _: f"{value:g}".replace("-", "−"))
    ax.set_axisbelow(True)
    if ax.get_legend_handles_labels()[1]:
        figure.legend(loc="outside upper left", ncols=2, fontsize=9, frameon=False)
    return figure


def dice_over_minutes(table: pd.DataFrame) -> Figure:
    """Out-of-fold Dice with its interval against minutes (logarithmic) of every result that has both.

    table: see `utils.analysis.experiments.experiments`. A ring is a result of an unfinished run.
    """
    known = table.dropna(subset=["dice", "minutes"]).astype({"dice": float, "minutes": float})
    figure, (ax,) = new_figure(WIDTH, 5.2)
    if known.empty:
        ax.set_axis_off()
        ax.text(0.5, 0.5, "no result with a Dice and minutes yet", ha="center", color=SOFT, transform=ax.transAxes)
        return figure
    kinds = known["name"].map(lambda name: name if name in ("ensemble", "baseline") else "model")
    for kind, colour in KINDS.items():
        some = known[kinds == kind]
        if some.empty:
            continue
        done = some["state"].eq("done")
        ax.vlines(some["minutes"], some["low"], some["high"], color=colour, linewidth=3, alpha=0.35)
        ax.scatter(
            some["minutes"], some["dice"], s=44, color=np.where(done, colour, "white"), edgecolor=colour, zorder=3
        )
        ax.scatter([], [], s=44, color=colour, label=kind)
    if not known["state"].eq("done").all():
        ax.scatter([], [], s=44, color="white", edgecolor=SOFT, label="unfinished")
    ax.set(xscale="log", xlim=(known["minutes"].min() / 1.5, known["minutes"].max() * 2))
    ax.set_xlabel("minutes of training and inference; an ensemble's with its models'", fontsize=9)
    ax.set_ylabel("out-of-fold Dice, 95 % interval", fontsize=9)
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    ax.xaxis.set_minor_locator(NullLocator())
    ax.margins(y=0.08)
    ax.grid(color=LINE, linewidth=0.7)
    ax.set_axisbelow(True)
    figure.legend(loc="outside upper center", ncols=4, fontsize=9, frameon=False)
    best = known["dice"] == known["dice"].max()
    name_points(ax, known["minutes"], known["dice"], known["run"] + "/" + known["name"], best)
    return figure
