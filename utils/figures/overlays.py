"""Draw images with masks: outlines, labels of a batch, errors of a prediction, and where each class lies."""

import re
import textwrap
from collections.abc import Sequence

import contourpy
import cv2
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.colors import PowerNorm, to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.path import Path
from matplotlib.patheffects import withStroke

from utils.analysis.survey import Survey
from utils.data.cache import make_entry
from utils.figures.colours import INK, SOFT, class_colours
from utils.figures.style import WIDTH, NotebookFigure, legend, new_figure
from utils.masks.dice import dice_of_masks
from utils.masks.labels import coverage
from utils.masks.masks import Masks

Size = tuple[int, int]
"""Height and width in pixels."""
Picture = tuple[str, np.ndarray, Masks]
"""An image to draw with its full-size masks: title, uint8 (h, w) or (h, w, 3), masks."""
MISSED, FALSE = "#3FA7FF", "#FF8C1A"
"""Colours of missed pixels (false negatives) and of false pixels (false positives)."""


def show_image(ax: Axes, image: np.ndarray, size: Size | None = None) -> None:
    """Draw an image, uint8 (h, w) or (h, w, 3), without axes; `size` (H, W) stretches it to its original pixels."""
    height, width = size or image.shape[:2]
    extent = (-0.5, width - 0.5, height - 0.5, -0.5)
    ax.imshow(image, cmap="gray", vmin=0, vmax=255, extent=extent, interpolation="antialiased")
    ax.set_axis_off()


def overlay(ax: Axes, image: np.ndarray, masks: Masks, classes: Sequence[str], labels: bool = True) -> None:
    """Draw an image, uint8 (h, w) or (h, w, 3), and the outline of each class's mask.

    masks: of the full image, of which `image` may be a smaller version. labels: write the class names, inside the masks
    or, if a mask is too small, beside it (not if there is one class).
    """
    show_image(ax, image, masks.size)
    colours, places = class_colours(classes), {}
    for number, name in enumerate(classes):
        mask, (top, left) = masks.region(number)
        if mask.size:
            draw_outlines(ax, masks, number, image.shape[:2], colours[name], 0.9, (*colours[name], 0.25))
            ys, xs = np.nonzero(mask)
            places[name] = (left + xs.mean(), top + ys.mean(), *mask.shape[::-1])
    if labels and len(classes) > 1:
        _write_names(ax, places, masks.size, colours)


def overlays(items: Sequence[Picture], classes: Sequence[str], columns: int = 4, labels: bool = True) -> Figure:
    """A grid of images, each drawn by `overlay`; `picture_items` makes `items` from rows of the index."""
    figure, axes = image_grid([item[0] for item in items], [item[2].size for item in items], columns)
    for ax, (_, image, masks) in zip(axes, items, strict=False):
        overlay(ax, image, masks, classes, labels)
    return figure


def picture_items(
    images: pd.DataFrame, titles: Sequence[str], classes: list[str], image_size: int = 512
) -> list[Picture]:
    """What `overlays` draws, for annotated rows of the index.

    Images have `image_size` × `image_size` pixels. Raises what `utils.data.cache.make_entry` raises.
    """
    entries = (make_entry(row.image, row.annotation, classes, (image_size, image_size)) for row in images.itertuples())
    return [(title, entry.image, entry.truth) for title, entry in zip(titles, entries, strict=True)]


def batch(images: np.ndarray, labels: np.ndarray, classes: Sequence[str], limit: int = 8) -> Figure:
    """Training samples with their soft labels as the network gets them.

    images: uint8 (N, 1 or 3, h, w); labels: float (N, classes, h, w), 1 for a pixel wholly in the class. Both may be
    CPU tensors. At most `limit` samples are shown; a stronger colour means a larger label.
    """
    images, labels = np.asarray(images[:limit]), np.asarray(labels[:limit], np.float32)
    palette = np.array(list(class_colours(classes).values()), np.float32)
    figure, axes = image_grid([f"sample {i}" for i in range(len(images))], [images.shape[2:]] * len(images), 4)
    for ax, image, label in zip(axes, images, labels, strict=False):
        grey = np.broadcast_to(image.astype(np.float32) / 255, (3, *image.shape[1:])).transpose(1, 2, 0)
        total = label.sum(axis=0)[..., None]
        colour = np.einsum("chw,cr->hwr", label, palette) / np.maximum(total, 1e-6)
        strength = 0.55 * np.minimum(total, 1)
        show_image(ax, np.rint((grey * (1 - strength) + colour * strength) * 255).astype(np.uint8))
    return figure


def errors(title: str, image: np.ndarray, truth: Masks, predicted: Masks, classes: Sequence[str]) -> Figure:
    """Missed and false pixels of a prediction: the whole image, and a close-up of the class with the lowest Dice.

    image: uint8 (h, w) or (h, w, 3), of any resolution.
    """
    dice, size = dice_of_masks(predicted, truth), truth.size
    worst = int(dice.argmin())
    figure, axes = new_figure(WIDTH, 0.45 * WIDTH * min(size[0] / size[1], 1.4) + 0.7, 1, 2)
    grid = (min(size[0], 1024), min(size[1], 1024))
    wrong = _error_maps(truth, predicted, grid)
    for ax in axes:
        show_image(ax, image, size)
    axes[0].imshow(_coloured(wrong), extent=(-0.5, size[1] - 0.5, size[0] - 0.5, -0.5))
    axes[0].set_title("\n".join(textwrap.wrap(f"{title}, mean Dice {dice.mean():.4f}", 62)), fontsize=10)
    true, found = truth.select([worst]), predicted.select([worst])
    exact = _error_maps(true, found, size)
    top, left, bottom, right = _close_up([true, found], exact)
    extent = (left - 0.5, right - 0.5, bottom - 0.5, top - 0.5)
    axes[1].imshow(_coloured(exact[:, top:bottom, left:right]), extent=extent)
    draw_outlines(axes[1], truth, worst, size, "white")
    axes[1].set(xlim=extent[:2], ylim=extent[2:])
    axes[1].set_title(f"lowest: {classes[worst]}, Dice {dice[worst]:.4f}", fontsize=10)
    kinds = ((MISSED, "missed"), (FALSE, "false"))
    handles = [Line2D([], [], marker="s", linestyle="", color=colour, label=label) for colour, label in kinds]
    line = {"color": "white", "path_effects": halo(2.5, SOFT), "label": f"true outline of {classes[worst]}"}
    handles.append(Line2D([], [], **line))
    legend(figure, "lower center", 3, handles=handles)
    return figure


def density_maps(found: Survey) -> Figure:
    """Where each class lies: the share of the annotated images that have it there, all maps on one colour scale."""
    columns = min(8, len(found.classes))
    rows = -(-len(found.classes) // columns)
    side = min((WIDTH - 0.9) / columns, 4.0)
    figure, axes = new_figure(side * columns + 0.9, rows * (side + 0.25) + 0.1, rows, columns)
    scale = PowerNorm(0.5, 0, max(float(found.density.max()), 1e-6))  # square root, so that faint maps are seen
    for ax in axes[len(found.classes) :]:
        ax.remove()
    axes = axes[: len(found.classes)]
    for ax, name, plane in zip(axes, found.classes, found.density, strict=True):
        drawn = ax.imshow(plane, cmap="magma", norm=scale)
        ax.set_axis_off()
        ax.set_title(name, fontsize=9, color=INK)
    bar = figure.colorbar(drawn, ax=axes, shrink=0.8, pad=0.01)
    bar.ax.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.3g} %")
    bar.ax.tick_params(labelsize=8)
    bar.set_label("of the images", fontsize=9)
    return figure


def image_grid(titles: Sequence[str], sizes: Sequence[Size], columns: int) -> tuple[NotebookFigure, list[Axes]]:
    """A figure with axes for images of `sizes` (h, w), one per title; long titles are wrapped."""
    columns = min(columns, len(titles))
    width = min(WIDTH / columns, 5.0)
    texts = ["\n".join(textwrap.wrap(title, int(width / 0.085))) for title in titles]
    rows = -(-len(titles) // columns)
    lines = max(text.count("\n") + 1 for text in texts)
    height = width * min(max(h / w for h, w in sizes), 2.0) + 0.2 * lines + 0.12
    figure, axes = new_figure(width * columns, rows * height, rows, columns)
    for ax in axes[len(titles) :]:
        ax.remove()
    for ax, text in zip(axes, texts, strict=False):
        ax.set_title(text, fontsize=9, color=INK)
    return figure, axes[: len(titles)]


def draw_outlines(
    ax: Axes, masks: Masks, number: int, grid: Size, colour: str | tuple, width: float = 1.0, fill: str | tuple = "none"
) -> None:
    """Draw the outlines, holes included, of one mask of an image; nothing if it is empty.

    The lines are as smooth as those of the mask at the resolution `grid` (h, w); `width` is in points.
    """
    mask, corner = masks.region(number)
    if mask.size:
        paths = _outlines(mask, corner, masks.size, grid)
        ax.add_collection(PathCollection(paths, facecolor=fill, edgecolor=colour, linewidth=width))


def _outlines(mask: np.ndarray, corner: tuple[int, int], size: Size, grid: Size) -> list[Path]:
    """The mask's outlines, holes included, in full-size pixels."""
    soft, (top, left) = coverage(mask, corner, size, grid)
    field = np.pad(soft, 1).astype(np.float32) / 255
    points, codes = contourpy.contour_generator(z=field, fill_type="OuterCode").filled(min(0.5, field.max() / 2), 2.0)
    scale, offset = np.array([size[1] / grid[1], size[0] / grid[0]]), np.array([left - 0.5, top - 0.5])
    return [Path((p + offset) * scale - 0.5, c) for p, c in zip(points, codes, strict=True)]


def _write_names(ax: Axes, places: dict[str, tuple], size: Size, colours: dict[str, tuple]) -> None:
    """Write the names inside the masks that are large enough, the others beside them; "finger-12" is written 12.

    places: for each class its mask's centre x, y and its width and height, in pixels.
    """
    inches = ax.get_position().width * ax.figure.get_figwidth()
    points = 6.0 if inches < 3.5 else 8.0
    line, letter = (points * factor / 72 / inches * size[1] for factor in (1.25, 0.62))
    style = {"fontsize": points, "va": "center", "clip_on": True}
    beside = []
    for name, (x, y, width, height) in places.items():
        text = re.sub(r"^.*-(\d+)$", r"\1", name)
        if len(text) * letter <= max(width, 2.2 * letter) and line <= 1.3 * height:
            ax.text(x, y, text, color="white", ha="center", path_effects=halo(points / 6), **style)
        else:
            beside.append((y, x, text, name))
    middle = np.median([x for _, x, _, _ in beside]) if beside else 0
    for sign, group in ((-1, [b for b in beside if b[1] < middle]), (1, [b for b in beside if b[1] >= middle])):
        if not group:
            continue
        group.sort()
        order = line * np.arange(len(group))
        levels = np.maximum.accumulate([b[0] for b in group] - order) + order  # each below the one before
        levels -= max(0.0, levels[-1] + line - size[0])
        outermost = max(sign * places[name][0] + places[name][2] / 2 for *_, name in group)
        edge = sign * (outermost + 2 * letter)
        room = max(len(text) for _, _, text, _ in group) * letter
        edge = min(edge, size[1] - room) if sign > 0 else max(edge, room)
        for (y, x, text, name), level in zip(group, levels, strict=True):
            ax.plot([x, edge], [y, level], color=colours[name], linewidth=0.6)
            ha = "left" if sign > 0 else "right"
            ax.text(edge, level, text, color=colours[name], ha=ha, path_effects=halo(1.6), **style)


def halo(width: float, colour: str = "black") -> list[withStroke]:
    """Path effects that keep text readable on any background; width in points."""
    return [withStroke(linewidth=width, foreground=colour)]


def _error_maps(truth: Masks, predicted: Masks, grid: Size) -> np.ndarray:
    """Missed and false pixels of all classes as coverage of the cells of `grid` (h, w), uint8 (2, h, w)."""
    wrong = np.zeros((2, *grid), np.uint8)
    for plane, masks in zip(wrong, (truth.difference(predicted), predicted.difference(truth)), strict=True):
        for number in range(len(masks)):
            soft, (top, left) = coverage(*masks.region(number), masks.size, grid)
            part = plane[top : top + soft.shape[0], left : left + soft.shape[1]]
            np.maximum(part, soft, out=part)
    return wrong


def _coloured(wrong: np.ndarray) -> np.ndarray:
    """RGBA (h, w, 4) of missed and false coverage, uint8 (2, h, w); its square root makes thin errors visible."""
    share = np.sqrt(wrong.astype(np.float32) / 255)
    total = share.sum(axis=0)
    mixed = np.einsum("khw,kr->hwr", share, np.array([to_rgb(MISSED), to_rgb(FALSE)]))
    return np.dstack([mixed / np.maximum(total, 1e-6)[..., None], np.minimum(total, 0.9)])


def _close_up(masks: Sequence[Masks], wrong: np.ndarray) -> tuple[int, int, int, int]:
    """The box (top, left, bottom, right) around the only mask of each, with a margin; if too large, a part of it.

    The part has a third of the image's longer side and the most wrong pixels (`wrong`: uint8 (2, H, W)).
    """
    regions = [(mask.shape, corner) for mask, corner in (each.region(0) for each in masks) if mask.size]
    size = wrong.shape[1:]
    low = np.min([corner for _, corner in regions] or [(0, 0)], axis=0)
    high = np.max([np.add(corner, shape) for shape, corner in regions] or [size], axis=0)
    half, centre = int(0.75 * (high - low).max()) + 8, (low + high) // 2
    if half > max(size) / 3:
        half = max(size) // 6
        dense = cv2.boxFilter((wrong > 0).any(axis=0).astype(np.float32), -1, (2 * half + 1, 2 * half + 1))
        centre = np.array(np.unravel_index(dense.argmax(), size))
    centre = np.clip(centre, half, np.maximum(np.array(size) - half, half))
    top, left = np.maximum(centre - half, 0).tolist()
    bottom, right = np.minimum(centre + half, size).tolist()
    return top, left, bottom, right
