"""Figures show what they should; no text is cut off at the border or covered by another label."""

import io
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import PathCollection
from matplotlib.colors import rgb_to_hsv, to_rgb
from matplotlib.contour import QuadContourSet
from PIL import Image

from utils import figures
from utils.analysis.comparison import compare_scores
from utils.analysis.results import Scores
from utils.analysis.scores import by_class
from utils.data.competition import HAND_BONES
from utils.figures.comparisons import BETTER, WORSE
from utils.figures.overlays import FALSE, MISSED
from utils.figures.style import new_figure
from utils.masks.labels import draw
from utils.masks.masks import Masks
from utils.models.instances import Instances
from utils.sample.images import geometry
from utils.sample.roster import roster

BONES = list(HAND_BONES)
SIZE = (240, 200)


def cropped(figure):
    """By how many inches what is drawn reaches past the canvas (0: nothing is cut off)."""
    figure.savefig(io.BytesIO(), format="png", dpi=figures.DPI)
    drawn = figure.get_tightbbox()
    width, height = figure.get_size_inches()
    return round(max(-drawn.x0, -drawn.y0, drawn.x1 - width, drawn.y1 - height, 0), 2)


def grid_masks(classes, size=SIZE):
    """One small rectangle per class; none overlap."""
    masks = []
    for number in range(len(classes)):
        mask = np.zeros(size, bool)
        row, column = divmod(number, 5)
        mask[5 + 38 * row : 30 + 38 * row, 5 + 38 * column : 30 + 38 * column] = True
        masks.append(mask)
    return Masks.from_dense(masks)


def scores(classes, images=12, seed=0):
    values = 1 - np.random.default_rng(seed).gamma(2, 0.02, (images, len(classes)))
    return pd.DataFrame(values, columns=classes).clip(0, 1)


HISTORY = pd.DataFrame(
    {
        "epoch": [1, 2, 3],
        "loss": [1.0, 0.5, 0.3],
        "val_dice": [np.nan, 0.8, 0.7],
        "lr": [1e-3] * 3,
        "seconds": [1.0] * 3,
    }
)
BOARD = pd.DataFrame(
    {
        "kind": ["ensemble", "model", "fold model", "baseline"],
        "name": ["2 models", "a-very-long-architecture-name-tu-hrnet_w64", "fold model", "official baseline"],
        "oof_dice": [0.972, 0.97, 0.969, np.nan],
        "test_dice": [0.971, np.nan, np.nan, np.nan],
    }
)


def test_every_bone_has_its_own_colour_in_every_figure():
    colours = figures.class_colours(BONES)
    assert min(np.abs(np.subtract(a, b)).max() for a, b in combinations(colours.values(), 2)) > 0.05
    assert figures.class_colours(["nucleus", "Ulna"])["Ulna"] == colours["Ulna"]
    hues = [rgb_to_hsv(colours[f"finger-{i}"])[0] for i in (4, 5, 6, 7)]
    assert np.ptp(hues) < 0.03  # a finger's bones share their hue


@pytest.mark.parametrize("count", [1, 2, 7, 30])
def test_other_classes_get_distinct_colours(count):
    assert len(set(figures.class_colours([f"class {i}" for i in range(count)]).values())) == count


@pytest.mark.parametrize("shape", [SIZE, (120, 100), (100, 100), (61, 47)])
def test_outlines_lie_where_the_full_size_mask_does(shape):
    _, (ax,) = new_figure(4, 4)
    figures.overlay(ax, np.zeros(shape, np.uint8), grid_masks(BONES[:1]), BONES[:1])
    (outlines,) = (c for c in ax.collections if isinstance(c, PathCollection))
    vertices = np.concatenate([p.vertices for p in outlines.get_paths()])
    assert np.allclose(vertices.min(0), 4.5, atol=2.5) and np.allclose(vertices.max(0), 29.5, atol=2.5)


@pytest.mark.parametrize("panels", [1, 2, 4])
def test_all_29_names_stand_on_a_hand_without_covering_each_other(panels):
    items = []
    for image in roster(2, 2, 0)[:panels]:
        _, polygons, _ = geometry(image, 512)
        masks = Masks.from_dense([draw([polygons[name]], (512, 512)) for name in BONES])
        items.append((image.ID, np.zeros((256, 256), np.uint8), masks))
    figure = figures.overlays(items, BONES)
    assert not cropped(figure)
    for ax in figure.axes:
        assert len([c for c in ax.collections if isinstance(c, PathCollection)]) == 29
        assert {t.get_text() for t in ax.texts} == {name.removeprefix("finger-") for name in BONES}
        boxes = [t.get_window_extent() for t in ax.texts if not t.get_text().isdigit()]
        covered = [1 for a, b in combinations(boxes, 2) if a.shrunk(0.95, 0.7).overlaps(b.shrunk(0.95, 0.7))]
        assert not covered
        assert all(ax.bbox.x0 <= b.x0 + 1 and b.x1 - 1 <= ax.bbox.x1 for b in boxes)


@pytest.mark.parametrize("classes", [["nucleus"], BONES])
@pytest.mark.parametrize("count", [1, 3, 8])
def test_overlays_of_any_number_of_coloured_or_grey_images(classes, count):
    masks = Masks.from_runs([*list(grid_masks(classes))[:-1], Masks.empty(1)[0]], SIZE)
    title = "ID001 image1661130828152_R.png right hand with a long title"
    items = [(title, np.zeros((60, 50, 3) if i % 2 else (60, 50), np.uint8), masks) for i in range(count)]
    figure = figures.overlays(items, classes)
    assert len(figure.axes) == count
    assert not cropped(figure)


def test_instances_are_drawn_where_they_were_found():
    """At full size, though found in a smaller image; those with a low score are not drawn."""
    torch = pytest.importorskip("torch")
    truth, masks = grid_masks(BONES), torch.zeros(3, 60, 50)
    masks[0, 10:20, 5:25] = masks[1, 30:40, 5:25] = masks[2, 50:, 40:] = 0.9
    boxes = torch.tensor([[5, 10, 25, 20], [5, 30, 25, 40], [40, 50, 50, 60]]).float()
    found = Instances(boxes, torch.tensor([0, 28, 3]), torch.tensor([0.9, 0.51, 0.3]), masks)
    nothing = found.take(found.scores > 1)
    items = [("ID001 image1.png, Dice 0.900", np.zeros((60, 50), np.uint8), truth)] * 2
    figure = figures.instance_overlays(items, [found, nothing], BONES, 0.5)
    assert not cropped(figure)
    first, second = figure.axes
    assert [t.get_text() for t in first.texts] == ["1 90", "Ulna 51"] and not second.texts
    assert np.allclose(first.patches[0].get_bbox().extents, [19.5, 39.5, 99.5, 79.5])
    contour, _ = (c for c in first.collections if isinstance(c, QuadContourSet))
    vertices = contour.get_paths()[0].vertices
    assert np.allclose([*vertices.min(0), *vertices.max(0)], [19.5, 39.5, 99.5, 79.5], atol=2.5)


def test_scores_of_instances_show_every_class():
    columns = ["class", "box mAP50-95", "mask mAP50", "mask mAP50-95", "Dice", "IoU"]
    table = pd.DataFrame([["all", 0.5, 0.8, 0.6, 0.9, 0.82], *([name, 0.5, 0.8, np.nan, 0.9, 0.8] for name in BONES)])
    figure = figures.instance_scores(table.set_axis(columns, axis=1))
    assert not cropped(figure) and [t.get_text() for t in figure.axes[0].get_yticklabels()] == BONES
    assert "0.800" in figure.axes[0].get_title() and "0.820" in figure.axes[1].get_title()


@pytest.mark.parametrize("channels", [1, 3])
def test_batch_tints_labelled_pixels_by_how_much_of_them_is_in_the_class(channels):
    torch = pytest.importorskip("torch")
    images = torch.full((3, channels, 8, 8), 100, dtype=torch.uint8)
    labels = torch.zeros((3, 2, 8, 8))
    labels[:, 0, 2:4], labels[:, 0, 4] = 1.0, 0.5
    figure = figures.batch(images, labels, ["Radius", "Ulna"], limit=2)
    assert len(figure.axes) == 2
    drawn = figure.axes[0].images[0].get_array().astype(int)
    away = np.abs(drawn - 100).sum(axis=2)
    assert (away[:2] == 0).all() and (away[2:4] > away[4]).all() and (away[4] > 0).all()


@pytest.mark.parametrize("classes", [["nucleus"], BONES])
def test_errors_marks_missed_and_false_pixels_and_looks_at_the_worst_class(classes):
    truth = grid_masks(classes)
    last = truth.dense(len(truth) - 1)
    shifted = np.roll(last, 4, axis=1)
    predicted = Masks.from_runs([*list(truth)[:-1], Masks.from_dense([shifted])[0]], SIZE)
    figure = figures.errors("worst image", np.zeros((60, 50), np.uint8), truth, predicted, classes)
    assert classes[-1] in figure.axes[1].get_title()
    assert not cropped(figure)
    drawn = figure.axes[1].images[1]
    left, right, bottom, top = drawn.get_extent()
    seen = drawn.get_array()[..., 3] > 0
    full = np.zeros(SIZE, bool)
    full[round(top + 0.5) : round(bottom + 0.5), round(left + 0.5) : round(right + 0.5)] = seen
    assert np.array_equal(full, last ^ shifted)
    assert MISSED != FALSE


def test_errors_of_empty_masks():
    figure = figures.errors(
        "empty", np.zeros((60, 50), np.uint8), Masks.empty(1, SIZE), Masks.empty(1, SIZE), ["nucleus"]
    )
    assert "1.0000" in figure.axes[0].get_title()


def test_curves_mark_the_best_epoch():
    figure = figures.curves(HISTORY)
    assert "best 0.8000 in epoch 2" in figure.axes[1].get_title()
    assert not cropped(figure)
    assert figures.curves(HISTORY.assign(val_dice=np.nan)).axes[1].texts
    assert len(figures.curves(HISTORY.iloc[:1]).axes) == 3


def test_live_curves_redraw_in_one_place(monkeypatch):
    shown = []

    class Handle:
        update = staticmethod(shown.append)

    monkeypatch.setattr("IPython.display.display", lambda figure, display_id: Handle())
    live = figures.LiveCurves()
    for length in (1, 2, 3):
        live(HISTORY.head(length).to_dict("records"))
    assert len(shown) == 2


@pytest.mark.parametrize("classes", [["nucleus"], BONES])
@pytest.mark.parametrize("models", [1, 3])
def test_class_dice_names_every_class_and_model(classes, models):
    tables = {f"unetplusplus-resnet34-{i}": scores(classes, seed=i) for i in range(models)}
    figure = figures.class_dice(tables)
    assert not cropped(figure)
    assert [t.get_text() for t in figure.axes[0].get_yticklabels()] == classes
    low, high = figure.axes[0].get_xlim()
    assert low <= min(t.quantile(0.1).min() for t in tables.values()) and high >= 1


def test_class_dice_of_one_image():
    figure = figures.class_dice({"model": scores(BONES, images=1)})
    assert [t.get_text() for t in figure.axes[0].get_yticklabels()] == BONES


@pytest.mark.parametrize("classes", [["nucleus"], BONES])
def test_thresholds_name_the_best(classes):
    grid = np.arange(1, 10) / 10
    table = pd.DataFrame(dict.fromkeys(classes, 0.9 - (grid - 0.6) ** 2), index=grid)
    figure = figures.thresholds(table)
    assert "best 0.9000 at 0.6" in figure.axes[1].get_title()
    assert not cropped(figure)


@pytest.mark.parametrize(
    "board",
    [
        BOARD,
        BOARD.iloc[:1],
        BOARD.iloc[3:],
        BOARD.assign(model=BOARD["name"], fold=[None, None, 0, 0]).drop(columns="name"),
    ],
)
def test_leaderboard_shows_every_row_and_score(board):
    figure = figures.leaderboard(board)
    assert not cropped(figure)
    texts = [t.get_text() for t in figure.axes[0].texts]
    known = board[["oof_dice", "test_dice"]].notna().any(axis=1)
    assert len(texts) == len(board) and all((text == "no score yet") != k for text, k in zip(texts, known, strict=True))
    low, high = figure.axes[0].get_xlim()
    values = board[["oof_dice", "test_dice"]].to_numpy(float)
    assert not known.any() or (low < np.nanmin(values) and np.nanmax(values) < high)


def judged(name, gain=0.0, seed=0, classes=BONES):
    """Scores of 12 people, the first two with bent wrists."""
    index = pd.Index([f"image{i}.png" for i in range(24)], name="image_name")
    people = np.repeat(np.arange(12), 2)
    images = pd.DataFrame({"ID": people.astype(str), "bent": people < 2, "fold": people % 5}, index)
    table = (scores(classes, 24) + gain).clip(0, 1) - scores(classes, 24, seed + 1).rsub(1) / 10
    return Scores(name, Path(name).parent, table.set_index(index), images)


@pytest.mark.parametrize("classes", [["nucleus"], BONES])
@pytest.mark.parametrize("known", [["bent", "straight", "re-weighted"], ["hd95", "msd"], []])
def test_class_scores_show_what_is_known(classes, known):
    one = judged("run/unet", classes=classes)
    table = by_class(one, 0.57, {name: pd.DataFrame(3.0, one.dice.index, classes) for name in ("hd95", "msd")})
    unknown = {"bent", "straight", "re-weighted", "hd95", "msd"} - set(known)
    figure = figures.class_scores(table.drop(columns=list(unknown)))
    assert not cropped(figure) and len(figure.axes) == 1 + ("hd95" in known)
    assert [t.get_text() for t in figure.axes[0].get_yticklabels()] == classes
    assert len(figure.legends) == ("bent" in known)


def test_differences_name_both_results_and_colour_the_winner(monkeypatch):
    monkeypatch.setattr("utils.analysis.comparison.check_same_data", lambda a, b: None)
    one, other = judged("some-run/unetplusplus-effb4"), judged("another-run/deeplabv3plus-resnet101", 0.02)
    pairs = [compare_scores(one, other), compare_scores(other, one), compare_scores(one, judged("x/y", 0, 1))]
    figure = figures.differences(pairs)
    assert not cropped(figure)
    ticks = [t.get_text() for t in figure.axes[0].get_yticklabels()]
    assert ticks[0] == f"{other.name} − {one.name}" and len(ticks) == 3
    colours = [tuple(colour[:3]) for colour in figure.axes[0].collections[1].get_facecolor()]
    assert colours[:2] == [to_rgb(BETTER), to_rgb(WORSE)]


@pytest.mark.parametrize("rows", [0, 1, 5])
def test_dice_over_minutes_names_every_result_and_marks_unfinished_ones(rows):
    names = ["ensemble", "unetplusplus-efficientnet-b7-with-a-long-name", "fpn", "baseline", "new"]
    table = pd.DataFrame(
        {
            "run": "overnight-hand_bone",
            "name": names,
            "state": ["done", "done", "2 of 5 folds", "done", "0 of 5 folds"],
            "dice": [0.97, 0.96, 0.9599, 0.8, np.nan],
            "low": [0.96, 0.95, 0.95, 0.78, np.nan],
            "high": [0.98, 0.97, 0.97, 0.82, np.nan],
            "minutes": [500, 250, 251, 0.3, np.nan],
        }
    ).head(rows)
    figure = figures.dice_over_minutes(table)
    assert not cropped(figure)
    known = [f"overnight-hand_bone/{name}" for name in names[: min(rows, 4)]]
    drawn = [t for t in figure.axes[0].texts if "/" in t.get_text()]
    assert sorted(t.get_text() for t in drawn) == sorted(known)
    boxes = [t.get_window_extent() for t in drawn]
    assert not any(a.overlaps(b) for a, b in combinations(boxes, 2))
    if rows == 5:
        assert "unfinished" in [t.get_text() for t in figure.legends[0].get_texts()]


def test_save_writes_a_picture_and_hands_the_figure_on(tmp_path):
    figure = figures.curves(HISTORY)
    assert figures.save(figure, tmp_path / "sub" / "curves.png") is figure
    with Image.open(tmp_path / "sub" / "curves.png") as image:
        assert image.size == (round(11 * figures.DPI), round(3 * figures.DPI))
    assert figure._repr_png_().startswith(b"\x89PNG")
    assert [p.name for p in (tmp_path / "sub").iterdir()] == ["curves.png"]


@pytest.mark.parametrize("scored", [True, False])
def test_formats_shows_time_size_and_dice_of_every_file(scored):
    names = ["pytorch", "torchscript", "onnx", "openvino", "int8"]
    columns = {
        "megabytes": [14.1, 14.7, 14.7, np.nan, 4.3],
        "difference": [0, 0, 3e-6, np.nan, 0.2],
        "change": [0, 0, 1e-6, np.nan, -0.0012] if scored else np.nan,
        "agreement": [1, 1, 1, np.nan, 0.98],
        "milliseconds": [227.0, 197.0, 126.0, np.nan, 57.0],
    }
    figure = figures.formats(pd.DataFrame(columns, index=names))
    time, size, dice = ([text.get_text() for text in ax.texts] for ax in figure.axes)
    assert time == ["227", "197", "126", "57"] and size == ["14.1", "14.7", "14.7", "4.3"]
    assert dice[-1] == ("−0.0012" if scored else "0.9800")
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == [n for n in names if n != "openvino"]
    assert not cropped(figure)
    ticks = [label.get_window_extent() for label in figure.axes[2].get_xticklabels()]
    assert not [1 for a, b in combinations(ticks, 2) if a.overlaps(b)]
