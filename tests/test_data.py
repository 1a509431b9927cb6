"""The data folder: index, annotations, metadata, folds."""

import hashlib
import json
import shutil
import subprocess
import sys
import unicodedata

import cv2
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from utils.data import folds as folding
from utils.data.cache import FORMAT, RESAMPLE, Cache
from utils.data.check import check_data
from utils.data.competition import (
    HAND_BONES,
    DataError,
    read_annotation,
    read_classes,
    read_index,
)
from utils.data.people import person_values, read_metadata
from utils.files import ROOT
from utils.hand import bend
from utils.sample.images import geometry
from utils.sample.roster import roster


@pytest.fixture
def copy(sample, tmp_path):
    """A sample that a test may damage."""
    return shutil.copytree(sample, tmp_path / "data")


def test_index_lists_every_image_in_the_baselines_order(sample):
    table = read_index(sample)
    expected = [
        path.name
        for split in ("train", "test")
        for path in sorted((sample / split / "DCM").glob("*/*.png"), key=lambda p: f"{p.parent.name}/{p.name}")
    ]
    assert table["image_name"].tolist() == expected
    assert (table.groupby("ID").size() == 2).all()
    assert (table.loc[table["split"] == "test", "annotation"] == "").all()
    assert table[["height", "width"]].eq(256).to_numpy().all()


def test_classes_are_the_29_bones_unless_the_folder_says_otherwise(copy):
    assert read_classes(copy) == list(HAND_BONES) and len(HAND_BONES) == 29
    (copy / "classes.txt").write_text("nucleus\n\n other \n")
    assert read_classes(copy) == ["nucleus", "other"]
    (copy / "classes.txt").write_text("a\na\n")
    with pytest.raises(DataError, match="repeated: a"):
        read_classes(copy)


def test_every_problem_of_the_folder_is_reported_at_once(copy):
    images = sorted((copy / "train" / "DCM").glob("*/*.png"))
    images[0].unlink()
    images[1].write_bytes(b"not a png")
    (copy / "train" / "outputs_json" / images[2].parent.name / f"{images[2].stem}.json").unlink()
    shutil.copy(images[3], images[5].parent / images[3].name)
    with pytest.raises(DataError) as error:
        read_index(copy)
    text = "\n".join(error.value.problems)
    for name, word in (
        (images[0].stem, "no image"),
        (images[1].name, "not a readable PNG"),
        (images[2].stem, "no annotation"),
    ):
        assert any(name in p and word in p for p in error.value.problems), text
    assert f"image name {images[3].name} appears 2 times" in text


def test_several_polygons_of_a_class_are_all_kept(tmp_path):
    square = [[0, 0], [4, 0], [4, 4], [0, 4]]
    path = tmp_path / "a.json"
    path.write_text(
        json.dumps(
            {"annotations": [{"label": "n", "points": square}, {"label": "n", "points": [[5.6, 5.4], [9, 5], [9, 9]]}]}
        )
    )
    polygons = read_annotation(path, ["n", "absent"])
    assert len(polygons["n"]) == 2 and polygons["absent"] == []
    assert polygons["n"][1][0].tolist() == [6, 5] and polygons["n"][1].dtype == np.int32


def test_metadata_is_cleaned_and_joined_on_id(copy):
    table = read_index(copy)
    metadata = read_metadata(copy)
    assert set(metadata["sex"]) <= {"F", "M"} and metadata["nail_art"].dtype == bool
    assert not table["age"].isna().any()
    shuffled = pd.read_excel(copy / "meta_data.xlsx").sample(frac=1, random_state=0)
    shuffled.to_excel(copy / "meta_data.xlsx", index=False)
    pd.testing.assert_frame_equal(read_index(copy), table)
    (copy / "meta_data.xlsx").unlink()
    assert "age" not in read_index(copy)


def test_metadata_written_by_hand_is_understood_by_one_reader(copy):
    rows = [
        (1, "25세", "여", "60kg", "1.70m", None),
        (2, 30, "_x0008_M", 70, "170cm", "네일있음"),
        ("NA", "", "", "", "", ""),
        (None, 40, "F", 50, 160, None),
        ("007", "?", "남", 0, 999, None),
    ]
    names = ["ID", "나이", "성별", "체중(몸무게)", "키(신장)", None]
    pd.DataFrame(rows, columns=names).to_excel(copy / "meta_data.xlsx", index=False)
    table = read_metadata(copy)
    assert table["ID"].tolist() == ["1", "2", "NA", "007"] and table.attrs["nameless"] == 1
    assert table["sex"].tolist() == ["F", "M", None, "M"], "an empty sex is no woman"
    numbers = table[["age", "weight_kg", "height_cm"]].to_numpy()
    assert np.array_equal(numbers[:2], [[25, 60, 170], [30, 70, 170]]) and np.isnan(numbers[2:]).all()
    assert table["nail_art"].tolist() == [False, True, False, False]
    assert person_values(table)[:, 4:].sum(axis=1).tolist() == [4, 4, 0, 1]
    assert "1 rows of the table have no ID" in check_data(copy, n_folds=2).table()["problem"].tolist()


def test_people_of_a_mac_archive_meet_their_row_of_the_table(copy):
    """Folders unpacked from a Mac hold accents decomposed; Excel holds them composed."""
    for split in ("train/DCM", "train/outputs_json"):
        person = min((copy / split).iterdir())
        person.rename(person.with_name(unicodedata.normalize("NFD", "Zoë")))
    metadata = pd.read_excel(copy / "meta_data.xlsx").replace(
        {"ID": {person.name: unicodedata.normalize("NFC", "Zoë")}}
    )
    metadata.to_excel(copy / "meta_data.xlsx", index=False)
    table = read_index(copy)
    assert "Zoë" in set(table["ID"]) and table["age"].notna().all()
    assert not [f for f in check_data(copy).findings if "metadata" in f.kind and "Zo" in f.problem]


def test_wrist_angle_measures_the_bend():
    def bone(centre, length, angle):
        along = np.array([np.cos(angle), np.sin(angle)])
        across = np.array([-along[1], along[0]])
        corners = [
            along * length + across * 5,
            along * length - across * 5,
            -along * length - across * 5,
            -along * length + across * 5,
        ]
        return [np.rint(np.array(corners) + centre).astype(np.int32)]

    for degrees in (-40, -10, 0, 25):
        direction = np.radians(-90 + degrees)
        polygons = {
            "Radius": bone((480, 900), 150, np.pi / 2),
            "Ulna": bone((520, 900), 150, np.pi / 2),
            "finger-11": bone(
                np.array([500, 900]) + 500 * np.array([np.cos(direction), np.sin(direction)]), 80, direction
            ),
        }
        assert bend.angle_of(polygons) == pytest.approx(degrees, abs=1.0)
    assert np.isnan(bend.angle_of({"nucleus": bone((5, 5), 3, 0)}))


def test_bent_wrists_of_the_sample_are_found():
    images = roster(40, 12, seed=0)
    bent = [abs(image.person.bend) > 15 for image in images]  # degrees, as the sample was posed
    assert 0 < sum(bent) < len(bent)
    outlines = [geometry(image, 512)[1] for image in images[::2]]
    measured = [bend.angle_of({name: [points] for name, points in hand.items()}) for hand in outlines]
    assert [abs(angle) > bend.BENT_DEGREES for angle in measured] == bent[::2]


@given(people=st.lists(st.booleans(), min_size=5, max_size=60), n_folds=st.integers(2, 5), seed=st.integers(0, 9))
def test_folds_divide_people_evenly_and_bent_wrists_too(people, n_folds, seed):
    rows = [("train", f"ID{i:03}", f"image{i}{side}.png", bent) for i, bent in enumerate(people) for side in "LR"]
    table = pd.DataFrame(rows, columns=["split", "ID", "image_name", "bent"])
    folds = folding.assign_folds(table, n_folds, seed)
    per_person = folds.drop_duplicates(["ID", "fold"])
    assert len(per_person) == len(people)
    for group in (per_person, per_person[per_person["bent"]]):
        sizes = group.groupby("fold").size().reindex(range(n_folds), fill_value=0)
        assert sizes.max() - sizes.min() <= 1
    shuffled = folding.assign_folds(table.sample(frac=1, random_state=seed), n_folds, seed)
    pd.testing.assert_series_equal(
        shuffled.set_index("image_name")["fold"].sort_index(), folds.set_index("image_name")["fold"].sort_index()
    )


def test_folds_file_is_kept_and_refused_for_other_data(sample, tmp_path):
    table, classes = read_index(sample), read_classes(sample)
    path = tmp_path / "folds.csv"
    first = folding.read_folds(path, table, classes, 3, is_bent=bend.stratum(classes))
    pd.testing.assert_frame_equal(folding.read_folds(path, table, classes, 3, seed=7), first)
    train, validation = folding.split_fold(table, first, 1)
    assert not set(train["ID"]) & set(validation["ID"]) and set(train["split"]) == {"train"}
    assert len(train) + len(validation) == (table["split"] == "train").sum()
    everything, nothing = folding.split_fold(table, first, -1)
    assert len(everything) == len(first) and nothing.empty
    with pytest.raises(DataError, match="n_folds is 2"):
        folding.read_folds(path, table, classes, 2)
    with pytest.raises(DataError, match="in the file but not in the data"):
        folding.read_folds(path, table.iloc[2:], classes, 3)


DEAL = """
import sys, time
from pathlib import Path
from utils.data.competition import read_classes, read_index
from utils.data.folds import read_folds
from utils.hand.bend import stratum
data, runs, seed = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
table, classes = read_index(data), read_classes(data)
(runs / f"ready{seed}").touch()
while not all((runs / f"ready{s}").exists() for s in (0, 1)):
    time.sleep(0.001)
for number in range(20):
    folds = read_folds(runs / str(number) / "folds.csv", table, classes, 3, seed, stratum(classes))
    print("".join(map(str, folds["fold"])))
"""


def test_two_processes_that_start_together_get_the_same_folds(sample, tmp_path):
    commands = [[sys.executable, "-c", DEAL, str(sample), str(tmp_path), str(seed)] for seed in (0, 1)]
    processes = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for command in commands]
    dealt = [[line for line in p.communicate()[0].splitlines() if line.isdigit()] for p in processes]
    assert dealt[0] == dealt[1] and len(dealt[0]) == 20
    assert {path.name for path in (tmp_path / "0").iterdir()} <= {"folds.csv", ".folds.csv.lock"}


def test_folds_are_kept_whatever_the_seed_and_it_is_said(sample, tmp_path, capsys):
    table, classes = read_index(sample), read_classes(sample)
    first = folding.read_folds(tmp_path / "folds.csv", table, classes, 3, seed=0)
    folding.read_folds(tmp_path / "folds.csv", table, classes, 3, seed=0)
    assert capsys.readouterr().out == ""
    pd.testing.assert_frame_equal(folding.read_folds(tmp_path / "folds.csv", table, classes, 3, seed=1), first)
    assert "was not dealt with seed 1; its folds are kept" in capsys.readouterr().out


ENTRY_DIGESTS = {
    1: "221bb1eff944c76a9bf7683438fc44587543002e6dd43495e745fa24be979624",
    2: "8b5c1cd14fa3e0ac1a5acbe0956b685d4b842c28d906ed9b25d87f64f09e7903",
}
"""What the bytes of one entry hash to, by `cache.FORMAT`. If the bytes change, raise FORMAT and add a line here."""


def test_a_cache_entry_has_the_bytes_of_its_format(tmp_path):
    rows, columns = np.mgrid[:60, :90]
    cv2.imwrite(str(tmp_path / "a.png"), (2 * rows + columns).astype(np.uint8))
    annotations = [
        {"label": "a", "points": [[5, 5], [40, 9.4], [30, 44]]},
        {"label": "a", "points": [[60, 20], [99, 20], [80, 70]]},
        {"label": "b", "points": [[20, 20], [70, 25], [50, 50], [22, 40]]},
    ]
    (tmp_path / "a.json").write_text(json.dumps({"annotations": annotations}))
    row = {"image_name": "a.png", "ID": "1", "image": tmp_path / "a.png", "annotation": tmp_path / "a.json"}
    digest = hashlib.sha256()
    for kind in RESAMPLE:
        for side in (24, 30):  # cells of 3.75 × 2.5 pixels, and of whole ones
            cache = Cache(tmp_path / "cache", pd.DataFrame([row]), ["a", "b", "c"], side, kind)
            assert cache.build() == 1 and cache.build() == 0
            with np.load(cache.path("a.png")) as arrays:
                for name in sorted(set(arrays) - {"signature"}):
                    digest.update(f"{name} {arrays[name].dtype} {arrays[name].shape}".encode() + arrays[name].tobytes())
    assert digest.hexdigest() == ENTRY_DIGESTS[FORMAT]
    assert max(ENTRY_DIGESTS) == FORMAT and len(set(ENTRY_DIGESTS.values())) == len(ENTRY_DIGESTS)
