"""Other formats: round trips through COCO, YOLO and PNG, and files as labelling tools write them."""

import base64
import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image as Pillow
from pycocotools import mask as judge
from pycocotools.coco import COCO

from tests.formats import CLASSES, POLYGONS, SIZES, assert_same_polygons, export, make_folder, masks_of, run
from tests.strategies import floats
from utils.data.annotation import find_outlines, read_annotation, usual_polygons
from utils.data.competition import DataError, read_classes, read_index
from utils.data.folds import read_folds, split_fold
from utils.files import ROOT
from utils.formats import class_maps, coco, coco_rle, commands, cvat, labelme, yolo_dataset
from utils.formats.coco_read import read_dataset
from utils.formats.imported_shapes import ImageFiles, Options
from utils.formats.read_folder import each_image, images_of
from utils.masks import rle
from utils.masks.labels import draw
from utils.masks.outlines import outline
from utils.sample.images import geometry
from utils.sample.roster import roster


@pytest.fixture
def data(tmp_path):
    return make_folder(tmp_path / "data")


@given(arrays(bool, st.tuples(st.integers(1, 14), st.integers(1, 14))), st.tuples(st.integers(0, 3), st.integers(0, 3)))
def test_outlines_drawn_again_are_the_mask(mask, corner):
    size = (mask.shape[0] + corner[0] + 2, mask.shape[1] + corner[1] + 1)
    whole = np.zeros(size, bool)
    whole[corner[0] : corner[0] + mask.shape[0], corner[1] : corner[1] + mask.shape[1]] = mask
    polygons = outline(mask, corner)
    assert all(len(points) >= 3 for points in polygons)
    assert (draw(polygons, size) == whole).all()


number = st.integers(-2, 12) | floats(-2, 12) | st.sampled_from(["3", None, True, 1e12, 10**400, [], {}])
point = st.lists(number, min_size=1, max_size=3) | st.sampled_from(["ab", {"x": 1, "y": 2}])
shape = st.fixed_dictionaries(
    {"label": st.sampled_from(["a", "b", "c", None, []]), "points": st.lists(point, max_size=5)}
)


whole = st.lists(st.lists(st.integers(0, 9), min_size=2, max_size=2), min_size=2, max_size=5)
usual = st.fixed_dictionaries({"label": st.sampled_from(CLASSES), "points": whole})


@given(
    st.lists(usual | usual | shape | st.none() | st.fixed_dictionaries({"label": st.just("a")}), max_size=3),
    st.sampled_from([(", ", ": "), (",", ":"), (" , ", " : ")]),
    st.sampled_from([None, 1]),
)
def test_the_fast_reader_accepts_nothing_that_the_careful_one_refuses(
    tmp_path_factory, annotations, separators, indent
):
    path = tmp_path_factory.getbasetemp() / "annotation.json"
    path.write_text(json.dumps({"annotations": annotations}, separators=separators, indent=indent))
    usual = usual_polygons(path, CLASSES, (9, 9))
    outlines, problems = find_outlines(path, CLASSES, (9, 9))
    if usual is not None:
        assert problems == []
        for name in CLASSES:
            assert [p.tolist() for p in usual[name]] == [o.points.tolist() for o in outlines if o.label == name]


@pytest.mark.parametrize(
    "text",
    [
        '[{"label": "a", "points": [[1, 2], [3, 4], [5, ]]}]',
        '[{"label": "a", "points": [[, 2], [3, 4 7], [5, 6]]}]',
        '[{"label": "a", "points": [[1, 2], [3, 4], [5, 6]], "points": [[1, 2], [3, 4], [5, 7]]}]',
        '[{"label": "a", "points": [[1, 2], [3, 4], [5, 6]]}, {"points": [[1, 2], [3, 4], [5, 7]]}]',
        '[{"label": "a", "attributes": {"points": [[1, 2], [3, 4], [5, 6]]}}]',
        '[{"label": "a", "points": [[1, 2], [3, 4], [5, 6]]]',
        '[{"label": "a", "points": [[1, 2], [3, 4], [5, 6]',
    ],
)
def test_text_that_is_not_as_usual_is_left_to_read_annotation(tmp_path, text):
    (tmp_path / "a.json").write_text(f'{{"annotations": {text}}}')
    assert usual_polygons(tmp_path / "a.json", CLASSES, (9, 9)) is None
    (tmp_path / "a.json").write_text('{"annotations": [{"label": "a", "points": [[1, 2], [3,4], [5, 6]]}]}')
    found = usual_polygons(tmp_path / "a.json", CLASSES, (9, 9))
    assert found["b"] == [] and found["a"][0].tolist() == [[1, 2], [3, 4], [5, 6]]


def test_a_ring_is_cut_into_polygons_and_a_disc_is_not():
    disc = cv2.circle(np.zeros((60, 60), np.uint8), (30, 30), 25, 1, -1).astype(bool)
    ring = disc & ~cv2.circle(np.zeros((60, 60), np.uint8), (30, 30), 10, 1, -1).astype(bool)
    assert len(outline(disc)) == 1 and len(outline(ring)) == 2
    assert (draw(outline(ring), (60, 60)) == ring).all()


@given(arrays(bool, st.tuples(st.integers(1, 12), st.integers(1, 12))))
def test_coco_rle_is_that_of_pycocotools(mask):
    height, width = mask.shape
    expected = judge.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"].decode()
    found = coco_rle.encode_coco(mask, (0, 0), (height, width))
    assert found == {"size": [height, width], "counts": expected}
    uncompressed = {"size": [height, width], "counts": coco_rle.counts_of(found).tolist()}
    for form in (found, uncompressed):
        region, (top, left) = coco_rle.decode_coco(form)
        whole = np.zeros(mask.shape, bool)
        whole[top : top + region.shape[0], left : left + region.shape[1]] = region
        assert (whole == mask).all()


@given(st.one_of(st.text(max_size=12), st.lists(st.integers(-3, 20) | st.none(), max_size=6), st.none()))
def test_malformed_rle_is_refused(counts):
    try:
        found = coco_rle.counts_of({"size": [4, 5], "counts": counts})
    except ValueError as error:
        assert "RLE" in str(error)
    else:
        assert found.sum() == 20 and found.min() >= 0


def test_annotations_are_read_as_by_read_annotation(sample):
    classes, table = read_classes(sample), read_index(sample)
    found = list(each_image(images_of(table), classes, lambda image, polygons: polygons))
    for row, polygons in zip(table.itertuples(), found, strict=True):
        expected = {name: [] for name in classes}
        for one in find_outlines(row.annotation, classes)[0] if row.annotation else []:
            expected[one.label].append(one.points)
        assert polygons.keys() == expected.keys()
        for name in classes:
            assert [p.dtype for p in polygons[name]] == [p.dtype for p in expected[name]]
            assert all(np.array_equal(a, b) for a, b in zip(polygons[name], expected[name], strict=True))


@pytest.mark.parametrize(
    "points",
    [
        [[1, 2], [3, 4]],
        [[1, 2], [3, None], [5, 6]],
        [[1, 2], [3], [5, 6]],
        [["x", "2"], ["3", "4"], ["5", "6"]],
        7,
        "ab",
    ],
)
def test_odd_annotations_are_left_to_read_annotation(data, points):
    path = data / "train/outputs_json/ID2/three.json"
    path.write_text(json.dumps({"annotations": [{"label": "a", "points": points}]}))
    with pytest.raises(DataError) as expected:
        read_annotation(path, CLASSES, SIZES["ID2/three.png"])
    with pytest.raises(DataError) as found:
        coco.to_coco(data, data / "o.json")
    assert found.value.problems == [f"{path}: {problem}" for problem in expected.value.problems]
    assert not (data / "o.json").exists()


@pytest.fixture(scope="module")
def full_size(tmp_path_factory):
    """Two of the sample's hands at 2048 × 2048, with all outlines, and black images."""
    folder = tmp_path_factory.mktemp("data") / "full"
    for image in roster(1, 1, seed=0)[:2]:
        _, polygons, _ = geometry(image, 2048)
        shapes = [{"label": name, "points": points.tolist()} for name, points in polygons.items()]
        for kind, name in (("DCM", f"{image.name}.png"), ("outputs_json", f"{image.name}.json")):
            (folder / "train" / kind / image.ID).mkdir(parents=True, exist_ok=True)
            path = folder / "train" / kind / image.ID / name
            if kind == "DCM":
                Pillow.new("L", (2048, 2048)).save(path)
            else:
                path.write_text(json.dumps({"annotations": shapes}))
    return folder


@pytest.mark.parametrize("style", coco.STYLES)
def test_coco_loads_in_pycocotools_and_areas_agree(full_size, tmp_path, style):
    coco.to_coco(full_size, tmp_path / "a.json", style)
    found, table = COCO(str(tmp_path / "a.json")), read_index(full_size, ("train",))
    assert [c["name"] for c in found.loadCats(sorted(found.getCatIds()))] == read_classes(full_size)
    assert sorted(found.anns) == list(range(1, 29 * len(table) + 1))
    assert [i["file_name"] for i in found.dataset["images"]] == (table["ID"] + "/" + table["image_name"]).tolist()
    for annotation in found.loadAnns(found.getAnnIds()):
        pixels = judge.area(found.annToRLE(annotation))
        assert annotation["area"] == pytest.approx(pixels, rel=0.01)
        box = judge.toBbox(found.annToRLE(annotation))
        assert np.abs(np.subtract(annotation["bbox"], box)).max() <= 1
        if style == "polygon":
            x, y = np.reshape(annotation["segmentation"][0], (-1, 2)).T
            assert annotation["area"] == abs(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2


def test_coco_areas_are_those_of_the_outline(data, tmp_path):
    coco.to_coco(data, tmp_path / "a.json")
    areas = {
        (a["image_id"], a["category_id"]): a["area"]
        for a in json.loads((tmp_path / "a.json").read_text())["annotations"]
    }
    assert areas[1, 2] == 21 * 32 / 2 and areas[1, 1] == pytest.approx(0.5 * abs(25 * 35 - 7 * 3) + 30 * 7, rel=0.01)
    assert len(areas) == 5
    overlapping = {
        "b": [np.int32([[0, 0], [20, 0], [20, 20], [0, 20]]), np.int32([[10, 0], [30, 0], [30, 20], [10, 20]])]
    }
    image = images_of(read_index(data, ("train",)))[0]
    record = b"{" + coco._instances(image, overlapping, CLASSES, "polygon", False)[0].rstrip(b",")
    assert json.loads(record)["area"] == 600  # the union, not the sum


@pytest.mark.parametrize("style", coco.STYLES)
def test_coco_and_back(data, sample, tmp_path, style):
    for number, folder in enumerate((data, sample)):
        coco.to_coco(folder, tmp_path / "a.json", style)
        back = tmp_path / f"back{number}"
        coco.from_coco(tmp_path / "a.json", back, Options(images=str(folder / "train")))
        assert read_classes(back) == read_classes(folder)
        one, other = masks_of(folder), masks_of(back)
        assert one.keys() == other.keys() and all((one[key] == other[key]).all() for key in one)
        if style == "polygon":
            assert_same_polygons(folder, back)
        for image in (folder / "train/DCM").glob("*/*.png"):
            assert (back / image.relative_to(folder)).read_bytes() == image.read_bytes()


def test_every_polygon_can_be_an_instance(data, tmp_path):
    coco.to_coco(data, tmp_path / "a.json", each_polygon=True)
    assert len(read_dataset(tmp_path / "a.json").annotations) == 6
    coco.to_coco(data, tmp_path / "a.json")
    parts = [len(a.polygons) for a in read_dataset(tmp_path / "a.json").annotations]
    assert sorted(parts) == [1, 1, 1, 1, 2]


def test_yolo_and_back(data, sample, tmp_path):
    for number, folder in enumerate((data, sample)):
        yolo_dataset.to_yolo(folder, tmp_path / f"y{number}")
        for image in (tmp_path / f"y{number}/images").rglob("*.png"):
            assert image.stat().st_nlink > 1  # linked, not copied
        back = tmp_path / f"back{number}"
        yolo_dataset.from_yolo(tmp_path / f"y{number}", back)
        assert read_classes(back) == read_classes(folder)
        one, other = masks_of(folder), masks_of(back)
        assert one.keys() == other.keys() and all((one[key] == other[key]).all() for key in one)
    assert_same_polygons(sample, back)
    assert len(read_index(back, ("test",))) == len(read_index(sample, ("test",)))


def test_train_and_val_follow_the_runs_folds(sample, tmp_path):
    table, classes = read_index(sample, ("train",)), read_classes(sample)
    folds = read_folds(tmp_path / "folds.csv", table, classes, 3)
    train, validation = (set(part["image_name"]) for part in split_fold(table, folds, 1))
    paths = coco.to_coco(sample, tmp_path / "a.json", folds=tmp_path / "folds.csv", fold=1)
    assert [p.name for p in paths] == ["a_train.json", "a_val.json"]
    parts, whole = [read_dataset(path) for path in paths], coco.to_coco(sample, tmp_path / "whole.json")
    assert [{Path(p.file_name).name for p in part.images.values()} for part in parts] == [train, validation]
    assert parts[0].images | parts[1].images == read_dataset(*whole).images  # the same ids in all files
    yolo_dataset.to_yolo(sample, tmp_path / "y", tmp_path / "folds.csv", 1)
    class_maps.to_png(sample, tmp_path / "p", tmp_path / "folds.csv", 1)
    for folder in ("y/images", "p/images", "p/masks"):
        assert {p.name for p in (tmp_path / folder / "val").rglob("*.png")} == validation
        assert {p.name for p in (tmp_path / folder / "train").rglob("*.png")} == train
    with pytest.raises(DataError, match=r"no fold 7\n.*\[0, 1, 2\]"):
        yolo_dataset.to_yolo(sample, tmp_path / "z", tmp_path / "folds.csv", 7)
    with pytest.raises(DataError, match="no such file"):
        yolo_dataset.to_yolo(sample, tmp_path / "z", tmp_path / "nowhere.csv")


def test_without_folds_people_are_kept_apart(sample, tmp_path):
    yolo_dataset.to_yolo(sample, tmp_path / "y")
    people = {part: {p.name for p in (tmp_path / "y/images" / part).iterdir()} for part in ("train", "val")}
    assert people["train"] and people["val"] and not people["train"] & people["val"]
    description = yaml.safe_load((tmp_path / "y/dataset.yaml").read_text())
    assert description["names"] == dict(enumerate(read_classes(sample))) and description["test"] == "images/test"


NAMES = {
    "folders": lambda name: f"some/folder/{name}",
    "Windows": lambda name: "..\\..\\media\\upload\\4\\" + Path(name).name,
    "Label Studio": lambda name: "images/1a2b3c4d-" + Path(name).name,
    "URL": lambda name: f"/data/local-files/?d=my%20images/{name}",
    "encoded": lambda name: name.replace("/", "%2F"),
}


@pytest.mark.parametrize("kind", NAMES)
def test_coco_of_labelling_tools_image_names(data, tmp_path, kind):
    path = export(
        data, tmp_path / "a.json", images=lambda entry: {**entry, "file_name": NAMES[kind](entry["file_name"])}
    )
    coco.from_coco(path, tmp_path / "back", Options(images=str(data)))
    assert masks_of(tmp_path / "back").keys() == masks_of(data).keys()


def test_coco_of_labelling_tools_annotations(data, tmp_path):
    """Categories from 0; uncompressed RLE; a flat list of numbers; nothing but what is needed."""
    masks = masks_of(data)

    def change(entry):
        image = list(SIZES)[entry["image_id"] - 1]
        mask = masks[Path(image).name, CLASSES[entry["category_id"] - 1]]
        kept = {key: entry[key] for key in ("id", "image_id", "bbox")} | {"category_id": entry["category_id"] - 1}
        if len(entry["segmentation"]) == 1 and entry["image_id"] > 1:
            return {**kept, "segmentation": entry["segmentation"][0], "iscrowd": 0}
        counts = coco_rle.counts_of(coco_rle.encode_coco(mask, (0, 0), mask.shape)).tolist()
        return {**kept, "segmentation": {"size": list(mask.shape), "counts": counts}, "iscrowd": 1}

    path = export(data, tmp_path / "a.json", annotations=change, categories=lambda c: {**c, "id": c["id"] - 1})
    coco.from_coco(path, tmp_path / "back", Options(images=str(data)))
    found = masks_of(tmp_path / "back")
    assert all((found[key] == masks[key]).all() for key in masks)


def test_boxes_are_masks_only_on_request(data, tmp_path):
    path = export(data, tmp_path / "a.json", annotations=lambda a: {**a, "segmentation": []})
    with pytest.raises(DataError, match="2 boxes without outline") as error:
        coco.from_coco(path, tmp_path / "back", Options(images=str(data)))
    assert len(error.value.problems) == 3
    coco.from_coco(path, tmp_path / "back", Options(images=str(data), boxes=True))
    assert masks_of(tmp_path / "back")["three.png", "a"].sum() == 16 * 20


def test_whose_images_they_are(data, tmp_path):
    path = export(data, tmp_path / "a.json")
    for people, expected in (("auto", ["ID1", "ID1", "ID2"]), ("image", ["one", "three", "two"])):
        said = coco.from_coco(path, tmp_path / people, Options(images=str(data), people=people))
        assert read_index(tmp_path / people, ("train",))["ID"].tolist() == expected
        assert f"{len(set(expected))} people" in said
    flat = export(data, tmp_path / "b.json", images=lambda i: {**i, "file_name": Path(i["file_name"]).name})
    assert "3 people" in coco.from_coco(flat, tmp_path / "flat", Options(images=str(data)))
    with pytest.raises(DataError, match="folders that are named after people"):
        coco.from_coco(flat, tmp_path / "none", Options(images=str(data), people="folder"))


def test_other_image_formats_become_png(data, tmp_path):
    path = export(data, tmp_path / "a.json", images=lambda i: {**i, "file_name": i["file_name"].replace("png", "jpg")})
    pixels = np.arange(60 * 90, dtype=np.uint8).reshape(60, 90)
    for name, (height, width) in SIZES.items():
        target = (tmp_path / "pictures" / name).with_suffix(".jpg")
        target.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(target), np.resize(pixels, (height, width)))
    coco.from_coco(path, tmp_path / "back", Options(images=str(tmp_path / "pictures")))
    expected = cv2.imread(str(tmp_path / "pictures/ID1/one.jpg"), cv2.IMREAD_UNCHANGED)
    assert (cv2.imread(str(tmp_path / "back/train/DCM/ID1/one.png"), cv2.IMREAD_UNCHANGED) == expected).all()


def test_images_of_one_name_are_told_apart_by_their_folder(tmp_path):
    for folder in ("x/ID1", "x/ID2", "y/ID3"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "same.png").touch()
    files = ImageFiles(tmp_path)
    assert files.find("ID2/same.png") == (tmp_path / "x/ID2/same.png", "ID2/same.png")
    with pytest.raises(ValueError, match=r"3 image files 'same\.png'"):
        files.find("same.png")
    with pytest.raises(ValueError, match=r"no image file 'other.png'.*--images"):
        files.find("ID2/other.png")


def test_labelme(data, tmp_path):
    ring = np.zeros((20, 30), np.uint8)
    ring[2:12, 3:20], ring[5:8, 6:15] = 255, 0
    shapes = {
        "one": [
            {"label": "a", "points": POLYGONS["one"]["a"][0], "shape_type": "polygon"},
            {"label": "b", "points": POLYGONS["one"]["b"][0], "shape_type": "polygon"},
            {"label": "b", "points": POLYGONS["one"]["b"][1], "shape_type": "polygon"},
            {"label": "b", "points": [[0, 0], [9, 9]], "shape_type": "line"},
        ],
        "two": [
            {
                "label": "b",
                "points": [[10, 20], [39, 39]],
                "shape_type": "mask",
                "mask": base64.b64encode(cv2.imencode(".png", ring)[1].tobytes()).decode(),
            }
        ],
        "three": [{"label": "a", "points": [[25, 25], [25, 35]], "shape_type": "circle"}],
    }
    for name, (height, width) in SIZES.items():
        image = data / "train/DCM" / name
        content = {"imagePath": f"..\\{image.name}", "imageData": None, "imageHeight": height, "imageWidth": width}
        image.with_suffix(".json").write_text(json.dumps({**content, "shapes": shapes[image.stem], "version": "5.5.0"}))
    labelme.from_labelme(data / "train/DCM", tmp_path / "back")
    assert read_classes(tmp_path / "back") == ["a", "b"]
    found, true = masks_of(tmp_path / "back"), masks_of(data)
    assert (found["one.png", "a"] == true["one.png", "a"]).all() and (
        found["one.png", "b"] == true["one.png", "b"]
    ).all()
    assert (found["two.png", "b"][20:40, 10:40] == (ring > 0)).all() and found["two.png", "b"].sum() == (ring > 0).sum()
    assert found["three.png", "a"].sum() == pytest.approx(np.pi * 10.5**2, rel=0.02)  # its edge belongs to it
    assert read_index(tmp_path / "back", ("train",))["ID"].tolist() == ["ID1", "ID1", "ID2"]


def points_of(polygon):
    return ";".join(f"{x},{y}" for x, y in polygon)


def test_cvat(data, tmp_path):
    one, two = POLYGONS["one"], POLYGONS["two"]
    (tmp_path / "annotations.xml").write_text(f"""<?xml version="1.0" encoding="utf-8"?>
<annotations><version>1.1</version>
  <meta><task><labels><label><name>b</name></label><label><name>a</name></label></labels></task></meta>
  <image id="0" name="ID1/one.png" width="90" height="60">
    <polygon label="a" points="{points_of(one["a"][0])}" z_order="0"/>
    <polygon label="b" points="{points_of(one["b"][0])}"/>
    <polygon label="b" points="{points_of(one["b"][1])}"><attribute name="side">left</attribute></polygon>
    <points label="b" points="1,2"/><tag label="b"/>
  </image>
  <image id="1" name="ID1/two.png" width="60" height="90">
    <polygon label="b" points="{points_of(two["b"][0])}"/>
    <mask label="a" rle="2, 3, 1, 4" left="10" top="20" width="5" height="2"/>
  </image>
  <image id="2" name="ID2/three.png" width="50" height="50"><ellipse label="a" cx="25" cy="20" rx="10" ry="5"/></image>
</annotations>""")
    cvat.from_cvat(tmp_path / "annotations.xml", tmp_path / "back", Options(images=str(data)))
    assert read_classes(tmp_path / "back") == ["b", "a"]
    found, true = masks_of(tmp_path / "back"), masks_of(data)
    for key in (("one.png", "a"), ("one.png", "b"), ("two.png", "b")):
        assert (found[key] == true[key]).all()
    assert np.argwhere(found["two.png", "a"]).tolist() == [
        [20, 12],
        [20, 13],
        [20, 14],
        [21, 11],
        [21, 12],
        [21, 13],
        [21, 14],
    ]
    assert found["three.png", "a"].sum() == pytest.approx(np.pi * 10.5 * 5.5, rel=0.02)  # edges belong to it


def test_labels_of_label_studios_yolo_export(data, tmp_path):
    """A folder without YAML: images, labels, classes.txt and notes.json."""
    yolo_dataset.to_yolo(data, tmp_path / "y")
    flat = tmp_path / "flat"
    for kind, pattern in (("images", "*.png"), ("labels", "*.txt")):
        (flat / kind).mkdir(parents=True)
        for path in (tmp_path / "y" / kind).rglob(pattern):
            (flat / kind / path.name).write_bytes(path.read_bytes())
    (flat / "classes.txt").write_text("b\na\n")
    (flat / "notes.json").write_text(json.dumps({"categories": [{"id": 0, "name": "b"}, {"id": 1, "name": "a"}]}))
    assert "3 people" in yolo_dataset.from_yolo(flat, tmp_path / "back")
    found, true = masks_of(tmp_path / "back"), masks_of(data)
    assert all((found[key] == true[key]).all() for key in true)


def brute_force(folder, names, classes):
    """Mean Dice per class, and pixels labelled, overlapping and lost, from the written maps, pixel by pixel."""
    rows, counts = [], np.zeros(3, int)
    true = masks_of(folder.parent / "truth")
    for path in sorted((folder / "masks").rglob("*.png")):
        values = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        found = class_maps.decode_class_map(values, names, classes)
        truth = np.stack([true[path.name, c] for c in classes])
        both, sums = (found & truth).sum((1, 2)), found.sum((1, 2)) + truth.sum((1, 2))
        rows.append((2 * both + 1e-4) / (sums + 1e-4))
        counts += [truth.any(0).sum(), (truth.sum(0) > 1).sum(), (found != truth).any(0).sum()]
    return np.mean(rows, axis=0), counts.tolist()


@pytest.mark.parametrize("pairs", [None, 0.0, 0.02])
def test_class_maps_and_what_they_lose(sample, tmp_path, pairs):
    (tmp_path / "truth").symlink_to(sample)
    cost = class_maps.to_png(sample, tmp_path / "maps", pair_iou=pairs)
    description = yaml.safe_load((tmp_path / "maps/dataset.yaml").read_text())
    names, classes = list(description["names"].values()), read_classes(sample)
    assert names[:30] == ["background", *classes] and description["masks_dir"] == "masks"
    assert ("Triquetrum & Pisiform" in names) == (pairs is not None)
    dice, counts = brute_force(tmp_path / "maps", names, classes)
    assert [cost.labelled, cost.overlapping, cost.lost] == counts and cost.overlapping > 0
    assert cost.dice == pytest.approx(dice.mean()) and cost.worst[1] == pytest.approx(dice.min())
    assert cost.lost < cost.overlapping / 2 if pairs is not None else cost.lost == cost.overlapping
    assert f"{cost.overlapping} pixels" in str(cost) and cost.worst[0] in str(cost)


def test_a_class_may_be_called_background(data, tmp_path):
    (data / "classes.txt").write_text("b\nbackground\n")
    for path in (data / "train/outputs_json").rglob("*.json"):
        path.write_text(path.read_text().replace('"a"', '"background"'))
    class_maps.to_png(data, tmp_path / "maps")
    values = cv2.imread(str(next((tmp_path / "maps/masks").rglob("three.png"))), cv2.IMREAD_UNCHANGED)
    true = masks_of(data)["three.png", "background"]
    assert ((values == 2) == true).all()
    decoded = class_maps.decode_class_map(values, ["background", "b", "background"], ["b", "background"])
    assert (decoded[1] == true).all() and not decoded[0].any()


def test_overlaps_can_be_ignored_and_small_classes_are_kept(data, tmp_path):
    cost = class_maps.to_png(data, tmp_path / "smaller")
    ignoring = class_maps.to_png(data, tmp_path / "ignored", ignore_overlaps=True)
    assert ignoring == cost and 0 < cost.dice < 1
    true = masks_of(data)
    both = true["two.png", "a"] & true["two.png", "b"]
    path = next((tmp_path / "smaller/masks").rglob("two.png"))
    smaller = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    ignored = cv2.imread(str(next((tmp_path / "ignored/masks").rglob("two.png"))), cv2.IMREAD_UNCHANGED)
    assert both.sum() > 0 and (smaller[both] == 1).all() and (ignored[both] == 255).all()  # b is the smaller one
    assert (smaller[~both] == ignored[~both]).all() and smaller.shape == SIZES["ID1/two.png"]
    with pytest.raises(DataError, match=r"values \[3\]; expected 0 to 2, or 255"):
        class_maps.decode_class_map(np.uint8([[3]]), ["background", "b", "a"], CLASSES)


def test_a_submission_becomes_coco_results(sample, tmp_path):
    table, classes = read_index(sample, ("test",)), read_classes(sample)
    results = coco.results_of_submission(sample / "solution.csv", table, classes)
    rows = pd.read_csv(sample / "solution.csv").set_index(["image_name", "class"])["rle"]
    assert len(results) == rows.notna().sum()
    for result in results[::7]:
        image = table.iloc[result["image_id"] - 1]
        true = rle.decode(
            rows[image["image_name"], classes[result["category_id"] - 1]], (image["height"], image["width"])
        )
        assert (judge.decode(result["segmentation"]).astype(bool) == true).all() and result["area"] == true.sum()
    bad = pd.DataFrame(
        {
            "image_name": ["x.png", *3 * [table["image_name"][0]]],
            "class": classes[:2] + classes[1:3],
            "rle": ["1 2", "65536 9", "", "1 1 1099511627776 1"],
        }
    )
    bad.to_csv(tmp_path / "bad.csv", index=False)
    with pytest.raises(DataError, match=r"line 2: no image 'x.png'") as error:
        coco.results_of_submission(tmp_path / "bad.csv", table, classes)
    assert "line 3" in error.value.problems[1] and "256 rows" in error.value.problems[1]
    assert error.value.problems[2].startswith("line 4") and "has a row already" in error.value.problems[2]
    assert "line 5" in error.value.problems[3] and "pixel 1099511627776, past the end" in error.value.problems[3]


def test_commands(data, tmp_path, monkeypatch, capsys):
    """Every conversion as a command, with paths relative to the caller's folder."""
    (tmp_path / "lm").mkdir()
    done = run("to-coco", "data", "a.json", cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "a.json\n", "")
    monkeypatch.chdir(tmp_path)
    said = {
        "to-coco data r.json --rle": "r.json\n",
        "check-coco a.json --data data": "OK: 3 images, 2 categories, 5 polygons\n",
        "check-coco r.json": "OK: 3 images, 2 categories, 5 RLE\n",
        "from-coco a.json fc --images data": "fc: 3 images, 2 people (folders are people), 2 classes, 6 polygons\n",
        "to-yolo data y": "y: 1 train, 2 val images, 2 classes",
        "from-yolo y fy --people image": "fy: 3 images, 3 people",
        "to-png data p --pairs --fold -1": "p: written\n627 pixels",
        "to-png data q --ignore-overlaps": "q: written\nwarning: 627 pixels",
    }
    for line, expected in said.items():
        monkeypatch.setattr(sys, "argv", ["formats", *line.split()])
        commands.main()
        assert capsys.readouterr().out.startswith(expected), line
    refused = {
        "to-yolo data y": "y exists already",
        "from-cvat a.json x": "not an XML file",
        "from-labelme lm x": "there are none",
        "check-coco nowhere.json": "not a JSON file",
        "to-coco data b.json --fold 1": "--folds FILE",
    }
    for line, expected in refused.items():
        monkeypatch.setattr(sys, "argv", ["formats", *line.split()])
        with pytest.raises(SystemExit, match=expected):
            commands.main()
    assert not (tmp_path / "x").exists()


def test_it_starts_without_torch():
    heavy = ("torch", "matplotlib", "faster_coco_eval")
    code = f"import sys, utils.formats.commands; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")
