"""Read and check the competition's data folder: classes, table of images, annotations, metadata.

<data>/train/DCM/<ID>/<name>.png          <data>/train/outputs_json/<ID>/<name>.json
<data>/test/DCM/<ID>/<name>.png           <data>/meta_data.xlsx   (optional)
<data>/classes.txt   (optional)           <data>/solution.csv     (optional)
"""

import json
from pathlib import Path

import numpy as np
import pandas as pd

from utils.errors import Problems

HAND_BONES = (
    *(f"finger-{i}" for i in range(1, 20)),
    *("Trapezium", "Trapezoid", "Capitate", "Hamate", "Scaphoid", "Lunate", "Triquetrum", "Pisiform"),
    *("Radius", "Ulna"),
)
"""The 29 classes in the competition's order. Finger bones count from the thumb outwards, tip first."""

METADATA_COLUMNS = {
    "나이": "age",
    "성별": "sex",
    "체중(몸무게)": "weight_kg",
    "키(신장)": "height_cm",
    "Unnamed: 5": "nail_art",
}


class DataError(Problems):
    """Data that can't be used; the message lists every problem found and what to do."""


def read_classes(data_dir: str | Path) -> list[str]:
    """The class names of a data folder: those of `classes.txt`, one per line, or the 29 hand bones without that file.

    Raises DataError if the file is empty or repeats a name.
    """
    path = Path(data_dir) / "classes.txt"
    if not path.exists():
        return list(HAND_BONES)
    classes = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    repeated = sorted({c for c in classes if classes.count(c) > 1})
    if repeated or not classes:
        raise DataError(
            f"{path}: expected one class per line, each only once", [f"repeated: {c}" for c in repeated] or ["empty"]
        )
    return classes


def read_index(data_dir: str | Path, splits: tuple[str, ...] = ("train", "test")) -> pd.DataFrame:
    """List the images of a data folder.

    Args:
        data_dir: the data folder, in the layout shown at the top of this module.
        splits: which of "train" and "test" to list, in this order.

    Returns:
        One row per image, ordered by split, then by `<ID>/<name>.png` as text, as the baseline orders a submission.
        Columns: split; ID (the person); image_name (file name, unique); image and annotation (absolute paths as str;
        annotation is "" in the test split); height and width (pixels, from the PNG header). Where meta_data.xlsx
        exists, also age (years), sex, weight_kg, height_cm and nail_art; missing values for a person not listed there.

    Raises:
        DataError: with all problems of the folder at once: no such folder, no images in a split, an unreadable PNG, a
            training image without annotation, an annotation without image, a file name that two images have. Also,
            by itself, for a meta_data.xlsx without the expected columns.
    """
    from PIL import Image

    data_dir = Path(data_dir).resolve()
    if not data_dir.is_dir():
        raise DataError(f"{data_dir}: no such data folder", [f"expected {data_dir}/train/DCM/<ID>/<name>.png"])
    rows, problems = [], []
    for split in splits:
        images = data_dir / split / "DCM"
        annotations = data_dir / split / "outputs_json"
        paths = sorted(images.glob("*/*.png"), key=lambda p: str(p.relative_to(images)))
        if not paths:
            problems.append(f"no image in {images}; expected {images}/<ID>/<name>.png")
        used = set()
        for path in paths:
            annotation = ""
            if split == "train":
                annotation = annotations / path.parent.name / f"{path.stem}.json"
                used.add(annotation)
                if not annotation.exists():
                    problems.append(f"{path}: no annotation; expected {annotation}")
            try:
                with Image.open(path) as image:
                    width, height = image.size
            except OSError as error:
                problems.append(f"{path}: not a readable PNG ({error})")
                continue
            rows.append((split, path.parent.name, path.name, str(path), str(annotation), height, width))
        if split == "train":
            orphans = sorted(set(annotations.glob("*/*.json")) - used)
            problems += [f"{p}: no image; expected {images / p.parent.name / p.stem}.png" for p in orphans]
    table = pd.DataFrame(rows, columns=["split", "ID", "image_name", "image", "annotation", "height", "width"])
    for name, group in table.groupby("image_name"):
        if len(group) > 1:  # a submission names an image by its file name only
            problems.append(f"image name {name} appears {len(group)} times: {', '.join(group['image'])}")
    if problems:
        raise DataError(f"{data_dir}: the folder does not follow the competition's layout", problems)
    metadata = read_metadata(data_dir)
    return table if metadata is None else table.merge(metadata, on="ID", how="left", validate="many_to_one")


def read_metadata(data_dir: str | Path) -> pd.DataFrame | None:
    """`meta_data.xlsx` cleaned: ID, age, sex ("F"/"M"), weight_kg, height_cm, nail_art (bool); None without the file.

    In the file, `성별` (sex) contains `_x0008_`, an escaped backspace, and the last column has 네일있음 for nail art.
    Each ID has one row, the first one. Raises DataError if a column is missing.
    """
    path = Path(data_dir) / "meta_data.xlsx"
    if not path.exists():
        return None
    raw = pd.read_excel(path)
    missing = [c for c in ("ID", *METADATA_COLUMNS) if c not in raw.columns and c != "Unnamed: 5"]
    if missing:
        raise DataError(f"{path}: unexpected columns {list(raw.columns)}", [f"missing column {c}" for c in missing])
    table = raw.reindex(columns=["ID", *METADATA_COLUMNS]).rename(columns=METADATA_COLUMNS)
    table["ID"] = table["ID"].astype(str).str.strip()
    table["sex"] = table["sex"].astype(str).str.replace("_x0008_", "").str.replace("\b", "").str.strip()
    table["nail_art"] = table["nail_art"].notna() & table["nail_art"].astype(str).str.strip().ne("")
    return table.drop_duplicates("ID").reset_index(drop=True)


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
            and label, an unknown class, fewer than three or not finite points, or, with `size`, a polygon that lies
            completely outside the image.
    """
    polygons: dict[str, list[np.ndarray]] = {name: [] for name in classes}
    problems = []
    try:
        annotations = json.loads(Path(path).read_text(encoding="utf-8"))["annotations"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: not an annotation file", [f"{type(error).__name__}: {error}"]) from error
    for number, annotation in enumerate(annotations):
        label = annotation.get("label")
        where = f"annotation {number} ({label})"
        if label not in polygons:
            problems.append(f"{where}: unknown class; expected one of {', '.join(classes)}")
            continue
        try:
            points = np.asarray(annotation["points"], dtype=np.float64)
        except (KeyError, ValueError, TypeError):
            points = np.empty(0)
        if points.ndim != 2 or points.shape[1] != 2 or len(points) < 3 or not np.isfinite(points).all():
            problems.append(f"{where}: expected at least 3 finite [x, y] points, found shape {points.shape}")
            continue
        if size is not None:
            (left, top), (right, bottom) = points.min(0), points.max(0)
            if right < 0 or bottom < 0 or left > size[1] - 1 or top > size[0] - 1:
                problems.append(f"{where}: lies outside the {size[1]} × {size[0]} image")
                continue
        polygons[label].append(np.rint(points).astype(np.int32))
    if problems:
        raise DataError(f"{path}: bad annotation", problems)
    return polygons


def check_data(table: pd.DataFrame, classes: list[str]) -> None:
    """Read every annotation of the table; raise one DataError that lists all problems of all files."""
    problems = []
    for row in table[table["annotation"] != ""].itertuples():
        try:
            read_annotation(row.annotation, classes, (row.height, row.width))
        except DataError as error:
            problems += [f"{row.annotation}: {p}" for p in error.problems]
    if problems:
        raise DataError(f"{len(problems)} problems in the annotations", problems)
