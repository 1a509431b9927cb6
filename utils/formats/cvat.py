"""Annotations that CVAT exports as XML, as a data folder of the competition."""

import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np

from utils.data.competition import HAND_BONES, DataError
from utils.formats.class_order import class_order
from utils.formats.coco_rle import MOST_PIXELS
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


def from_cvat(file: str | Path, out: str | Path, options: Options = DEFAULT) -> str:
    """CVAT's XML ("CVAT for images 1.1") to a data folder. Returns one line about what was written.

    Polygons, masks, ellipses and, with `boxes`, boxes, also turned ones, are read; polylines, points and tags are no
    masks: they are left out and counted. Raises DataError with all problems.
    """
    try:
        root = ET.parse(file).getroot()
    except (OSError, ET.ParseError) as error:
        raise DataError(f"{file}: not an XML file", [str(error)]) from error
    images = root.findall("image")
    if root.tag != "annotations" or not images:
        advice = 'export the task as "CVAT for images 1.1"'
        what = "tracks of a video" if root.find("track") is not None else f"<{root.tag}> without images"
        raise DataError(f"{file}: not a CVAT annotation file", [f"found {what}; {advice}"])
    problems, found, left_out = [], [], LeftOut(options.skip_bad)
    for number, image in enumerate(images):
        name, shapes = image.get("name", ""), []
        try:
            size = (int(image.get("height", "")), int(image.get("width", "")))
        except ValueError:
            problems.append(f"image {number} ({name}): expected height and width in pixels")
            continue
        for place, element in enumerate(image):
            if element.tag not in ("polygon", "mask", "box", "ellipse"):
                left_out.kinds[element.tag] += 1
                continue
            try:
                shapes += _cvat_shape(element)
            except ValueError as error:
                problems.append(f"{name}: {element.tag} {place} ({element.get('label')}): {error}")
        found.append((name, size, shapes))
    left_out.settle(f"{file}: {len(problems)} problems", problems)
    listed = [label.findtext("name", "").strip() for label in root.iterfind("meta//label")]
    used = {shape.label for *_, shapes in found for shape in shapes}
    given = options.classes or not listed or not used <= set(listed) or set(listed) == set(HAND_BONES)
    classes = class_order(used | set(listed), options.classes) if given else listed
    return write_shapes(found, options.images or Path(file).parent, out, classes, options, str(file), left_out)


def _cvat_shape(element: ET.Element) -> list[Shape]:
    """The shape of an XML element. Raises ValueError."""
    label = element.get("label", "").strip()
    if not label:
        raise ValueError("it has no label")
    value = {key: element.get(key, "") for key in element.keys()}  # noqa: SIM118 (an element is no dict)
    try:
        if element.tag == "polygon":
            points = np.array([pair.split(",") for pair in value["points"].split(";")], np.float64)
            return [Shape(label, [checked(points)])]
        if element.tag == "ellipse":
            centre, radii = ([float(value[key]) for key in keys] for keys in (("cx", "cy"), ("rx", "ry")))
            return [Shape(label, [checked(ellipse(centre, radii, float(value.get("rotation", 0))))])]
        if element.tag == "box":
            left, top, right, bottom = (float(value[key]) for key in ("xtl", "ytl", "xbr", "ybr"))
            corners = rectangle(left, top, right, bottom, float(value.get("rotation", 0)))
            return [Shape(label, [checked(corners)], is_box=True)]
        left, top, width, height = (int(value[key]) for key in ("left", "top", "width", "height"))
        counts = np.array(value["rle"].split(","), np.int64)  # row by row, pixels outside first
    except KeyError as error:
        raise ValueError(f"it has no attribute {error}") from error
    except OverflowError as error:
        raise ValueError(f"a number is too large ({error})") from error
    if width * height > MOST_PIXELS:
        raise ValueError(f"a mask of {width} × {height} pixels; at most {MOST_PIXELS:,} are read")
    if min(width, height) < 1 or (counts < 0).any() or counts.sum() != width * height:
        raise ValueError(f"its RLE has {counts.sum()} pixels; expected {width} × {height} = {width * height}")
    inside = np.arange(len(counts)) % 2 == 1
    return [Shape(label, outline(np.repeat(inside, counts).reshape(height, width), (top, left)))]
