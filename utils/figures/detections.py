"""Draw what a network finds: instances in the image, and class activation maps."""

import re
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from utils.figures.colours import INK, class_colours
from utils.figures.overlays import Picture, draw_outlines, halo, image_grid, show_image
from utils.figures.style import legend
from utils.masks.masks import Masks
from utils.models.instances import Instances


def instance_overlays(
    items: Sequence[Picture], found: Sequence[Instances], classes: Sequence[str], least_score: float, columns: int = 2
) -> Figure:
    """Images with the instances found in them: box, outline, class and score, over the true outlines in white.

    items: as in `overlays`, with the true masks. found: of each image, at the network's resolution. Instances with a
    lower score than `least_score` are left out.
    """
    figure, axes = image_grid([item[0] for item in items], [item[2].size for item in items], columns)
    colours = class_colours(classes)
    for ax, (_, image, masks), each in zip(axes, items, found, strict=True):
        size = masks.size
        show_image(ax, image, size)
        for number in range(len(masks)):
            draw_outlines(ax, masks, number, size, "white", 0.7)
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
    legend(figure, "lower center", 2, handles=handles)
    return figure


def activations(image: np.ndarray, shares: np.ndarray, truth: Masks, classes: Sequence[str]) -> Figure:
    """Class activation maps over one image, each with the true outline (blue) and its peak (cross).

    image: uint8 (h, w) or (h, w, 3); shares: float (classes, h, w), each map as a share of its maximum.
    """
    figure, axes = image_grid(list(classes), [truth.size] * len(classes), 4)
    extent = (-0.5, truth.size[1] - 0.5, truth.size[0] - 0.5, -0.5)
    for number, (ax, plane) in enumerate(zip(axes, shares, strict=False)):
        show_image(ax, image, truth.size)
        heat = np.clip(plane, 0, 1)
        ax.imshow(heat, cmap="inferno", vmin=0, vmax=1, alpha=0.75 * heat**0.5, extent=extent)
        draw_outlines(ax, truth, number, image.shape[:2], "#56B4E9", 1.2)
        if plane.max() <= 0:
            ax.text(0.5, 0.03, "nothing found", transform=ax.transAxes, ha="center", color="white", fontsize=8)
            continue
        y, x = np.unravel_index(plane.argmax(), plane.shape)
        y, x = (y + 0.5) * truth.size[0] / plane.shape[0], (x + 0.5) * truth.size[1] / plane.shape[1]
        ax.plot(x, y, marker="+", markersize=10, markeredgewidth=1.6, color="white")
    return figure
