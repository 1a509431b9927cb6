"""Read and check the competition's data folder: classes, table of images, annotations, metadata.

<data>/train/DCM/<ID>/<name>.png          <data>/train/outputs_json/<ID>/<name>.json
<data>/test/DCM/<ID>/<name>.png           <data>/meta_data.xlsx   (optional)
<data>/classes.txt   (optional)           <data>/solution.csv     (optional)
"""

import json
import os
from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import orjson
import pandas as pd

from utils.data.findings import DataError, Finding
from utils.data.people import read_metadata
from utils.data.png import DamagedImage, read_header
from utils.files import nearest
from utils.hand.bones import HAND_BONES

PICTURES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".dcm", ".webp"}
MOST_POINTS, MOST_BYTES = 100_000, 2**26
"""Points of a polygon and bytes of an annotation file; an outline drawn by hand has about a hundred points."""
FARTHEST = 2**20
"""The largest coordinate, the largest side of an image in OpenCV; much larger ones would not fit into int32."""


def read_classes(data_dir: str | Path) -> list[str]:
    """The class names of a data folder: those of `classes.txt`, one per line, or the 29 hand bones without that file.

    Raises DataError if the file is empty or repeats a name.
    """
    path = Path(data_dir) / "classes.txt"
    if not path.exists():
        return list(HAND_BONES)
    title = f"{path}: expected one class per line, each only once"
    try:
        classes = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(title, [f"not UTF-8 text ({error})"]) from error
    repeated = sorted({c for c in classes if classes.count(c) > 1})
    if repeated or not classes:
        raise DataError(title, [f"repeated: {c}" for c in repeated] or ["empty"])
    return classes


def find_images(
    data_dir: str | Path, splits: tuple[str, ...] = ("train", "test"), checksums: bool = False
) -> tuple[pd.DataFrame, list[Finding]]:
    """List the images of a data folder, the unusable ones too, and everything that is wrong with the files.

    Annotations are not read. `checksums`: compare those of the images, see `png.read_header`.

    Returns:
        The table of `read_index` without metadata, with the column path (`train/DCM/<ID>/<name>.png`); height, width
        and bits are 0 for an unusable image. And the findings. Raises DataError if there is no such folder.
    """
    data_dir = Path(data_dir).resolve()
    if not data_dir.is_dir():
        raise DataError(f"{data_dir}: no such data folder", [f"expected {data_dir}/train/DCM/<ID>/<name>.png"])
    rows, findings = [], []
    for split in splits:
        images, annotations = data_dir / split / "DCM", data_dir / split / "outputs_json"
        paths = sorted(images.glob("*/*.png"), key=str)
        if not paths:
            kind = "no test images" if split == "test" and "train" in splits else "no images"
            findings.append(Finding(kind, f"no image in {images}; expected {images}/<ID>/<name>.png"))
        used = set()
        for path in paths:
            ID, annotation = path.parent.name, ""
            place = f"{split}/DCM/{ID}/{path.name}"
            if split == "train":
                annotation = str(annotations / ID / f"{path.stem}.json")
                used.add(annotation)
                if not os.path.exists(annotation):
                    findings.append(Finding("no annotation", f"no annotation; expected {annotation}", place, place))
            if not f"{ID}{path.name}".isprintable():
                text = f"{path.name!r} has characters that are not printable"
                findings.append(Finding("unusable name", text, place, place))
            try:
                header = read_header(path, checksums)
            except DamagedImage as error:
                findings.append(Finding(error.kind, f"not a readable PNG: {error}", place, place))
                header = (0, 0, 0)
            if header[2] == 16:
                findings.append(Finding("16 bits", "its grey values have 16 bits", place, place))
            rows.append((split, ID, path.name, str(path), annotation, *header, place))
        if split == "train":
            for path in sorted(p for p in annotations.glob("*/*.json") if str(p) not in used):
                image = images / path.parent.name / f"{path.stem}.png"
                place, missing = (p.relative_to(data_dir).as_posix() for p in (path, image))
                findings.append(Finding("no image", f"no image; expected {image}", place, missing))
        read = set(map(str, paths))
        others = sorted(p for p in images.rglob("*") if p.suffix.lower() in PICTURES and str(p) not in read)
        findings += [Finding("not read", "not read", p.relative_to(data_dir).as_posix()) for p in others]
    columns = ["split", "ID", "image_name", "image", "annotation", "height", "width", "bits", "path"]
    table = pd.DataFrame(rows, columns=columns)
    for name, group in table[table["image_name"].duplicated(keep=False)].groupby("image_name"):
        first, *others = sorted(group["path"])  # in the order test, train: a test image must keep its rows
        text = f"image name {name} appears {len(group)} times, also in {first}"
        findings += [Finding("same name", text, other, other) for other in others]
    return table, findings


def read_index(
    data_dir: str | Path, splits: tuple[str, ...] = ("train", "test"), skip: Iterable[str] = ()
) -> pd.DataFrame:
    """List the images of a data folder.

    Args:
        data_dir: the data folder, in the layout shown at the top of this module.
        splits: which of "train" and "test" to list, in this order.
        skip: images to leave out, whatever is wrong with them, such as "train/DCM/ID001/image1.png".

    Returns:
        One row per image, ordered by split, then by `<ID>/<name>.png` as text, as the baseline orders a submission.
        Columns: split; ID (the person); image_name (file name, unique); image and annotation (absolute paths as str;
        annotation is "" in the test split); height and width (pixels, from the PNG header). Where meta_data.xlsx
        exists, also age (years), sex, weight_kg, height_cm and nail_art; missing values for a person not listed there.

    Raises:
        DataError: with all problems of the folder at once: no such folder, no images in a split, an image that is no
            complete PNG, a training image without annotation, an annotation without image, a file name that two images
            have. Also, by itself, for a meta_data.xlsx that can't be used.
    """
    table, findings = find_images(data_dir, splits)
    skip = set(skip)
    problems = [str(f) for f in findings if f.is_error and f.image not in skip]
    if problems:
        title = f"{Path(data_dir).resolve()}: these files can't be used (run_all.sh --skip-bad leaves bad images out)"
        raise DataError(title, problems)
    table = table[~table["path"].isin(skip)].drop(columns=["bits", "path"]).reset_index(drop=True)
    metadata = read_metadata(data_dir)
    return table if metadata is None else table.merge(metadata, on="ID", how="left", validate="many_to_one")


class Outline(NamedTuple):
    """One polygon. number: its place in the file, from 0. points: int32 (n, 2), x-y, n ≥ 3."""

    number: int
    label: str
    points: np.ndarray

    def __str__(self) -> str:
        """How messages name it."""
        return f"annotation {self.number} ({self.label})"


def read_annotation(
    path: str | Path, classes: list[str], size: tuple[int, int] | None = None
) -> dict[str, list[np.ndarray]]:
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
    outlines, findings = find_outlines(path, classes, size)
    if findings:
        raise DataError(f"{path}: bad annotation", [finding.problem for finding in findings])
    polygons: dict[str, list[np.ndarray]] = {name: [] for name in classes}
    for outline in outlines:
        polygons[outline.label].append(outline.points)
    return polygons


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
        try:
            found = orjson.loads(text)
        except orjson.JSONDecodeError:  # it is stricter, with NaN for example, and says less about what is broken
            found = json.loads(text)
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
    for number, point in enumerate([] if _are_pairs(points) else points):
        if not _are_pairs([point]):
            return None, "points", f"point {number} is {_short(point)}; {expected}, two numbers each"
    limit = f"expected finite numbers, at least 3 points, none beyond {FARTHEST:,} pixels"
    try:
        array = np.fromiter(chain.from_iterable(points), np.float64, 2 * len(points)).reshape(-1, 2)
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


def _are_pairs(points: list) -> bool:
    """Whether all are lists of two numbers; without a loop in Python, which would take longer than reading the file."""
    if set(map(type, points)) != {list} or set(map(len, points)) != {2}:
        return False
    return set(map(type, chain.from_iterable(points))) <= {int, float}


def _short(value: Any, length: int = 40) -> str:
    """A JSON value in a few words: itself where it is short, else its type and length."""
    if isinstance(value, list | dict):
        if isinstance(value, dict) or len(value) > 4 or any(isinstance(v, list | dict) for v in value):
            return f"{'a list' if isinstance(value, list) else 'an object'} of {len(value):,}"
        return f"[{', '.join(_short(v) for v in value)}]"
    text = json.dumps(value if not isinstance(value, str) else value[:length])
    return text if len(text) <= length else f"{text[: length - 1]}…"
