"""The data report: every kind of bad input, each in a real data folder in which one thing is spoilt."""

import json
import shutil
import struct
import zlib
from collections import Counter

import cv2
import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.strategies import floats
from utils.data.annotation import MOST_BYTES, MOST_POINTS, read_annotation
from utils.data.cache import Cache, read_image
from utils.data.check import COLUMNS, check_data
from utils.data.competition import read_classes, read_index
from utils.data.findings import KINDS, DataError
from utils.data.folds import assign_folds
from utils.pipeline.preflight import examine

SQUARE = [[4, 4], [20, 4], [20, 20], [4, 20]]
IMAGE, TEST = "train/DCM/ID001/imageID001.png", "test/DCM/ID003/imageID003.png"
ANNOTATION = "train/outputs_json/ID001/imageID001.json"


def annotate(data, annotations, path=ANNOTATION):
    (data / path).parent.mkdir(parents=True, exist_ok=True)
    (data / path).write_text(json.dumps({"annotations": annotations}))


def make_data(folder):
    """Two people for training and one for test, one image each, two classes, metadata and a solution."""
    for split, person in (("train", "ID001"), ("train", "ID002"), ("test", "ID003")):
        image = folder / split / "DCM" / person / f"image{person}.png"
        image.parent.mkdir(parents=True)
        cv2.imwrite(str(image), np.random.default_rng(0).integers(0, 200, (32, 40), np.uint8))
        if split == "train":
            annotation = {"type": "poly_seg", "points": SQUARE, "label": "bone"}
            annotate(folder, [annotation], f"train/outputs_json/{person}/image{person}.json")
    (folder / "classes.txt").write_text("bone\nring\n")
    people = {"ID": ["ID001", "ID002", "ID003"], "나이": 30, "성별": "F", "체중(몸무게)": 60, "키(신장)": 170}
    pd.DataFrame(people).to_excel(folder / "meta_data.xlsx", index=False)
    (folder / "solution.csv").write_text("image_name,class,rle\nimageID003.png,bone,5 3\nimageID003.png,ring,\n")
    return folder


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("data") / "good")


@pytest.fixture
def data(good, tmp_path):
    """A data folder that a test may spoil."""
    return shutil.copytree(good, tmp_path / "data")


def chunk(name, content):
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(width, height, pixels=b""):
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    parts = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(pixels)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def damage(path, at, length=1):
    raw = bytearray(path.read_bytes())
    raw[at : at + length] = bytes(byte ^ 255 for byte in raw[at : at + length])
    path.write_bytes(raw)


def as_jpeg(path):
    path.write_bytes(cv2.imencode(".jpg", cv2.imread(str(path)))[1].tobytes())


def shorten(path, share):
    raw = path.read_bytes()
    path.write_bytes(raw[: int(len(raw) * share)])


def without_middle(path):
    raw = path.read_bytes()
    path.write_bytes(raw[:40] + raw[90:])


def polygon(points, **others):
    return lambda data: annotate(
        data, [{"label": "bone", "points": SQUARE}, {"label": "bone", "points": points, **others}]
    )


def text(content):
    return lambda data: (data / ANNOTATION).write_bytes(content)


def value(content):
    return text(json.dumps(content).encode())


def points(content):
    """An annotation file in which the JSON text `content` stands for the points."""
    return text(b'{"annotations": [{"label": "bone", "points": %s}]}' % content)


def on(path, change, *arguments):
    return lambda data: change(data / path, *arguments)


def write(path, content):
    def change(data):
        (data / path).parent.mkdir(parents=True, exist_ok=True)
        (data / path).write_bytes(content)

    return change


def copied(source, target):
    def change(data):
        (data / target).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(data / source, data / target)

    return change


def metadata(*people):
    table = pd.DataFrame({"ID": people, **dict.fromkeys(("나이", "성별", "체중(몸무게)", "키(신장)"), 1)})
    return lambda data: table.to_excel(data / "meta_data.xlsx", index=False)


def solution(*rows):
    return write("solution.csv", "\n".join(["image_name,class,rle", *rows, ""]).encode())


circle = np.rint(
    500 + 400 * np.exp(1j * np.linspace(0, 2 * np.pi, MOST_POINTS + 1)).view(float).reshape(-1, 2)
).tolist()
SPOILT = {
    # the folder
    "no training images": (lambda d: shutil.rmtree(d / "train" / "DCM"), "no images", "no image in"),
    "no test images": (lambda d: shutil.rmtree(d / "test"), "no test images", "no image in"),
    "empty classes.txt": (write("classes.txt", b""), "classes", "empty"),
    "a class twice": (write("classes.txt", b"bone\nring\nbone\n"), "classes", "repeated: bone"),
    "classes.txt is not UTF-8": (write("classes.txt", "bone\nRöntgen\n".encode("latin1")), "classes", "not UTF-8"),
    "metadata is no Excel file": (write("meta_data.xlsx", b"ID,age\n"), "metadata", "Excel file format"),
    "metadata lacks a column": (
        lambda d: pd.DataFrame({"ID": ["ID001"]}).to_excel(d / "meta_data.xlsx"),
        "metadata",
        "missing column",
    ),
    "people without images": (metadata("ID001", "ID002", "ID003", "ID9"), "metadata only", "ID9"),
    "images without metadata": (metadata("ID001", "ID003"), "no metadata", "ID002"),
    "solution of another test image": (solution("a.png,bone,"), "solution", "unknown"),
    "solution lacks a row": (solution("imageID003.png,bone,"), "solution", "missing"),
    "solution past the image's end": (
        solution("imageID003.png,bone,1 9999", "imageID003.png,ring,"),
        "solution",
        "past the 1280 pixels",
    ),
    "solution is no CSV": (write("solution.csv", b"\xff\xfe\x00"), "solution", "not a readable CSV"),
    # images
    "an empty file": (write(IMAGE, b""), "empty image", "0 bytes"),
    "a cut signature": (write(IMAGE, b"\x89PN"), "truncated", "ends after 3 bytes"),
    "a cut header": (on(IMAGE, shorten, 0.02), "truncated", "within the header"),
    "half a file": (on(IMAGE, shorten, 0.5), "truncated", "before the PNG's end"),
    "the last byte is missing": (on(IMAGE, shorten, 0.9999), "truncated", "before the PNG's end"),
    "a hole in the middle": (on(IMAGE, without_middle), "truncated", "before the PNG's end"),
    "a wrong byte in the pixels": (on(IMAGE, damage, 600), "damaged", "not those that were written"),
    "a wrong byte in the header": (on(IMAGE, damage, 18), "damaged", "header is damaged"),
    "the wrong byte in a test image": (on(TEST, damage, 700), "damaged", "not those that were written"),
    "a JPEG called .png": (on(IMAGE, as_jpeg), "wrong format", "not a PNG but JPEG"),
    "a text called .png": (write(IMAGE, b"<html>not found</html>"), "wrong format", "HTML"),
    "a DICOM file called .png": (write(IMAGE, b"\0" * 128 + b"DICM"), "wrong format", "not a PNG"),
    "0 pixels wide": (write(IMAGE, png(0, 32)), "no pixels", "0 × 32"),
    "a decompression bomb": (write(IMAGE, png(60_000, 60_000, b"\0" * 10**6)), "too many pixels", "60000 × 60000"),
    "no pixel data": (
        write(IMAGE, png(32, 32).replace(chunk(b"IDAT", zlib.compress(b"")), b"")), "damaged", "holds no pixels"),
    "a folder called .png": (lambda d: ((d / IMAGE).unlink(), (d / IMAGE).mkdir()), "unreadable", "can't be read"),
    "a link to nowhere": (
        lambda d: ((d / IMAGE).unlink(), (d / IMAGE).symlink_to("gone")), "unreadable", "can't be read"),
    "16 bits": (
        on(IMAGE, lambda p: cv2.imwrite(str(p), np.full((32, 40), 900, np.uint16))), "16 bits", "16 bits"),
    "a name with a line break": (copied(TEST, "test/DCM/ID003/a\nb.png"), "unusable name", "not printable"),
    "one name in two folders": (copied(IMAGE, "train/DCM/ID002/imageID001.png"), "same name", "appears 2 times"),
    "one name in train and test": (copied(IMAGE, "test/DCM/ID003/imageID001.png"), "same name", "also in test/"),
    "an ID twice": (lambda d: (d / "test/DCM/ID003").rename(d / "test/DCM/ID001"), "ID in both splits", "ID001"),
    "a DICOM file beside the images": (write("train/DCM/ID001/b.dcm", b"\0\0"), "not read", "not read"),
    "a damaged JPEG": (write("train/DCM/ID001/b.jpg", b"\xff\xd8"), "damaged", "not a readable image"),
    "an image outside the people's folders": (copied(IMAGE, "train/DCM/b.png"), "not read", "not read"),
    # annotation files
    "no annotation": (lambda d: (d / ANNOTATION).unlink(), "no annotation", "no annotation; expected"),
    "no image": (lambda d: (d / IMAGE).unlink(), "no image", "no image; expected"),
    "annotation is a folder": (
        lambda d: ((d / ANNOTATION).unlink(), (d / ANNOTATION).mkdir()), "unreadable annotation", "can't be read"),
    "an empty annotation file": (text(b""), "broken JSON", "the file is empty"),
    "half a JSON": (on(ANNOTATION, shorten, 0.5), "broken JSON", "not JSON"),
    "nested without end": (text(b"[" * 200_000), "broken JSON", "not JSON"),
    "a number of 5,000 digits": (points(b"[[1, 2], [3, 4], [%s, 6]]" % (b"9" * 5000)), "broken JSON", "not JSON"),
    "not UTF-8": (text('{"annotations": [], "name": "Röntgen"}'.encode("latin1")), "not UTF-8", "at byte 30"),
    "UTF-16": (text('{"annotations": []}'.encode("utf-16")), "not UTF-8", "at byte 0"),
    "too large a file": (
        lambda d: (d / ANNOTATION).open("r+b").truncate(MOST_BYTES + 1), "too large a file", "at most 67,108,864"),
    "a list": (value([]), "no list of annotations", "the file is []"),
    "a number": (value(3), "no list of annotations", "the file is 3"),
    "no annotations in it": (value({"objects": []}), "no list of annotations", "annotations is null"),
    "annotations is null": (value({"annotations": None}), "no list of annotations", "annotations is null"),
    "annotations is text": (value({"annotations": "none"}), "no list of annotations", 'annotations is "none"'),
    "annotations is an object": (value({"annotations": {"0": {}}}), "no list of annotations", "an object of 1"),
    "no polygons": (value({"annotations": []}), "no polygons", "is empty"),
    # polygons
    "an annotation is null": (value({"annotations": [None]}), "not an object", "annotation 0 is null"),
    "an annotation is a list": (value({"annotations": [[1, 2]]}), "not an object", "annotation 0 is [1, 2]"),
    "an annotation is text": (value({"annotations": ["bone"]}), "not an object", 'annotation 0 is "bone"'),
    "an unknown label": (polygon(SQUARE, label="bonne"), "label", "did you mean bone"),
    "no label": (value({"annotations": [{"points": SQUARE}]}), "label", "annotation 0 (null)"),
    "a label is a list": (polygon(SQUARE, label=["bone"]), "label", 'annotation 1 (["bone"])'),
    "a label is an object": (polygon(SQUARE, label={}), "label", "unknown class"),
    "a label that is no Unicode": (polygon(SQUARE, label="\ud800"), "label", "unknown class"),
    "no points": (value({"annotations": [{"label": "bone"}]}), "points", "points is null"),
    "points are text": (polygon("4 4 20 4"), "points", 'points is "4 4 20 4"'),
    "points are an object": (polygon({"x": 1}), "points", "points is an object of 1"),
    "one point": (polygon([[4, 4]]), "points", "1 points; expected at least 3"),
    "two points": (polygon([[4, 4], [5, 5]]), "points", "2 points; expected at least 3"),
    "a point is null": (polygon([*SQUARE, None]), "points", "point 4 is null"),
    "a point is a number": (polygon([1, 2, 3, 4]), "points", "point 0 is 1"),
    "a point is text": (polygon(["45", "67", "89"]), "points", 'point 0 is "45"'),
    "a point has three numbers": (polygon([[1, 2, 3]] * 3), "points", "point 0 is [1, 2, 3]"),
    "a coordinate is null": (polygon([[1, 2], [3, None], [5, 6]]), "points", "point 1 is [3, null]"),
    "a coordinate is text": (polygon([["4", 4], [20, 4], [20, 20]]), "points", 'point 0 is ["4", 4]'),
    "a coordinate is true": (polygon([[True, 4], [20, 4], [20, 20]]), "points", "point 0 is [true, 4]"),
    "a coordinate is a list": (polygon([[[4], 4], [20, 4], [20, 20]]), "points", "point 0 is a list of 2"),
    "a coordinate is NaN": (points(b"[[1, 2], [NaN, 4], [5, 6]]"), "coordinate", "point 1 is [NaN, 4]"),
    "a coordinate is infinite": (points(b"[[1, 2], [3, -Infinity], [5, 6]]"), "coordinate", "-Infinity"),
    "a coordinate is 1e12": (polygon([[4, 4], [1e12, 4], [20, 20]]), "coordinate", "none beyond 1,048,576"),
    "a coordinate of 400 digits": (points(b"[[1, 2], [3, %s], [5, 6]]" % (b"9" * 400)), "coordinate", "300 digits"),
    "a coordinate of 1e999": (points(b"[[1, 2], [3, 1e999], [5, 6]]"), "coordinate", "Infinity"),
    "too many points": (polygon(circle), "too many points", "100,001 points"),
    "outside the image": (polygon([[90, 90], [95, 90], [95, 95]]), "outside", "outside the 40 × 32 image (x from 90"),
    "partly outside": (polygon([[-9, 4], [20, 4], [20, 20]]), "partly outside", "partly outside the 40 × 32"),
    "a figure eight": (polygon([[4, 4], [20, 20], [20, 4], [4, 20]]), "crosses itself", "Self-intersection[12 12]"),
    "a line": (polygon([[4, 4], [20, 20], [12, 12]]), "no area", "has no area"),
    "one point three times": (polygon([[4, 4]] * 3), "no area", "has no area"),
    "a polygon twice": (polygon(SQUARE), "drawn twice", "annotation 1 (bone): has the same points as annotation 0"),
    "two labels for a polygon": (polygon(SQUARE, label="ring"), "drawn twice", "annotation 1 (ring)"),
}  # fmt: skip


def test_the_list_of_bad_inputs_is_complete():
    tried = Counter(kind for _, kind, _ in SPOILT.values())
    elsewhere = {"people", "label fixes"}  # see below, and test_label_fixes.py
    assert set(KINDS) - set(tried) == elsewhere, "every kind of problem is tried"
    assert len(SPOILT) == 89


def test_a_good_folder_has_no_findings(good):
    report = examine(good, n_folds=2)
    assert report.findings == [] and report.images == 3
    assert "3 images checked" in str(report) and "0 errors, 0 warnings" in str(report)


@pytest.mark.parametrize("name", SPOILT)
def test_bad_input_is_found_with_its_file_and_what_to_do(data, name):
    spoil, kind, words = SPOILT[name]
    spoil(data)
    report = examine(data)
    table = report.table()
    assert list(table) == COLUMNS
    found = table[table["kind"] == kind]
    assert len(found) >= 1, table.to_string()
    assert found["problem"].str.contains(words, regex=False).any(), found["problem"].tolist()
    assert (found["severity"] == KINDS[kind].severity).all() and found["advice"].str.len().gt(10).all()
    assert kind in ("no images", "no test images") or found["file"].ne("").all()
    report.write(data / "report.csv")
    assert len(pd.read_csv(data / "report.csv")) == len(table)
    if KINDS[kind].severity == "error":
        assert report.errors, "an error stops the run"
    else:
        assert not report.errors and read_index(data) is not None


IMAGES = [name for name, (_, kind, _) in SPOILT.items() if KINDS[kind].severity == "error"]


@pytest.mark.parametrize(
    "name", [n for n in IMAGES if SPOILT[n][1] not in ("no images", "classes", "metadata", "solution")]
)
def test_bad_images_can_be_left_out(data, name):
    SPOILT[name][0](data)
    before = read_index(data, skip=check_data(data, skip_bad=True).skipped)["image_name"].tolist()
    report = check_data(data, skip_bad=True)
    assert report.skipped and not report.errors
    assert set(report.table()["severity"]) <= {"skipped", "warning"}
    table = read_index(data, skip=report.skipped)
    assert table["image_name"].tolist() == before and table["image_name"].is_unique
    for row in table.itertuples():
        assert read_image(row.image).shape == (32, 40)
        if row.annotation:
            assert read_annotation(row.annotation, ["bone", "ring"], (row.height, row.width))


def test_fewer_people_than_folds_even_after_leaving_some_out(data):
    assert not check_data(data, n_folds=2).errors
    assert "n_folds is 3, but there are 2 people" in check_data(data, n_folds=3).errors[0].problem
    (data / ANNOTATION).write_text("{")
    report = check_data(data, n_folds=2, skip_bad=True)
    assert [f.kind for f in report.errors] == ["people"], "leaving images out does not help here"


def test_all_problems_are_listed_at_once(data):
    polygon([[1, 1]])(data)
    annotate(
        data, [{"label": "a", "points": SQUARE}, 3, {"label": "ring", "points": None}], ANNOTATION.replace("001", "002")
    )
    (data / TEST).write_bytes(b"")
    assert [f.kind for f in check_data(data).errors] == ["empty image", "points", "label", "not an object", "points"]
    with pytest.raises(DataError) as error:
        read_annotation(data / ANNOTATION.replace("001", "002"), ["bone", "ring"])
    assert len(error.value.problems) == 3


def test_16_bit_images_are_scaled_by_their_largest_value(tmp_path):
    grey = (np.arange(32 * 40).reshape(32, 40) % 3000).astype(np.uint16)  # 12 bits in 16: one shift would leave black
    cv2.imwrite(str(tmp_path / "a.png"), grey)
    pixels = read_image(tmp_path / "a.png")
    assert pixels.dtype == np.uint8 and pixels.max() == 255
    np.testing.assert_allclose(pixels, grey / grey.max() * 255, atol=0.5)
    cv2.imwrite(str(tmp_path / "b.png"), cv2.merge([grey, grey // 2, grey // 4]))
    assert read_image(tmp_path / "b.png").shape == (32, 40, 3)
    cv2.imwrite(str(tmp_path / "c.png"), np.zeros((8, 8), np.uint16))
    assert not read_image(tmp_path / "c.png").any()


def test_names_that_climb_out_of_folders_lead_nowhere(data, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    annotation = json.loads((data / ANNOTATION).read_text())
    annotation |= {"filename": "../../../outside/evil.png", "parent_path": str(outside), "file_id": "../../evil"}
    (data / ANNOTATION).write_text(json.dumps(annotation))
    row = "../../outside/evil.png,bone,\n"
    (data / "solution.csv").write_text(f"image_name,class,rle\n{row}")
    assert "solution" in {f.kind for f in examine(data).errors}
    (data / "solution.csv").unlink()
    table, run = read_index(data), tmp_path / "run"
    cache = Cache(run / "cache", table, read_classes(data), 32)
    cache.build()
    folds = assign_folds(table, 2)
    assert not list(outside.iterdir())
    written = {p.name for p in run.rglob("*") if p.is_file()} - {".lock"}
    assert written == {f"{name}.npz" for name in table["image_name"]} and len(folds) == 2


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | floats() | st.text(max_size=5) | st.sampled_from([10**400, 1e12, ""]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["label", "points", "x"]), inner),
    max_leaves=12,
)
PLACES = ("file", "annotations", "annotation", "label", "points", "point", "coordinate")


@given(place=st.sampled_from(PLACES), found=json_values)
@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_json_anywhere_is_read_right_or_refused(tmp_path, place, found):
    pixels = [list(point) for point in SQUARE]
    annotation = {"label": "bone", "points": pixels}
    tree = {"annotations": [{"label": "bone", "points": SQUARE}, annotation]}
    if place == "file":
        tree = found
    elif place == "annotations":
        tree["annotations"] = found
    elif place == "annotation":
        tree["annotations"][1] = found
    elif place in ("label", "points"):
        annotation[place] = found
    elif place == "point":
        pixels[1] = found
    else:
        pixels[1][0] = found
    path = tmp_path / "a.json"
    path.write_text(json.dumps(tree))
    try:
        polygons = read_annotation(path, ["bone", "ring"], (32, 40))
    except DataError as error:
        assert error.problems
        assert place in ("file", "annotations") or all("annotation 1" in problem for problem in error.problems)
        return
    assert set(polygons) == {"bone", "ring"}
    for shape in polygons["bone"] + polygons["ring"]:
        assert shape.dtype == np.int32 and shape.shape[1] == 2 and len(shape) >= 3
    read = polygons["bone"] + polygons["ring"]
    if place == "coordinate":
        assert type(found) in (int, float) and read[1][1, 0] == round(found)
    elif place == "label":
        assert found in ("bone", "ring")
    elif place in ("points", "point"):
        wanted = found if place == "points" else pixels
        assert read[1].tolist() == [[round(x), round(y)] for x, y in wanted]
