"""Draw the figures of the model zoo: Dice against cost, and class activation maps."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from utils.figures.overlays import draw_outlines, halo, image_grid, show_image
from utils.figures.style import INK, LINE, PALETTE, SOFT, WIDTH, new_figure

FAMILY_COLOURS = (*PALETTE[:6], "#8E5BD0", SOFT, INK)


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
    ax.set(xscale="log", xlabel=f"10⁹ multiply-adds of a forward pass at {image_size} × {image_size}", ylabel="Dice")
    ax.set_xlim(table["multiply_adds"].min() / 1.4, table["multiply_adds"].max() * 2.2)
    ax.margins(y=0.07)
    ax.grid(color=LINE, linewidth=0.7)
    ax.set_axisbelow(True)
    legend = figure.legend(loc="outside upper center", ncols=4, fontsize=9, frameon=False)
    for handle in legend.legend_handles:
        handle.set_sizes([36])
    name_points(ax, table["multiply_adds"], table["dice"], table.index, table.index.isin(best.index))
    return figure


def activations(
    image: np.ndarray, shares: np.ndarray, truth: Sequence[str], size: tuple[int, int], classes: Sequence[str]
) -> Figure:
    """Class activation maps over one image, each with the true outline (blue) and its peak (cross).

    image: uint8 (h, w) or (h, w, 3); shares: float (classes, h, w), each map as a share of its maximum; truth:
    full-size RLE, one per class; size: (H, W).
    """
    figure, axes = image_grid(list(classes), [size] * len(classes), 4)
    extent = (-0.5, size[1] - 0.5, size[0] - 0.5, -0.5)
    for ax, plane, text in zip(axes, shares, truth, strict=False):
        show_image(ax, image, size)
        heat = np.clip(plane, 0, 1)
        ax.imshow(heat, cmap="inferno", vmin=0, vmax=1, alpha=0.75 * heat**0.5, extent=extent)
        draw_outlines(ax, text, size, image.shape[:2], "#56B4E9", 1.2)
        if plane.max() <= 0:
            ax.text(0.5, 0.03, "nothing found", transform=ax.transAxes, ha="center", color="white", fontsize=8)
            continue
        y, x = np.unravel_index(plane.argmax(), plane.shape)
        y, x = (y + 0.5) * size[0] / plane.shape[0], (x + 0.5) * size[1] / plane.shape[1]
        ax.plot(x, y, marker="+", markersize=10, markeredgewidth=1.6, color="white")
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
