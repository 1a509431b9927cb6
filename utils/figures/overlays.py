"""Images with masks drawn on them: outlines, soft labels of a batch, the errors of a prediction."""

import re
import textwrap
from collections.abc import Sequence

import contourpy
import cv2
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.path import Path
from matplotlib.patheffects import withStroke

from utils.figures.style import INK, SOFT, WIDTH, NotebookFigure, class_colours, new_figure
from utils.masks import rle
from utils.masks.dice import dice_per_class
from utils.masks.labels import coverage

MISSED, FALSE = "#3FA7FF", "#FF8C1A"
"""Colours of pixels that a prediction lacks, and of those it has wrongly."""


def show_image(ax: Axes, image: np.ndarray, size: tuple[int, int] | None = None) -> None:
    """Draw an image, uint8 (h, w) or (h, w, 3), without axes; `size` (H, W) stretches it to its original pixels."""
    height, width = size or image.shape[:2]
    extent = (-0.5, width - 0.5, height - 0.5, -0.5)
    ax.imshow(image, cmap="gray", vmin=0, vmax=255, extent=extent, interpolation="antialiased")
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(False)


def overlay(
    ax: Axes,
    image: np.ndarray,
    rles: Sequence[str],
    size: tuple[int, int],
    classes: Sequence[str],
    labels: bool = True,
    fill: float = 0.25,
) -> None:
    """Draw an image, uint8 (h, w) or (h, w, 3), and the outline of each class's mask.

    `rles` are full-size, one a class; `size` is (H, W) of the full image, of which `image` may be a shrunk version.
    fill: opacity of the masks. labels: write the names, beside the mask where it is too small (not for a single class).
    """
    show_image(ax, image, size)
    colours, places = class_colours(classes), {}
    for name, text in zip(classes, rles, strict=True):
        mask, corner = mask_region(text, size)
        if mask.size:
            paths = _outlines(mask, corner, size, image.shape[:2])
            ax.add_collection(
                PathCollection(paths, facecolor=(*colours[name], fill), edgecolor=colours[name], linewidth=0.9)
            )
            ys, xs = (
                float(np.average(np.arange(n), weights=mask.sum(axis)))
                for n, axis in zip(mask.shape, (1, 0), strict=True)
            )
            places[name] = (corner[1] + xs, corner[0] + ys, *mask.shape[::-1])
    if labels and len(classes) > 1:
        _write_names(ax, places, size, colours)


def overlays(
    items: Sequence[tuple[str, np.ndarray, Sequence[str], tuple[int, int]]],
    classes: Sequence[str],
    columns: int = 4,
    labels: bool = True,
) -> Figure:
    """`overlay` of several images, `(title, image, rles, size)` each, as a grid; `labels` as there."""
    figure, axes = image_grid([item[0] for item in items], [item[3] for item in items], columns)
    for ax, (_, image, rles, size) in zip(axes, items, strict=False):
        overlay(ax, image, rles, size, classes, labels)
    return figure


def batch(images: np.ndarray, labels: np.ndarray, classes: Sequence[str], limit: int = 8) -> Figure:
    """Training samples with their soft labels as the network gets them.

    images: uint8 (N, 1 or 3, h, w); labels: uint8 (N, classes, h, w), 255 for a pixel wholly in the class. Both may be
    CPU tensors. At most `limit` samples are shown; the stronger the colour, the larger the label.
    """
    images, labels = np.asarray(images[:limit]), np.asarray(labels[:limit], np.float32) / 255
    palette = np.array(list(class_colours(classes).values()), np.float32)
    figure, axes = image_grid([f"sample {i}" for i in range(len(images))], [images.shape[2:]] * len(images), 4)
    for ax, image, label in zip(axes, images, labels, strict=False):
        grey = np.broadcast_to(image.astype(np.float32) / 255, (3, *image.shape[1:])).transpose(1, 2, 0)
        total = label.sum(axis=0)[..., None]
        colour = np.einsum("chw,cr->hwr", label, palette) / np.maximum(total, 1e-6)
        strength = 0.55 * np.minimum(total, 1)
        show_image(ax, np.rint((grey * (1 - strength) + colour * strength) * 255).astype(np.uint8))
    return figure


def errors(
    title: str,
    image: np.ndarray,
    truth: Sequence[str],
    predicted: Sequence[str],
    size: tuple[int, int],
    classes: Sequence[str],
) -> Figure:
    """Missed and false pixels of a prediction: the whole image, and a closer look at the class with the lowest Dice.

    image: uint8 (h, w) or (h, w, 3), may be shrunk; truth, predicted: full-size RLE, one a class; size: (H, W).
    """
    dice = dice_per_class(list(predicted), list(truth))
    worst = int(dice.argmin())
    figure, axes = new_figure(WIDTH, 0.45 * WIDTH * min(size[0] / size[1], 1.4) + 0.7, 1, 2)
    grid = (min(size[0], 1024), min(size[1], 1024))
    wrong = np.zeros((2, *grid), np.uint8)
    for pair in zip(truth, predicted, strict=True):
        _paint_errors(wrong, *pair, size)
    for ax in axes:
        show_image(ax, image, size)
    axes[0].imshow(_coloured(wrong), extent=(-0.5, size[1] - 0.5, size[0] - 0.5, -0.5))
    axes[0].set_title("\n".join(textwrap.wrap(f"{title}, mean Dice {dice.mean():.4f}", 62)), fontsize=10)
    exact = np.zeros((2, *size), np.uint8)
    _paint_errors(exact, truth[worst], predicted[worst], size)
    top, left, bottom, right = _close_up([truth[worst], predicted[worst]], exact, size)
    axes[1].imshow(
        _coloured(exact[:, top:bottom, left:right]), extent=(left - 0.5, right - 0.5, bottom - 0.5, top - 0.5)
    )
    mask, corner = mask_region(truth[worst], size)
    if mask.size:
        outlines = _outlines(mask, corner, size, size)
        axes[1].add_collection(PathCollection(outlines, facecolor="none", edgecolor="white", linewidth=1))
    axes[1].set(xlim=(left - 0.5, right - 0.5), ylim=(bottom - 0.5, top - 0.5))
    axes[1].set_title(f"lowest: {classes[worst]}, Dice {dice[worst]:.4f}", fontsize=10)
    handles = [
        Line2D([], [], marker="s", linestyle="", color=c, label=n) for c, n in ((MISSED, "missed"), (FALSE, "false"))
    ]
    handles.append(
        Line2D([], [], color="white", path_effects=halo(2.5, SOFT), label=f"true outline of {classes[worst]}")
    )
    figure.legend(handles=handles, loc="outside lower center", ncols=3, fontsize=9, frameon=False)
    return figure


def mask_region(text: str | float | None, size: tuple[int, int]) -> tuple[np.ndarray, tuple[int, int]]:
    """The mask of a full-size RLE string within its bounding box, bool (height, width), and the corner (top, left)."""
    starts, ends = rle.parse(text)
    if not starts.size:
        return np.zeros((0, 0), bool), (0, 0)
    width = size[1]
    top, bottom = int(starts[0] // width), int((ends[-1] - 1) // width) + 1
    rows = np.zeros((bottom - top) * width, bool)
    for start, end in zip((starts - top * width).tolist(), (ends - top * width).tolist(), strict=True):
        rows[start:end] = True
    rows = rows.reshape(-1, width)
    columns = np.flatnonzero(rows.any(axis=0))
    left = int(columns[0])
    return rows[:, left : int(columns[-1]) + 1], (top, left)


def image_grid(
    titles: Sequence[str], sizes: Sequence[tuple[int, int]], columns: int
) -> tuple[NotebookFigure, list[Axes]]:
    """Axes for images of `sizes` (h, w) under wrapped titles, as high as their shapes need; no more than titles."""
    columns = max(1, min(columns, len(titles)))
    width = min(WIDTH / columns, 5.0)
    texts = ["\n".join(textwrap.wrap(title, int(width / 0.085))) for title in titles]
    rows = -(-len(titles) // columns)
    lines = max(text.count("\n") + 1 for text in texts)
    height = width * min(max(h / w for h, w in sizes), 2.0) + 0.2 * lines + 0.12
    figure, axes = new_figure(width * columns, rows * height, max(rows, 1), columns)
    for ax in axes[len(titles) :]:
        ax.remove()
    for ax, text in zip(axes, texts, strict=False):
        ax.set_title(text, fontsize=9, color=INK)
    return figure, axes[: len(titles)]


def outlines(text: str, size: tuple[int, int], grid: tuple[int, int]) -> list[Path]:
    """The outlines of a full-size RLE mask, smooth at the resolution of `grid` (h, w), in full-size pixels."""
    return _outlines(*mask_region(text, size), size, grid)


def _outlines(mask: np.ndarray, corner: tuple[int, int], size: tuple[int, int], grid: tuple[int, int]) -> list[Path]:
    """The mask's outlines, smooth at the resolution of `grid` (h, w), in full-size pixels; holes included."""
    soft, (top, left) = coverage(mask, corner, size, grid)
    field = np.pad(soft, 1).astype(np.float32) / 255
    points, codes = contourpy.contour_generator(z=field, fill_type="OuterCode").filled(min(0.5, field.max() / 2), 2.0)
    scale, offset = np.array([size[1] / grid[1], size[0] / grid[0]]), np.array([left - 0.5, top - 0.5])
    return [Path((p + offset) * scale - 0.5, c) for p, c in zip(points, codes, strict=True)]


def _write_names(ax: Axes, places: dict[str, tuple], size: tuple[int, int], colours: dict[str, tuple]) -> None:
    """Names inside the masks that are large enough, the others beside with a line; "finger-12" is written 12."""
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
        edge = (
            max(sign * (places[name][0] + sign * places[name][2] / 2) for *_, name in group) * sign + sign * 2 * letter
        )
        room = max(len(text) for _, _, text, _ in group) * letter
        edge = min(edge, size[1] - room) if sign > 0 else max(edge, room)
        for (y, x, text, name), level in zip(group, levels, strict=True):
            ax.plot([x, edge], [y, level], color=colours[name], linewidth=0.6)
            ha = "left" if sign > 0 else "right"
            ax.text(edge, level, text, color=colours[name], ha=ha, path_effects=halo(1.6), **style)


def halo(width: float, colour: str = "black") -> list[withStroke]:
    """Path effects that keep text readable on any background; width in points."""
    return [withStroke(linewidth=width, foreground=colour)]


def _paint_errors(wrong: np.ndarray, truth: str, predicted: str, size: tuple[int, int]) -> None:
    """Add one class's missed and false pixels to `wrong`, uint8 (2, h, w) coverage on any grid."""
    runs = rle.parse(truth), rle.parse(predicted)
    for plane, (one, other) in zip(wrong, (runs, runs[::-1]), strict=True):
        mask, corner = mask_region(_difference(one, other), size)
        soft, (top, left) = coverage(mask, corner, size, plane.shape)
        part = plane[top : top + soft.shape[0], left : left + soft.shape[1]]
        np.maximum(part, soft, out=part)


def _difference(one: rle.Runs, other: rle.Runs) -> str:
    """The RLE string of what is in the first mask and not in the second."""
    outside = np.append(0, other[1]), np.append(other[0], rle.LARGEST)
    keep = outside[0] < outside[1]
    return rle.to_string(*rle.majority([one[0], outside[0][keep]], [one[1], outside[1][keep]], 2))


def _coloured(wrong: np.ndarray) -> np.ndarray:
    """RGBA (h, w, 4) of missed and false coverage, uint8 (2, h, w); thin errors are made visible by their root."""
    share = np.sqrt(wrong.astype(np.float32) / 255)
    total = share.sum(axis=0)
    colour = (
        np.einsum("khw,kr->hwr", share, np.array([to_rgb(MISSED), to_rgb(FALSE)])) / np.maximum(total, 1e-6)[..., None]
    )
    return np.dstack([colour, np.minimum(total, 0.9)])


def _close_up(rles: Sequence[str], wrong: np.ndarray, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """What to look at closely, (top, left, bottom, right): the masks with a margin, or a part of widespread masks.

    The part is the third of the image's side with most of the wrong pixels, uint8 (2, H, W).
    """
    regions = [(mask.shape, corner) for mask, corner in (mask_region(text, size) for text in rles) if mask.size]
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
