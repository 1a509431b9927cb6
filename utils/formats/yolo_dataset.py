"""YOLO's segmentation format from and to a data folder of the competition.

    <folder>/dataset.yaml                               train, val, test: folders of images; names: the classes by id
    <folder>/images/<part>/<ID>/<name>.png              <folder>/labels/<part>/<ID>/<name>.txt

A label file has a line for each polygon: the class's id, counted from 0, then x and y of every point in turn, divided
by the image's width and height. There are no polygons in parts: each is an instance of its own.
"""

from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from utils.data.annotation import Polygons
from utils.data.competition import DataError, image_files, read_classes, read_index
from utils.data.findings import refuse
from utils.data.image_header import SUFFIXES, files_below, image_sizes, same_name
from utils.files import read_json
from utils.formats.class_order import check_order, class_order, read_class_file
from utils.formats.imported_shapes import DEFAULT, LeftOut, Options, outside
from utils.formats.read_folder import Image, each_image, images_of, split_images
from utils.formats.write_folder import Imported, link, new_folder, write_folder
from utils.masks.labels import draw_region
from utils.masks.outlines import outline

TOLERANCE = 0.01
"""How far outside 0 … 1 a coordinate may be, as ultralytics allows it."""


def to_yolo(data_dir: str | Path, out: str | Path, folds: str | Path | None = None, fold: int = 0) -> str:
    """Write a data folder in YOLO's segmentation format, whole or not at all; returns one line about it.

    Args:
        data_dir: the data folder; its images are linked (hard links) or copied.
        out: the new folder.
        folds: a run's folds.csv; without it, people are divided in five (`split_images`).
        fold: the fold that is `val`; with -1 all images are `train`, and `val` is the same.

    Raises:
        DataError: for a data folder, annotations or folds that can't be used, with all problems.
    """
    classes = read_classes(data_dir)
    table, parts = read_parts(data_dir, classes, folds, fold)
    images = images_of(table)
    with new_folder(out) as folder:
        make_folders(folder, images, parts, "labels")
        for _ in each_image(images, classes, partial(_write_labels, folder=folder, parts=parts, classes=classes)):
            pass
        write_dataset_yaml(folder, parts, classes)
    found = list(parts.values())
    counts = ", ".join(f"{found.count(part)} {part}" for part in ("train", "val", "test") if part in found)
    return f"{out}: {counts} images, {len(classes)} classes; train with data={Path(out) / 'dataset.yaml'}"


def read_parts(
    data_dir: str | Path, classes: list[str], folds: str | Path | None, fold: int
) -> tuple[Any, dict[str, str]]:
    """The index of a data folder, with its test images if there are any, and for each image train, val or test."""
    splits = ("train", "test") if image_files(Path(data_dir, "test", "DCM")) else ("train",)
    table = read_index(data_dir, splits)
    _, validation = split_images(table, classes, folds, fold)
    held_out = set(validation["image_name"])
    names = zip(table["image_name"], table["split"], strict=True)
    return table, {name: "val" if name in held_out else split for name, split in names}


def make_folders(folder: Path, images: list[Image], parts: dict[str, str], labels: str) -> None:
    """Make <folder>/images/<part>/<ID> and, except for test images, <folder>/<labels>/<part>/<ID>."""
    for part, ID in sorted({(parts[image.image_name], image.ID) for image in images}):
        for kind in ("images",) if part == "test" else ("images", labels):
            (folder / kind / part / ID).mkdir(parents=True)


def write_dataset_yaml(folder: Path, parts: dict[str, str], names: list[str], **more: Any) -> None:
    """Write the dataset.yaml that ultralytics reads; its paths are relative to its folder."""
    used = set(parts.values())
    content = {"train": "images/train", "val": "images/val" if "val" in used else "images/train"}
    content |= {"test": "images/test"} if "test" in used else {}
    content |= {**more, "names": dict(enumerate(names))}
    (folder / "dataset.yaml").write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True), encoding="utf-8")


def _write_labels(image: Image, polygons: Polygons, folder: Path, parts: dict[str, str], classes: list[str]) -> None:
    part = parts[image.image_name]
    link(image.image, folder / "images" / part / image.ID / image.image_name)
    if part != "test":
        path = folder / "labels" / part / image.ID / f"{Path(image.image_name).stem}.txt"
        path.write_bytes(label_text(polygons, image.size, classes))


def label_text(polygons: Polygons, size: tuple[int, int], classes: list[str]) -> bytes:
    """The lines of a label file for the polygons, int32, of an image of `size` (H, W).

    A polygon that leaves the image is replaced by the outline of its part inside, because YOLO refuses it.
    """
    height, width = size
    xs, ys = _fractions(width), _fractions(height)
    lines = []
    for number, name in enumerate(classes):
        for points in polygons.get(name, []):
            inside = points.min() >= 0 and points[:, 0].max() < width and points[:, 1].max() < height
            for part in [points] if inside else outline(*draw_region([points], size)):
                text = np.column_stack([xs[part[:, 0]], ys[part[:, 1]]]).tobytes()
                lines.append(b"%d%b\n" % (number, text))
    return b"".join(lines)


@cache
def _fractions(side: int) -> np.ndarray:
    """The text of every whole coordinate divided by the side, after a blank; all have nine characters.

    Looking numbers up takes a tenth of the time of formatting them.
    """
    return np.array([f" {i / side:.6f}".encode() for i in range(side)], "S9")


def from_yolo(source: str | Path, out: str | Path, options: Options = DEFAULT) -> str:
    """YOLO's segmentation format to a data folder. Returns one line about what was written.

    Args:
        source: the dataset's YAML file or its folder; a folder without YAML, as Label Studio exports it, holds images/,
            labels/ and classes.txt.
        out: the new data folder; train and val images become its training images, test images (without their labels)
            its test images. Images without a label file have no polygons.
        options: of these, `images` is not used.

    Raises:
        DataError: with all problems: an order of classes that is not clear (names listed in another order than their
            ids, or YAML, classes.txt and notes.json that differ), missing folders and images, malformed lines, ids
            without a name.
    """
    base, places, names = read_description(Path(source))
    classes = class_order(names, options.classes) if options.classes else names
    problems, imported, left_out = [], [], LeftOut(options.skip_bad)
    for part, folder in places:
        paths = _listed_images(base, folder)
        if not paths:
            problems.append(f"{part}: no images in {folder}")
        for path in paths:
            place = path.relative_to(folder) if path.is_relative_to(folder) else path
            if part == "test":
                imported.append(Imported(path, place.as_posix(), None))
                continue
            try:
                (size, _), labels = image_sizes(path), _label_file(path)
            except OSError as error:
                problems.append(f"{path}: not a readable image ({error})")
                continue
            polygons, wrong = _read_labels(labels, size, names, options.boxes)
            problems += [f"{labels}: {text}" for text in (*wrong, *outside(polygons, size))]
            imported.append(Imported(path, place.as_posix(), {name: polygons.get(name, []) for name in classes}))
        if part != "test":
            problems += [f"{labels}: no image has these labels" for labels in _labels_alone(folder, paths)]
    left_out.settle(f"{source}: {len(problems)} problems", problems)
    return write_folder(out, imported, classes, options.people) + str(left_out)


def read_description(source: Path) -> tuple[Path, list[tuple[str, Path]], list[str]]:
    """The base folder of a dataset, its parts with their folders (or lists of images), and its class names."""
    files = sorted(source.glob("*.y*ml")) if source.is_dir() else [source]
    if len(files) > 1:
        raise DataError(f"{source}: {len(files)} YAML files", [f"name one of {', '.join(map(str, files))}"])
    base, places, found = source if source.is_dir() else source.parent, [], []
    if files:
        content = _load_yaml(files[0])
        found.append((files[0], _names(content.get("names"), files[0])))
        if isinstance(content.get("nc"), int) and content["nc"] != len(found[0][1]):
            raise DataError(f"{files[0]}: nc is {content['nc']}", [f"expected {len(found[0][1])}, the number of names"])
        root = base / str(content.get("path") or "")
        root = root if root.is_dir() else base
        for part in ("train", "val", "test"):
            entries = content.get(part) or []
            entries = entries if isinstance(entries, list) else [entries]
            places += [(part, root / str(entry)) for entry in entries]
    else:
        places = [("train", base / "images")]
    if (base / "classes.txt").exists():
        found.append((base / "classes.txt", read_class_file(base / "classes.txt")))
    if (notes := base / "notes.json").exists():
        try:
            named = {entry["id"]: entry["name"] for entry in read_json(notes)["categories"]}
        except (ValueError, KeyError, TypeError) as error:
            problem = f"expected {{categories: [{{id, name}}, …]}} ({type(error).__name__}: {error})"
            raise DataError(f"{notes}: not the list of classes that Label Studio exports", [problem]) from error
        found.append((notes, _names(named, notes)))
    if not found:
        raise DataError(f"{source}: not a YOLO dataset", ["expected a dataset.yaml, or images/, labels/, classes.txt"])
    differing = [f"{path}: {', '.join(names)}" for path, names in found if names != found[0][1]]
    title = f"{found[0][0]}: another order of classes than in the files beside it"
    refuse(title, [f"{found[0][0]}: {', '.join(found[0][1])}", *differing] if differing else [])
    places = [(part, place) for n, (part, place) in enumerate(places) if place not in [p for _, p in places[:n]]]
    return base, places, found[0][1]


def _load_yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise DataError(f"{path}: not a YAML file", [str(error)]) from error
    if not isinstance(content, dict) or "names" not in content:
        raise DataError(f"{path}: not the description of a YOLO dataset", ["expected train, val and names"])
    return content


def _names(value: Any, path: Path) -> list[str]:
    """Class names from a list, or from a dictionary by id. Raises DataError."""
    pairs = list(value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else [])
    if not pairs or not all(type(i) is int and isinstance(name, str) for i, name in pairs):
        raise DataError(f"{path}: no names", ["expected names: [a, b, …] or names: {0: a, 1: b, …}"])
    names = [name.strip() for name in check_order(pairs, f"{path}: names")]
    wrong = [] if [i for i, _ in pairs] == list(range(len(pairs))) else ["the ids are not 0, 1, 2, …"]
    refuse(f"{path}: names", wrong + [f"repeated: {name}" for name in sorted({n for n in names if names.count(n) > 1})])
    return names


def _listed_images(base: Path, place: Path) -> list[Path]:
    """The images of a folder and the folders in it, or of a text file that lists them."""
    if place.suffix == ".txt" and place.is_file():
        return [base / line.strip() for line in place.read_text(encoding="utf-8").splitlines() if line.strip()]
    return files_below(place, *SUFFIXES)


def _label_file(image: Path) -> Path:
    """The label file of an image: its last folder `images` is replaced by `labels`."""
    parts = list(image.parts)
    if "images" in parts:
        parts[len(parts) - 1 - parts[::-1].index("images")] = "labels"
    path = Path(*parts).with_suffix(".txt")
    if not path.exists() and not path.name.isascii():  # its name may be normalised otherwise
        alike = [other for other in path.parent.glob("*.txt") if same_name(other.name) == same_name(path.name)]
        path = alike[0] if alike else path
    return path


def _labels_alone(folder: Path, images: list[Path]) -> list[Path]:
    """The label files that belong to none of the images of a folder; only where labels have a folder of their own."""
    labels = _label_file(folder / "any.png").parent
    used = {_label_file(image) for image in images}
    others = [path for path in files_below(labels, ".txt") if path not in used and path.name != "classes.txt"]
    return [] if labels == folder else others  # labelling programs write classes.txt beside the labels


def _read_labels(path: Path, size: tuple[int, int], names: list[str], boxes: bool) -> tuple[Polygons, list[str]]:
    """The polygons of a label file in pixels, and its problems; none of both if there is no file."""
    polygons: Polygons = {name: [] for name in names}
    problems = []
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines() if path.exists() else []
    except UnicodeDecodeError as error:
        return polygons, [f"not a text file ({error})"]
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                label, points = _read_line(line.split(), len(names), boxes)
            except ValueError as error:
                problems.append(f"line {number}: {error}")
                continue
            polygons[names[label]].append(points * size[::-1])
    return polygons, problems


def _read_line(words: list[str], count: int, boxes: bool) -> tuple[int, np.ndarray]:
    """Class id and points, float64 (n, 2), of one line, as fractions. Raises ValueError."""
    number = words[0].removesuffix(".0")  # some exporters write every number as a float
    if not number.isdecimal() or int(number) >= count:
        raise ValueError(f"class id {words[0]!r}; expected 0 to {count - 1}")
    try:
        numbers = np.array(words[1:], np.float64)
    except ValueError:
        raise ValueError(f"{' '.join(words)[:60]!r}: expected numbers after the class id") from None
    if not (np.abs(numbers - 0.5) <= 0.5 + TOLERANCE).all():
        raise ValueError("coordinates outside 0 … 1; expected x / width and y / height")
    if len(numbers) == 4:
        if not boxes:
            raise ValueError("a box without outline; --boxes takes it as a mask")
        centre, half = numbers[:2], numbers[2:] / 2
        return int(number), centre + half * np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]])
    if len(numbers) < 6 or len(numbers) % 2:
        raise ValueError(f"{len(numbers)} coordinates; expected x and y in turn, at least 3 points")
    return int(number), numbers.reshape(-1, 2)
