"""Read COCO files, as pycocotools' users, Label Studio and CVAT write them, and check everything in them.

Ids may be any numbers, categories may count from 0 or 1, paths may have folders or be URLs. A segmentation is a list of
polygons (or one flat list of numbers), or an RLE, compressed or not; an annotation may have a box only.
"""

import math
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from utils.data.annotation import parse_json
from utils.data.competition import DataError
from utils.data.findings import refuse
from utils.data.image_header import same_name
from utils.formats import coco_rle
from utils.formats.class_order import check_order
from utils.formats.imported_shapes import LeftOut, plain_name, relative_name
from utils.masks.outlines import outline


class Picture(NamedTuple):
    """An image of a COCO file: its path as it is written there, height and width in pixels."""

    file_name: str
    size: tuple[int, int]


class Annotation(NamedTuple):
    """One instance. polygons: float64 (n, 2) x-y pixels each; rle: a valid COCO RLE; box: x, y, width, height.

    At least one of the three is there; the others are empty or None. score: nan for true instances.
    """

    image_id: Any
    category_id: int
    polygons: list[np.ndarray]
    rle: dict[str, Any] | None
    box: list[float] | None
    score: float
    crowd: bool

    def outlines(self) -> list[np.ndarray]:
        """Its polygons; those of the RLE's pixels, or the box as a rectangle, where there are none."""
        if self.polygons:
            return self.polygons
        if self.rle is not None:
            return outline(*coco_rle.decode_coco(self.rle))
        x, y, width, height = self.box
        return [np.array([[x, y], [x + width, y], [x + width, y + height], [x, y + height]])]


class Dataset(NamedTuple):
    """A COCO file: images by id, category names by id in the file's order, and the annotations."""

    images: dict[Any, Picture]
    categories: dict[int, str]
    annotations: list[Annotation]


def read_dataset(path: str | Path, left_out: LeftOut | None = None) -> Dataset:
    """Read a COCO file with images, categories and annotations. Raises DataError with everything wrong in it.

    left_out: may take annotations that can't be used instead.
    """
    left_out = left_out or LeftOut()
    content = _load(path)
    lists = {key: content.get(key) if isinstance(content, dict) else None for key in Dataset._fields}
    missing = [f"no list {key!r}" for key, value in lists.items() if not isinstance(value, list)]
    refuse(f"{path}: expected a COCO file with the lists images, annotations and categories", missing)
    problems: list[str] = []
    images = _by_id(lists["images"], "image", _picture, problems)
    categories = _by_id(lists["categories"], "category", _name, problems)
    names = [("image file", relative_name(p.file_name)) for p in images.values()]
    names += [("category", name) for name in categories.values()]
    problems += [f"{n} entries for {kind} {name!r}" for (kind, name), n in Counter(names).items() if n > 1]
    ids = Counter(a.get("id") for a in lists["annotations"] if isinstance(a, dict) and _is_id(a.get("id")))
    problems += [f"{n} annotations with id {i}" for i, n in ids.items() if n > 1]
    refuse(f"{path}: {len(problems)} problems", problems if left_out.skip_bad else [])
    dataset = Dataset(images, categories, [])
    for number, entry in enumerate(lists["annotations"]):
        try:
            dataset.annotations.append(_annotation(entry, dataset, "id"))
        except ValueError as error:
            problems.append(f"annotation {number}{_id(entry)}: {error}")
    left_out.settle(f"{path}: {len(problems)} problems", problems)
    return dataset


def read_results(path: str | Path, truth: Dataset) -> list[Annotation]:
    """Read predicted instances for a file of true ones: a list, or a dictionary with the key `annotations`.

    An image may be named by its file name, which decides, by its id, or by its stem, as ultralytics does: a number that
    is the id of one image and the stem of another is refused, as is a name of two images. If the dictionary has images
    or categories of its own, they must be those of `truth`. Raises DataError with everything wrong in the file.
    """
    content = _load(path)
    entries = content.get("annotations") if isinstance(content, dict) else content
    if not isinstance(entries, list):
        raise DataError(f"{path}: not COCO results", ["expected a list, or a dictionary with the list `annotations`"])
    problems = []
    if isinstance(content, dict):
        for key, kind, convert in (("categories", "category", _name), ("images", "image", _picture)):
            for i, found in _by_id(content.get(key) or [], kind, convert, problems).items():
                true = getattr(truth, key).get(i)
                same = found == true if kind == "category" or true is None else _same_picture(found, true)
                if not same:
                    problems.append(f"{kind} {i} is {_shown(found)} here and {_shown(true)} in the truth")
    named: dict[Any, set] = defaultdict(set)
    for i, picture in truth.images.items():
        for name in _names(picture.file_name):
            named[name].add(i)
            if name.isdecimal():
                named[int(name)].add(i)  # as ultralytics writes such a stem
    plain = {entry["image_id"] for entry in entries if _has_id_alone(entry)}
    # numbers are ids, unless one of them is no id and all are stems
    are_ids = bool(content.get("images")) if isinstance(content, dict) else not plain <= named.keys()
    are_names = not plain <= truth.images.keys()
    found = []
    for number, entry in enumerate(entries):
        try:
            if isinstance(entry, dict):
                entry = {**entry, "image_id": _image_id(entry, truth, named, are_ids, are_names)}
            found.append(_annotation(entry, truth, "score"))
        except ValueError as error:
            problems.append(f"result {number}: {error}")
        except TypeError:  # an id that can't be looked up, such as a list
            problems.append(f"result {number}: image_id {entry['image_id']!r} is no id")
    refuse(f"{path}: {len(problems)} problems", problems)
    return found


def _has_id_alone(entry: Any) -> bool:
    return isinstance(entry, dict) and _is_id(entry.get("image_id")) and not entry.get("file_name")


def _image_id(entry: dict[str, Any], truth: Dataset, named: dict[Any, set], are_ids: bool, are_names: bool) -> Any:
    """The id of the image that a result means. are_ids, are_names: what ids without a file name are, if that is known.

    Raises ValueError if it is not clear.
    """
    given, file_name = entry.get("image_id"), entry.get("file_name")
    as_id = {given} & truth.images.keys()
    as_name = named.get(file_name or given, set())
    if file_name and not as_name:
        raise ValueError(f"no image is called {file_name!r}")
    meant = as_name if file_name or (are_names and not are_ids) else as_id if are_ids else as_id | as_name
    if len(meant) > 1:
        files = ", ".join(sorted(truth.images[i].file_name for i in meant))
        raise ValueError(f"image {file_name or given!r} may be any of {files}; give its path as file_name")
    return next(iter(meant or as_name or [given]))


def _same_picture(one: Picture, other: Picture) -> bool:
    """Whether two entries have one size and one file name, in whatever folder."""
    names = [same_name(Path(plain_name(picture.file_name)).name) for picture in (one, other)]
    return one.size == other.size and names[0] == names[1]


def is_dataset(path: str | Path) -> bool:
    """Whether a COCO file holds images and categories, and not only results. Raises DataError for no JSON."""
    content = _load(path)
    return isinstance(content, dict) and "images" in content


def class_names(dataset: Dataset, where: str | Path) -> list[str]:
    """The categories' names by id. Raises DataError if the file lists them in another order: which one is meant?"""
    listed = list(dataset.categories.items())
    return check_order(listed, f"{where}: categories")


def _load(path: str | Path) -> Any:
    try:
        return parse_json(Path(path).read_bytes())
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not a JSON file", [str(error)]) from error


def _by_id(entries: Any, kind: str, convert: Any, problems: list[str]) -> dict[Any, Any]:
    """The converted entries by id; problems are added to the list."""
    found: dict[Any, Any] = {}
    for number, entry in enumerate(entries if isinstance(entries, list) else []):
        try:
            if not isinstance(entry, dict) or not _is_id(entry.get("id")):
                raise ValueError("expected an object with an id, a whole number or a text")
            if entry["id"] in found:
                raise ValueError("its id is used already")
            found[entry["id"]] = convert(entry)
        except ValueError as error:
            problems.append(f"{kind} {number}{_id(entry)}: {error}")
    return found


def _is_id(value: Any) -> bool:
    return type(value) in (int, str)


def _known(value: Any, ids: dict[Any, Any]) -> Any:
    """The id as `ids` has it: some programs write numbers as text in one list and as numbers in the other."""
    if not _is_id(value) or value in ids:
        return value
    other = str(value) if isinstance(value, int) else int(value) if value.isascii() and value.isdigit() else value
    return other if other in ids else value


def _id(entry: Any) -> str:
    return f" (id {entry['id']})" if isinstance(entry, dict) and _is_id(entry.get("id")) else ""


def _picture(entry: dict[str, Any]) -> Picture:
    name, size = entry.get("file_name"), (entry.get("height"), entry.get("width"))
    if not isinstance(name, str) or not relative_name(name):
        raise ValueError(f"file_name {name!r}; expected a path")
    if not all(type(n) is int and n > 0 for n in size):
        raise ValueError(f"height {size[0]!r} and width {size[1]!r}; expected pixels, whole numbers")
    return Picture(name, size)


def _name(entry: dict[str, Any]) -> str:
    if type(entry["id"]) is not int:
        raise ValueError("expected a whole number as id")
    name = entry.get("name")
    if not isinstance(name, str) or not name.strip():
        raise ValueError(f"name {name!r}; expected a text")
    return name.strip()


def _names(file_name: str) -> list[str]:
    names = [relative_name(file_name), plain_name(file_name)]
    return [part for name in names for part in (name, Path(name).name, Path(name).stem)]


def _shown(value: Any) -> str:
    return "missing" if value is None else repr(value) if isinstance(value, str) else f"{value.file_name} {value.size}"


def _annotation(entry: Any, dataset: Dataset, needed: str) -> Annotation:
    """One checked annotation or, with `needed` = "score", result. Raises ValueError with what is wrong."""
    if not isinstance(entry, dict):
        raise ValueError(f"a {type(entry).__name__}; expected an object")
    image_id, category_id = _known(entry.get("image_id"), dataset.images), entry.get("category_id")
    category_id = _known(category_id, dataset.categories)
    if not _is_id(image_id) or image_id not in dataset.images:
        raise ValueError(f"no image has the id {image_id!r}")
    if not _is_id(category_id) or category_id not in dataset.categories:
        raise ValueError(f"no category has the id {category_id!r}; there are {sorted(dataset.categories, key=str)}")
    if needed == "id" and not _is_id(entry.get("id")):
        raise ValueError("it has no id")
    score = entry.get("score")
    if type(score) not in (int, float):
        score = math.nan
    if needed == "score" and not math.isfinite(score):
        raise ValueError(f"score {entry.get('score')!r}; expected a number")
    height, width = dataset.images[image_id].size
    polygons, rle = _segmentation(entry.get("segmentation"), (height, width))
    box = entry.get("bbox") or None
    if box is not None and not (_is_numbers(box) and len(box) == 4 and min(box[2:]) >= 0):
        raise ValueError(f"bbox {box!r}; expected [x, y, width, height] in pixels")
    if box is None and not polygons and rle is None:
        raise ValueError("neither segmentation nor bbox")
    if polygons or rle is None:
        corners = polygons or [np.array([box[:2], np.add(box[:2], box[2:])])]
        low, high = np.min([c.min(0) for c in corners], axis=0), np.max([c.max(0) for c in corners], axis=0)
        if (high < 0).any() or (low > (width, height)).any():
            raise ValueError(f"it lies outside the image of {width} × {height} pixels")
    crowd = bool(entry.get("iscrowd", 0))
    return Annotation(image_id, category_id, polygons, rle, box, float(score), crowd)


def _segmentation(value: Any, size: tuple[int, int]) -> tuple[list[np.ndarray], dict[str, Any] | None]:
    if not value:
        return [], None
    if isinstance(value, dict):
        coco_rle.counts_of(value)
        if tuple(value["size"]) != size:
            raise ValueError(f"RLE of size {value['size']}; the image has {list(size)} (height, width)")
        return [], value
    if not isinstance(value, list):
        raise ValueError(f"segmentation is a {type(value).__name__}; expected polygons or an RLE")
    polygons = []
    for numbers in [value] if not isinstance(value[0], list) else value:
        if not (_is_numbers(numbers) and len(numbers) >= 6 and len(numbers) % 2 == 0):
            count = len(numbers) if isinstance(numbers, list) else "no"
            raise ValueError(f"a polygon with {count} numbers; expected x, y in turn, at least 3 points, all finite")
        polygons.append(np.array(numbers, np.float64).reshape(-1, 2))
    return polygons, None


def _is_numbers(value: Any) -> bool:
    return isinstance(value, list) and all(type(n) in (int, float) and abs(n) < 1e6 for n in value)
