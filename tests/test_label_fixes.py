"""Label fixes: what they change, that files stay as they are, what is refused, and that every step sees them."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from utils.data.cache import Cache
from utils.data.check import check_data
from utils.data.competition import HAND_BONES, read_annotation, read_index
from utils.data.findings import DataError
from utils.data.label_fixes import FIXED, Fix, apply_label_fixes, find_fixes, read_fixed_index, read_label_fixes
from utils.files import ROOT
from utils.hand.bend import angle_of
from utils.pipeline.changes import prepare_run
from utils.pipeline.preflight import PreflightError, fixes_of, preflight
from utils.pipeline.profile import Profile
from utils.pipeline.run import start_run
from utils.pipeline.steps import Step
from utils.sample.label_errors import REVERSED

SHIPPED = ROOT / "notebooks" / "label_fixes" / "hand_bone.yaml"


@pytest.fixture
def data(sample, tmp_path):
    return Path(shutil.copytree(sample, tmp_path / "data"))


def names(data):
    """`<ID>/<name>` of the training images, in order."""
    table = read_index(data, ("train",))
    return [f"{row.ID}/{Path(row.image_name).stem}" for row in table.itertuples()]


def content(data, name):
    return json.loads((data / f"train/outputs_json/{name}.json").read_text())


def polygons(table, name):
    row = table.set_index("image_name").loc[f"{Path(name).name}.png"]
    found = read_annotation(row["annotation"], list(HAND_BONES), (row["height"], row["width"]))
    return {label: [points.tolist() for points in shapes] for label, shapes in found.items()}


def written(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def test_relabel_swap_drop_polygon_and_drop_image(data, tmp_path):
    one, two, three, *others = names(data)
    before = {path: path.read_bytes() for path in data.rglob("*.json")}
    original = read_index(data)
    fixes = [
        Fix(image=one, why="-", swap=[["Radius", "Ulna"]], relabel={"Lunate": "Pisiform", "Pisiform": "Lunate"}),
        Fix(image=two, why="-", drop_polygons=["finger-14", 0], relabel={1: "finger-1"}),
        Fix(image=three, why="-", drop=True),
        Fix(image="ID999/image1", why="of other data", drop=True),
    ]
    table = read_fixed_index(data, fixes, HAND_BONES, tmp_path / "fixed")
    assert (
        table["image_name"].tolist()
        == original.loc[original["image_name"] != Path(three).name + ".png", "image_name"].tolist()
    )
    new = {"Radius": "Ulna", "Ulna": "Radius", "Lunate": "Pisiform", "Pisiform": "Lunate"}
    was = polygons(original, one)
    assert polygons(table, one) == {label: was[new.get(label, label)] for label in was}
    was = polygons(original, two)
    assert polygons(table, two) == was | {"finger-14": [], "finger-1": was["finger-2"], "finger-2": []}
    assert polygons(table, others[0]) == polygons(original, others[0])
    assert {path: path.read_bytes() for path in data.rglob("*.json")} == before
    kept = json.loads((tmp_path / f"fixed/{one}.json").read_text())
    assert kept.keys() == content(data, one).keys() and kept["file_id"] == content(data, one)["file_id"]
    assert read_index(data).equals(original)


def test_the_cache_makes_again_what_fixes_changed_and_nothing_else(data, tmp_path):
    one, two, *_ = names(data)

    def made(fixes):
        table = read_fixed_index(data, fixes, HAND_BONES, tmp_path / "fixed")
        cache = Cache(tmp_path / "cache", table, list(HAND_BONES), 64)
        return cache.build(), cache.read(f"{Path(one).name}.png")

    fix = Fix(image=one, why="-", swap=[["Radius", "Ulna"]])
    count, plain = made([])
    assert count == len(read_index(data))
    count, swapped = made([fix])
    radius, ulna = (HAND_BONES.index(name) for name in ("Radius", "Ulna"))
    expected = plain.truth.texts()
    expected[radius], expected[ulna] = expected[ulna], expected[radius]
    assert count == 1 and swapped.truth.texts() == expected != plain.truth.texts()
    assert made([fix])[0] == 0
    assert made([fix.model_copy(update={"why": "for another reason"}), Fix(image=two, why="-", drop=True)])[0] == 0
    count, back = made([])
    assert count == 1 and back.truth.texts() == plain.truth.texts()


def test_a_corrected_data_folder_reads_like_the_fixed_index(data, tmp_path):
    one, two, three, *_ = names(data)
    text = f"- {{image: {one}, why: x, swap: [[Radius, Ulna]]}}\n- {{image: {two}, why: y, drop: true}}"
    path, out = written(tmp_path / "fixes.yaml", text), tmp_path / "out" / "data"
    command = [sys.executable, "-m", "utils.data.label_fixes", str(data), str(path), str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert f"{one}: Radius becomes Ulna" in done.stdout and done.stdout.endswith(f"{out}\n")
    expected = read_fixed_index(data, read_label_fixes(path), HAND_BONES, tmp_path / "fixed")
    found = read_index(out)
    assert found["image_name"].tolist() == expected["image_name"].tolist() and found["age"].equals(expected["age"])
    assert polygons(found, one) == polygons(expected, one) and polygons(found, three) == polygons(expected, three)
    assert check_data(out).errors == []
    assert not list(out.rglob(".*"))
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert again.returncode == 2 and "exists already" in again.stderr


def test_wrists_are_measured_on_corrected_labels(data, tmp_path):
    one = names(data)[0]
    fix = Fix(image=one, why="-", swap=[["finger-11", "finger-3"]])
    angles = [
        angle_of(read_annotation(table["annotation"].iloc[0], list(HAND_BONES)))
        for fixes in ([], [fix])
        for table in [read_fixed_index(data, fixes, HAND_BONES, tmp_path / "fixed")]
    ]
    assert abs(angles[0] - angles[1]) > 10


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("image: a/b", "expected a list of entries"),
        ("- {image: a/b, why: x, dropp: true}", "unknown key 'dropp': did you mean drop"),
        ("- {image: a/b, drop: true}", "entry 0 (a/b), why: Field required"),
        ("- {image: a/b.c/d, why: x, drop: true}", "entry 0 (a/b.c/d), image: String should match"),
        ("- {image: a/b, why: x}", "expected either drop: true, or some of"),
        ("- {image: a/b, why: x, drop: true, swap: [[p, q]]}", "expected either drop: true, or some of"),
        ("- {image: a/b, why: x, drop: 'yes'}", "entry 0 (a/b), drop: Input should be a valid boolean"),
        ("- {image: a/b, why: x, swap: [[p, q]], relabel: {q: r}}", "q: named twice"),
        ("- {image: a/b, why: x, swap: [[p, q, r]]}", "entry 0 (a/b), swap.0"),
        ("- {image: a/b, why: x, drop_polygons: [-1]}", "entry 0 (a/b), drop_polygons.0"),
        ("- {image: a/b, why: x, drop: true}\n- {image: a/b, why: y, drop: true}", "a/b: two entries"),
        ("- {image: a/b", "not YAML"),
        ("- !!python/object/apply:os.system [ls]", "not YAML"),
    ],
)
def test_a_bad_file_is_refused_with_the_entry(tmp_path, text, problem):
    with pytest.raises(DataError) as error:
        read_label_fixes(written(tmp_path / "fixes.yaml", text))
    assert "fixes.yaml: these label fixes can't be used" in str(error.value) and problem in str(error.value)


def test_all_problems_of_a_file_are_listed_and_an_empty_one_is_none(tmp_path):
    text = "- {image: a/b, why: x, dropp: true}\n- {image: c/d, drop: true}\n- 5"
    with pytest.raises(DataError) as error:
        read_label_fixes(written(tmp_path / "fixes.yaml", text))
    assert {p.partition(":")[0][:7] for p in error.value.problems} == {"entry 0", "entry 1", "entry 2"}
    assert read_label_fixes(written(tmp_path / "fixes.yaml", "# nothing yet\n")) == []
    with pytest.raises(DataError, match="No such file"):
        read_label_fixes(tmp_path / "absent.yaml")


def test_fixes_that_do_not_fit_are_refused_together(data, tmp_path):
    one, two, *_ = names(data)
    fixes = [
        Fix(image=one, why="-", relabel={"Lunat": "Lunate", 99: "Ulna", "Radius": "Ullna"}),
        Fix(image=two, why="-", drop_polygons=["thumb"]),
    ]
    table = read_index(data)
    with pytest.raises(DataError) as error:
        apply_label_fixes(table, fixes, HAND_BONES, tmp_path / "fixed")
    problems = error.value.problems
    assert [p.partition(":")[0] for p in problems] == [one, one, one, two]
    assert "did you mean Lunate" in problems[0] and "no annotation 99; it has 29" in problems[1]
    assert "unknown class 'Ullna': did you mean Ulna" in problems[2]
    assert not (tmp_path / "fixed").exists()
    report = check_data(data, fixes=fixes, fixed=tmp_path / "fixed")
    assert [f.problem for f in report.errors if f.kind == "label fixes"] == problems


def test_fixes_mend_what_would_stop_a_run(data, tmp_path):
    one, two, three, *_ = names(data)
    bad = content(data, one)
    bad["annotations"][3]["label"] = "finger 4"
    (data / f"train/outputs_json/{one}.json").write_text(json.dumps(bad))
    (data / f"train/DCM/{two}.png").write_bytes(b"not a picture")
    (data / f"train/outputs_json/{three}.json").unlink()
    assert len({f.image for f in check_data(data).errors}) == 3
    fixes = [
        Fix(image=one, why="misspelt", relabel={3: "finger-4"}),
        *(Fix(image=name, why="damaged", drop=True) for name in (two, three)),
    ]
    assert check_data(data, fixes=fixes, fixed=tmp_path / "fixed").errors == []
    table = read_fixed_index(data, fixes, HAND_BONES, tmp_path / "fixed")
    assert len(polygons(table, one)["finger-4"]) == 1


def test_the_shipped_file_undoes_a_hand_labelled_in_reverse_and_passes_over_other_data(data, tmp_path, capsys):
    fixes = read_label_fixes(SHIPPED)
    assert [fix.image.partition("/")[0] for fix in fixes] == ["ID058", "ID325", "ID363", "ID547"]
    assert fixes[0].new_labels == {label: bone for bone, label in REVERSED.items()}
    assert find_fixes(SHIPPED, data) == () and find_fixes("", data) == ()
    assert "ID" not in capsys.readouterr().out
    (data / "train/DCM/ID363").mkdir()
    assert find_fixes(SHIPPED, data) == ()
    assert "ID363/image1664935962797 is not in this data" in capsys.readouterr().out


def test_a_run_opens_with_corrected_labels_and_notes_what_counts(data, tmp_path):
    one, two, *_ = names(data)
    path, run = tmp_path / "fixes.yaml", tmp_path / "run"
    parameters = {"data_dir": str(data), "output_dir": str(run), "n_folds": 2, "seed": 0, "label_fixes": str(path)}
    written(path, f"- {{image: {one}, why: x, swap: [[Radius, Ulna]]}}\n- {{image: {two}, why: y, drop: true}}")
    opened = start_run(parameters, "01_eda")
    assert [fix.image for fix in opened.fixes] == [one, two] and len(opened.table) == len(read_index(data)) - 1
    assert f"{Path(two).name}.png" not in opened.folds["image_name"].tolist()
    assert str(run / FIXED) in opened.table.set_index("image_name").loc[f"{Path(one).name}.png", "annotation"]

    plan = [Step(name="01_eda", parameters=parameters)]

    def record():
        preflight(run, data, Profile(), plan)
        prepare_run(run, Profile(), plan, str(data))
        return (run / "data.json").read_text(), json.loads((run / "run.json").read_text())["folds_of"]

    noted, folds_of = record()
    assert json.loads(noted)["label_fixes"] == [
        {"image": one, "swap": [["Radius", "Ulna"]]},
        {"image": two, "drop": True},
    ]
    written(path, path.read_text().replace("why: x", "why: another") + "\n- {image: ID999/a, why: z, drop: true}")
    assert record() == (noted, folds_of), "reasons and other data's images rerun nothing"
    assert (run / "folds.csv").exists()
    written(path, f"- {{image: {one}, why: x, drop: true}}")
    with pytest.raises(DataError, match="was made with other label fixes"):
        start_run(parameters, "01_eda")
    later, folds_of_others = record()
    assert len(start_run(parameters, "01_eda").fixes) == 1
    assert later != noted and folds_of_others != folds_of and not (run / "folds.csv").exists()


def test_steps_of_a_run_must_name_the_same_fixes(data):
    plan = [Step(name="01_eda", parameters={"label_fixes": str(SHIPPED)}), Step(name="02_baseline_fcn")]
    with pytest.raises(PreflightError, match=r"set label_fixes under `parameters:`"):
        fixes_of(plan, data)
    assert fixes_of(plan[:1], data) == ()
