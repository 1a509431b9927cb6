"""What the imports from labelling tools share: their options, and shapes written as a data folder."""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from utils.data.findings import refuse
from utils.formats.image_files import ImageFiles, image_size
from utils.formats.read_folder import Polygons
from utils.formats.write_folder import Imported, write_folder


class Options(NamedTuple):
    """What every import can be told.

    images: folder that holds the images, also in folders of it; "": that of the annotations. classes: file with the
    classes in their order; "" takes the format's own. people: see `write_folder`. boxes: take boxes as rectangles;
    otherwise they are refused, because they are no outlines.
    """

    images: str = ""
    classes: str = ""
    people: str = "auto"
    boxes: bool = False


DEFAULT = Options()


class Shape(NamedTuple):
    """An annotated shape: its label, its polygons, and whether it is only a box."""

    label: str
    polygons: list[np.ndarray]
    is_box: bool = False


def ellipse(centre: Iterable[float], radii: Iterable[float], degrees: float = 0.0) -> np.ndarray:
    """An ellipse as a polygon of 72 points, float64 (72, 2)."""
    t, turn = np.linspace(0, 2 * np.pi, 72, endpoint=False), np.radians(degrees)
    x, y = np.array([np.cos(t), np.sin(t)]) * np.array(list(radii))[:, None]
    turned = np.column_stack([x * np.cos(turn) - y * np.sin(turn), x * np.sin(turn) + y * np.cos(turn)])
    return turned + np.array(list(centre))


def checked(points: np.ndarray, least: int = 3) -> np.ndarray:
    """The points (n, 2). Raises ValueError if there are too few, or if one is not finite or far outside any image."""
    if points.ndim != 2 or points.shape[1] != 2 or len(points) < least or not (np.abs(points) < 1e6).all():
        raise ValueError(f"expected at least {least} finite points x, y, found {points.shape}")
    return points


def write_shapes(
    found: Iterable[tuple[str, tuple[int, int] | None, list[Shape]]],
    images: str | Path,
    out: str | Path,
    classes: list[str],
    options: Options,
    source: str,
) -> str:
    """Write (image name, size, shapes) of every image as a data folder; DataError lists everything that is missing."""
    files, problems, imported = ImageFiles(images), [], []
    for name, size, shapes in found:
        boxes = [shape.label for shape in shapes if shape.is_box]
        if boxes and not options.boxes:
            problems.append(f"{name}: {len(boxes)} boxes without outline ({boxes[0]}, …); --boxes takes them as masks")
        try:
            path, plain = files.find(name)
            real = image_size(path)
            if size not in (None, real):
                raise ValueError(f"{name}: {size[1]} × {size[0]} pixels, but {path} has {real[1]} × {real[0]}")
        except (OSError, ValueError) as error:
            problems.append(str(error))
            continue
        polygons: Polygons = {label: [] for label in classes}
        for shape in shapes:
            polygons[shape.label] += shape.polygons
        imported.append(Imported(path, plain, polygons))
    refuse(f"{source}: {len(problems)} problems", problems)
    return write_folder(out, imported, classes, options.people)
