"""Draw instances: boxes, outlines and scores in the image, and the scores of every class."""

import re
from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from utils.figures.overlays import Picture, draw_outlines, halo, image_grid, show_image
from utils.figures.style import INK, WIDTH, class_colours, describe, new_figure, readable
from utils.models.instances import Instances


def instance_overlays(
    items: Sequence[Picture], found: Sequence[Instances], classes: Sequence[str], least_score: float, columns: int = 2
) -> Figure:
    """Images with the instances found in them: box, outline, class and score, over the true outlines in white.

    items: as in `overlays`, with the true masks. found: of each image, at the network's resolution. Instances with a
    lower score than `least_score` are left out.
    """
    figure, axes = image_grid([item[0] for item in items], [item[3] for item in items], columns)
    colours = class_colours(classes)
    for ax, (_, image, rles, size), each in zip(axes, items, found, strict=True):
        show_image(ax, image, size)
        for text in rles:
            draw_outlines(ax, text, size, size, "white", 0.7)
        shown = each.take(each.scores >= least_score)
        height, width = shown.masks.shape[1:]
        scale = np.tile([size[1] / width, size[0] / height], 2)
        x, y = ((np.arange(n) + 0.5) * full / n - 0.5 for n, full in ((width, size[1]), (height, size[0])))
        for box, label, score, mask in zip(
            shown.boxes.numpy() * scale - 0.5, shown.labels.tolist(), shown.scores.tolist(), shown.masks, strict=True
        ):
            colour = colours[classes[label]]
            ax.add_patch(Rectangle(box[:2], *(box[2:] - box[:2]), fill=False, color=colour, linewidth=0.7, alpha=0.8))
            if mask.min() < 0.5 < mask.max():
                ax.contour(x, y, mask.numpy(), [0.5], colors=[colour], linewidths=1.2)
            name = re.sub(r"^.*-(\d+)$", r"\1", classes[label])
            style = {"fontsize": 6, "va": "bottom", "clip_on": True, "path_effects": halo(1.4)}
            ax.text(*box[:2], f"{name} {100 * score:.0f}", color=colour, **style)
    line = {"color": "white", "path_effects": halo(2.5, INK), "label": "true outline"}
    handles = [Line2D([], [], **line), Line2D([], [], color=INK, label="found: box, outline, class, score in per cent")]
    figure.legend(handles=handles, loc="outside lower center", ncols=2, fontsize=9, frameon=False)
    return figure


def instance_scores(table: pd.DataFrame) -> Figure:
    """The average precision of each class, of boxes and masks, and beside it the Dice and the IoU of its masks.

    table: as `utils.formats.scores.score_coco` gives it, the mean of the classes in the first row.
    """
    mean, rows = table.iloc[0], table.iloc[1:].reset_index(drop=True)
    figure, axes = new_figure(WIDTH, 1.6 + 0.24 * len(rows), 1, 2)
    places, colours = np.arange(len(rows)), class_colours(rows["class"])
    shown = [readable(colours[name]) for name in rows["class"]]
    axes[0].hlines(places, rows["mask mAP50-95"], rows["mask mAP50"], color=shown, linewidth=6, alpha=0.45)
    dots = {"s": 26, "color": shown, "edgecolor": INK, "linewidths": 0.6, "zorder": 3}
    axes[0].scatter(rows["mask mAP50-95"], places, **dots)
    axes[0].scatter(rows["box mAP50-95"], places, s=40, marker="|", color=INK, zorder=4)
    title = f"mean: mask mAP50 {mean['mask mAP50']:.3f}, mAP50-95 {mean['mask mAP50-95']:.3f}"
    about = "mask mAP50-95 (dot) to mAP50 (end of the bar); box mAP50-95 (line)"
    describe(axes[0], title, about, grid="x", rows=rows["class"])
    axes[1].scatter(rows["Dice"], places, **dots)
    axes[1].scatter(rows["IoU"], places, s=24, marker="x", color=INK, linewidths=1, zorder=4)
    describe(axes[1], f"mean Dice {mean['Dice']:.3f}, mIoU {mean['IoU']:.3f}", "Dice (dot), IoU (cross)", "", "x")
    axes[1].set_yticks(places, [])
    axes[1].set(ylim=axes[0].get_ylim())
    for ax in axes:
        ax.set(xlim=(-0.02, 1.02))
        ax.set_axisbelow(True)
    return figure
