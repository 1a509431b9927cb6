"""Draw charts of trainings and scores: curves, Dice per class, thresholds, leaderboard."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from utils.figures.colours import INK, PALETTE, SOFT, class_colours, readable
from utils.figures.style import WIDTH, describe, legend, new_figure, signed

KINDS = {"ensemble": "#D55E00", "model": "#0072B2", "fold model": "#56B4E9", "baseline": "#8a97a5"}
"""Colours of the leaderboard's rows."""


def curves(history: pd.DataFrame, column: str = "val_dice", title: str = "validation Dice") -> Figure:
    """Loss, validation score (its best epoch marked) and learning rate over the epochs.

    `history` has one row per epoch and the columns epoch, loss, `column` (NaN if the epoch was not validated) and lr.
    """
    figure, axes = new_figure(WIDTH, 3.0, 1, 3)
    shown = (("loss", "training loss", 5), (column, title, 2), ("lr", "learning rate", 0))
    for ax, (name, heading, colour) in zip(axes, shown, strict=True):
        known = history.dropna(subset=[name])
        size = 3 if len(known) < 60 else 0
        ax.plot(known["epoch"], known[name], color=PALETTE[colour], linewidth=1.6, marker="o", markersize=size)
        describe(ax, heading, "epoch")
        ax.xaxis.get_major_locator().set_params(integer=True)
        ax.margins(y=0.12)
    validated = history.dropna(subset=[column])
    if len(validated):
        best = validated.loc[validated[column].idxmax()]
        axes[1].plot(best["epoch"], best[column], marker="*", markersize=13, color=PALETTE[3], linestyle="")
        describe(axes[1], f"{title}, best {best[column]:.4f} in epoch {best['epoch']:.0f}", "epoch")
    else:
        axes[1].text(0.5, 0.5, "not validated yet", transform=axes[1].transAxes, ha="center", color=SOFT)
    axes[2].ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
    return figure


class LiveCurves:
    """The curves of a training that is running, redrawn in one place of the notebook: `on_epoch=LiveCurves()`."""

    def __init__(self) -> None:
        """Shows nothing until the first call."""
        self.handle = None

    def __call__(self, history: list[dict[str, Any]]) -> None:
        """Redraw with the history so far, one dictionary per epoch with the columns of `curves`."""
        from IPython.display import display

        figure = curves(pd.DataFrame(history))
        if self.handle is None:
            self.handle = display(figure, display_id=True)
        else:
            self.handle.update(figure)


def class_dice(tables: dict[str, pd.DataFrame]) -> Figure:
    """The Dice of each class: its mean (dot) and the range of the middle 80 % of the images (bar).

    `tables`: by name of the model, a table images × classes of Dice in [0, 1], all with the same classes. With only one
    model, each image is also a small point, and the classes have their own colours.
    """
    classes = list(next(iter(tables.values())).columns)
    alone = len(tables) == 1
    step = 0.8 / len(tables)
    figure, (ax,) = new_figure(WIDTH * 0.8, 1.4 + len(classes) * max(0.22, 0.13 * len(tables)))
    own, low = class_colours(classes), 1.0
    rng = np.random.default_rng(0)
    for number, (model, table) in enumerate(tables.items()):
        values = table.to_numpy(float)
        rows = np.arange(len(classes)) + (number - (len(tables) - 1) / 2) * step
        tenth, ninetieth = np.nanpercentile(values, [10, 90], axis=0)
        low = min(low, float(np.nanpercentile(values, 2)), float(tenth.min()))
        colours = [readable(own[c]) for c in classes] if alone else [PALETTE[number % 7]] * len(classes)
        if alone:
            heights = rows + rng.uniform(-0.28, 0.28, values.shape)
            ax.scatter(values, heights, s=3, color=SOFT, alpha=0.35, linewidths=0, rasterized=True)
        ax.hlines(rows, tenth, ninetieth, color=colours, linewidth=6 if alone else 3, alpha=0.55)
        label = f"{model}: mean {np.nanmean(values):.4f}"
        means = np.nanmean(values, axis=0)
        ax.scatter(means, rows, s=26, color=colours, edgecolor=INK, linewidths=0.6, zorder=3, label=label)
    text = "Dice: mean (dot), 10th to 90th percentile of the images (bar)"
    describe(ax, label if alone else "", text, grid="x", rows=classes)
    ax.set(xlim=(max(0.0, low - 0.02), 1.004))
    if not alone:
        legend(figure, "upper center", min(len(tables), 2))
    return figure


def thresholds(table: pd.DataFrame, current: float = 0.5) -> Figure:
    """Mean Dice against the threshold: `table` has one row per threshold (its index, 0 to 1), one column per class.

    Thin lines are classes, the thick one is their mean; `current` is the threshold in use.
    """
    figure, axes = new_figure(WIDTH, 3.6, 1, 2)
    mean, colours = table.mean(axis=1), class_colours(table.columns)
    best = mean.idxmax()
    below = table - table.max()
    for name in table.columns if len(table.columns) > 1 else []:
        axes[0].plot(table.index, below[name], color=readable(colours[name]), linewidth=0.8, alpha=0.7)
    axes[0].plot(table.index, mean - mean.max(), color=INK, linewidth=2.2, label="mean of the classes")
    depth = min(0.05, -float(below.min().min())) or 0.01  # equal everywhere, if nothing depends on the threshold
    axes[0].set_ylim(-1.05 * depth, 0.25 * depth)  # no line is above 0: room for the legend
    axes[0].legend(loc="upper right", fontsize=9, frameon=False)
    axes[1].plot(table.index, mean, color=INK, linewidth=2.2)
    axes[1].plot(best, mean[best], marker="*", markersize=13, color=PALETTE[3])
    titles = "Dice below each class's own best", f"mean Dice: best {mean[best]:.4f} at {best:g}"
    for ax, title in zip(axes, titles, strict=True):
        ax.axvline(current, color=SOFT, linestyle="--", linewidth=1)
        describe(ax, title, f"threshold (dashed: {current:g}, in use)")
    return figure


def leaderboard(table: pd.DataFrame) -> Figure:
    """Out-of-fold Dice (filled dots) and test Dice (rings) of ensemble, models, fold models and baseline.

    `table` has the columns kind, name (or model and fold, as `utils.pipeline.leaderboard.read_leaderboard` gives them),
    oof_dice and test_dice, in [0, 1], NaN if unknown. Dots, because bars from 0 would hide differences near 0.97.
    """
    if "name" not in table:
        folds = table["fold"].map(lambda fold: "" if pd.isna(fold) else f", fold {fold}")
        table = table.assign(name=table["model"] + folds)
    scores = table[["oof_dice", "test_dice"]].astype(float)
    figure, (ax,) = new_figure(WIDTH * 0.8, 1.5 + 0.3 * len(table))
    low, high = float(np.nanmin(scores.to_numpy(), initial=1)), float(np.nanmax(scores.to_numpy(), initial=0))
    low, high = (low, high) if low <= high else (0.0, 1.0)
    room = max(high - low, 0.002)
    for row, (kind, oof, test) in enumerate(zip(table["kind"], scores["oof_dice"], scores["test_dice"], strict=True)):
        colour = KINDS.get(kind, SOFT)
        ax.plot([oof, test], [row, row], color=colour, linewidth=2, alpha=0.4)
        ax.plot(oof, row, marker="o", markersize=8, color=colour, linestyle="")
        ax.plot(test, row, marker="o", markersize=8, markerfacecolor="white", markeredgecolor=colour, linestyle="")
        known = [f"{value:.4f}" for value in (oof, test) if not np.isnan(value)]
        ax.text(high + 0.06 * room, row, " / ".join(known) or "no score yet", va="center", fontsize=9, color=INK)
    describe(ax, x="mean Dice: ● out-of-fold, ○ test", grid="x", rows=table["name"])
    for label, kind in zip(ax.get_yticklabels(), table["kind"], strict=True):
        label.set_fontweight("bold" if kind == "ensemble" else "normal")
    ax.set(xlim=(low - 0.06 * room, high + 0.34 * room))
    return figure


def formats(table: pd.DataFrame) -> Figure:
    """What each exported format costs: time, size and Dice; PyTorch, with which they are compared, is grey.

    `table` is that of `utils.inference.parity.Parity`; formats without a file are left out. Where there is no truth,
    the third chart has the Dice with PyTorch's masks in place of the change of Dice.
    """
    table = table.dropna(subset=["difference"])
    dice = ("change", signed, "change of mean Dice")
    if table["change"].isna().all():
        dice = ("agreement", "{:.4f}".format, "Dice with PyTorch's masks")
    sizes = ("megabytes", "{:.1f}".format, "size in MB")
    shown = (("milliseconds", "{:.0f}".format, "ms per image on the CPU"), sizes, dice)
    figure, axes = new_figure(WIDTH, 1.0 + 0.36 * len(table), 1, 3)
    colours = [SOFT if name == "pytorch" else PALETTE[5] for name in table.index]
    for ax, (column, text, title) in zip(axes, shown, strict=True):
        values, rows = table[column].to_numpy(float), range(len(table))
        if column == dice[0]:  # differences are small, so the axis does not begin at zero
            span = max(float(np.ptp(values)), 0.0005)
            ax.scatter(values, rows, color=colours, s=40, zorder=3)
            ax.set_xlim(values.min() - 0.15 * span, values.max() + 0.45 * span)
            ax.locator_params(axis="x", nbins=4)
        else:
            span = values.max()
            ax.barh(rows, values, color=colours, height=0.6)
            ax.set_xlim(0, 1.25 * span)
        for row, value in zip(rows, values, strict=True):
            ax.text(value + 0.04 * span, row, text(value), va="center", fontsize=9, color=INK)
        describe(ax, title, grid="x", rows=table.index if ax is axes[0] else [""] * len(table))
    return figure
