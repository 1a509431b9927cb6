"""Situations that users of conversion tools report, each in every format that can have it; and what is left out."""

import io
import json
import unicodedata
from pathlib import Path
from xml.sax.saxutils import quoteattr

import cv2
import numpy as np
import pytest
import yaml
from PIL import Image

from tests.formats import polygons_of
from utils.data.check import check_data
from utils.data.competition import DataError, find_images, read_classes, read_index
from utils.formats import coco, cvat, labelme, yolo_dataset
from utils.formats.class_maps import to_png
from utils.formats.coco_read import read_dataset, read_results
from utils.formats.imported_shapes import Options
from utils.formats.score_tables import score_coco

SIDE = (40, 60)
SQUARE = [[10, 5], [30, 5], [30, 25], [10, 25]]


def png(size=SIDE, value=90):
    file = io.BytesIO()
    Image.fromarray(np.full(size, value, np.uint8)).save(file, "PNG")
    return file.getvalue()


def turned_jpeg():
    """Stored with 40 rows of 60, shown with 60 rows of 40: a bright square at rows 10 to 30 and columns 5 to 25."""
    shown = np.zeros(SIDE[::-1], np.uint8)
    shown[10:31, 5:26] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    file = io.BytesIO()
    Image.fromarray(np.rot90(shown)).save(file, "JPEG", quality=100, exif=exif)
    return file.getvalue()


class Kind:
    """Writes images with their polygons, label by label, in one of the formats, and reads them into a data folder."""

    def __init__(self, name, folder):
        self.name, self.folder, self.images = name, folder, {}
        (folder / "images").mkdir(parents=True)

    def add(self, written, shapes, size=SIDE, file=None, content=None):
        """An image that is written as `written`, and called `file` on the disk."""
        path = self.folder / "images" / (file or written)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content or png(size))
        self.images[written] = shapes, size

    def read(self, out, **options):
        labels = list(dict.fromkeys(label for shapes, _ in self.images.values() for label, _ in shapes))
        options = {"images": str(self.folder / "images"), **options}
        if self.name == "coco":
            annotations = [
                (n, labels.index(label) + 1, points)
                for n, (shapes, _) in enumerate(self.images.values())
                for label, points in shapes
            ]
            content = {
                "images": [
                    {"id": n, "file_name": name, "height": h, "width": w}
                    for n, (name, (_, (h, w))) in enumerate(self.images.items())
                ],
                "categories": [{"id": n, "name": label} for n, label in enumerate(labels, 1)],
                "annotations": [
                    {"id": i, "image_id": n, "category_id": c, "segmentation": [np.ravel(points).tolist()]}
                    for i, (n, c, points) in enumerate(annotations)
                ],
            }
            (self.folder / "c.json").write_text(json.dumps(content))
            return coco.from_coco(self.folder / "c.json", out, Options(**options))
        if self.name == "cvat":
            lines = []
            for name, (shapes, (h, w)) in self.images.items():
                parts = [
                    f'<polygon label={quoteattr(label)} points="{";".join(f"{x},{y}" for x, y in points)}"/>'
                    for label, points in shapes
                ]
                lines.append(f'<image name={quoteattr(name)} height="{h}" width="{w}">{"".join(parts)}</image>')
            (self.folder / "a.xml").write_text(f"<annotations>{''.join(lines)}</annotations>", encoding="utf-8")
            return cvat.from_cvat(self.folder / "a.xml", out, Options(**options))
        if self.name == "labelme":
            for n, (name, (shapes, (h, w))) in enumerate(self.images.items()):
                listed = [{"label": label, "points": points, "shape_type": "polygon"} for label, points in shapes]
                content = {"imagePath": name, "imageHeight": h, "imageWidth": w, "shapes": listed}
                path = self.folder / "labels" / f"{n}.json"
                path.parent.mkdir(exist_ok=True)
                path.write_text(json.dumps(content))
            return labelme.from_labelme(self.folder / "labels", out, Options(**options))
        for name, (shapes, (h, w)) in self.images.items():
            path = (self.folder / "labels" / name).with_suffix(".txt")
            path.parent.mkdir(parents=True, exist_ok=True)
            lines = [(labels.index(label), np.array(points, float) / (w, h)) for label, points in shapes]
            path.write_text("".join(f"{n} {' '.join(map(str, points.ravel()))}\n" for n, points in lines))
        (self.folder / "dataset.yaml").write_text(yaml.safe_dump({"train": "images", "names": labels}))
        return yolo_dataset.from_yolo(self.folder, out, Options(**options))


@pytest.fixture(params=["coco", "cvat", "labelme", "yolo"])
def kind(request, tmp_path):
    return Kind(request.param, tmp_path / "source")


def assert_usable(out):
    """What an importer writes passes the data check."""
    report = check_data(out)
    assert [str(finding) for finding in report.errors] == []


def found(out):
    assert_usable(out)
    return {
        name: {c: [p.tolist() for p in parts] for c, parts in image.items()} for name, image in polygons_of(out).items()
    }


@pytest.mark.parametrize(
    "name", ["hand#3.png", "50% dose.png", "a%20b.png", "q?x=1.png", "d=e&f.PNG", "0123abcd-x.png"]
)
def test_a_name_is_first_taken_as_it_is_written(kind, tmp_path, name):
    kind.add(name, [("a", SQUARE)])
    kind.read(tmp_path / "out")
    stem = Path(name).stem
    assert found(tmp_path / "out") == {f"{stem}.png": {"a": [SQUARE]}}


def test_a_name_is_decoded_only_where_the_exact_one_is_missing(kind, tmp_path):
    if kind.name == "yolo":
        pytest.skip("its labels lie beside the images, whose names nobody writes")
    kind.add("a%20b.png", [("a", SQUARE)])
    kind.add("c%20d.png", [("b", SQUARE)], file="c d.png")
    if kind.name != "labelme":
        kind.add("a b.png", [], content=png(value=7))
    kind.read(tmp_path / "out")
    assert found(tmp_path / "out")["a%20b.png"]["a"] == [SQUARE] and "c d.png" in found(tmp_path / "out")


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_names_compare_after_unicode_normalisation(kind, tmp_path, form):
    written, file = "손_사진1.png", unicodedata.normalize({"NFC": "NFD", "NFD": "NFC"}[form], "손_사진1.png")
    if kind.name == "yolo":
        file = None  # images and labels are files: see the test of label files below
    kind.add(unicodedata.normalize(form, written), [("a", SQUARE), ("b", SQUARE)], file=file)
    kind.read(tmp_path / "out")
    (polygons,) = found(tmp_path / "out").values()
    assert polygons == {"a": [SQUARE], "b": [SQUARE]}


def test_label_files_of_yolo_in_another_normal_form(tmp_path):
    kind = Kind("yolo", tmp_path / "source")
    kind.add(unicodedata.normalize("NFD", "손.png"), [("a", SQUARE)])
    kind.read(tmp_path / "first")
    composed = unicodedata.normalize("NFC", "손.png")
    (tmp_path / "source/images" / unicodedata.normalize("NFD", composed)).rename(tmp_path / "source/images" / composed)
    yolo_dataset.from_yolo(tmp_path / "source", tmp_path / "out")
    assert list(found(tmp_path / "out").values()) == [{"a": [SQUARE]}]


def test_what_cant_be_used_is_refused_or_left_out_and_counted(kind, tmp_path):
    kind.add("x.png", [("a", SQUARE), ("b", [[1, 1], [5, 5]])])
    kind.add("y.png", [("b", SQUARE)])
    with pytest.raises(DataError) as refused:
        kind.read(tmp_path / "out")
    assert not (tmp_path / "out").exists() and len(refused.value.problems) == 1
    said = kind.read(tmp_path / "out", skip_bad=True)
    assert "2 images" in said and "2 polygons" in said and "left out: 1 that can't be used" in said
    assert refused.value.problems[0] in said
    assert found(tmp_path / "out") == {"x.png": {"a": [SQUARE], "b": []}, "y.png": {"a": [], "b": [SQUARE]}}


def test_a_polygon_outside_its_image_is_refused_or_left_out(kind, tmp_path):
    kind.add("x.png", [("a", SQUARE), ("b", [[60.4, 1], [60.5, 1], [60.4, 9]])])
    with pytest.raises(DataError, match=r"outside"):
        kind.read(tmp_path / "out")
    assert "left out: 1 that" in kind.read(tmp_path / "out", skip_bad=True)
    assert found(tmp_path / "out") == {"x.png": {"a": [SQUARE], "b": []}}


def test_photographs_are_turned_as_they_are_shown(kind, tmp_path):
    kind.add("e.jpg", [("a", [[5, 10], [25, 10], [25, 30], [5, 30]])], SIDE[::-1], content=turned_jpeg())
    kind.read(tmp_path / "out")
    assert found(tmp_path / "out") == {"e.png": {"a": [[[5, 10], [25, 10], [25, 30], [5, 30]]]}}
    pixels = cv2.imread(str(next((tmp_path / "out").rglob("*.png"))), cv2.IMREAD_UNCHANGED)
    assert pixels.shape == SIDE[::-1] and pixels[12:29, 7:24].min() > 200 and pixels[33:].max() < 50


def test_labels_of_a_photograph_as_it_is_stored(kind, tmp_path):
    if kind.name == "yolo":
        pytest.skip("a label file has no size; ultralytics turns photographs")
    kind.add("e.jpg", [("a", SQUARE)], SIDE, content=turned_jpeg())
    kind.read(tmp_path / "out")
    assert read_index(tmp_path / "out", ("train",))[["height", "width"]].values.tolist() == [list(SIDE)]


def test_labels_with_blanks_around_them(kind, tmp_path):
    kind.add("x.png", [("Radius ", SQUARE)])
    kind.read(tmp_path / "out")
    assert read_classes(tmp_path / "out") == ["Radius"]
    assert found(tmp_path / "out") == {"x.png": {"Radius": [SQUARE]}}


def test_what_other_programs_write_beside_the_format(tmp_path):
    """A byte order mark before JSON; class ids as floats; classes.txt beside YOLO's labels; a renamed labelme image."""
    made = {name: Kind(name, tmp_path / name) for name in ("coco", "labelme", "yolo")}
    for name, kind in made.items():
        kind.add("x.png", [("Radius", SQUARE)])
        kind.read(tmp_path / f"first {name}")
    (coco_file,) = made["coco"].folder.glob("*.json")
    coco_file.write_bytes(b"\xef\xbb\xbf" + coco_file.read_bytes())
    coco.from_coco(coco_file, tmp_path / "bom", Options(images=str(made["coco"].folder / "images")))
    images, labels = (made["labelme"].folder / name for name in ("images", "labels"))
    (images / "x.png").rename(images / "0.png")
    labelme.from_labelme(labels, tmp_path / "renamed", Options(images=str(images)))
    text = made["yolo"].folder / "labels" / "x.txt"
    text.write_text(text.read_text().replace("0 ", "0.0 ", 1))
    (text.parent / "classes.txt").write_text("Radius\n")
    yolo_dataset.from_yolo(made["yolo"].folder, tmp_path / "floats", Options())
    for name, image in (("bom", "x.png"), ("renamed", "0.png"), ("floats", "x.png")):
        assert found(tmp_path / name) == {image: {"Radius": [SQUARE]}}


def test_hidden_and_system_files_are_no_data(kind, tmp_path):
    kind.add("x.png", [("a", SQUARE)])
    for name in ("._x.png", ".DS_Store", "Thumbs.db", "__MACOSX/._x.png", "__MACOSX/x.png"):
        path = kind.folder / "images" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"\0\5\x16\7")
    if kind.name == "labelme":
        (kind.folder / "labels").mkdir()
        (kind.folder / "labels" / "._0.json").write_bytes(b"\0\5\x16\7")
    kind.read(tmp_path / "out")
    assert found(tmp_path / "out") == {"x.png": {"a": [SQUARE]}}


def test_folders_and_files_behind_links(kind, tmp_path):
    kind.add("x.png", [("a", SQUARE)])
    images, store = kind.folder / "images", tmp_path / "store"
    store.mkdir()
    (images / "x.png").rename(store / "x.png")
    images.rename(tmp_path / "elsewhere")
    (tmp_path / "elsewhere/x.png").symlink_to("../store/x.png")  # relative, as git-annex and DVC make them
    images.mkdir()
    (images / "part").symlink_to("../../elsewhere")
    (images / "part" / "again").symlink_to("../elsewhere")  # a loop
    if kind.name == "yolo":
        kind.images = {"part/x.png": kind.images["x.png"]}
    kind.read(tmp_path / "out", people="image")
    image = next((tmp_path / "out/train/DCM").rglob("*.png"))
    assert image.exists() and cv2.imread(str(image)) is not None
    assert [list(image.values()) for image in found(tmp_path / "out").values()] == [[[SQUARE]]]


def test_boxes_of_cvat_are_turned_about_their_centre(tmp_path):
    kind = Kind("cvat", tmp_path / "source")
    kind.add("c.png", [], (200, 300))
    box = '<box label="a" xtl="100" ytl="90" xbr="200" ybr="110" rotation="90.00"/>'
    others = '<polyline label="a" points="1,1;2,2"/><points label="b" points="1,1"/><points label="b" points="2,1"/>'
    text = f'<annotations><image name="c.png" height="200" width="300">{box}{others}</image></annotations>'
    (kind.folder / "a.xml").write_text(text)
    said = cvat.from_cvat(kind.folder / "a.xml", tmp_path / "out", Options(str(kind.folder / "images"), boxes=True))
    ((points,),) = (image["a"] for image in polygons_of(tmp_path / "out").values())
    assert points.min(0).tolist() == [140, 50] and points.max(0).tolist() == [160, 150]
    assert "left out: 2 points, 1 polyline" in said
    with pytest.raises(DataError, match="--boxes"):
        cvat.from_cvat(kind.folder / "a.xml", tmp_path / "none", Options(str(kind.folder / "images")))


def test_oriented_rectangles_of_labelme(tmp_path):
    kind = Kind("labelme", tmp_path / "source")
    kind.add("l.png", [])
    shapes = [
        {"label": "a", "points": [[20, 5], [30, 15], [20, 25], [10, 15]], "shape_type": "oriented_rectangle"},
        {"label": "b", "points": [[1, 1], [2, 2]], "shape_type": "line"},
        {"label": "c", "points": [[1, 1]], "shape_type": "new_kind"},
    ]
    content = {"imagePath": "l.png", "imageHeight": 40, "imageWidth": 60, "shapes": shapes}
    (kind.folder / "l.json").write_text(json.dumps(content))
    said = labelme.from_labelme(kind.folder, tmp_path / "out", Options(boxes=True))
    assert found(tmp_path / "out") == {"l.png": {"a": [shapes[0]["points"]]}}
    assert "left out: 1 line, 1 new_kind" in said


def data_folder(folder, image="x.png", annotation="x.json", content=None, split=True):
    for part in ("train", "test") if split else ("train",):
        path = folder / part / "DCM" / f"ID{part}" / (image if part == "train" else "t.png")
        path.parent.mkdir(parents=True)
        path.write_bytes(content or png())
    path = folder / "train/outputs_json/IDtrain" / annotation
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"annotations": [{"label": "a", "points": SQUARE}]}))
    (folder / "classes.txt").write_text("a\n")
    return folder


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_a_data_folder_whose_images_and_annotations_are_normalised_otherwise(tmp_path, form):
    name = unicodedata.normalize(form, "손_사진1")
    other = unicodedata.normalize({"NFC": "NFD", "NFD": "NFC"}[form], "손_사진1")
    data = data_folder(tmp_path / "data", f"{name}.png", f"{other}.json")
    assert find_images(data)[1] == []
    assert len(polygons_of(data)[f"{name}.png"]["a"]) == 1


def test_hidden_files_in_a_data_folder(tmp_path):
    data = data_folder(tmp_path / "data")
    for name in (
        "train/DCM/IDtrain/._x.png",
        "train/DCM/._IDtrain/x.png",
        "__MACOSX/train/x.png",
        "train/DCM/.DS_Store",
    ):
        (data / name).parent.mkdir(parents=True, exist_ok=True)
        (data / name).write_bytes(b"\0\5\x16\7")
    (data / "train/DCM/__MACOSX").mkdir()
    (data / "train/DCM/__MACOSX/._x.png").write_bytes(b"\0\5\x16\7")
    (data / "train/outputs_json/IDtrain/._x.json").write_bytes(b"\0\5\x16\7")
    assert find_images(data)[1] == [] and len(read_index(data)) == 2


@pytest.mark.parametrize("name", ["x.PNG", "x.jpg", "x.JPEG", "x.tif", "x.bmp", "x.webp"])
def test_images_of_any_usual_kind_are_data(tmp_path, name):
    from utils.data.cache import Cache

    file = io.BytesIO()
    gradient = np.arange(40 * 60, dtype=np.uint16).reshape(SIDE).astype(np.uint8)
    Image.fromarray(gradient).save(file, Image.registered_extensions()[Path(name).suffix.lower()])
    data = data_folder(tmp_path / "data", name, content=file.getvalue())
    assert check_data(data).findings == [] or {f.file for f in check_data(data).findings} == {"test/DCM/IDtest/t.png"}
    table = read_index(data, ("train",))
    assert table[["image_name", "height", "width"]].values.tolist() == [[name, *SIDE]]
    cache = Cache(tmp_path / "cache", table, ["a"], 32)
    assert cache.build() == 1 and cache.read(name).size == SIDE


def test_a_photograph_in_a_data_folder_is_turned(tmp_path):
    from utils.data.cache import read_image

    data = data_folder(tmp_path / "data", "x.jpg", content=turned_jpeg(), split=False)
    row = read_index(data, ("train",)).iloc[0]
    assert (row.height, row.width) == SIDE[::-1] == read_image(row.image).shape[:2]


def test_two_images_with_one_annotation_are_refused(tmp_path):
    data = data_folder(tmp_path / "data")
    (data / "train/DCM/IDtrain/x.jpg").write_bytes(turned_jpeg())
    assert [finding.kind for finding in find_images(data)[1]] == ["same name"]


def test_a_data_folder_without_test_images_is_a_warning(tmp_path):
    data = data_folder(tmp_path / "data", split=False)
    report = check_data(data)
    assert report.errors == [] and [finding.kind for finding in report.findings] == ["no test images"]
    assert len(read_index(data)) == 1


def truth_file(folder, names, **more):
    square = {"category_id": 1, "segmentation": [np.ravel(SQUARE).tolist()], **more}
    content = {
        "images": [{"id": i, "file_name": name, "height": 40, "width": 60} for i, name in names.items()],
        "categories": [{"id": 1, "name": "a"}],
        "annotations": [{"id": n, "image_id": i, **square} for n, i in enumerate(names, 1)],
    }
    (folder / "truth.json").write_text(json.dumps(content))
    return folder / "truth.json"


def results_file(folder, entries, **lists):
    square = {"category_id": 1, "segmentation": [np.ravel(SQUARE).tolist()], "score": 0.9}
    results = [{**square, **entry} for entry in entries]
    (folder / "results.json").write_text(json.dumps({**lists, "annotations": results} if lists else results))
    return folder / "results.json"


def test_results_go_to_the_image_whose_file_name_they_give(tmp_path):
    truth = read_dataset(truth_file(tmp_path, {1: "2.png", 2: "1.png", 9: "x/7.png"}))

    def images(*entries, **lists):
        return [r.image_id for r in read_results(results_file(tmp_path, entries, **lists), truth)]

    assert images({"image_id": 1, "file_name": "1.png"}, {"image_id": 7, "file_name": "7.png"}) == [2, 9]
    assert images({"image_id": 1}, {"image_id": 7}) == [2, 9]  # 7 is no id, so these are stems
    assert images({"image_id": 1}, {"image_id": 9}) == [1, 9]  # 9 is no stem, so these are ids
    listed = [{"id": 1, "file_name": "images/2.png", "height": 40, "width": 60}]
    assert images({"image_id": 1}, images=listed) == [1]
    with pytest.raises(DataError, match=r"may be any of 1\.png, 2\.png"):
        images({"image_id": 1})
    with pytest.raises(DataError, match=r"no image is called 'y\.png'"):
        images({"image_id": 1, "file_name": "y.png"})
    with pytest.raises(DataError, match=r"image 1 is 1\.png"):
        images({"image_id": 1}, images=[{**listed[0], "file_name": "1.png"}])


def test_stems_that_occur_twice_are_refused_where_a_result_gives_no_more(tmp_path):
    truth = read_dataset(truth_file(tmp_path, {1: "p/a.png", 2: "q/a.png"}))
    assert [r.image_id for r in read_results(results_file(tmp_path, [{"image_id": "q/a.png"}]), truth)] == [2]
    with pytest.raises(DataError, match=r"may be any of p/a\.png, q/a\.png"):
        read_results(results_file(tmp_path, [{"image_id": "a"}]), truth)


def test_a_true_annotation_may_have_an_empty_score(tmp_path):
    dataset = read_dataset(truth_file(tmp_path, {1: "a.png"}, score=None))
    assert len(dataset.annotations) == 1 and np.isnan(dataset.annotations[0].score)


def test_true_instances_with_a_box_only_leave_the_scores_of_masks_out(tmp_path):
    truth = truth_file(tmp_path, {1: "a.png"}, segmentation=[], bbox=[10, 5, 20, 20])
    table = score_coco(truth, results_file(tmp_path, [{"image_id": 1}]))
    assert not [column for column in table if column.startswith("mask") or column == "Dice"]
    assert table["box mAP50"].tolist() == [1, 1]


def test_a_rare_large_class_hides_no_small_one(tmp_path):
    """In one of three images, a large square over a small one, which all three show."""
    data, small = tmp_path / "data", SQUARE
    large = [[2, 2], [50, 2], [50, 35], [2, 35]]
    for n in range(3):
        image = data / f"train/DCM/p{n}/x{n}.png"
        annotation = data / f"train/outputs_json/p{n}/x{n}.json"
        for path in (image, annotation):
            path.parent.mkdir(parents=True)
        image.write_bytes(png())
        shapes = [("small", small)] + ([("large", large)] if n == 0 else [])
        listed = [{"label": label, "points": points} for label, points in shapes]
        annotation.write_text(json.dumps({"annotations": listed}))
    (data / "classes.txt").write_text("small\nlarge\n")
    to_png(data, tmp_path / "maps", fold=-1)
    values = cv2.imread(str(next((tmp_path / "maps").rglob("masks/**/x0.png"))), cv2.IMREAD_UNCHANGED)
    assert values[15, 20] == 1 and values[3, 3] == 2
