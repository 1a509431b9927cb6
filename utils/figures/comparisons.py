"""Draw comparisons: of classes, of models (paired differences, ablation), and of what their Dice costs."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from utils.analysis.ablation import Ablation
from utils.analysis.comparison import Comparison
from utils.figures.charts import KINDS
from utils.figures.colours import INK, LINE, PALETTE, SOFT, row_colours
from utils.figures.overlays import halo
from utils.figures.style import WIDTH, describe, draw_intervals, legend, logarithmic, new_figure, signed
from utils.hand.bend import BENT, STRAIGHT

BETTER, WORSE = PALETTE[2], PALETTE[3]
FAMILY_COLOURS = (*PALETTE[:6], "#8E5BD0", SOFT, INK)
WIDE = 0.03
"""Difference of Dice above which the axis of an ablation becomes logarithmic from a third of it on."""


def class_scores(table: pd.DataFrame) -> Figure:
    """Dice of each class with its interval, on straight and bent images if known; beside it the distance of the
    outlines if it was measured: HD95 (bar) and the mean (dot).

    table: one row per class with the columns of `utils.analysis.scores.by_class`.
    """
    panels = 1 + ("hd95" in table)
    figure, axes = new_figure(WIDTH if panels > 1 else WIDTH * 0.8, 1.4 + 0.24 * len(table), 1, panels)
    rows, colours = np.arange(len(table)), row_colours(table.index)
    draw_intervals(axes[0], table["low"], table["high"], table["dice"], colours, "all images")
    for column, marker in (("straight", "|"), ("bent", "x")):
        if column in table:
            label = {"straight": STRAIGHT, "bent": BENT}[column]
            axes[0].scatter(table[column], rows, s=30, marker=marker, color=INK, linewidths=1.1, zorder=4, label=label)
    title = f"mean {table['dice'].mean():.4f}"
    describe(axes[0], title, "Dice: mean (dot) with its 95 % interval (bar)", grid="x", rows=table.index)
    if panels > 1:
        axes[1].barh(rows, table["hd95"], height=0.6, color=colours, alpha=0.8)
        axes[1].scatter(table["msd"], rows, s=22, color="white", edgecolor=INK, linewidths=0.8, zorder=3)
        title = f"mean {table['hd95'].mean():.2f} px, {table['msd'].mean():.2f} px"
        describe(axes[1], title, "HD95 (bar), mean distance (dot), in pixels", grid="x", rows=table.index)
        axes[1].tick_params(labelleft=False)
    if "bent" in table:
        legend(figure, "upper left", 3)
    return figure


def differences(comparisons: Sequence[Comparison]) -> Figure:
    """The difference of mean Dice of each comparison, b - a, with its 95 % interval; green: b is better, red: a is."""
    figure, (ax,) = new_figure(WIDTH * 0.8, 1.3 + 0.42 * len(comparisons))
    means, low, high = np.array([c.estimate for c in comparisons], float).T
    colours = [{c.b: BETTER, c.a: WORSE}.get(c.winner, SOFT) for c in comparisons]
    draw_intervals(ax, low, high, means, colours)
    for place in zip(means, range(len(means)), strict=True):
        style = {"textcoords": "offset points", "ha": "center", "fontsize": 8, "color": INK}
        ax.annotate(signed(place[0]), place, (0, 7), **style)
    ax.axvline(0, color=INK, linewidth=1)
    names = [f"{c.b} − {c.a}" for c in comparisons]
    describe(ax, x="difference of mean Dice, with its 95 % interval", grid="x", rows=names)
    ax.margins(x=0.12)
    return figure


def ablation(found: Ablation) -> Figure:
    """The difference of each technique from the base, with its 95 % interval; green: better, red: worse, grey: neither.

    The band is how far trainings of the base lie apart by their seeds alone; a cross is the difference on bent images.
    """
    table = found.table
    figure, (ax,) = new_figure(WIDTH * 0.8, 1.5 + 0.25 * len(table))
    if not np.isnan(found.noise):
        ax.axvspan(-found.noise, found.noise, color=LINE, alpha=0.6, linewidth=0, label="another seed alone (95 %)")
    rows = np.arange(len(table))
    colours = table["verdict"].map({"better": BETTER, "worse": WORSE}).fillna(SOFT).tolist()
    draw_intervals(ax, table["low"], table["high"], table["difference"], colours)
    if table["bent"].notna().any():
        ax.scatter(table["bent"], rows, s=22, marker="x", color=INK, linewidths=1, zorder=4, label=BENT)
    ax.axvline(0, color=INK, linewidth=1)
    text = f"out-of-fold Dice minus that of {found.base} ({found.dice:.4f}), with its 95 % interval"
    describe(ax, x=text, grid="x", rows=table["technique"])
    if table[["low", "high"]].abs().max(axis=None) > WIDE:  # one bad technique would hide the differences of the others
        ax.set_xscale("symlog", linthresh=WIDE / 3)
        ax.xaxis.set_major_formatter(lambda value, _: f"{value:g}".replace("-", "−"))
    if ax.get_legend_handles_labels()[1]:
        legend(figure, "upper left", 2)
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
        fill = np.where(done, colour, "white")
        ax.scatter(some["minutes"], some["dice"], s=44, color=fill, edgecolor=colour, zorder=3)
        ax.scatter([], [], s=44, color=colour, label=kind)
    if not known["state"].eq("done").all():
        ax.scatter([], [], s=44, color="white", edgecolor=SOFT, label="unfinished")
    logarithmic(ax)
    ax.set(xlim=(known["minutes"].min() / 1.5, known["minutes"].max() * 2))
    text = "minutes of training and inference; an ensemble's with its models'"
    describe(ax, x=text, y="out-of-fold Dice, 95 % interval")
    ax.margins(y=0.08)
    legend(figure, "upper center", 4)
    best = known["dice"] == known["dice"].max()
    name_points(ax, known["minutes"], known["dice"], known["run"] + "/" + known["name"], best)
    return figure


def dice_against_cost(table: pd.DataFrame, families: Sequence[str], image_size: int) -> Figure:
    """Dice (0 to 1) against multiply-adds (10⁹, logarithmic axis) of every architecture, one colour per family.

    table: index architecture, columns family, multiply_adds, parameters (millions) and dice; rows without a Dice are
    left out. The area of a point grows with the parameters; the dotted line connects the architectures that are better
    than all cheaper ones.
    """
    table = table.dropna(subset=["dice"]).sort_values("multiply_adds")
    figure, (ax,) = new_figure(WIDTH, 6.4)
    colours = dict(zip(families, FAMILY_COLOURS, strict=False))
    best = table[table["dice"] >= table["dice"].cummax()]
    ax.step(best["multiply_adds"], best["dice"], where="post", color=SOFT, linewidth=1, linestyle=":", zorder=1)
    for name in families:
        rows = table[table["family"] == name]
        if len(rows):
            area = 12 + 5 * rows["parameters"]
            ax.scatter(rows["multiply_adds"], rows["dice"], s=area, color=colours[name], alpha=0.6, linewidths=0)
            ax.scatter(rows["multiply_adds"], rows["dice"], s=9, color=colours[name], label=name, zorder=3)
    ax.set(xscale="log", xlim=(table["multiply_adds"].min() / 1.4, table["multiply_adds"].max() * 2.2))
    describe(ax, x=f"10⁹ multiply-adds of a forward pass at {image_size} × {image_size}", y="Dice")
    ax.margins(y=0.07)
    for handle in legend(figure, "upper center", 4).legend_handles:
        handle.set_sizes([36])
    name_points(ax, table["multiply_adds"], table["dice"], table.index, table.index.isin(best.index))
    return figure


def instance_scores(table: pd.DataFrame) -> Figure:
    """The average precision of each class, of boxes and masks, and beside it the Dice and the IoU of its masks.

    table: as `utils.formats.score_tables.score_coco` gives it, the mean of the classes in the first row.
    """
    mean, rows = table.iloc[0], table.iloc[1:].reset_index(drop=True)
    figure, axes = new_figure(WIDTH, 1.6 + 0.24 * len(rows), 1, 2)
    places, colours = np.arange(len(rows)), row_colours(rows["class"])
    draw_intervals(axes[0], rows["mask mAP50-95"], rows["mask mAP50"], rows["mask mAP50-95"], colours)
    axes[0].scatter(rows["box mAP50-95"], places, s=40, marker="|", color=INK, zorder=4)
    title = f"mean: mask mAP50 {mean['mask mAP50']:.3f}, mAP50-95 {mean['mask mAP50-95']:.3f}"
    about = "mask mAP50-95 (dot) to mAP50 (end of the bar); box mAP50-95 (line)"
    describe(axes[0], title, about, grid="x", rows=rows["class"])
    draw_intervals(axes[1], rows["Dice"], rows["Dice"], rows["Dice"], colours)
    axes[1].scatter(rows["IoU"], places, s=24, marker="x", color=INK, linewidths=1, zorder=4)
    describe(axes[1], f"mean Dice {mean['Dice']:.3f}, mIoU {mean['IoU']:.3f}", "Dice (dot), IoU (cross)", "", "x")
    axes[1].set_yticks(places, [])
    axes[1].set(ylim=axes[0].get_ylim())
    for ax in axes:
        ax.set(xlim=(-0.02, 1.02))
    return figure


def name_points(
    ax: Axes, x: Sequence[float], y: Sequence[float], names: Sequence[str], bold: Sequence[bool], size: float = 7
) -> None:
    """Write the names beside their points (x, y), moved up or down until none covers another name or point.

    A name is on the right of its point, or on the left where the axes would end before it.
    """
    ax.figure.draw_without_rendering()
    to_data, pixel = ax.transData.inverted(), ax.figure.dpi / 72
    centres = ax.transData.transform(np.column_stack([x, y]))
    taken = [Bbox.from_bounds(*(centre - 4 * pixel), 8 * pixel, 8 * pixel) for centre in centres]
    for across, up, name, strong in sorted(zip(x, y, names, bold, strict=True), key=lambda point: -point[1]):
        (here, height), width = ax.transData.transform((across, up)), 0.6 * size * pixel * len(name)
        fits = here + 5 * pixel + width <= ax.bbox.x1
        edge = here + 5 * pixel if fits else here - 5 * pixel
        for step in sorted(range(-16, 17), key=abs):
            middle = height + 4 * pixel * step
            box = Bbox.from_bounds(edge if fits else edge - width, middle - 4 * pixel, width, 8 * pixel)
            if not box.count_overlaps(taken):
                break
        taken.append(box)
        if abs(step) > 1:
            ends = to_data.transform([(here, height), (edge - pixel if fits else edge + pixel, middle)])
            ax.plot(*ends.T, color=SOFT, linewidth=0.5)
        style = {"fontsize": size, "fontweight": "bold" if strong else "normal", "path_effects": halo(2, "white")}
        place, ha = to_data.transform((edge, middle)), "left" if fits else "right"
        ax.text(*place, name, ha=ha, va="center", color=INK, **style)
