"""Files of other formats that are broken or not clear: refused, with everything that is wrong in them at once."""

import json
import shutil

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.formats import POLYGONS, export, make_folder, run
from tests.strategies import floats
from utils.data.competition import DataError
from utils.formats import coco, cvat, labelme, yolo_dataset
from utils.formats.coco_read import read_dataset, read_results
from utils.formats.imported_shapes import Options
from utils.formats.write_folder import Imported, write_folder


@pytest.fixture
def data(tmp_path):
    return make_folder(tmp_path / "data")


def refused(call, *arguments):
    """The problems with which a call is refused."""
    with pytest.raises(DataError) as error:
        call(*arguments)
    return error.value.problems


def assert_each_found(problems, *words):
    assert len(problems) == len(words), problems
    for word in words:
        assert sum(word in problem for problem in problems) == 1, (word, problems)


def test_everything_wrong_in_a_coco_file(data, tmp_path):
    content = json.loads(export(data, tmp_path / "a.json").read_text())
    images, annotations, categories = (content[key] for key in ("images", "annotations", "categories"))
    images[1]["width"] = "60"
    images.append({**images[2], "id": 9})
    images.append({**images[0], "file_name": "new.png"})
    categories.append({"id": 3, "name": "a"})
    categories.append({"id": 4, "name": " "})
    kept = annotations[0]
    wrong = [
        {"image_id": 77},
        {"category_id": 8},
        {"segmentation": [[1, 2, 3, 4]]},
        {"segmentation": [[1, 2, 3, 4, 5, 6, 7]]},
        {"segmentation": [[1, 2, 3, 4, 5, "6"]]},
        {"segmentation": [[1, 2, 3, 4, 5, 1e12]]},
        {"segmentation": [[-9, -9, -3, -9, -9, -3]]},
        {"segmentation": {"size": [60, 90], "counts": [5, 5]}},
        {"segmentation": {"size": [9, 9], "counts": [81]}},
        {"segmentation": {"size": [60, 90], "counts": "\x01~"}},
        {"segmentation": 5},
        {"bbox": [1, 2, -3, 4]},
        {"segmentation": [], "bbox": []},
        {"image_id": [1]},
    ]
    numbered = [{**kept, "id": 100 + number, **change} for number, change in enumerate(wrong)]
    content["annotations"] = [kept, *numbered, 7, {**kept, "id": 100}, {k: v for k, v in kept.items() if k != "id"}]
    (tmp_path / "b.json").write_text(json.dumps(content))
    assert_each_found(
        refused(read_dataset, tmp_path / "b.json"),
        "image 1 (id 2): height 90 and width '60'",
        "image 4 (id 1): its id is used already",
        "2 entries for image file 'ID2/three.png'",
        "2 entries for category 'a'",
        "category 3 (id 4): name ' '",
        "annotation 1 (id 100): no image has the id 77",
        "annotation 2 (id 101): no category has the id 8",
        "annotation 3 (id 102): a polygon with 4 numbers",
        "annotation 4 (id 103): a polygon with 7 numbers",
        "annotation 5 (id 104): a polygon with 6 numbers",
        "annotation 6 (id 105): a polygon with 6 numbers",
        "annotation 7 (id 106): it lies outside the image of 90 × 60",
        "annotation 8 (id 107): RLE of 10 pixels",
        "annotation 9 (id 108): RLE of size [9, 9]",
        "annotation 10 (id 109): RLE text with characters",
        "annotation 11 (id 110): segmentation is a int",
        "annotation 12 (id 111): bbox [1, 2, -3, 4]",
        "annotation 13 (id 112): neither segmentation nor bbox",
        "annotation 14 (id 113): no image has the id [1]",
        "annotation 15: a int",
        "2 annotations with id 100",
        "annotation 17: it has no id",
    )
    done = run("check-coco", tmp_path / "b.json")
    assert done.returncode == 1 and "22 problems" in done.stderr and "… and 2 more" in done.stderr


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "7", '{"images": []}', '{"images": {}, "annotations": [], "categories": []}']
)
def test_files_that_are_no_coco(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    assert refused(read_dataset, tmp_path / "a.json")


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-2, 3)
    | floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["size", "counts", "id"]), inner),
)


@given(
    key=st.sampled_from(["image_id", "category_id", "segmentation", "bbox", "id", "iscrowd", "area"]), value=json_values
)
def test_no_annotation_crashes_the_reader(tmp_path_factory, key, value):
    path = tmp_path_factory.getbasetemp() / "fuzz.json"
    good = {"id": 1, "image_id": 1, "category_id": 1, "segmentation": [[1, 1, 5, 1, 5, 5]], "bbox": [1, 1, 4, 4]}
    content = {
        "images": [{"id": 1, "file_name": "a.png", "height": 9, "width": 9}],
        "categories": [{"id": 1, "name": "a"}],
        "annotations": [{**good, key: value}],
    }
    path.write_text(json.dumps(content))
    try:
        (found,) = read_dataset(path).annotations
    except DataError as error:
        assert error.problems
    else:
        assert all(np.isfinite(points).all() for points in found.outlines())


def test_missing_images_and_wrong_sizes_are_listed_together(data, tmp_path):
    path = export(data, tmp_path / "a.json")
    (data / "train/DCM/ID1/one.png").unlink()
    Image.new("L", (9, 9)).save(data / "train/DCM/ID1/two.png")
    (data / "train/DCM/ID2/three.png").write_bytes(b"no image")
    problems = refused(coco.from_coco, path, tmp_path / "back", Options(images=str(data)))
    assert_each_found(problems, "no image file 'one.png'", "60 × 90 pixels, but", "cannot identify image file")
    assert not (tmp_path / "back").exists()


def test_an_order_of_categories_that_is_not_clear(data, tmp_path):
    path = export(data, tmp_path / "a.json")
    content = json.loads(path.read_text())
    content["categories"].reverse()
    path.write_text(json.dumps(content))
    problems = refused(coco.from_coco, path, tmp_path / "back", Options(images=str(data)))
    assert problems[0] == "found 2: a, 1: b"
    assert "categories are listed in another order" in run("check-coco", path).stderr
    (tmp_path / "order.txt").write_text("a\nb\n")
    coco.from_coco(path, tmp_path / "back", Options(images=str(data), classes=str(tmp_path / "order.txt")))
    assert (tmp_path / "back/classes.txt").read_text() == "a\nb\n"
    (tmp_path / "order.txt").write_text("a\n")
    options = Options(images=str(data), classes=str(tmp_path / "order.txt"))
    assert refused(coco.from_coco, path, tmp_path / "other", options) == ["label 'b' is not in it"]


def test_categories_in_another_order_than_the_datas(data, tmp_path):
    path = export(data, tmp_path / "a.json")
    (data / "classes.txt").write_text("a\nb\n")
    done = run("check-coco", path, "--data", data)
    assert done.returncode == 1 and "0: b here, a there" in done.stderr and "1: a here, b there" in done.stderr


def test_everything_wrong_in_coco_results(data, tmp_path):
    truth = export(data, tmp_path / "a.json")
    good = {"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 0.5}
    results = [
        good,
        {**good, "score": None},
        {**good, "image_id": 7},
        {**good, "category_id": "b"},
        {**good, "image_id": {}},
    ]
    content = {
        "annotations": results,
        "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}],
        "images": [{"id": 1, "file_name": "ID1/one.png", "height": 9, "width": 9}],
    }
    (tmp_path / "r.json").write_text(json.dumps(content))
    problems = refused(read_results, tmp_path / "r.json", read_dataset(truth))
    assert_each_found(
        problems,
        "category 1 is 'a' here and 'b' in the truth",
        "category 2 is 'b' here and 'a' in the truth",
        "image 1 is ID1/one.png (9, 9) here",
        "result 1: score None",
        "result 2: no image has the id 7",
        "result 3: no category has the id 'b'",
        "result 4: image_id {} is no id",
    )
    assert "7 problems" in run("check-coco", tmp_path / "r.json", "--truth", truth).stderr
    (tmp_path / "r.json").write_text(json.dumps({"results": results}))
    assert "--truth" in run("check-coco", tmp_path / "r.json").stderr
    assert refused(read_results, tmp_path / "r.json", read_dataset(truth))


def test_everything_wrong_in_yolo_labels(data, tmp_path):
    yolo_dataset.to_yolo(data, tmp_path / "y")
    labels = {path.stem: path for path in (tmp_path / "y/labels").rglob("*.txt")}
    labels["one"].write_text("2 0 0 1 0 1 1\nx 0 0 1 0 1 1\n-1 0 0 1 0 1 1\n\n0 0.1 0.1 0.5 0.1 1.2 0.4\n0 0 0 1 0 1\n")
    labels["two"].write_text("0 0.5 0.5 0.2 0.2\n0 nan 0 1 0 1 1\n0 a 0 1 0 1 1\n0\n")
    labels["three"].write_bytes(b"\xff\xfe")
    labels["three"].with_stem("four").write_text("0 0 0 1 0 1 1\n")
    bad = next((tmp_path / "y/images").rglob("three.png"))
    bad.with_stem("five").write_bytes(b"no image")
    assert_each_found(
        refused(yolo_dataset.from_yolo, tmp_path / "y", tmp_path / "back"),
        "one.txt: line 1: class id '2'; expected 0 to 1",
        "one.txt: line 2: class id 'x'",
        "one.txt: line 3: class id '-1'",
        "one.txt: line 5: coordinates outside 0 … 1",
        "one.txt: line 6: 5 coordinates",
        "two.txt: line 1: a box without outline",
        "two.txt: line 2: coordinates outside",
        "two.txt: line 3: '0 a 0 1 0 1 1'",
        "two.txt: line 4: 0 coordinates",
        "three.txt: not a text file",
        "four.txt: no image has these labels",
        "five.png: not a readable image",
    )
    assert not (tmp_path / "back").exists()


def test_an_order_of_yolo_names_that_is_not_clear(data, tmp_path):
    yolo_dataset.to_yolo(data, tmp_path / "y")
    path = tmp_path / "y/dataset.yaml"
    content = yaml.safe_load(path.read_text())

    def problems(names, **more):
        path.write_text(yaml.safe_dump({**content, "names": names, **more}, sort_keys=False))
        return refused(yolo_dataset.from_yolo, tmp_path / "y", tmp_path / "back")

    assert problems({1: "a", 0: "b"})[0] == "found 1: a, 0: b"
    assert problems({0: "b", 2: "a"}) == ["the ids are not 0, 1, 2, …"]
    assert problems(["b", "b"]) == ["repeated: b"]
    assert problems(["b", "a"], nc=3) == ["expected 2, the number of names"]
    assert problems("b, a") and problems([])
    (tmp_path / "y/classes.txt").write_text("a\nb\n")
    assert problems(["b", "a"]) == [f"{path}: b, a", f"{tmp_path / 'y/classes.txt'}: a, b"]
    (tmp_path / "y/notes.json").write_text('{"categories": [{"id": 0}]}')
    assert "KeyError: 'name'" in problems(["b", "a"])[0]


def test_folders_that_are_no_yolo(data, tmp_path):
    assert refused(yolo_dataset.from_yolo, tmp_path / "nowhere", tmp_path / "back")
    (tmp_path / "y").mkdir()
    assert "dataset.yaml" in refused(yolo_dataset.from_yolo, tmp_path / "y", tmp_path / "back")[0]
    (tmp_path / "y/a.yaml").write_text("train: images/train\nval: images/val\nnames: [a]\n")
    problems = refused(yolo_dataset.from_yolo, tmp_path / "y", tmp_path / "back")
    assert_each_found(problems, "train: no images in", "val: no images in")
    (tmp_path / "y/b.yaml").write_text("names: [a]\n")
    assert "name one of" in refused(yolo_dataset.from_yolo, tmp_path / "y", tmp_path / "back")[0]
    (tmp_path / "y/b.yaml").write_text("{")
    assert refused(yolo_dataset.from_yolo, tmp_path / "y/b.yaml", tmp_path / "back")


def test_everything_wrong_in_labelme_files(data, tmp_path):
    shutil.copytree(data / "train/DCM/ID1", tmp_path / "lm")
    shapes = [
        {"label": "a", "points": [[1, 2], [3, 4]], "shape_type": "polygon"},
        {"label": "", "points": POLYGONS["one"]["a"][0]},
        {"label": "a", "points": [[1, 2], [3, None], [4, 4]]},
        {"label": "a", "points": "no"},
        {"label": "a", "points": [[1, 2]], "shape_type": "circle"},
        {"label": "a", "points": [[1, 2], [3, 4]], "shape_type": "mask", "mask": "!"},
        {"label": "a", "points": [[1, 2], [3, 4]], "shape_type": "mask"},
        "no",
    ]
    (tmp_path / "lm/one.json").write_text(json.dumps({"shapes": shapes, "imagePath": "one.png"}))
    (tmp_path / "lm/two.json").write_text("{")
    (tmp_path / "lm/three.json").write_text("{}")
    assert_each_found(
        refused(labelme.from_labelme, tmp_path / "lm", tmp_path / "back"),
        "shape 0 (a): expected at least 3 finite points",
        "shape 1 (): expected an object with a label",
        "shape 2 (a): expected at least 3 finite",
        "shape 3 (a): its points are not",
        "shape 4 (a): a circle with 1 points",
        "shape 5 (a): its mask is no",
        "shape 6 (a): its mask is no image",
        "shape 7 (): expected an object",
        "two.json: ",
        "three.json: no labelme file",
    )
    (tmp_path / "empty").mkdir()
    assert refused(labelme.from_labelme, tmp_path / "empty", tmp_path / "back") == ["there are none"]


def test_everything_wrong_in_a_cvat_file(data, tmp_path):
    (tmp_path / "a.xml").write_text("""<annotations>
  <image id="0" name="ID1/one.png" width="90" height="60">
    <polygon label="a" points="1,2;3,4"/><polygon label="a"/><polygon points="1,2;3,4;5,6"/>
    <polygon label="a" points="1,2;3,x;5,6"/><mask label="a" rle="1,2" left="0" top="0" width="2" height="2"/>
    <box label="a" xtl="1" ytl="2" xbr="3" ybr="nan"/>
    <mask label="a" rle="1,99999999999999999999" left="0" top="0" width="2" height="2"/>
  </image>
  <image id="1" name="ID1/two.png" width="60"/>
</annotations>""")
    assert_each_found(
        refused(cvat.from_cvat, tmp_path / "a.xml", tmp_path / "back"),
        "polygon 0 (a): expected at least 3 finite points",
        "polygon 1 (a): it has no attribute 'points'",
        "polygon 2 (None): it has no label",
        "polygon 3 (a): ",
        "mask 4 (a): its RLE has 3 pixels; expected 2 × 2 = 4",
        "box 5 (a): expected at least 3 finite",
        "mask 6 (a): ",
        "image 1 (ID1/two.png): expected height and width",
    )
    (tmp_path / "a.xml").write_text("<annotations><track/></annotations>")
    assert "tracks of a video" in refused(cvat.from_cvat, tmp_path / "a.xml", tmp_path / "back")[0]
    (tmp_path / "a.xml").write_text("<annotations>")
    assert refused(cvat.from_cvat, tmp_path / "a.xml", tmp_path / "back")


def test_small_files_cannot_fill_the_memory(data, tmp_path):
    huge = {"height": 10**6, "width": 10**6}
    rle = {"size": [10**6, 10**6], "counts": [0, 10**12]}
    path = export(
        data, tmp_path / "a.json", images=lambda i: i | huge, annotations=lambda a: {**a, "segmentation": rle}
    )
    assert all("at most 268,435,456 are read" in problem for problem in refused(read_dataset, path))
    mask = '<mask label="a" rle="0,1000000000000" left="0" top="0" width="1000000" height="1000000"/>'
    (tmp_path / "a.xml").write_text(f'<annotations><image name="a" width="9" height="9">{mask}</image></annotations>')
    assert "at most 268,435,456 are read" in refused(cvat.from_cvat, tmp_path / "a.xml", tmp_path / "back")[0]


def test_images_of_one_name_are_refused(data, tmp_path):
    path = export(
        data, tmp_path / "a.json", images=lambda i: {**i, "file_name": f"{i['id']}/same.png", "width": 5, "height": 5}
    )
    for number in (1, 2, 3):
        (tmp_path / f"images/{number}").mkdir(parents=True)
        Image.new("L", (5, 5)).save(tmp_path / f"images/{number}/same.png")
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "annotations": []}))
    problems = refused(coco.from_coco, path, tmp_path / "back", Options(images=str(tmp_path / "images")))
    assert_each_found(problems, "3 images are called same: 1/same.png, 2/same.png, 3/same.png")


def test_names_cannot_leave_the_folder(data, tmp_path):
    path = export(data, tmp_path / "a.json", images=lambda i: {**i, "file_name": f"../../../{i['file_name']}"})
    coco.from_coco(path, tmp_path / "deep/back", Options(images=str(data)))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.json", "data", "deep"]
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["back"]


def test_an_unreadable_image_leaves_no_folder(data, tmp_path):
    image = Imported(data / "train/outputs_json/ID1/one.json", "ID1/one.jpg", {})
    assert "not a readable image" in refused(write_folder, tmp_path / "x", [image], ["a"])[0]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data"]


def test_ids_as_text_in_one_list_and_as_numbers_in_the_other_are_the_same(tmp_path):
    content = {
        "images": [{"id": 7, "file_name": "a.png", "width": 20, "height": 20}],
        "categories": [{"id": 1, "name": "bone"}],
        "annotations": [{"id": 1, "image_id": "7", "category_id": "1", "segmentation": [[1, 1, 9, 1, 9, 9]]}],
    }
    (tmp_path / "coco.json").write_text(json.dumps(content))
    (found,) = read_dataset(tmp_path / "coco.json").annotations
    assert (found.image_id, found.category_id) == (7, 1)
    content["annotations"][0]["category_id"] = "²"
    (tmp_path / "coco.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match="no category has the id '²'; there are"):
        read_dataset(tmp_path / "coco.json")
