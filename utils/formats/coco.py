"""COCO from and to a data folder of the competition, and predicted masks as COCO results.

Polygons have the competition's coordinates, in which a whole number is the middle of a pixel; their areas are those of
the outlines (shoelace formula), as pycocotools computes them. With RLE, the masks are those that the competition draws,
pixel by pixel, and areas count pixels.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import orjson
import pandas as pd

from utils.data.annotation import Polygons
from utils.data.competition import HAND_BONES, DataError, read_classes, read_index
from utils.data.findings import refuse
from utils.files import replacing
from utils.formats import coco_rle
from utils.formats.class_order import class_order
from utils.formats.coco_read import class_names, read_dataset
from utils.formats.imported_shapes import DEFAULT, LeftOut, Options, Shape, write_shapes
from utils.formats.read_folder import Image, each_image, images_of, split_images
from utils.masks.labels import draw_region
from utils.masks.masks import Masks

STYLES = ("polygon", "rle")


def to_coco(
    data_dir: str | Path,
    out: str | Path,
    style: str = "polygon",
    each_polygon: bool = False,
    split: str = "train",
    folds: str | Path | None = None,
    fold: int = 0,
) -> list[Path]:
    """Write a data folder's annotations as COCO; file names are `<ID>/<name>.png`, relative to `<data>/<split>/DCM`.

    Args:
        data_dir: the data folder.
        out: the JSON file to write.
        style: "polygon" or "rle" (compressed, the drawn mask).
        each_polygon: every polygon is an instance; otherwise the polygons of a class are one instance in parts.
        split: "train", or "test": its images, whose ids a prediction needs, with the masks of solution.csv as RLE if
            the folder has that file, otherwise without annotations.
        folds: a run's folds.csv; with it, `fold`'s training and validation images are written to two files, called
            like `out` with _train and _val at the end.
        fold: the fold.

    Returns:
        The files written.

    Raises:
        DataError: for a data folder, annotations or folds that can't be used, with all problems.
    """
    classes, out = read_classes(data_dir), Path(out)
    table = read_index(data_dir, (split,))
    parts = {out: table}
    if folds is not None:
        train, validation = split_images(table, classes, folds, fold)
        parts = {out.with_stem(f"{out.stem}_{name}"): part for name, part in (("train", train), ("val", validation))}
    solution = Path(data_dir, "solution.csv")
    for path, part in parts.items():
        if split == "test" and solution.exists():
            ids, true = image_ids(table), _masks_of_solution(solution, table, classes)
            images = [(ids[image.image_name], image) for image in images_of(part)]
            _write_dataset(path, images, [true[image.image_name] for _, image in images], classes)
        else:
            write_truth(path, part, table, classes, style, each_polygon)
    return list(parts)


def write_truth(
    path: Path, rows: pd.DataFrame, table: pd.DataFrame, classes: list[str], style: str, each_polygon: bool = False
) -> None:
    """Write the annotations of the `rows` of an index as COCO; ids are `image_ids(table)`, the rest is as in `to_coco`.

    Raises DataError for annotations that can't be used, with all problems.
    """
    ids, images = image_ids(table), images_of(rows)
    records = each_image(images, classes, partial(_instances, classes=classes, style=style, each=each_polygon))
    _write_dataset(path, [(ids[image.image_name], image) for image in images], records, classes)


def image_ids(table: pd.DataFrame) -> dict[str, int]:
    """The id of each image: its place in the whole index, from 1, so that it is the same in all files of a split."""
    return {name: number for number, name in enumerate(table["image_name"], 1)}


def _write_dataset(
    path: Path, images: Sequence[tuple[int, Image]], records: Iterable[Sequence[bytes]], classes: Sequence[str]
) -> None:
    """Write a COCO file, whole or not at all, of (id, image) and, for each of them, its annotations (`_packed`).

    It is written while other processes still make the records.
    """
    content = {
        "info": {"description": "polygons in pixels, x right, y down; a whole number is the middle of a pixel"},
        "licenses": [],
        "images": [
            {"id": i, "file_name": f"{image.ID}/{image.image_name}", "width": image.width, "height": image.height}
            for i, image in images
        ],
        "categories": [{"id": i, "name": name, "supercategory": ""} for i, name in enumerate(classes, 1)],
    }
    number, comma = 0, b""
    with replacing(path) as temporary, temporary.open("wb") as file:
        file.write(orjson.dumps(content)[:-1] + b',"annotations":[')
        for (image_id, _), rests in zip(images, records, strict=True):
            pieces = []
            for rest in rests:
                number += 1
                pieces += (comma, b'{"id":%d,"image_id":%d,' % (number, image_id), rest)
                comma = b","
            file.write(b"".join(pieces))
        file.write(b"]}")


def _instances(image: Image, polygons: Polygons, classes: list[str], style: str, each: bool) -> list[bytes]:
    """The annotations of an image, packed."""
    records = []
    for category, name in enumerate(classes, 1):
        parts = polygons.get(name, [])
        for shape in [[part] for part in parts] if each else [parts] if parts else []:
            record = of_mask(*draw_region(shape, image.size), image.size) if style == "rle" else _of_polygons(shape)
            if len(shape) > 1 and style == "polygon":
                record["area"] = _area_of_union(record["segmentation"], image.size)
            record |= {"category_id": category, "iscrowd": 0}
            records.append(_packed(record))
    return records


def _masks_of_solution(path: Path, table: pd.DataFrame, classes: list[str]) -> dict[str, list[bytes]]:
    """The true masks of the test images, packed, by image name."""
    names, found = dict(enumerate(table["image_name"], 1)), defaultdict(list)
    for result in results_of_submission(path, table, classes):
        record = {key: result[key] for key in ("segmentation", "area", "bbox", "category_id")}
        found[names[result["image_id"]]].append(_packed(record | {"iscrowd": 0}))
    return found


def _packed(record: dict[str, Any]) -> bytes:
    """An annotation as JSON, without the `{` at its beginning, where ids are added later."""
    return orjson.dumps(record, option=orjson.OPT_SERIALIZE_NUMPY)[1:]


def _of_polygons(parts: list[np.ndarray]) -> dict[str, Any]:
    x, y, width, height = cv2.boundingRect(parts[0] if len(parts) == 1 else np.concatenate(parts))
    return {
        "segmentation": [part.ravel() for part in parts],
        "area": cv2.contourArea(parts[0]),
        "bbox": [x, y, width - 1, height - 1],
    }


def of_mask(mask: np.ndarray, corner: tuple[int, int], size: tuple[int, int]) -> dict[str, Any]:
    """The segmentation of a mask (h, w) at `corner` (top, left): compressed RLE, area and box in pixels."""
    height, width = mask.shape
    return {
        "segmentation": coco_rle.encode_coco(mask, corner, size),
        "area": int(mask.sum()),
        "bbox": [corner[1], corner[0], width, height],
    }


def _area_of_union(segmentation: list[np.ndarray], size: tuple[int, int]) -> float:
    from faster_coco_eval.core import mask

    parts = mask.frPyObjects([part.astype(float).tolist() for part in segmentation], *size)
    return float(mask.area(mask.merge(parts)))


def from_coco(file: str | Path, out: str | Path, options: Options = DEFAULT) -> str:
    """COCO to a data folder; Label Studio's and CVAT's COCO exports, too. Returns one line about what was written.

    Categories are taken in the order of their ids. RLE masks become polygons that, drawn, give the same pixels. Raises
    DataError with all problems: everything that `read_dataset` refuses, categories listed in another order than that of
    their ids, images that are missing or of another size, boxes without outlines, polygons outside their image.
    """
    left_out = LeftOut(options.skip_bad)
    dataset = read_dataset(file, left_out)
    names = class_names(dataset, file) if not options.classes else list(dataset.categories.values())
    classes = class_order(names, options.classes) if options.classes or set(names) == set(HAND_BONES) else names
    shapes = defaultdict(list)
    for a in dataset.annotations:
        is_box = not a.polygons and a.rle is None
        shapes[a.image_id].append(Shape(dataset.categories[a.category_id], a.outlines(), is_box))
    found = ((picture.file_name, picture.size, shapes[i]) for i, picture in dataset.images.items())
    return write_shapes(found, options.images or Path(file).parent, out, classes, options, str(file), left_out)


def write_results(results: Sequence[dict[str, Any]], path: str | Path, as_dictionary: bool = False) -> None:
    """Write COCO results, [{image_id, category_id, segmentation, bbox, score}, …], whole or not at all.

    as_dictionary: write {"annotations": […]} instead of the list, as the sister competition wants it.
    """
    content = {"annotations": list(results)} if as_dictionary else list(results)
    with replacing(path) as temporary:
        temporary.write_bytes(orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY))


def results_of_submission(path: str | Path, table: pd.DataFrame, classes: list[str]) -> list[dict[str, Any]]:
    """COCO results of a submission's masks, each with score 1; empty masks are left out.

    Args:
        path: the CSV file, with the columns image_name, class and rle.
        table: the whole index of the images' split, whose places are the images' ids, as in `to_coco`.
        classes: the class names.

    Raises:
        DataError: for a file that is no submission; with all rows of unknown images or classes, repeated rows,
            malformed masks, and masks past the image's end.
    """
    try:
        submission = pd.read_csv(path, dtype=str, keep_default_na=False)[["image_name", "class", "rle"]]
    except (OSError, ValueError, KeyError) as error:
        problem = f"expected a CSV with the columns image_name, class and rle ({error})"
        raise DataError(f"{path}: not a submission", [problem]) from error
    ids, sizes = image_ids(table), {image.image_name: image.size for image in images_of(table)}
    results, problems = [], []
    repeated = submission.duplicated(["image_name", "class"]).tolist()
    for line, (name, label, text) in enumerate(submission.itertuples(index=False, name=None), 2):
        if repeated[line - 2]:
            problems.append(f"line {line}: {name}, {label} has a row already; expected one per image and class")
            continue
        if name not in ids or label not in classes:
            problems.append(f"line {line}: no image {name!r} or no class {label!r} in the data")
            continue
        size = sizes[name]
        try:
            mask, corner = Masks.from_texts([text], size).region(0)
        except ValueError as error:
            problems.append(f"line {line}, {name}, {label}: {error}")
            continue
        if mask.size:
            record = of_mask(mask, corner, size)
            results.append({"image_id": ids[name], "category_id": classes.index(label) + 1, "score": 1.0, **record})
    refuse(f"{path}: this submission can't be converted", problems)
    return results
