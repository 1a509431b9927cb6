"""PNG class maps, one class a pixel, for semantic models that know no overlaps; and what that costs.

    <folder>/dataset.yaml                               train, val, masks_dir: masks, names: of the values
    <folder>/images/<part>/<ID>/<name>.png              <folder>/masks/<part>/<ID>/<name>.png, 255: ignored in training

Where bones overlap, a pixel gets the class with the smaller mean area, over the images that show it, so that small
bones are not hidden; or an extra class for the pair, "Triquetrum & Pisiform", which `decode_class_map` takes apart.
"""

from collections.abc import Iterator
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from utils.data.annotation import Polygons
from utils.data.competition import DataError, read_classes
from utils.data.findings import refuse
from utils.formats.read_folder import Image, each_image, images_of
from utils.formats.write_folder import link, new_folder
from utils.formats.yolo_dataset import make_folders, read_description, read_parts, write_dataset_yaml
from utils.masks.dice import dice_of_areas
from utils.masks.labels import draw_region

BACKGROUND, IGNORE, JOIN, MASKS = "background", 255, " & ", "masks"


Region = tuple[np.ndarray, tuple[int, int]]
"""A mask, bool (h, w), and its corner (top, left) in the image, in pixels."""


class Layout(NamedTuple):
    """names: of the values 0, 1, 2, …: background, classes, pairs. order: classes from the largest to the smallest."""

    names: list[str]
    classes: list[str]
    order: list[str]
    ignore_overlaps: bool


class Cost(NamedTuple):
    """What a folder of class maps loses, compared with one mask per class.

    labelled, overlapping: pixels with a class, and with more than one. lost: of these, the pixels where the map does
    not tell all classes. dice: the mean Dice of the decoded maps, which is the best that a model trained on them can
    reach; worst: the class with the lowest, and its Dice.
    """

    labelled: int
    overlapping: int
    lost: int
    dice: float
    worst: tuple[str, float]

    def __str__(self) -> str:
        """The warning that is printed."""
        share = self.overlapping / max(self.labelled, 1)
        return (
            f"{self.overlapping} pixels ({share:.2%} of the labelled) have several classes; in {self.lost} of them the "
            f"class maps lose one. At best, a model trained on them reaches a mean Dice of {self.dice:.4f} "
            f"({self.worst[0]}: {self.worst[1]:.4f})"
        )


def to_png(
    data_dir: str | Path,
    out: str | Path,
    folds: str | Path | None = None,
    fold: int = 0,
    pair_iou: float | None = None,
    ignore_overlaps: bool = False,
) -> Cost:
    """Write a data folder as images and class maps, whole or not at all; returns what the overlaps cost.

    Args:
        data_dir: the data folder; its images are linked (hard links) or copied.
        out: the new folder.
        folds: a run's folds.csv; without it, people are divided in five (`split_images`).
        fold: the fold that is `val`; -1 for none.
        pair_iou: add a class for each pair of classes whose mean IoU over the training images is at least this.
        ignore_overlaps: write 255 where several classes overlap and no pair has a class, so that these pixels are not
            trained. The cost is that of a model that finds the smaller class there.

    Raises:
        DataError: for a data folder, annotations or folds that can't be used; for more than 255 values.
    """
    classes = read_classes(data_dir)
    table, parts = read_parts(data_dir, classes, folds, fold)
    images = [image for image in images_of(table) if image.annotation]
    areas, ious = zip(*each_image(images, classes, partial(_areas_and_ious, classes=classes)), strict=True)
    iou = np.mean(ious, axis=0)
    chosen = [] if pair_iou is None else np.argwhere((iou >= pair_iou) & (iou > 0)).tolist()
    names = [BACKGROUND, *classes, *(JOIN.join((classes[a], classes[b])) for a, b in chosen)]
    if len(names) > IGNORE:
        raise DataError(f"{out} can't be made", [f"{len(names)} values; a class map has at most {IGNORE}"])
    mean_areas = np.sum(areas, axis=0) / np.maximum(np.count_nonzero(areas, axis=0), 1)  # where the class is shown
    order = [classes[i] for i in np.argsort(-mean_areas, kind="stable")]
    layout = Layout(names, classes, order, ignore_overlaps)
    with new_folder(out) as folder:
        make_folders(folder, images_of(table), parts, MASKS)
        work = partial(_write_map, folder=folder, parts=parts, layout=layout)
        counts = [count for count in each_image(images_of(table), classes, work) if count is not None]
        write_dataset_yaml(folder, parts, names, masks_dir=MASKS)
    pixels = np.sum([pixels for pixels, _ in counts], axis=0)
    dice = np.mean([dice for _, dice in counts], axis=0)
    worst = int(dice.argmin())
    return Cost(*pixels.tolist(), float(dice.mean()), (classes[worst], float(dice[worst])))


def read_pairs(
    dataset: str | Path, predictions: str | Path
) -> tuple[list[str], Iterator[tuple[np.ndarray, np.ndarray]]]:
    """The names of a dataset's values, and the true and the predicted class map, uint8 (H, W), of each prediction.

    Args:
        dataset: a folder as `to_png` writes it.
        predictions: a folder of PNG class maps, also in folders within it, each with the file name of a true one.

    Raises:
        DataError: for a folder without dataset.yaml, masks or predictions, and for predictions without a true class
            map, all at once; while reading, for a file that is not a PNG of one channel.
    """
    base, _, names = read_description(Path(dataset))
    true = {path.name: path for path in sorted((base / MASKS).rglob("*.png"))}
    found = sorted(Path(predictions).rglob("*.png"))
    refuse(f"{base / MASKS}: no class maps", [] if true else ["expected a folder that to-png wrote"])
    refuse(f"{predictions}: no class maps", [] if found else ["expected PNG files named as those in the dataset"])
    unknown = [f"{path}: {base / MASKS} has no {path.name}" for path in found if path.name not in true]
    refuse(f"{predictions}: {len(unknown)} class maps without a true one", unknown)
    return names, ((_read_map(true[path.name]), _read_map(path)) for path in found)


def _read_map(path: Path) -> np.ndarray:
    values = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if values is None or values.ndim != 2 or values.dtype != np.uint8:
        raise DataError(f"{path}: not a class map", ["expected a PNG with one channel of 8 bits"])
    return values


def class_map(polygons: Polygons, size: tuple[int, int], layout: Layout) -> tuple[np.ndarray, np.ndarray]:
    """The class map of an image, uint8 (H, W), and how many classes each pixel has, uint8 (H, W)."""
    values, count = np.zeros(size, np.uint8), np.zeros(size, np.uint8)
    regions = {name: draw_region(polygons.get(name, []), size) for name in layout.classes}
    for name in layout.order:
        _part(values, regions[name])[regions[name][0]] = layout.classes.index(name) + 1
        _part(count, regions[name])[:] += regions[name][0]
    if layout.ignore_overlaps:
        values[count > 1] = IGNORE
    pairs = _pairs(layout.classes)
    for value, name in enumerate(layout.names[len(layout.classes) + 1 :], len(layout.classes) + 1):
        both = _overlap(*(regions[part] for part in pairs[name]))
        _part(values, both)[both[0] & (_part(count, both) == 2)] = value
    return values, count


def decode_class_map(values: np.ndarray, names: list[str], classes: list[str]) -> np.ndarray:
    """The masks, bool (classes, H, W), of a class map, uint8 (H, W), whose values have `names`, background first.

    A value of a pair sets both of its classes; background and 255 set none. Raises DataError for other values.
    """
    unknown = sorted(set(np.unique(values).tolist()) - {IGNORE, *range(len(names))})
    if unknown:
        raise DataError("not a class map of these names", [f"values {unknown}; expected 0 to {len(names) - 1}, or 255"])
    return class_members(names, classes)[:, values]


def class_members(names: list[str], classes: list[str]) -> np.ndarray:
    """For each class, whether a value stands for it, bool (classes, 256); names: of the values, background first."""
    held, pairs = np.zeros((len(classes), 256), bool), _pairs(classes)
    for value, name in enumerate(names[1:], 1):
        for part in (name,) if name in classes else pairs.get(name, ()):
            held[classes.index(part), value] = True
    return held


def _pairs(classes: list[str]) -> dict[str, tuple[str, str]]:
    """All pairs of classes by the name of their value."""
    return {a + JOIN + b: (a, b) for a, b in combinations(classes, 2)}


def _part(whole: np.ndarray, region: Region) -> np.ndarray:
    """The view of an image where a region lies."""
    mask, (top, left) = region
    return whole[top : top + mask.shape[0], left : left + mask.shape[1]]


def _overlap(one: Region, two: Region) -> Region:
    """The pixels that two regions share; (0, 0) pixels if their boxes share none."""
    (a, (top, left)), (b, (y, x)) = one, two
    first_row, first_column = max(top, y), max(left, x)
    height = min(top + a.shape[0], y + b.shape[0]) - first_row
    width = min(left + a.shape[1], x + b.shape[1]) - first_column
    if height < 1 or width < 1:
        return np.zeros((0, 0), bool), (0, 0)
    parts = [mask[first_row - corner[0] :, first_column - corner[1] :][:height, :width] for mask, corner in (one, two)]
    return parts[0] & parts[1], (first_row, first_column)


def _areas_and_ious(image: Image, polygons: Polygons, classes: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Areas in pixels, int64 (classes,), and in [a, b] the IoU of the classes a < b, float (classes, classes)."""
    regions = [draw_region(polygons[name], image.size) for name in classes]
    areas = np.array([mask.sum() for mask, _ in regions])
    ious = np.zeros((len(classes), len(classes)))
    for a, b in combinations(range(len(classes)), 2):
        shared = _overlap(regions[a], regions[b])[0].sum()
        ious[a, b] = shared / max(areas[a] + areas[b] - shared, 1)
    return areas, ious


def _write_map(
    image: Image, polygons: Polygons, folder: Path, parts: dict[str, str], layout: Layout
) -> tuple[np.ndarray, np.ndarray] | None:
    """Write an image and its map; returns its pixels (labelled, overlapping, lost) and the Dice of each class."""
    part = parts[image.image_name]
    link(image.image, folder / "images" / part / image.ID / image.image_name)
    if part == "test":
        return None
    values, count = class_map(polygons, image.size, layout)
    path = (folder / MASKS / part / image.ID / image.image_name).with_suffix(".png")  # nothing may be lost
    if not cv2.imwrite(str(path), values):
        raise OSError(f"{path} can't be written")
    if layout.ignore_overlaps:
        values, _ = class_map(polygons, image.size, layout._replace(ignore_overlaps=False))
    held = class_members(layout.names, layout.classes)
    found = held @ np.bincount(values.ravel(), minlength=256)
    areas = np.array([draw_region(polygons.get(name, []), image.size)[0].sum() for name in layout.classes])
    told = held.sum(axis=0)[values]
    pixels = np.array([(count > 0).sum(), (count > 1).sum(), (told < count).sum()])
    return pixels, dice_of_areas(found, areas, found)
