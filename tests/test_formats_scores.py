"""Scores of instances and class maps, beside pycocotools and plain counting."""

import json

import cv2
import numpy as np
import pandas as pd
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from tests.formats import make_folder, run
from tests.reference import surface_distances
from utils.data.competition import DataError, read_classes
from utils.formats import coco
from utils.formats.score_tables import COLUMNS, score_class_maps, score_coco
from utils.masks.labels import draw


@pytest.fixture(scope="module")
def files(sample, tmp_path_factory):
    """True instances of the sample, and moved, missing, doubled and mistaken ones with scores."""
    folder = tmp_path_factory.mktemp("scores")
    coco.to_coco(sample, folder / "truth.json")
    rng = np.random.default_rng(0)
    results = []
    for a in json.loads((folder / "truth.json").read_text())["annotations"]:
        if a["category_id"] == 7 or rng.random() < 0.1:
            continue
        for _ in range(rng.integers(1, 4)):
            points = np.reshape(a["segmentation"][0], (-1, 2)) + rng.normal(0, 2.5, 2)
            category = a["category_id"] if rng.random() < 0.9 else int(rng.integers(1, 30))
            x, y = points.min(0)
            width, height = np.ptp(points, axis=0)
            results.append(
                {
                    "image_id": a["image_id"],
                    "category_id": category,
                    "segmentation": [points.ravel().round(2).tolist()],
                    "bbox": [x, y, width, height],
                    "score": round(float(rng.random()), 3),
                }
            )
    coco.write_results(results, folder / "list.json")
    coco.write_results(results, folder / "dictionary.json", as_dictionary=True)
    return folder


def judged(folder, kind):
    """pycocotools' evaluation, with the polygons of results as RLE, as it wants them."""
    truth = COCO(str(folder / "truth.json"))
    results = json.loads((folder / "list.json").read_text())
    for result in results:
        if kind == "segm":
            del result["bbox"]
            result["segmentation"] = truth.annToRLE(result)
    evaluation = COCOeval(truth, truth.loadRes(results), kind)
    evaluation.evaluate()
    evaluation.accumulate()
    return evaluation


@pytest.mark.parametrize(("title", "kind"), [("box", "bbox"), ("mask", "segm")])
def test_map_is_that_of_pycocotools(files, title, kind):
    table, evaluation = score_coco(files / "truth.json", files / "list.json"), judged(files, kind)
    precision = evaluation.eval["precision"][:, :, :, 0, 2]
    for column, of in (("mAP50", precision[:1]), ("mAP75", precision[5:6]), ("mAP50-95", precision)):
        expected = of.mean(axis=(0, 1))
        assert table[f"{title} {column}"][1:].to_numpy() == pytest.approx(expected, abs=1e-6)
    evaluation.summarize()
    overall = table.iloc[0][[f"{title} {column}" for column in ("mAP50-95", "mAP50", "mAP75")]]
    assert overall.to_numpy(float) == pytest.approx(evaluation.stats[:3], abs=1e-6)
    assert 0.05 < overall.iloc[0] < 0.95


@pytest.mark.parametrize(("title", "kind"), [("box", "bbox"), ("mask", "segm")])
def test_precision_and_recall_at_the_best_mean_f1(files, title, kind):
    evaluation = judged(files, kind)
    found = [
        (image["category_id"], score, match > 0)
        for image in evaluation.evalImgs
        if image is not None and image["aRng"] == evaluation.params.areaRng[0]
        for score, match in zip(image["dtScores"], image["dtMatches"][0], strict=True)
    ]
    classes, scores, correct = (np.array(column) for column in zip(*found, strict=True))
    total = np.array([len(evaluation.cocoGt.getAnnIds(catIds=[i])) for i in range(1, 30)])
    best = None
    for threshold in np.unique(scores):
        taken = scores >= threshold
        right = np.array([(taken & correct & (classes == i)).sum() for i in range(1, 30)])
        all_taken = np.array([(taken & (classes == i)).sum() for i in range(1, 30)])
        precision, recall = right / np.maximum(all_taken, 1), right / total
        f1 = (2 * precision * recall / np.maximum(precision + recall, 1e-12)).mean()
        if best is None or f1 > best[0]:
            best = (f1, precision, recall, threshold)
    table = score_coco(files / "truth.json", files / "list.json")
    assert table[f"{title} P"].tolist() == pytest.approx([best[1].mean(), *best[1]])
    assert table[f"{title} R"].tolist() == pytest.approx([best[2].mean(), *best[2]])
    if title == "mask":
        truth, results = (json.loads((files / name).read_text()) for name in ("truth.json", "list.json"))
        true = drawn(truth["annotations"])
        found = drawn([result for result in results if result["score"] >= best[3]])
        both, sums = (true & found).sum((2, 3)), true.sum((2, 3)) + found.sum((2, 3))
        dice = ((2 * both + 1e-4) / (sums + 1e-4)).mean(axis=0)
        assert table["Dice"].tolist() == pytest.approx([dice.mean(), *dice])
        iou = ((both + 1e-9) / (sums - both + 1e-9)).mean(axis=0)
        assert table["IoU"].tolist() == pytest.approx([iou.mean(), *iou], abs=1e-5)
        pairs = [
            [surface_distances(a, b) for a, b in zip(*image, strict=True)] for image in zip(true, found, strict=True)
        ]
        for column, distances in zip(("HD95", "MSD"), np.array(pairs).mean(axis=0).T, strict=True):
            assert table[column].tolist() == pytest.approx([distances.mean(), *distances])


def drawn(annotations):
    """The masks of the sample's 12 images and 29 classes."""
    masks = np.zeros((12, 29, 256, 256), bool)
    for a in annotations:
        points = np.rint(np.reshape(a["segmentation"][0], (-1, 2))).astype(np.int32)
        masks[a["image_id"] - 1, a["category_id"] - 1] |= draw([points], (256, 256))
    return masks


def test_list_and_dictionary_are_the_same_and_names_are_ids_too(files, tmp_path):
    table = score_coco(files / "truth.json", files / "list.json")
    assert table.equals(score_coco(files / "truth.json", files / "dictionary.json"))
    names = {i["id"]: i["file_name"] for i in json.loads((files / "truth.json").read_text())["images"]}
    results = json.loads((files / "list.json").read_text())
    for number, result in enumerate(results):
        name = names[result["image_id"]]
        result["image_id"] = name if number % 2 else name.rpartition("/")[2].removesuffix(".png")
    coco.write_results(results, tmp_path / "named.json")
    assert table.equals(score_coco(files / "truth.json", tmp_path / "named.json"))


def test_true_masks_score_one(sample, tmp_path):
    """Also with the masks of a submission, which are pixels, and with image ids that are texts."""
    coco.to_coco(sample, tmp_path / "truth.json", "rle")
    content = json.loads((tmp_path / "truth.json").read_text())
    for entry in (*content["images"], *content["annotations"]):
        key = "image_id" if "image_id" in entry else "id"
        entry[key] = f"image {entry[key]}"
    (tmp_path / "truth.json").write_text(json.dumps(content))
    coco.write_results([{**a, "score": 1.0} for a in content["annotations"]], tmp_path / "results.json")
    table = score_coco(tmp_path / "truth.json", tmp_path / "results.json")
    assert table["class"].tolist() == ["all", *read_classes(sample)]
    assert (table["images"] == 12).all() and table["instances"].tolist() == [348, *[12] * 29]
    for title in ("box", "mask"):
        assert table[[f"{title} {column}" for column in COLUMNS]].to_numpy() == pytest.approx(1)
    assert table["Dice"].to_numpy() == pytest.approx(1) and (table[["HD95", "MSD"]] == 0).all(axis=None)


def test_absent_classes_and_boxes_alone(tmp_path):
    data = make_folder(tmp_path / "data")
    coco.to_coco(data, tmp_path / "truth.json")
    content = json.loads((tmp_path / "truth.json").read_text())
    content["categories"].append({"id": 9, "name": "absent"})
    (tmp_path / "truth.json").write_text(json.dumps(content))
    boxes = [
        {k: a[k] for k in ("image_id", "category_id", "bbox")} | {"score": 0.9} for a in content["annotations"][:4]
    ]
    coco.write_results(boxes, tmp_path / "boxes.json")
    table = score_coco(tmp_path / "truth.json", tmp_path / "boxes.json").set_index("class")
    assert not [column for column in table if column.startswith("mask")]
    assert table.loc["absent", "instances"] == 0 and np.isnan(table.loc["absent", "box mAP50"])
    assert table.loc["b", "box mAP50"] == 1 and table.loc["a", "box R"] == pytest.approx(2 / 3)
    assert table.loc["all", "box mAP50"] == pytest.approx(table["box mAP50"][["a", "b"]].mean())
    coco.write_results([], tmp_path / "none.json")
    with pytest.raises(DataError, match="there are no results"):
        score_coco(tmp_path / "truth.json", tmp_path / "none.json")


def test_what_matches_a_crowd_counts_nowhere(tmp_path):
    data = make_folder(tmp_path / "data")
    coco.to_coco(data, tmp_path / "truth.json")
    content = json.loads((tmp_path / "truth.json").read_text())
    first = content["annotations"][0]
    coco.write_results([{**a, "score": 0.5} for a in content["annotations"]], tmp_path / "r.json")
    first["iscrowd"] = 1
    (tmp_path / "truth.json").write_text(json.dumps(content))
    table = score_coco(tmp_path / "truth.json", tmp_path / "r.json")
    assert table[["mask P", "mask R", "box P", "box R"]].to_numpy() == pytest.approx(1)


def test_score_command(files, tmp_path):
    done = run("score-coco", files / "truth.json", files / "dictionary.json", "--csv", tmp_path / "table.csv")
    assert (done.returncode, done.stderr) == (0, "")
    assert "mask mAP50-95" in done.stdout and "Triquetrum" in done.stdout and len(done.stdout.splitlines()) == 32
    assert (tmp_path / "table.csv").read_text().startswith("class,images,instances,box P,box R,box mAP50")


def test_class_maps_are_scored_pixel_by_pixel():
    rng = np.random.default_rng(0)
    names, maps = ["background", "a", "b", "absent"], []
    for shape in ((20, 30), (15, 8)):
        truth = rng.integers(0, 3, shape).astype(np.uint8)
        predicted = np.where(rng.random(shape) < 0.7, truth, rng.integers(0, 3, shape)).astype(np.uint8)
        truth[:2], predicted[3, :4] = 255, 255
        maps.append((truth, predicted))
    table = score_class_maps(maps, names).set_index("class")
    truth, predicted = (np.concatenate([m[i].ravel() for m in maps]) for i in (0, 1))
    counted = truth != 255
    for value, name in enumerate(names[:3]):
        true, found = (truth == value) & counted, (predicted == value) & counted
        assert table.loc[name, "IoU"] == pytest.approx((true & found).sum() / (true | found).sum())
        assert table.loc[name, "accuracy"] == pytest.approx((true & found).sum() / true.sum())
        assert table.loc[name, "pixels"] == true.sum()
    assert np.isnan(table.loc["absent", "IoU"])
    assert table.loc["all", "IoU"] == pytest.approx(table["IoU"][names[:3]].mean())
    assert table.loc["all", "accuracy"] == pytest.approx((truth == predicted)[counted].mean())
    with pytest.raises(DataError, match="value 4; expected 0 to 3"):
        score_class_maps([(np.uint8([[1]]), np.uint8([[4]]))], names)
    with pytest.raises(DataError, match="sizes"):
        score_class_maps([(np.zeros((2, 2), np.uint8), np.zeros((2, 3), np.uint8))], names)


def test_folders_of_class_maps_are_scored_by_a_command(sample, tmp_path):
    done = run("to-png", sample, tmp_path / "maps")
    assert done.returncode == 0, done.stderr
    truth = sorted((tmp_path / "maps" / "masks" / "val").rglob("*.png"))
    predicted = tmp_path / "predicted"
    predicted.mkdir()
    pixels = {"same": 0, "all": 0}
    for path in truth:
        values = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        moved = np.roll(values, 1, axis=1)
        pixels["same"] += (moved == values).sum()
        pixels["all"] += values.size
        cv2.imwrite(str(predicted / path.name), moved)
    done = run("score-png", tmp_path / "maps", predicted, "--csv", tmp_path / "table.csv")
    assert (done.returncode, done.stderr) == (0, "") and "accuracy" in done.stdout
    table = pd.read_csv(tmp_path / "table.csv").set_index("class")
    assert table.index.tolist() == ["all", "background", *read_classes(sample)]
    assert table.loc["all", "accuracy"] == pytest.approx(pixels["same"] / pixels["all"])
    assert 0.5 < table.loc["Lunate", "IoU"] < 1
    cv2.imwrite(str(predicted / "other.png"), values)
    cv2.imwrite(str(predicted / "another.png"), values)
    done = run("score-png", tmp_path / "maps", predicted)
    assert done.returncode == 1 and "2 class maps without a true one" in done.stderr and "another.png" in done.stderr
    (tmp_path / "empty").mkdir()
    assert "no class maps" in run("score-png", tmp_path / "maps", tmp_path / "empty").stderr
    (tmp_path / "empty" / truth[0].name).write_bytes(b"no picture")
    assert "not a class map" in run("score-png", tmp_path / "maps", tmp_path / "empty").stderr
