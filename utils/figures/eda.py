"""Draw the figures of the exploratory notebook from the tables of `utils.analysis.statistics`."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from utils.analysis import statistics
from utils.analysis.survey import BINS, Survey
from utils.figures.colours import INK, LINE, PALETTE, SOFT, row_colours
from utils.figures.style import WIDTH, describe, draw_intervals, legend, logarithmic, new_figure
from utils.hand.bend import BENT_DEGREES

SPLITS = {"train": PALETTE[5], "test": PALETTE[0]}
SEXES = {"F": PALETTE[0], "M": PALETTE[5]}


def class_areas(found: Survey) -> Figure:
    """Area of each class as a share of the image, on a logarithmic axis: mean (dot) and smallest to largest (bar)."""
    table = statistics.class_statistics(found)
    ends = 100 * statistics.image_shares(found).groupby(found.bones["class"]).agg(["min", "max"]).reindex(found.classes)
    figure, (ax,) = new_figure(WIDTH * 0.8, 1.2 + 0.22 * len(table))
    draw_intervals(ax, ends["min"], ends["max"], 100 * table["share"], row_colours(table.index))
    logarithmic(ax, " %")
    describe(ax, x="share of the image: mean (dot), smallest to largest (bar)", grid="x", rows=table.index)
    return figure


def overlap_matrix(found: Survey, least: float = 0.0005) -> Figure:
    """Mean IoU of the pairs of classes, as a matrix; cells of pairs below `least` are empty."""
    pairs = statistics.overlap_table(found)
    pairs = pairs[pairs["iou"] >= min(least, pairs["iou"].max())]
    columns, rows = ([name for name in found.classes if name in set(pairs[side])] for side in "ab")
    matrix = np.full((len(rows), len(columns)), np.nan)
    for a, b, iou in zip(pairs["a"], pairs["b"], pairs["iou"], strict=True):
        matrix[rows.index(b), columns.index(a)] = iou
    side = 0.48 * max(len(rows), 4)
    figure, (ax,) = new_figure(side + 2.2, side + 1.0)
    drawn = ax.imshow(np.sqrt(matrix), cmap="YlOrRd", vmin=0)
    for i, j in np.argwhere(~np.isnan(matrix)):
        strong = matrix[i, j] > 0.4 * np.nanmax(matrix)
        ax.text(j, i, f"{matrix[i, j]:.3f}"[1:], ha="center", va="center", fontsize=7, color="white" if strong else INK)
    ax.set_xticks(range(len(columns)), columns, rotation=60, ha="right", rotation_mode="anchor", fontsize=9)
    ax.set_yticks(range(len(rows)), rows, fontsize=9)
    ax.set_xticks(np.arange(len(columns) - 1) + 0.5, minor=True)
    ax.set_yticks(np.arange(len(rows) - 1) + 0.5, minor=True)
    ax.grid(which="minor", color=LINE, linewidth=0.6)
    ax.tick_params(which="minor", length=0)
    describe(ax, "mean IoU of the masks", grid="")
    drawn.set_clim(0, np.sqrt(np.nanmax(matrix, initial=0.01)))
    return figure


def argmax_losses(found: Survey, least: float = 0.001) -> Figure:
    """Dice that classes lose by arg-max, for both rules on shared pixels; only classes that lose more than `least`."""
    lost = 1 - statistics.argmax_cost(found)
    shown = lost[lost.max(axis=1) > least]
    figure, (ax,) = new_figure(WIDTH * 0.8, 1.3 + 0.34 * max(len(shown), 1))
    names = {"smaller": "to the class with the smaller mask", "first": "to the first class in order (numpy.argmax)"}
    for (rule, title), shift, colour in zip(names.items(), (-0.19, 0.19), (PALETTE[5], PALETTE[0]), strict=True):
        label = f"{title}: {lost[rule].mean():.4f} on average"
        ax.barh(np.arange(len(shown)) + shift, shown[rule], height=0.36, color=colour, label=label)
    describe(ax, x="Dice lost although every pixel is known", grid="x", rows=shown.index)
    legend(figure, "upper center", 1, title="a shared pixel goes", title_fontsize=9)
    return figure


def body(sizes: pd.DataFrame) -> Figure:
    """Hand size against height, weight and age with a fitted line and Pearson's r; one point per row of `sizes`.

    `sizes`: the table of `utils.analysis.statistics.bone_sizes`, one row per person.
    """
    titles = {"height_cm": "height (cm)", "weight_kg": "weight (kg)", "age": "age (years)"}
    shown, r = [c for c in titles if c in sizes], statistics.correlations(sizes)
    figure, axes = new_figure(WIDTH, 3.6, 1, len(shown))
    for ax, column in zip(axes, shown, strict=True):
        for sex, colour in SEXES.items():
            some = sizes[sizes["sex"] == sex]
            label = {"F": "women", "M": "men"}[sex]
            ax.scatter(some[column], some["hand_size"], s=20, alpha=0.75, color=colour, linewidths=0, label=label)
        known = sizes[[column, "hand_size"]].dropna().astype(float)
        if known[column].min() < known[column].max():
            slope, start = np.polyfit(known[column], known["hand_size"], 1)
            ends = np.array([known[column].min(), known[column].max()])
            ax.plot(ends, start + slope * ends, color=SOFT, linewidth=1.2, linestyle="--")
        describe(ax, f"{titles[column]}: r = {r[column]:.2f}")
    axes[0].set_ylabel("√ of the hand bones' area (pixels)", fontsize=9)
    legend(figure, "lower center", 2, handles=axes[0].get_legend_handles_labels()[0])
    return figure


def bends(found: Survey) -> Figure:
    """Histogram of the wrists' angles (degrees) in the annotated images; beyond the dashed lines they count as bent."""
    angles = found.images["wrist_angle"].dropna()
    reach = max(1.05 * float(angles.abs().max()), BENT_DEGREES + 3)
    figure, (ax,) = new_figure(WIDTH * 0.8, 3.2)
    bins = np.linspace(-reach, reach, 41)
    bent = angles.abs() > BENT_DEGREES
    ax.hist([angles[~bent], angles[bent]], bins=bins, stacked=True, color=[PALETTE[5], PALETTE[3]], rwidth=0.9)
    for side in (-1, 1):
        ax.axvline(side * BENT_DEGREES, color=SOFT, linestyle="--", linewidth=1)
    title = f"{bent.sum()} of {len(bent)} wrists are bent by more than {BENT_DEGREES:g}°"
    describe(ax, title, "angle between forearm and hand (degrees; positive: clockwise on the screen)", "images", "")
    ax.yaxis.get_major_locator().set_params(integer=True)
    return figure


def exposure(found: Survey) -> Figure:
    """Grey values of train and test: mean histogram with the middle 80 % of the images; mean and standard deviation."""
    figure, axes = new_figure(WIDTH, 3.8, 1, 2)
    centres = (np.arange(BINS) + 0.5) * 256 / BINS
    for split, colour in SPLITS.items():
        here = (found.images["split"] == split).to_numpy()
        if here.any():
            shares = 100 * found.histograms[here]
            low, high = np.percentile(shares, [10, 90], axis=0)
            axes[0].fill_between(centres, low, high, color=colour, alpha=0.2, linewidth=0)
            axes[0].plot(centres, shares.mean(axis=0), color=colour, linewidth=1.6)
            style = {"s": 18, "alpha": 0.7, "linewidths": 0, "color": colour, "label": f"{split} ({here.sum()})"}
            axes[1].scatter(*found.images.loc[here, ["grey_mean", "grey_std"]].to_numpy().T, **style)
    axes[0].set_yscale("log")
    axes[0].set_ylim(bottom=0.003)
    axes[0].yaxis.set_major_formatter(lambda value, _: f"{value:g} %")
    describe(axes[0], "share of the pixels by grey value", "grey value")
    describe(axes[1], "one point per image", "mean grey value", "standard deviation")
    legend(figure, "lower center", 2)
    return figure


def fold_sizes(folds: pd.DataFrame, found: Survey) -> Figure:
    """Images in each fold; those of people with a bent wrist in another colour."""
    counts = pd.crosstab(folds["fold"], folds["bent"]).reindex(columns=[False, True], fill_value=0)
    people = statistics.describe_folds(folds, found)["people"]
    figure, (ax,) = new_figure(WIDTH * 0.8, 1.1 + 0.36 * len(counts))
    ax.barh(counts.index, counts[False], color=PALETTE[5], height=0.7, label="straight wrists")
    if counts[True].any():
        bars = {"color": PALETTE[3], "height": 0.7, "label": "people with a bent wrist"}
        ax.barh(counts.index, counts[True], left=counts[False], **bars)
        legend(figure, "upper center", 2)
    for fold, total in counts.sum(axis=1).items():
        ax.text(total, fold, f"  {total} images, {people[fold]} people", va="center", fontsize=9, color=INK)
    describe(ax, x="images", grid="", rows=[f"fold {fold}" for fold in counts.index])
    ax.set(xlim=(0, 1.3 * counts.sum(axis=1).max()))
    ax.xaxis.get_major_locator().set_params(integer=True)
    return figure
