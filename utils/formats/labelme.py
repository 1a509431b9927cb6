"""Annotations of labelme, one JSON file an image, as a data folder of the competition."""

import base64
import binascii
from pathlib import Path
from typing import Any

import numpy as np

from utils.data.annotation import parse_json
from utils.data.findings import refuse
from utils.data.image_header import SUFFIXES, files_below
from utils.formats.class_order import class_order
from utils.formats.imported_shapes import (
    DEFAULT,
    LeftOut,
    Options,
    Shape,
    checked,
    ellipse,
    rectangle,
    write_shapes,
)
from utils.masks.outlines import outline

POINTS = {"polygon": 0, "rectangle": 2, "circle": 2, "mask": 2, "oriented_rectangle": 4}
"""The points that shapes which are masks have; a polygon has any number."""


def from_labelme(folder: str | Path, out: str | Path, options: Options = DEFAULT) -> str:
    """A folder of labelme's JSON files to a data folder. Returns one line about what was written.

    Polygons, circles, masks, oriented rectangles (their four corners) and, with `boxes`, rectangles are read; lines
    and points are no masks: they are left out and counted. Raises DataError with all problems.
    """
    folder, found, problems, left_out = Path(folder), [], [], LeftOut(options.skip_bad)
    for path in files_below(folder, ".json"):
        try:
            content = parse_json(path.read_bytes())
            if not isinstance(content, dict) or not isinstance(content.get("shapes"), list):
                raise ValueError("no labelme file: it has no list `shapes`")
            size = (content.get("imageHeight"), content.get("imageWidth"))
            shapes = []
            for number, shape in enumerate(content["shapes"]):
                kind = shape.get("shape_type") if isinstance(shape, dict) else None
                if kind not in (None, "", *POINTS):
                    left_out.kinds[str(kind)] += 1
                    continue
                try:
                    shapes += _labelme_shape(shape)
                except ValueError as error:
                    label = shape.get("label") if isinstance(shape, dict) else ""
                    problems.append(f"{path}: shape {number} ({label}): {error}")
            name = content.get("imagePath") or path.with_suffix(".png").name
            place = path.parent.relative_to(folder) / str(name).replace("\\", "/").rpartition("/")[2]
            place = _renamed(place, path.stem, Path(options.images or folder))
            found.append((place.as_posix(), size if all(size) else None, shapes))
        except (OSError, ValueError) as error:
            problems.append(f"{path}: {error}")
    left_out.settle(f"{folder}: these labelme files can't be used", problems)
    refuse(f"{folder}: expected labelme's JSON files", [] if found else ["there are none"])
    classes = class_order({shape.label for *_, shapes in found for shape in shapes}, options.classes)
    return write_shapes(found, options.images or folder, out, classes, options, str(folder), left_out)


def _renamed(place: Path, stem: str, images: Path) -> Path:
    """The image's place below `images`: that of the JSON file's name where `imagePath` is of before a renaming."""
    if (images / place).exists():
        return place
    beside = (images / place.parent).glob("*")
    same = [path for path in beside if path.stem == stem and path.suffix.lower() in SUFFIXES]
    return place.with_name(same[0].name) if len(same) == 1 else place


def _labelme_shape(shape: Any) -> list[Shape]:
    """The shape of a JSON object. Raises ValueError."""
    if not isinstance(shape, dict) or not isinstance(shape.get("label"), str) or not shape["label"].strip():
        raise ValueError("expected an object with a label")
    label, kind = shape["label"].strip(), shape.get("shape_type") or "polygon"
    try:
        points = np.array(shape.get("points"), np.float64).reshape(-1, 2)
    except (ValueError, TypeError) as error:
        raise ValueError("its points are not [[x, y], …]") from error
    if kind == "polygon":
        return [Shape(label, [checked(points)])]
    if len(points) != POINTS[kind]:
        raise ValueError(f"a {kind} with {len(points)} points; expected {POINTS[kind]}")
    if kind == "oriented_rectangle":
        return [Shape(label, [checked(points)], is_box=True)]
    if kind == "circle":
        radius = float(np.hypot(*(points[1] - points[0])))
        return [Shape(label, [checked(ellipse(points[0], (radius, radius)))])]
    if kind == "rectangle":
        return [Shape(label, [checked(rectangle(*points.ravel()))], is_box=True)]
    mask = _decoded(shape.get("mask"))
    left, top = np.rint(checked(points, 2).min(0)).astype(int)
    return [Shape(label, outline(mask > 0, (int(top), int(left))))]


def _decoded(text: Any) -> np.ndarray:
    """The grey image in a base64 text. Raises ValueError."""
    import cv2

    try:
        raw = np.frombuffer(base64.b64decode(text or ""), np.uint8)
        image = cv2.imdecode(raw, cv2.IMREAD_GRAYSCALE) if raw.size else None
    except (binascii.Error, TypeError) as error:
        raise ValueError(f"its mask is no base64 text ({error})") from error
    if image is None:
        raise ValueError("its mask is no image")
    return image
