"""The synthetic sample: its statistics, its layout, and that the same options give the same files."""

import hashlib

import cv2
import numpy as np
import pandas as pd
import pytest

from utils.data.check import check_data
from utils.data.competition import (
    HAND_BONES,
    DataError,
    read_annotation,
    read_classes,
    read_index,
    read_metadata,
)
from utils.files import read_json
from utils.masks import rle
from utils.sample import generator, radiograph
from utils.sample.bones import FOREARM
from utils.sample.images import geometry
from utils.sample.roster import roster, write_metadata

SMALL = {"train_people": 3, "test_people": 2, "image_size": 256}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return generator.make_sample(tmp_path_factory.mktemp("sample") / "small", **SMALL, threads=1)


@pytest.fixture(scope="module")
def hands():
    """Every image of the default sample with its hand and polygons at 2048 × 2048, without a picture."""
    return [(image, *geometry(image, 2048)[:2]) for image in roster(40, 12, seed=0)]


def drawn(points, size=2048):
    """A polygon's mask, cut out: (mask, left, top)."""
    left, top = points.min(axis=0)
    width, height = points.max(axis=0) - (left, top) + 1
    mask = np.zeros((height, width), np.uint8)
    cv2.fillPoly(mask, [points - (left, top)], 1)
    return mask, left, top


def iou(a, b):
    corner = np.minimum(a.min(axis=0), b.min(axis=0))
    width, height = np.maximum(a.max(axis=0), b.max(axis=0)) - corner + 1
    masks = np.zeros((2, height, width), np.uint8)
    for mask, points in zip(masks, (a, b), strict=True):
        cv2.fillPoly(mask, [points - corner], 1)
    return (masks[0] & masks[1]).sum() / (masks[0] | masks[1]).sum()


def direction(points):
    """The long axis of a bone in degrees from upright, clockwise on screen."""
    _, vectors = np.linalg.eigh(np.cov((points - points.mean(axis=0)).T))
    x, y = vectors[:, 1] * (-1 if vectors[1, 1] > 0 else 1)
    return np.degrees(np.arctan2(x, -y))


def digests(folder):
    paths = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in paths}


# ---- statistics of the geometry


def test_areas_and_overlaps_are_those_of_the_real_data(hands):
    areas = {name: [] for name in HAND_BONES}
    several = []
    for _, _, polygons in hands:
        count = np.zeros((2048, 2048), np.uint8)
        for name, points in polygons.items():
            mask, left, top = drawn(points)
            areas[name].append(mask.sum(dtype=int))
            count[top : top + mask.shape[0], left : left + mask.shape[1]] += mask
        several.append((count > 1).mean())
    expected = {"finger-16": 3895, "Pisiform": 4327, "finger-4": 4950, "Ulna": 39456, "Radius": 75128}
    for name, area in expected.items():
        assert np.mean(areas[name]) == pytest.approx(area, rel=0.2), name
        assert np.std(areas[name]) > 0.05 * area, name
    assert 0.002 < np.mean(several) < 0.007
    for pair, mean in ((("Triquetrum", "Pisiform"), 0.448), (("Trapezium", "Trapezoid"), 0.189)):
        overlaps = [iou(polygons[pair[0]], polygons[pair[1]]) for _, _, polygons in hands]
        assert np.mean(overlaps) == pytest.approx(mean, abs=0.1), pair
        assert min(overlaps) > 0, pair


def test_poses_vary_as_those_of_real_hands(hands):
    tilt, size, place, spread = [], [], [], []
    for image, _, polygons in hands:
        sign = 1 if image.side == "R" else -1
        tilt.append(sign * direction(polygons["finger-11"]))
        size.append(np.hypot(*(polygons["finger-8"].mean(axis=0) - polygons["Capitate"].mean(axis=0))))
        place.append(polygons["Capitate"].mean(axis=0))
        spread.append(sign * (direction(polygons["finger-18"]) - direction(polygons["finger-6"])))
    assert 4 < np.std(tilt) < 20
    assert 0.03 < np.std(size) / np.mean(size) < 0.12
    assert (np.std(place, axis=0) > 30).all()
    assert 5 < np.std(spread) < 25 and np.mean(spread) > 10


def test_bent_wrists_are_as_frequent_as_in_the_real_data(hands):
    for people in ((40, 12), (400, 144)):
        images = roster(*people, seed=0)
        for split, share in (("train", 0.11), ("test", 0.57)):
            bent = [abs(image.person.bend) > 15 for image in images if image.split == split]
            assert np.mean(bent) == pytest.approx(share, abs=0.02)
    for image, _, polygons in hands:  # and they can be seen in the outlines
        angle = direction(polygons["finger-11"]) - (direction(polygons["Radius"]) + direction(polygons["Ulna"])) / 2
        assert (abs(angle) > 12) == (abs(image.person.bend) > 15), (image.ID, angle)


def test_a_right_hand_has_its_thumb_on_the_left(hands):
    for image, _, polygons in hands:
        assert (polygons["finger-1"][:, 0].mean() < polygons["finger-16"][:, 0].mean()) == (image.side == "R")


def test_every_bone_lies_inside_the_image_and_the_soft_tissue(hands):
    for _, hand, polygons in hands[::3]:
        flesh = radiograph.soft_tissue(hand, radiograph.Raster(512, hand.mm * 512))
        for name, points in polygons.items():
            assert len(points) > 20
            assert points.min() >= 8 and points[:, 0].max() <= 2039, name
            assert points[:, 1].max() <= (2047 if name in FOREARM else 2039), name
            x, y = np.minimum(points // 4, 511).T
            assert (flesh[y, x] > 1).all(), name


def test_outlines_do_not_cross_themselves(hands):
    for image, hand, _ in hands[::4]:
        for name, points in hand.outlines.items():
            a, d = points, np.roll(points, -1, axis=0) - points
            between = a[None] - a[:, None]
            with np.errstate(divide="ignore", invalid="ignore"):
                cross = d[:, None, 0] * d[None, :, 1] - d[:, None, 1] * d[None, :, 0]
                s = (between[..., 0] * d[None, :, 1] - between[..., 1] * d[None, :, 0]) / cross
                t = (between[..., 0] * d[:, None, 1] - between[..., 1] * d[:, None, 0]) / cross
            assert not ((s > 1e-9) & (s < 1 - 1e-9) & (t > 1e-9) & (t < 1 - 1e-9)).any(), (image.ID, name)


def test_both_hands_are_similar_but_no_mirror_images(hands):
    def shape(hand, name):
        points = hand.outlines[name] / hand.mm
        return np.prod(np.ptp(points, axis=0))

    for (right, a, _), (left, b, _) in zip(hands[::2], hands[1::2], strict=True):
        assert right.ID == left.ID and right.side != left.side
        lengths = [np.hypot(*np.diff(h.axes["finger-10"], axis=0)[0]) / h.mm for h in (a, b)]
        assert 0 < abs(lengths[0] / lengths[1] - 1) < 0.12
        assert shape(a, "Capitate") != shape(b, "Capitate")
    lengths = [np.hypot(*np.diff(h.axes["finger-10"], axis=0)[0]) for _, h, _ in hands]
    assert np.corrcoef(lengths[::2], lengths[1::2])[0, 1] > 0.6


# ---- pictures


def test_bones_are_brighter_than_soft_tissue_and_soft_tissue_than_background(folder):
    for row in read_index(folder, ("train",)).itertuples():
        image = cv2.imread(row.image)
        assert image.shape == (256, 256, 3) and (image[..., 0] == image[..., 2]).all()
        bones = np.zeros((256, 256), np.uint8)
        for polygons in read_annotation(row.annotation, list(HAND_BONES)).values():
            cv2.fillPoly(bones, polygons, 1)
        around = cv2.dilate(bones, np.ones((5, 5))) - cv2.dilate(bones, np.ones((3, 3)))
        far = cv2.dilate(bones, np.ones((61, 61))) == 0
        bone, flesh, background = (image[..., 0][m > 0].astype(float) for m in (bones, around, far))
        assert bone.mean() > flesh.mean() + 25 and flesh.mean() > background.mean() + 15
        assert 90 < bone.mean() < 235 and background.mean() < 60 and image.max() > 150


def test_pixels_depend_on_the_person_alone():
    small, large = ({i.seed: i for i in roster(*people, seed=5)} for people in ((2, 1), (9, 6)))
    assert small.keys() < large.keys()
    for seed, image in list(small.items())[::2]:
        pictures = []
        for other in (image, large[seed]):
            hand, _, rng = geometry(other, 128)
            pictures.append(radiograph.render(hand, other.person, rng, 128))
        assert (pictures[0] == pictures[1]).all()


# ---- files


def test_one_thread_and_three_write_the_same_bytes(folder, tmp_path):
    again = generator.make_sample(tmp_path / "again", **SMALL, threads=3)
    assert digests(again) == digests(folder)
    assert len({d for name, d in digests(folder).items() if name.endswith(".png")}) == 10


def test_the_layout_is_the_competitions(folder):
    table = read_index(folder)
    classes = read_classes(folder)
    assert not check_data(folder, n_folds=3).errors
    assert table.groupby("split").size().to_dict() == {"train": 6, "test": 4}
    assert (table.groupby("ID").size() == 2).all() and table["age"].notna().all()
    assert table["image_name"].str.fullmatch(r"image\d{13}(_[RL])?\.png").all()
    for row in table[table["annotation"] != ""].itertuples():
        polygons = read_annotation(row.annotation, classes, (256, 256))
        assert all(len(shapes) == 1 for shapes in polygons.values())
    content = read_json(row.annotation)
    keys = "annotations attributes file_id filename parent_path last_modifier_id metadata last_workers"
    assert list(content) == keys.split()
    annotation = content["annotations"][0]
    assert set(annotation) == {"id", "type", "attributes", "points", "label"} and annotation["type"] == "poly_seg"
    assert np.asarray(annotation["points"]).dtype.kind == "i"


def test_ids_and_names_are_like_the_real_ones():
    images = roster(400, 144, seed=0)
    ids = {split: sorted({i.ID for i in images if i.split == split}) for split in ("train", "test")}
    assert (len(ids["train"]), ids["train"][0], ids["train"][-1]) == (400, "ID001", "ID548")
    assert (len(ids["test"]), ids["test"][0], ids["test"][-1]) == (144, "ID040", "ID550")
    assert not set(ids["train"]) & set(ids["test"])
    assert len({i.name for i in images}) == 2 * 544
    assert 0 < sum("_" in i.name for i in images) < 0.1 * len(images)
    for i in images:
        if i.split == "train":
            assert (abs(i.person.bend) > 15) == (274 <= int(i.ID[2:]) <= 321)


def test_the_metadata_is_plausible_and_has_the_originals_odd_characters(tmp_path):
    images = roster(400, 144, seed=0)
    write_metadata(tmp_path / "meta_data.xlsx", images, seed=0)
    raw = pd.read_excel(tmp_path / "meta_data.xlsx")
    assert list(raw.columns) == ["ID", "나이", "성별", "체중(몸무게)", "키(신장)", "Unnamed: 5"]
    assert raw["성별"].str.contains("_x0008_").any() and set(raw["Unnamed: 5"].dropna()) == {"네일있음"}
    table = read_metadata(tmp_path)
    assert len(table) > 544 and {i.ID for i in images} < set(table["ID"])
    assert set(table["sex"]) == {"F", "M"} and 0.42 < (table["sex"] == "F").mean() < 0.62
    assert table["age"].between(19, 69).all() and table["weight_kg"].between(42, 118).all()
    assert table["nail_art"].mean() < 0.25
    assert table["height_cm"].corr(table["weight_kg"]) > 0.4
    height = table.groupby("sex")["height_cm"].mean()
    assert height["M"] > height["F"] + 8


def test_taller_people_have_larger_hands(hands):
    height = [image.person.height_cm for image, _, _ in hands]
    assert np.corrcoef(height, [hand.mm for _, hand, _ in hands])[0, 1] > 0.7


def test_the_solution_is_what_the_polygons_draw(folder):
    solution = pd.read_csv(folder / "solution.csv", keep_default_na=False)
    images = [i for i in roster(3, 2, seed=0) if i.split == "test"]
    polygons = {f"{i.name}.png": geometry(i, 256)[1] for i in images}
    names = read_index(folder, ("test",))["image_name"].tolist()
    assert solution["image_name"].tolist() == [name for name in names for _ in HAND_BONES]
    assert solution["class"].tolist() == len(names) * list(HAND_BONES)
    for row in solution.itertuples():
        mask = np.zeros((256, 256), np.uint8)
        cv2.fillPoly(mask, [polygons[row.image_name][row[2]]], 1)
        assert mask.any() and (rle.decode(row.rle, (256, 256)) == mask.astype(bool)).all()


def test_a_finished_sample_is_kept_and_nothing_else_is_touched(folder, tmp_path, monkeypatch):
    before = digests(folder)
    assert generator.make_sample(folder, **SMALL) == folder and digests(folder) == before
    with pytest.raises(DataError, match=r"image_size: found 256, asked for 512"):
        generator.make_sample(folder, **SMALL | {"image_size": 512})
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(DataError, match=r"exists already"):
        generator.make_sample(tmp_path / "mine", **SMALL)
    assert (tmp_path / "mine" / "thesis.txt").exists()
    with pytest.raises(DataError, match=r"test_people = 0; expected at least 1"):
        generator.make_sample(tmp_path / "none", **SMALL | {"test_people": 0})

    def broken(*arguments):
        raise OSError("no space left")

    monkeypatch.setattr(radiograph, "render", broken)
    with pytest.raises(OSError, match="no space"):
        generator.make_sample(tmp_path / "full", **SMALL, threads=1)
    assert not [p for p in tmp_path.iterdir() if "full" in p.name and p.is_dir()]


def test_without_flaws_nothing_of_them_is_written_and_bad_numbers_of_them_are_refused(folder, tmp_path):
    assert not (folder / "planted.json").exists()
    assert list(read_json(folder / "sample.json")) == ["generator", "version", *SMALL, "seed"]
    with pytest.raises(DataError, match=r"label_errors = 7; expected 0 to 6(?s:.*)artefacts = 1\.5; expected a share"):
        generator.make_sample(tmp_path / "none", **SMALL, label_errors=7, artefacts=1.5)


def test_a_planted_error_changes_one_image_only(folder, tmp_path):
    flawed = generator.make_sample(tmp_path / "flawed", **SMALL, label_errors=1, threads=1)
    (path,) = read_json(flawed / "planted.json")
    before, after = digests(folder), digests(flawed)
    changed = {name for name in after if before.get(name) != after[name]}
    annotation = path.replace("/DCM/", "/outputs_json/").replace(".png", ".json")
    assert {annotation} <= changed <= {annotation, path, "planted.json", "sample.json"}


def test_ensure_sample_makes_the_default_once_and_returns_other_folders(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(generator, "DEFAULT_FOLDER", tmp_path / "data" / "sample")
    made = generator.ensure_sample("", **SMALL, threads=1)
    assert made == tmp_path / "data" / "sample" and "10 images of 256 × 256" in capsys.readouterr().out
    assert generator.ensure_sample() == generator.ensure_sample(str(made)) == made
    assert generator.ensure_sample(str(folder)) == folder
    assert capsys.readouterr().out == ""
    with pytest.raises(DataError, match=r"no such data folder(?s:.*)python -m utils\.sample --folder"):
        generator.ensure_sample(str(tmp_path / "absent"))
