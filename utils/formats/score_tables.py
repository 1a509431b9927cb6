"""Scores of instance models and of class maps: the tables that users of YOLO and of semantic models know.

Average precision is COCO's (101 recall thresholds, at most 100 instances per image and class), computed by
faster-coco-eval. P and R are precision and recall at IoU 0.5, at the score threshold where the mean F1 over the classes
is highest. Dice is the competition's, of the drawn masks with at least that score, together one mask for each class;
IoU is theirs, too (its mean over the classes is mIoU); HD95 and MSD are the distances of these masks' outlines from the
true ones (`utils.masks.surface`).
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from utils.data.competition import DataError
from utils.data.findings import refuse
from utils.files import cores
from utils.formats import coco_rle
from utils.formats.coco_read import Annotation, Dataset, read_dataset, read_results
from utils.masks.dice import dice_of_masks
from utils.masks.labels import draw_region
from utils.masks.masks import Masks, majority
from utils.masks.surface import surface_distances

COLUMNS = ["P", "R", "mAP50", "mAP75", "mAP50-95"]
ALL = "all"


def score_coco(truth: str | Path, prediction: str | Path) -> pd.DataFrame:
    """Score predicted instances.

    Args:
        truth: a COCO file with images, categories and annotations.
        prediction: COCO results, a list or a dictionary with the key `annotations`.

    Returns:
        A row for all classes (the mean over those that are there) and one for each class, by category id. Columns:
        class, images (that show it), instances; for box and mask each of COLUMNS, such as "mask mAP50", 0 to 1, NaN for
        a class without instances; Dice and IoU, for which a class that neither shows counts 1, as in the competition;
        HD95 and MSD in pixels, the mean over the images, where a class counts 0 that neither shows, and the image's
        diagonal if only one does. The columns of masks and the last four are missing if one result or true instance has
        a box only.

    Raises:
        DataError: with everything wrong in one of the files; if there are no results or no true instances.
    """
    dataset = read_dataset(truth)
    results = read_results(prediction, dataset)
    empty = [f"there are no results in {prediction}"] if not results else []
    empty += [f"there are no true instances in {truth}"] if not dataset.annotations else []
    refuse("nothing to score", empty)
    names = {i: dataset.categories[i] for i in sorted(dataset.categories)}
    shown = {(a.category_id, a.image_id) for a in dataset.annotations}
    instances = Counter(a.category_id for a in dataset.annotations)
    table = pd.DataFrame(
        {
            "class": [ALL, *names.values()],
            "images": [len(dataset.images), *(sum(c == i for c, _ in shown) for i in names)],
            "instances": [len(dataset.annotations), *(instances[i] for i in names)],
        }
    )
    for title, kind in (("box", "bbox"), ("mask", "segm")):
        if kind == "segm" and not all(a.polygons or a.rle for a in (*results, *dataset.annotations)):
            continue
        scores, threshold = _evaluate(dataset, results, kind)
        for place, column in enumerate(COLUMNS):
            table[f"{title} {column}"] = [np.nanmean(scores[:, place]), *scores[:, place]]
        if kind == "segm":
            of_masks = _of_masks(dataset, [result for result in results if result.score >= threshold])
            for name, values in of_masks.items():
                table[name] = [values.mean(), *values]
    return table


def _evaluate(dataset: Dataset, results: Sequence[Annotation], kind: str) -> tuple[np.ndarray, float]:
    """The values of COLUMNS for each category by id, (categories, 5), NaN where there are no instances; and the score
    threshold of P and R."""
    from faster_coco_eval import COCO, COCOeval_faster

    truth = COCO(
        {
            "images": [
                {"id": i, "height": p.size[0], "width": p.size[1], "file_name": p.file_name}
                for i, p in _numbered(dataset.images)
            ],
            "categories": [{"id": i, "name": name} for i, name in dataset.categories.items()],
            "annotations": _entries(dataset.annotations, dataset),
        }
    )
    found = truth.loadRes(_entries(results, dataset))
    evaluations = [COCOeval_faster(truth, found, kind, extra_calc=True) for _ in range(2)]
    # `matched` joins the matches of all IoU thresholds and sizes, so P and R need an evaluation at 0.5 alone
    evaluations[1].params.iouThrs = np.array([0.5])
    evaluations[1].params.areaRng, evaluations[1].params.areaRngLbl = evaluations[1].params.areaRng[:1], ["all"]
    for evaluation in evaluations:
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluations[0].eval["precision"][:, :, :, 0, -1]  # IoU thresholds, recall thresholds, categories
    average = np.where(precision < 0, np.nan, precision).mean(axis=1)
    average = np.column_stack([average[0], average[5], average.mean(axis=0)])
    matched = dict(map(int, pair.split("_")) for pair in evaluations[1].eval["matched"])  # result: true instance
    crowd = [number in matched and dataset.annotations[matched[number] - 1].crowd for number in _ids(results)]
    counted = [result for result, ignored in zip(results, crowd, strict=True) if not ignored]
    correct = [number in matched for number, ignored in zip(_ids(results), crowd, strict=True) if not ignored]
    best, threshold = _best_f1(dataset, counted, np.array(correct))
    return np.column_stack([best, average]), threshold


def _ids(entries: Sequence[Any]) -> range:
    """The ids that `_entries` gives."""
    return range(1, len(entries) + 1)


def _best_f1(dataset: Dataset, results: Sequence[Annotation], correct: np.ndarray) -> tuple[np.ndarray, float]:
    """P and R of each category by id, (categories, 2), at the score threshold with the highest mean F1; and it.

    `correct`: for each result, whether it matches a true instance of its class with an IoU of at least 0.5.
    """
    scores = np.array([a.score for a in results])
    of = np.array([a.category_id for a in results])
    thresholds = np.unique(scores)
    curves = []
    for category in sorted(dataset.categories):
        total = sum(a.category_id == category and not a.crowd for a in dataset.annotations)
        order = np.argsort(scores[of == category])
        reached = scores[of == category][order]
        right = np.append(np.cumsum(correct[of == category][order][::-1])[::-1], 0)  # with at least this score
        first = np.searchsorted(reached, thresholds)
        taken = len(reached) - first
        with np.errstate(invalid="ignore"):
            curves.append([right[first] / np.maximum(taken, 1), right[first] / np.float64(total or np.nan)])
    precision, recall = np.array(curves).transpose(1, 0, 2)  # (categories, thresholds)
    precision = np.where(np.isnan(recall), np.nan, precision)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    best = int(np.nanmean(f1, axis=0).argmax())
    return np.column_stack([precision[:, best], recall[:, best]]), float(thresholds[best])


def _of_masks(dataset: Dataset, results: Sequence[Annotation]) -> dict[str, np.ndarray]:
    """Dice, IoU, HD95 and MSD of each category by id, the mean over all images, (categories,)."""
    categories = sorted(dataset.categories)
    grouped: list[dict[tuple, list[Annotation]]] = [defaultdict(list), defaultdict(list)]
    for group, annotations in zip(grouped, (dataset.annotations, results), strict=True):
        for a in annotations:
            group[a.image_id, a.category_id].append(a)

    def of_image(image: Any) -> np.ndarray:
        size = dataset.images[image].size
        true, found = (_masks([group[image, i] for i in categories], size) for group in grouped)
        dice = dice_of_masks(true, found)
        return np.stack([dice, dice / (2 - dice), *surface_distances(true, found)])

    with ThreadPoolExecutor(cores()) as pool:
        means = np.mean(list(pool.map(of_image, dataset.images)), axis=0)
    return dict(zip(("Dice", "IoU", "HD95", "MSD"), means, strict=True))


def _masks(groups: Sequence[Sequence[Annotation]], size: tuple[int, int]) -> Masks:
    """The union of each group's masks, polygons drawn as the competition draws them."""
    unions = []
    for annotations in groups:
        parts = [Masks.empty(1, size)]
        for a in annotations:
            drawn = draw_region([np.rint(points).astype(np.int32) for points in a.polygons], size)
            region = coco_rle.decode_coco(a.rle) if a.rle is not None else drawn
            parts.append(Masks.from_regions([region], size))
        unions.append(majority(parts, [1] * len(parts), 0)[0])
    return Masks.from_runs(unions, size)


def _numbered(images: dict[Any, Any]) -> Iterable[tuple[int, Any]]:
    """The images with ids from 1, because faster-coco-eval takes only whole numbers as ids."""
    return enumerate(images.values(), 1)


def _entries(annotations: Sequence[Annotation], dataset: Dataset) -> list[dict[str, Any]]:
    """Annotations or results as faster-coco-eval wants them: all masks as compressed RLE, with area and box."""
    from faster_coco_eval.core import mask

    numbers = {i: number for number, i in enumerate(dataset.images, 1)}
    entries = []
    for number, a in zip(_ids(annotations), annotations, strict=True):
        entry = {"id": number, "image_id": numbers[a.image_id], "category_id": a.category_id, "score": a.score}
        size = dataset.images[a.image_id].size
        segmentation = None
        if a.polygons:
            segmentation = mask.merge(mask.frPyObjects([points.ravel().tolist() for points in a.polygons], *size))
        elif a.rle is not None:
            counts = a.rle["counts"]
            segmentation = a.rle if isinstance(counts, str) else mask.frPyObjects(a.rle, *size)
        box = a.box if a.box is not None else mask.toBbox(segmentation).tolist()
        area = box[2] * box[3] if segmentation is None else float(mask.area(segmentation))
        entries.append({**entry, "bbox": box, "area": area, "iscrowd": int(a.crowd)})
        if segmentation is not None:
            entries[-1]["segmentation"] = segmentation
    return entries


def score_class_maps(pairs: Iterable[tuple[np.ndarray, np.ndarray]], names: Sequence[str]) -> pd.DataFrame:
    """IoU and accuracy of class maps, over the pixels of all images together, as semantic models are scored.

    Args:
        pairs: the true and the predicted class map of each image, uint8 (H, W); pixels whose true value is 255 count
            nowhere, a predicted 255 counts as none of the classes.
        names: of the values 0, 1, 2, …

    Returns:
        A row for all (mIoU, the mean over the classes that are in one of the maps; accuracy: the share of right pixels)
        and one for each value. Columns: class, pixels (true), IoU, accuracy (0 to 1, NaN where there are no pixels).

    Raises:
        DataError: for two maps of different sizes, or with values that have no name.
    """
    count = len(names)
    confusion = np.zeros((count, count + 1), np.int64)
    for number, (truth, predicted) in enumerate(pairs):
        if truth.shape != predicted.shape:
            raise DataError(f"class maps {number}", [f"the sizes are {truth.shape} and {predicted.shape}"])
        counted = truth != 255
        values = np.stack([truth[counted], predicted[counted]]).astype(np.int64)
        unknown = values[(values >= count) & (values != 255)]
        if unknown.size:
            raise DataError(f"class maps {number}", [f"value {unknown[0]}; expected 0 to {count - 1}, or 255"])
        index = values[0] * (count + 1) + np.minimum(values[1], count)
        confusion += np.bincount(index, minlength=confusion.size).reshape(confusion.shape)
    right, true = np.diag(confusion).astype(float), confusion.sum(axis=1)
    union = true + confusion[:, :count].sum(axis=0) - right
    with np.errstate(invalid="ignore", divide="ignore"):
        iou, accuracy = right / np.where(union, union, np.nan), right / np.where(true, true, np.nan)
    overall = right.sum() / true.sum() if true.sum() else np.nan
    return pd.DataFrame(
        {
            "class": [ALL, *names],
            "pixels": [int(true.sum()), *true.tolist()],
            "IoU": [np.nanmean(iou) if union.any() else np.nan, *iou],
            "accuracy": [overall, *accuracy],
        }
    )
