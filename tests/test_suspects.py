"""Planted label errors are found, clean images are not flagged; predictions that disagree; the draft of fixes."""

import numpy as np
import pandas as pd
import pytest

from utils.analysis.label_check import suspicious
from utils.analysis.survey import survey, widths
from utils.analysis.suspects import COLUMNS, disagreement, draft_fixes, suspects, write_draft
from utils.data.competition import HAND_BONES, read_annotation, read_index
from utils.data.label_fixes import read_fixed_index, read_label_fixes
from utils.files import read_json
from utils.sample import artefacts, generator, label_errors, radiograph
from utils.sample.flaws import plan_flaws
from utils.sample.images import geometry
from utils.sample.roster import roster

ERRORS = 40


@pytest.fixture(scope="module")
def flawed(tmp_path_factory):
    """200 training images with 40 planted errors, ten of each kind, and artefacts in three of ten images."""
    folder = tmp_path_factory.mktemp("flawed") / "sample"
    return generator.make_sample(folder, 100, 1, 256, seed=11, label_errors=ERRORS, artefacts=0.3)


@pytest.fixture(scope="module")
def planted(flawed):
    """The kind of label error by image name."""
    found = read_json(flawed / "planted.json")
    return {path.rpartition("/")[2]: entry["label_error"] for path, entry in found.items() if "label_error" in entry}


@pytest.fixture(scope="module")
def measured(flawed):
    return survey(read_index(flawed, ("train",)), HAND_BONES, grid=32)


def test_planted_errors_are_found_by_geometry_and_clean_images_are_not_flagged(measured, planted):
    kinds = pd.Series(planted)
    assert kinds.value_counts().to_dict() == dict.fromkeys(label_errors.KINDS, ERRORS // 4)
    flagged = set(suspicious(measured)["image_name"])
    clean = set(measured.images["image_name"]) - set(planted)
    found = kinds.index.isin(flagged)
    print(kinds[found].value_counts().to_dict(), f"{len(clean & flagged)} of {len(clean)} clean images flagged")
    assert found.mean() >= 0.95 and pd.Series(found).groupby(kinds.to_numpy()).mean().min() >= 0.9
    assert len(clean & flagged) <= 0.05 * len(clean)


def test_exchanged_labels_in_the_draft_are_right_and_the_rest_is_left_out(flawed, measured, planted, tmp_path):
    draft = draft_fixes(suspects(suspicious(measured)))
    write_draft(tmp_path / "draft.yaml", draft)
    assert read_label_fixes(tmp_path / "draft.yaml") == draft
    truth = {path: entry.get("bone_by_label") for path, entry in read_json(flawed / "planted.json").items()}
    relabelled = [fix for fix in draft if fix.relabel]
    assert (
        len(relabelled) >= 5
        and np.mean([fix.relabel == truth[f"train/DCM/{fix.image}.png"] for fix in relabelled]) >= 0.8
    )
    assert all(planted[f"{fix.image.partition('/')[2]}.png"] != label_errors.RING for fix in relabelled)
    table = read_fixed_index(flawed, draft, HAND_BONES, tmp_path / "fixed")
    left = suspicious(survey(table[table["split"] == "train"], HAND_BONES, grid=32))["image_name"].nunique()
    assert left <= 0.05 * len(table)


def test_planted_errors_are_what_the_record_says(flawed, tmp_path):
    options = {"train_people": 100, "test_people": 1, "seed": 11}
    polygons = {i.name: geometry(i, 256)[1] for i in roster(**options) if i.split == "train"}
    planted = read_json(flawed / "planted.json")
    for row in read_index(flawed, ("train",)).itertuples():
        entry = planted.get(f"train/DCM/{row.ID}/{row.image_name}", {})
        bones = entry.get("bone_by_label", {})
        true, found = polygons[row.image_name[:-4]], read_annotation(row.annotation, list(HAND_BONES))
        for label, shapes in found.items():
            right = len(shapes) == 1 and np.array_equal(shapes[0], true[bones.get(label, label)])
            assert right == (bones.get(label) != label), (entry, label)


def test_artefacts_change_pixels_and_not_labels():
    plain, drawn = (plan_flaws(["a", "b"], ["c", "d"], 0, artefacts_in=share) for share in (0, 1))
    assert plain == {} and sorted(entry["artefact"] for entry in drawn.values()) == sorted(artefacts.KINDS)
    image = roster(1, 1, seed=0)[0]
    hand = geometry(image, 256)[0]
    grid = radiograph.Raster(256, hand.mm * 256)
    for kind in artefacts.KINDS:
        attenuation = np.ones((256, 256), np.float32)
        outlines = {name: points.copy() for name, points in hand.outlines.items()}
        artefacts.add_artefact(kind, attenuation, grid, hand, np.random.default_rng(3))
        changed = attenuation != 1
        assert 5 < changed.sum() < 0.2 * changed.size and (attenuation[changed] < 1).all() == (kind == "fracture")
        assert all((hand.outlines[name] == points).all() for name, points in outlines.items())


def test_widths_show_a_ring_whatever_way_the_bone_lies():
    mask = np.zeros((60, 60), bool)
    mask[5:55, 25:35] = True
    plain = widths(mask, np.array([0, 1]))
    assert plain.mean() == pytest.approx(1) and np.ptp(plain[1:-1]) < 0.15
    mask[15:19, 17:43] = True
    along, back, lying = (
        widths(mask, np.array([0, 1])),
        widths(mask, np.array([0, -1])),
        widths(mask.T, np.array([1, 0])),
    )
    assert along.argmax() == 3 and along.max() > 1.4
    assert along == pytest.approx(back[::-1]) and along == pytest.approx(lying)


def test_disagreement_is_judged_against_the_class_and_the_image():
    rng = np.random.default_rng(0)
    usual = rng.uniform(0.85, 0.97, 29)
    dice = pd.DataFrame(usual - rng.exponential(0.01, (60, 29)), [f"{n}.png" for n in range(60)], HAND_BONES)
    people = {name: f"ID{number // 2}" for number, name in enumerate(dice.index)}
    assert disagreement(dice, people).empty
    dice.iloc[3] -= 0.3  # a poor prediction of all bones says nothing about a label
    dice.iloc[7, 27:] = 0.02
    found = disagreement(dice, people)
    assert found[["image_name", "ID", "class"]].to_numpy().tolist() == [
        ["7.png", "ID3", "Radius"],
        ["7.png", "ID3", "Ulna"],
    ]
    assert (found["score"] > 1).all() and "0.02" in found["reason"][0]


def test_suspects_join_both_and_put_first_what_both_found():
    columns = ["image_name", "ID", "class", "reason", "score", "expected"]
    rows = [
        ("a.png", "ID1", "Ulna", "odd", 2.0, ""),
        ("a.png", "ID1", "Ulna", "there", 3.0, "Radius"),
        ("b.png", "ID2", "Ulna", "odd", 4.0, ""),
    ]
    odd = pd.DataFrame(rows, columns=columns)
    rows = [("a.png", "ID1", "Ulna", "low", 2.5, ""), ("c.png", "ID3", "Lunate", "low", 1.5, "")]
    low = pd.DataFrame(rows, columns=columns)
    table = suspects(odd, low)
    assert table[["image_name", "found_by", "score", "expected"]].to_numpy().tolist() == [
        ["a.png", "both", 5.5, "Radius"],
        ["b.png", "geometry", 4.0, ""],
        ["c.png", "out of fold", 1.5, ""],
    ]
    assert table["reason"][0] == "odd; there; low"
    assert [fix.drop for fix in draft_fixes(table)] == [True, True, True], "Radius itself is not suspicious"
    assert list(suspects(odd.iloc[:0]).columns) == COLUMNS and draft_fixes(suspects(odd.iloc[:0], low.iloc[:0])) == []
