"""The exploratory numbers against counted pixels, and every known kind of label error, put into a correct survey."""

import json
from dataclasses import replace

import cv2
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from utils import figures
from utils.analysis import statistics, survey
from utils.analysis.label_check import middle_of, suspicious
from utils.data.competition import HAND_BONES, read_index
from utils.data.folds import assign_folds
from utils.masks.dice import dice_of_masks
from utils.masks.masks import Masks
from utils.sample.generator import make_sample

CLASSES = ["a", "b", "c", "absent"]
SIZE = (64, 80)


def write(folder, images, classes=CLASSES, size=SIZE, grey=120):
    """A data folder from `{(ID, name): {class: [polygon, …]}}`, with one test image; returns its index."""
    (folder / "classes.txt").write_text("\n".join(classes))
    for (ID, name), polygons in {**images, ("ID999", "test.png"): None}.items():
        split = "test" if polygons is None else "train"
        path = folder / split / "DCM" / ID / name
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), np.full(size, grey, np.uint8))
        if polygons is not None:
            rows = [{"label": label, "points": p} for label, shapes in polygons.items() for p in shapes]
            path = folder / "train" / "outputs_json" / ID / f"{name[:-4]}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps({"annotations": rows}))
    return read_index(folder)


def random_polygons(seed):
    rng = np.random.default_rng(seed)
    return {
        name: [(rng.integers(0, 64, (5, 2)) + rng.integers(0, 12, 2)).tolist() for _ in range(count)]
        for name, count in (("a", 2), ("b", 1), ("c", int(rng.integers(0, 3))))
    }


def pixel_masks(polygons):
    """bool (classes, H, W), drawn at full size one by one."""
    masks = np.zeros((len(CLASSES), *SIZE), np.uint8)
    for number, name in enumerate(CLASSES):
        for points in polygons.get(name, []):
            plane = masks[number].copy()
            cv2.fillPoly(plane, [np.array(points, np.int32)], 1)
            masks[number] = plane
    return masks.astype(bool)


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    images = {(f"ID{k // 2:03d}", f"image{k}.png"): random_polygons(k) for k in range(12)}
    table = write(tmp_path_factory.mktemp("random"), images)
    masks = {name: pixel_masks(polygons) for (_, name), polygons in images.items()}
    return survey.survey(table, CLASSES, grid=16, threads=2), masks, images


def test_areas_centroids_and_boxes_are_those_of_the_pixels(measured):
    found, masks, images = measured
    assert len(found.bones) == sum(m.any() for planes in masks.values() for m in planes)
    shapes = {name: polygons for (_, name), polygons in images.items()}
    for bone in found.bones.to_dict("records"):
        mask = masks[bone["image_name"]][CLASSES.index(bone["class"])]
        ys, xs = np.nonzero(mask)
        assert bone["area"] == mask.sum()
        assert (bone["x"], bone["y"]) == pytest.approx((xs.mean(), ys.mean()))
        assert (bone["top"], bone["left"], bone["bottom"], bone["right"]) == (
            ys.min(),
            xs.min(),
            ys.max() + 1,
            xs.max() + 1,
        )
        assert bone["polygons"] == len(shapes[bone["image_name"]][bone["class"]])
        assert bone["pieces"] == cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)[0] - 1
        outside = cv2.connectedComponents((~np.pad(mask, 1)).astype(np.uint8), connectivity=4)[0] - 1
        assert bone["holes"] == outside - 1


def test_overlaps_are_those_of_the_pixels(measured):
    found, masks, _ = measured
    expected = {
        (name, CLASSES[a], CLASSES[b]): int((planes[a] & planes[b]).sum())
        for name, planes in masks.items()
        for a in range(4)
        for b in range(a + 1, 4)
        if (planes[a] & planes[b]).any()
    }
    assert expected
    assert {(r.image_name, r.a, r.b): r.intersection for r in found.pairs.itertuples()} == expected
    for row in statistics.overlap_table(found).itertuples():
        a, b = CLASSES.index(row.a), CLASSES.index(row.b)
        both = [planes for planes in masks.values() if planes[a].any() and planes[b].any()]
        assert row.of == len(both)
        assert row.iou == pytest.approx(np.mean([(p[a] & p[b]).sum() / (p[a] | p[b]).sum() for p in both]))


def test_shares_and_density_are_those_of_the_pixels(measured):
    found, masks, _ = measured
    images = found.images[found.images["annotation"] != ""].set_index("image_name")
    for name, planes in masks.items():
        assert images.loc[name, "labelled"] == pytest.approx(planes.any(axis=0).mean())
        assert images.loc[name, "multi_label"] == pytest.approx((planes.sum(axis=0) > 1).mean())
    cells = np.mean([p.reshape(4, 16, 4, 16, 5).mean(axis=(2, 4)) for p in masks.values()], axis=0)
    assert np.abs(found.density - cells).max() < 1 / 255
    assert found.images["grey_mean"].eq(120).all() and found.images["grey_std"].eq(0).all()
    assert np.allclose(found.histograms[:, 120 // 4], 1)


def test_argmax_cost_is_the_dice_after_numpys_argmax(measured):
    found, masks, _ = measured
    dice = {"first": [], "smaller": []}
    for planes in masks.values():
        areas = planes.sum(axis=(1, 2))
        for rule, order in (("first", np.arange(4)), ("smaller", np.lexsort((np.arange(4), areas)))):
            winner = order[planes[order].argmax(axis=0)]  # the first class in this order that has the pixel
            kept = [planes[c] & (winner == c) for c in range(4)]
            dice[rule].append(dice_of_masks(Masks.from_dense(kept), Masks.from_dense(planes)))
    cost = statistics.argmax_cost(found)
    for rule, values in dice.items():
        assert cost[rule].to_numpy() == pytest.approx(np.mean(values, axis=0))


def test_class_statistics_keep_the_order_and_count_absent_classes(measured):
    found, masks, _ = measured
    table = statistics.class_statistics(found)
    assert list(table.index) == CLASSES and table.loc["absent", "images"] == 0
    areas = [planes[1].sum() for planes in masks.values()]
    assert tuple(table.loc["b", ["mean_area", "min_area", "max_area"]]) == pytest.approx(
        (np.mean(areas), min(areas), max(areas))
    )
    assert table.loc["b", "share"] == pytest.approx(np.mean(areas) / (64 * 80))


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=40)
def test_convex_polygons_never_cross_themselves_and_a_figure_eight_does(seed):
    rng = np.random.default_rng(seed)
    hull = cv2.convexHull(rng.integers(0, 500, (12, 2)).astype(np.int32))[:, 0]
    assert survey.crossing_loop(hull) == 0
    width, height = rng.integers(10, 200, 2).tolist()
    eight = np.array([(0, 0), (2 * width, 2 * height), (2 * width, 0), (0, 2 * height)])
    assert survey.crossing_loop(eight) == pytest.approx(0.5)


@pytest.fixture(scope="module")
def hands(tmp_path_factory):
    folder = make_sample(tmp_path_factory.mktemp("hands") / "sample", 10, 1, 512)
    return survey.survey(read_index(folder), HAND_BONES, grid=32)


def test_hands_of_the_sample(hands):
    annotated = hands.images[hands.images["annotation"] != ""]
    assert annotated.groupby("ID")["side"].apply(lambda s: sorted(s) == ["L", "R"]).all()
    sizes = statistics.bone_sizes(hands)
    assert len(sizes) == 10 and statistics.correlations(sizes)["height_cm"] > 0.5
    assert statistics.argmax_cost(hands).mean().between(0.9, 0.99).all()
    assert len(statistics.pick_examples(annotated, 4)) == 4
    assert (statistics.pick_examples(annotated, 4).groupby("ID").size() == 2).all()


def test_nothing_is_suspicious_in_the_sample(hands):
    assert suspicious(hands).empty


def relabelled(found, image, names):
    """The survey as it would be if the labels of one image were exchanged."""
    bones = found.bones.copy()
    here = bones["image_name"] == image
    bones.loc[here, "class"] = bones.loc[here, "class"].replace(names)
    return replace(found, bones=bones)


def with_values(found, image, name, **values):
    bones = found.bones.astype({"x": float, "y": float})
    bones.loc[(bones["image_name"] == image) & (bones["class"] == name), list(values)] = list(values.values())
    return replace(found, bones=bones)


def reasons(found, image):
    table = suspicious(found)
    assert set(table["image_name"]) == {image}
    return {name: " / ".join(rows["reason"]) for name, rows in table.groupby("class")}


def test_bones_labelled_in_reverse_are_found_and_their_places_named(hands):
    image = hands.images["image_name"].iloc[3]
    pairs = [("finger-1", "finger-3"), ("Radius", "Ulna"), ("Capitate", "Trapezoid")]
    found = reasons(relabelled(hands, image, {**dict(pairs), **{b: a for a, b in pairs}}), image)
    assert "lies where finger-3 is expected" in found["finger-1"]
    assert "lies where Ulna is expected" in found["Radius"] or "area" in found["Radius"]
    assert {"finger-1", "finger-3", "Capitate", "Trapezoid"} <= set(found)


def test_a_bone_drawn_over_another_is_found(hands):
    image = hands.images["image_name"].iloc[4]
    ulna = hands.bones[(hands.bones["image_name"] == image) & (hands.bones["class"] == "Ulna")].iloc[0]
    moved = with_values(hands, image, "Pisiform", x=ulna.x, y=ulna.y)
    assert reasons(moved, image)["Pisiform"] == "lies where Ulna is expected"
    assert not ((hands.pairs["a"] == "Pisiform") & (hands.pairs["b"] == "Ulna")).any()
    overlap = pd.DataFrame([(image, "Pisiform", "Ulna", 45, 0.01)], columns=hands.pairs.columns)
    overlapping = replace(with_values(hands, image, "Pisiform", area=90), pairs=pd.concat([hands.pairs, overlap]))
    assert (
        "overlaps Ulna by 50%, a pair that overlaps in only 1 of 20 images" in reasons(overlapping, image)["Pisiform"]
    )


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"area": 60000}, "times the area"),
        ({"holes": 1}, "1 hole"),
        ({"pieces": 2, "polygons": 2}, "2 separate pieces"),
        ({"crossing": 0.2}, "crosses itself"),
    ],
)
def test_odd_shapes_are_found(hands, values, words):
    image = hands.images["image_name"].iloc[7]
    assert words in reasons(with_values(hands, image, "finger-14", **values), image)["finger-14"]


def test_missing_classes_and_wrong_sides_are_found(hands):
    image = hands.images["image_name"].iloc[2]
    lacking = hands.bones[~((hands.bones["image_name"] == image) & (hands.bones["class"] == "Lunate"))]
    assert "missing" in reasons(replace(hands, bones=lacking), image)["Lunate"]
    ID, side = hands.images.iloc[2][["ID", "side"]]
    images = hands.images.copy()
    images.loc[images["ID"] == ID, "side"] = side
    assert set(suspicious(replace(hands, images=images))["ID"]) >= {ID}


def test_nothing_is_suspicious_in_data_with_other_classes_and_all_figures_are_drawn(measured):
    found = measured[0]
    assert not suspicious(found)["reason"].str.contains("expected|place").any()
    assert statistics.bone_sizes(found).empty
    assert found.images["side"].eq("").all()
    folds = assign_folds(found.images, 3)
    assert len(figures.fold_sizes(folds, found).axes[0].texts) == 3
    for figure in (figures.class_areas, figures.density_maps, figures.exposure):
        assert figure(found).axes


def test_figures_of_hands(hands):
    matrix = figures.overlap_matrix(hands)
    names = [t.get_text() for t in matrix.axes[0].get_yticklabels()]
    assert "Pisiform" in names and "finger-1" not in names
    assert "Pisiform" in [t.get_text() for t in figures.argmax_losses(hands).axes[0].get_yticklabels()]
    assert len(figures.density_maps(hands).axes) == 29 + 1
    assert "of 20 wrists" in figures.bends(hands).axes[0].get_title()
    assert len(figures.body(statistics.bone_sizes(hands)).axes) == 3
    folds = assign_folds(hands.images, 5)
    assert statistics.describe_folds(folds, hands)["images"].sum() == 20
    assert len(figures.fold_sizes(folds, hands).axes[0].texts) == 5


def test_the_middle_of_points_is_the_median_of_x_and_of_y():
    points = np.array([0 + 5j, 1, 2 + 5j, complex("nan+nanj")])
    assert middle_of(points, axis=0) == 1 + 5j, "a median of complex numbers would be 1"


def test_a_class_that_no_image_shows_is_counted_as_missing(hands):
    table = statistics.class_statistics(replace(hands, classes=[*hands.classes, "sesamoid"]))
    assert table.loc["sesamoid", ["images", "polygons", "share"]].tolist() == [0, 0, 0]
    images = int((hands.images["annotation"] != "").sum())
    assert table.index[table["images"] < images].tolist() == ["sesamoid"] and table["images"].dtype.kind == "i"
