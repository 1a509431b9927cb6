"""Read and write annotation files of the competition: {"annotations": [{"label": …, "points": [[x, y], …]}, …]}."""

import codecs
import json
from collections.abc import Iterable, Sequence
from itertools import accumulate, chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import orjson

from utils.data.findings import Finding, refuse
from utils.files import nearest
from utils.masks import rle

Polygons = dict[str, list[np.ndarray]]
"""For each class its polygons, (n, 2) x-y points in pixels, together one mask."""

MOST_POINTS, MOST_BYTES = 100_000, 2**26
"""Points of a polygon and bytes of an annotation file; an outline drawn by hand has about a hundred points."""
FARTHEST = 2**20
"""The largest coordinate, the largest side of an image in OpenCV; much larger ones would not fit into int32."""


class Outline(NamedTuple):
    """One polygon. number: its place in the file, from 0. points: int32 (n, 2), x-y, n ≥ 3."""

    number: int
    label: str
    points: np.ndarray

    def __str__(self) -> str:
        """How messages name it."""
        return f"annotation {self.number} ({self.label})"


def read_annotation(path: str | Path, classes: list[str], size: tuple[int, int] | None = None) -> Polygons:
    """Read the polygons of one annotation file.

    Args:
        path: a JSON file with a list `annotations`; each has a `label` and `points`, [[x, y], …] in pixels.
        classes: the class names that a label may be.
        size: height and width of the image in pixels; without it, the position of polygons is not checked.

    Returns:
        For every class, in the order of `classes`, a list of polygons: int32 (n, 2) x-y points with n ≥ 3, rounded to
        whole pixels as the competition draws them. The list is empty for a class that is not annotated.

    Raises:
        DataError: with the file and all its problems: a file that can't be read or is no such JSON; by number (from 0)
            and label, whatever is no polygon of a known class or, with `size`, lies completely outside the image.
    """
    if (usual := usual_polygons(path, classes, size)) is not None:
        return usual
    outlines, findings = find_outlines(path, classes, size)
    refuse(f"{path}: bad annotation", [finding.problem for finding in findings])
    polygons: Polygons = {name: [] for name in classes}
    for outline in outlines:
        polygons[outline.label].append(outline.points)
    return polygons


def usual_polygons(path: str | Path, classes: list[str], size: tuple[int, int] | None = None) -> Polygons | None:
    """What `read_annotation` gives, in a fifth of its time, for a usual file; None for any other.

    Usual are whole numbers inside the image, written as all programs write JSON, with or without a blank after commas.
    The lists of points are cut out of the text and read together; JSON's reader gets what remains.
    """
    polygons: Polygons = {name: [] for name in classes}
    try:
        first, *rest = Path(path).read_bytes().split(b'"points":')
        outlines, frame = [], [first]
        for number, text in enumerate(rest):
            end = text.find(b"]]") + 2
            outlines.append(text[:end].strip())
            frame += (b'"points":%d' % number, text[end:])
        annotations = orjson.loads(b"".join(frame))["annotations"]
        counts = [outline.count(b"[") - 1 for outline in outlines]
        if [annotation["points"] for annotation in annotations] != list(range(len(counts))):
            return None
        joined, form = b"".join(outlines), b"".join(b"[%b[,]]" % (b"[,]," * (count - 1)) for count in counts)
        characters = np.frombuffer(joined, np.uint8)
        # with blanks elsewhere, such as in "[, 1 2]", numbers that no JSON reader accepts would look usual
        after_comma, blank = characters[:-1] == ord(","), characters[1:] == ord(" ")
        few, many = min(counts) < 3, max(counts) > MOST_POINTS or len(joined) > MOST_BYTES
        if few or many or joined.translate(None, b"0123456789 ") != form or (blank & ~after_comma).any():
            return None
        numbers, _ = rle.read_numbers(joined)
        inside = size[::-1] if size else (FARTHEST, FARTHEST)
        if len(numbers) != 2 * sum(counts) or (numbers.reshape(-1, 2) >= inside).any():
            return None
        points = numbers.reshape(-1, 2).astype(np.int32)
        for annotation, end, count in zip(annotations, accumulate(counts), counts, strict=True):
            polygons[annotation["label"]].append(points[end - count : end])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return polygons


def annotation_text(
    shapes: Iterable[tuple[str, np.ndarray]], name: str, ID: str, ids: Sequence[str] | None = None
) -> bytes:
    """An annotation file of the competition, with the keys of the tool that made its files, as UTF-8.

    Args:
        shapes: label and points (n, 2) x-y of each polygon; whole numbers stay whole, others get two decimals.
        name: the image's file name.
        ID: the person, the folder's name.
        ids: of the polygons; None counts them from 0.
    """
    annotations = []
    for number, (label, points) in enumerate(shapes):
        rounded = np.round(points, 2)
        whole = rounded.astype(np.int64)
        points = whole if (whole == rounded).all() else rounded
        one = {"id": ids[number] if ids else f"{number}", "type": "poly_seg", "attributes": {}}
        annotations.append({**one, "points": points.tolist(), "label": label})
    return orjson.dumps({"annotations": annotations, "filename": name, "parent_path": f"/{ID}"})


def find_outlines(
    path: str | Path, classes: list[str], size: tuple[int, int] | None = None
) -> tuple[list[Outline], list[Finding]]:
    """The good polygons of an annotation file, in its order, and the errors; arguments as of `read_annotation`."""
    path = Path(path)
    try:
        if (length := path.stat().st_size) > MOST_BYTES:
            return [], [Finding("too large a file", f"{length:,} bytes; at most {MOST_BYTES:,} are read")]
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        return [], [Finding("unreadable annotation", f"can't be read ({error.strerror})")]
    except UnicodeDecodeError as error:
        return [], [Finding("not UTF-8", f"not UTF-8 text ({error.reason} at byte {error.start})")]
    try:
        found = parse_json(text)
    except (ValueError, RecursionError) as error:
        return [], [Finding("broken JSON", f"not JSON ({error})" if text.strip() else "the file is empty")]
    annotations = found.get("annotations") if isinstance(found, dict) else None
    if not isinstance(annotations, list):
        where = f"annotations is {_short(annotations)}" if isinstance(found, dict) else f"the file is {_short(found)}"
        return [], [Finding("no list of annotations", f"{where}; expected a list of annotations")]
    outlines, findings = [], []
    for number, annotation in enumerate(annotations):
        label = annotation.get("label") if isinstance(annotation, dict) else None
        if not isinstance(annotation, dict):
            problem = f"annotation {number} is {_short(annotation)}; expected an object"
            findings.append(Finding("not an object", problem))
        elif not isinstance(label, str) or label not in classes:
            hint = f"did you mean {nearest(label[:100], classes)[0]}? " if isinstance(label, str) else ""
            problem = f"unknown class; {hint}expected one of {', '.join(classes)}"
            findings.append(Finding("label", f"annotation {number} ({_short(label)}): {problem}"))
        else:
            points, kind, problem = read_points(annotation.get("points"), size)
            if problem:
                findings.append(Finding(kind, f"annotation {number} ({label}): {problem}", label=label))
            else:
                outlines.append(Outline(number, label, points))
    return outlines, findings


def read_points(points: Any, size: tuple[int, int] | None) -> tuple[np.ndarray | None, str, str]:
    """A polygon's points as int32 (n, 2), "", ""; or None, the kind of problem and what it is."""
    expected = "expected at least 3 points [x, y]"
    if not isinstance(points, list):
        return None, "points", f"points is {_short(points)}; {expected}"
    if not 3 <= len(points) <= MOST_POINTS:
        few = len(points) < 3
        text = f"{len(points):,} points; {expected}" if few else f"{len(points):,} points; at most {MOST_POINTS:,}"
        return None, "points" if few else "too many points", text
    limit = f"expected finite numbers, at least 3 points, none beyond {FARTHEST:,} pixels"
    array = _pairs(points)
    if array is None:
        for number, point in enumerate(points):
            if not (isinstance(point, list) and len(point) == 2 and {type(n) for n in point} <= {int, float}):
                return None, "points", f"point {number} is {_short(point)}; {expected}, two numbers each"
        try:
            array = np.array(points, np.float64)
        except OverflowError:
            return None, "coordinate", f"a coordinate has more than 300 digits; {limit}"
    (left, top), (right, bottom) = array.min(0), array.max(0)  # NaN if one is NaN, which fails the next comparison
    if not (min(left, top) >= -FARTHEST and max(right, bottom) <= FARTHEST and left <= right and top <= bottom):
        number = int(np.argmin((np.abs(array) <= FARTHEST).all(1)))
        return None, "coordinate", f"point {number} is {_short(points[number])}; {limit}"
    if size is not None and (right < 0 or bottom < 0 or left > size[1] - 1 or top > size[0] - 1):
        box = f"x from {left:.0f} to {right:.0f}, y from {top:.0f} to {bottom:.0f}"
        return None, "outside", f"lies outside the {size[1]} × {size[0]} image ({box})"
    return np.rint(array).astype(np.int32), "", ""


def _pairs(points: list) -> np.ndarray | None:
    """The points as float64 (n, 2) if NumPy sees at once that they are pairs of numbers; else None."""
    try:
        array = np.array(points)
    except ValueError:
        return None
    if array.dtype.kind not in "if" or array.ndim != 2 or array.shape[1] != 2:
        return None
    if ((array == 0) | (array == 1)).any() and bool in map(type, chain.from_iterable(points)):
        return None  # to NumPy, true and false are numbers
    return array.astype(np.float64)


def parse_json(text: bytes | str) -> Any:
    """JSON as `json.loads` reads it, NaN and long numbers too, mostly in a sixth of its time; bytes may have a BOM."""
    text = text.removeprefix(codecs.BOM_UTF8) if isinstance(text, bytes) else text
    try:
        return orjson.loads(text)
    except ValueError:
        try:
            return json.loads(text)
        except RecursionError as error:
            raise ValueError("nested too deeply") from error


def _short(value: Any, length: int = 40) -> str:
    """A JSON value in a few words: itself where it is short, else its type and length."""
    if isinstance(value, list | dict):
        if isinstance(value, dict) or len(value) > 4 or any(isinstance(v, list | dict) for v in value):
            return f"{'a list' if isinstance(value, list) else 'an object'} of {len(value):,}"
        return f"[{', '.join(_short(v) for v in value)}]"
    text = json.dumps(value if not isinstance(value, str) else value[:length])
    return text if len(text) <= length else f"{text[: length - 1]}…"
