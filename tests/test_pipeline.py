"""The run: profiles, what makes a step run again, interruptions, failures, leaderboard and report."""

import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import time

import nbformat
import pandas as pd
import psutil
import pytest
import yaml
from filelock import FileLock

from tests.fake_run import COMMON, OF_FOLD, FakeRun, add_notebook, make_data
from utils.files import ROOT, read_json, write_json
from utils.pipeline import changes, profile
from utils.pipeline.leaderboard import as_text, read_leaderboard, show_leaderboard
from utils.pipeline.preflight import find_data
from utils.pipeline.profile import ProfileError, profile_path, read_profile, run_name, steps

PROFILES = sorted(p.stem for p in (ROOT / "notebooks" / "profiles").glob("*.yaml"))


@pytest.mark.parametrize("name", PROFILES)
def test_the_profiles_fit_the_notebooks(name):
    planned = steps(profile_path(name), name, "data/sample")
    assert planned[0].name == "01_eda"
    for number, step in enumerate(planned):
        assert set(step.after) <= {s.name for s in planned[:number]}
        assert step.parameters["output_dir"] == f"outputs/{name}"


def test_misspelt_profiles_and_keys_name_the_nearest(tmp_path):
    with pytest.raises(ProfileError, match=f"did you mean sample\\? There are {', '.join(PROFILES)}"):
        profile_path("sampel")
    path = tmp_path / "mine.yaml"
    path.write_text("folds: []\nthread: 2\nsample: {image_sise: 3}\nmodels: {a/b: {}}\njobs: two\n")
    with pytest.raises(ProfileError) as error:
        read_profile(path)
    text = str(error.value)
    assert len(error.value.problems) == 5
    assert "unknown key 'thread': did you mean threads" in text
    assert "unknown key 'sample.image_sise': did you mean sample.image_size" in text


def test_a_model_may_start_from_another_one(tmp_path):
    path = tmp_path / "ladder.yaml"
    path.write_text(
        "folds: [1]\ntrain: {epochs: 5, init_checkpoint: ''}\nmodels:\n"
        "  large: {after: middle, lr: 1.0e-4, image_size: 1024}\n"
        "  middle: {after: small, image_size: 512}\n"
        "  small: {architecture: unet, image_size: 256, init_checkpoint: 'outputs/old/fold{fold}'}\n"
    )
    with pytest.raises(ProfileError, match=r"train\.init_checkpoint: set by the run itself"):
        steps(path, "ladder", "data/sample")
    path.write_text(path.read_text().replace(", init_checkpoint: ''", ""))
    planned = {step.name: step for step in steps(path, "ladder", "data/sample")}
    trained = [name for name in planned if name.startswith("03_train")]
    assert trained == [f"03_train/{model}/fold1" for model in ("small", "middle", "large")]
    assert [planned[name].after for name in trained] == [[], trained[:1], trained[1:2]]
    parameters = [planned[name].parameters for name in trained]
    assert [p["image_size"] for p in parameters] == [256, 512, 1024]
    assert [p["architecture"] for p in parameters] == ["unet"] * 3 and parameters[2]["lr"] == 1e-4
    assert [p["init_checkpoint"] for p in parameters] == [
        "outputs/old/fold{fold}",
        "outputs/ladder/03_train/small/fold{fold}/best",
        "outputs/ladder/03_train/middle/fold{fold}/best",
    ]
    assert [len(p) for p in parameters[1:]] == [8, 9] and "after" not in parameters[0]


def test_ladders_that_lead_nowhere_are_refused(tmp_path):
    path = tmp_path / "ladder.yaml"
    path.write_text("models: {a: {after: b}, b: {after: a}, c: {after: cc}, d: {}, e: {after: d, encoder: vgg11}}\n")
    with pytest.raises(ProfileError) as caught:
        steps(path, "ladder", "data/sample")
    found = "\n".join(caught.value.problems)
    assert "models.a: after leads in a circle, a ← b ← a" in found
    assert "models.c: unknown model in after 'cc': did you mean c" in found
    assert "models.e.encoder: leave it out; it is that of d" in found


def test_a_model_may_only_prepare_others(tmp_path):
    path = tmp_path / "ladder.yaml"
    path.write_text("folds: [0, 1]\nmodels: {small: {votes: false}, large: {after: small}, other: {}}\n")
    planned = {step.name: step for step in steps(path, "ladder", "data/sample")}
    assert "03_train/small/fold1" in planned and "04_inference_tta/small/fold1" not in planned
    assert planned["05_ensemble"].parameters["models"] == ["large", "other"]
    voting = {f"04_inference_tta/{model}/fold{fold}" for fold in (0, 1) for model in ("large", "other")}
    assert set(planned["05_ensemble"].after) == voting
    assert "votes" not in planned["03_train/small/fold0"].parameters
    path.write_text("models: {a: {votes: 'no'}, b: {votes: false}, c: {votes: false}, d: {wrist_of: c}}\n")
    with pytest.raises(ProfileError) as caught:
        steps(path, "ladder", "data/sample")
    found = "\n".join(caught.value.problems)
    assert "models.a.votes: expected true or false, found 'no'" in found
    assert "models.b.votes: false, but no other model starts from it" in found
    assert "models.c.votes: false, but a wrist stage refines it" in found
    path.write_text("models: {a: {votes: false}, b: {after: a, votes: false}}\n")
    with pytest.raises(ProfileError, match="none votes"):
        steps(path, "ladder", "data/sample")


def test_a_wrist_stage_waits_for_the_predictions_of_the_model_it_refines(tmp_path):
    path = tmp_path / "wrist.yaml"
    path.write_text(
        "folds: [0, 1]\ntrain: {image_size: 256}\nmodels:\n"
        "  wrist: {wrist_of: whole, after: whole, image_size: 1024, crop: 320}\n"
        "  other: {architecture: fpn}\n"
        "  whole: {architecture: unet}\n"
        "  finer: {after: wrist, image_size: 2048, crop: 640}\n"
    )
    planned = {step.name: step for step in steps(path, "wrist", "data/sample")}
    for number, step in enumerate(planned.values()):
        assert set(step.after) <= set(list(planned)[:number])
    for fold in (0, 1):
        stage, finer = (planned[f"03_train/{model}/fold{fold}"] for model in ("wrist", "finer"))
        assert stage.after == [f"03_train/whole/fold{fold}", f"04_inference_tta/whole/fold{fold}"]
        assert finer.after == [f"03_train/wrist/fold{fold}", f"04_inference_tta/whole/fold{fold}"]
        assert stage.parameters["wrist_of"] == finer.parameters["wrist_of"] == "whole"
        assert stage.parameters["architecture"] == "unet" and finer.parameters["crop"] == 640
    assert planned["05_ensemble"].parameters["models"] == ["other", "whole"], "stages do not vote by themselves"
    assert "04_inference_tta/wrist/fold1" in planned["05_ensemble"].after


def test_wrist_stages_of_nothing_are_refused(tmp_path):
    path = tmp_path / "wrist.yaml"
    path.write_text("train: {wrist_of: a}\nmodels: {a: {}, b: {wrist_of: c}, c: {wrist_of: a}, d: {wrist_of: whole}}\n")
    with pytest.raises(ProfileError) as caught:
        steps(path, "wrist", "data/sample")
    found = "\n".join(caught.value.problems)
    assert "train.wrist_of: give it to one of the models" in found
    assert "models.b: unknown model in wrist_of 'c'" in found and "models.d: unknown model in wrist_of 'whole'" in found
    path.write_text("models: {a: {wrist_of: b}, b: {after: a, wrist_of: ''}}\n")
    with pytest.raises(ProfileError, match="after and wrist_of lead in a circle"):
        steps(path, "wrist", "data/sample")


def test_the_zoo_and_exports_are_in_a_run_where_the_profile_names_them(tmp_path):
    path = tmp_path / "all.yaml"
    path.write_text("folds: [0, 1]\nmodels: {a: {}, b: {votes: false}, c: {after: b}}\n")
    without = [step.name for step in steps(path, "all", "data/sample")]
    path.write_text(path.read_text() + "zoo: {epochs: 2}\nexport: {formats: [onnx]}\nyolo: {y: {}}\n")
    planned = {step.name: step for step in steps(path, "all", "data/sample")}
    exported = {f"10_export/{model}/fold{fold}" for model in "abc" for fold in (0, 1)}
    yolo = {f"09_yolo/y/fold{fold}" for fold in (0, 1)}
    assert set(planned) - set(without) == {"06_model_zoo", *exported, *yolo}
    assert planned["06_model_zoo"].parameters["epochs"] == 2 and planned["06_model_zoo"].after == []
    step = planned["10_export/c/fold1"]
    assert step.after == ["03_train/c/fold1", "05_ensemble"] and step.parameters["formats"] == ["onnx"]
    assert (step.parameters["model"], step.parameters["fold"]) == ("c", 1)
    assert yolo < set(planned["05_ensemble"].after)


def test_run_names():
    assert run_name("sample", None) == "sample"
    assert run_name("sample", "/a/b/nuclei") == "sample-nuclei"


def test_the_data_fingerprint_changes_with_every_file(tmp_path):
    data = make_data(tmp_path / "data")
    seen = [changes.fingerprint(data)]
    assert len(seen[0]) == 6
    annotation = next(data.glob("train/outputs_json/*/*.json"))
    os.utime(annotation, (1, 1))
    seen.append(changes.fingerprint(data))
    (data / "solution.csv").write_text("image_name,class,rle\n")
    seen.append(changes.fingerprint(data))
    annotation.unlink()
    seen.append(changes.fingerprint(data))
    (data / "notes.txt").write_text("not read by anything")
    assert all(a != b for a, b in itertools.pairwise(seen))
    assert changes.fingerprint(data) == seen[-1]


def test_other_data_of_the_same_name_is_refused(tmp_path):
    run, data = tmp_path / "run", make_data(tmp_path / "a" / "data")
    assert find_data(run, data, profile.Profile()) == data
    write_json(run / "run.json", {"data_dir": str(data)})
    with pytest.raises(changes.RunError, match="was made from"):
        find_data(run, make_data(tmp_path / "b" / "data"), profile.Profile())


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run that has ended, and a copy of it."""
    run = FakeRun(tmp_path_factory.mktemp("run"))
    status, output, _ = run.start()
    assert status == 0, output
    run.save(tmp_path_factory.mktemp("saved"))
    return run


@pytest.fixture
def fake(finished):
    """The finished run as it ended, whatever the test before did to it."""
    finished.restore()
    return finished


def test_problems_of_a_profile_are_reported_together(fake):
    path = "notebooks/profiles/quick.yaml"
    fake.edit(path, "train: {epochs: 6, lr: 1e-3}", "train: {epocs: 2, lr: fast, fold: 1}")
    fake.edit(path, "{n_folds: 2}", "{n_folds: 2, sed: 1}")
    status, output, new = fake.start()
    assert (status, new) == (1, [])
    assert "train: unknown parameter 'epocs': did you mean epochs" in output
    assert "train: lr = 'fast': expected float" in output
    assert "train.fold: set by the run itself" in output
    assert "parameters: unknown parameter 'sed'" in output
    assert output.count("  - ") == 4


def wait_for(fake: FakeRun, line: str) -> None:
    end = time.monotonic() + 60
    while line not in fake.lines():
        assert time.monotonic() < end, f"{line} did not happen"
        time.sleep(0.05)


def relatives(fake: FakeRun) -> list[psutil.Process]:
    """Processes that work in the fake repository."""
    found = []
    for process in psutil.process_iter():
        try:
            if str(fake.root) in " ".join(process.cmdline()) or process.cwd() == str(fake.root):
                found.append(process)
        except psutil.Error:
            continue
    return found


def test_an_interrupted_run_goes_on_where_it_stopped(tmp_path):
    fake = FakeRun(tmp_path, kernels=True)
    first = fake.begin()
    wait_for(fake, "03_train/thin/fold0 epoch 1")
    first.send_signal(signal.SIGINT)
    output, _ = first.communicate(timeout=300)
    assert first.returncode == 130
    assert "the same command goes on from here" in output
    psutil.wait_procs(relatives(fake), timeout=5)
    assert not relatives(fake)

    second = fake.begin()
    wait_for(fake, "03_train/thin/fold0 epoch 3")
    second.kill()
    status, output, _ = fake.start()  # at once, while the killed run's orphans notice
    second.communicate()
    assert status == 0, output
    lines = fake.lines()
    epochs = [line for line in lines if "epoch" in line]
    assert len(set(epochs)) == 6
    assert len(epochs) <= 8  # an epoch in progress is repeated, a finished one is not
    assert (fake.root / "submissions" / "quick-the data.csv").exists()
    assert "submission  submissions/quick-the data.csv" in output
    assert re.search(r"ensemble +1 models +0.9200 +0.9100", output)


def test_the_report_is_complete_and_needs_no_network(fake):
    report = fake.run / "report"
    index = (report / "index.html").read_text()
    links = re.findall(r'href="([^"]+)"', index)
    assert len(links) == 4
    for link in links:
        page = (report / link).read_text()
        assert "at work in" in page
        assert not re.search(r'(src|href)="https?:', page)
        assert "In&nbsp;[" not in page
    assert len(pd.read_csv(fake.run / "leaderboard.csv")) == 3


def test_nothing_changed_nothing_to_do(fake):
    notebook = fake.root / "notebooks" / "03_train.ipynb"
    book = nbformat.read(notebook, as_version=4)
    book.cells[2].outputs = [nbformat.v4.new_output("stream", text="tried in JupyterLab\n")]
    book.cells[2].execution_count = 3
    nbformat.write(book, notebook)
    write_json(fake.run / "03_train" / "thin" / "fold1" / "metrics.json", {"from": "an earlier profile"})
    status, output, new = fake.start()
    assert (status, new) == (0, [])
    assert "ensemble" in output and "▶" not in output
    assert (fake.run / "previous" / "03_train" / "thin" / "fold1" / "metrics.json").exists()


PROFILE = "notebooks/profiles/quick.yaml"
TRAINING, PREDICTION = "03_train/thin/fold0", "04_inference_tta/thin/fold0"
EVERYTHING = ["01_eda", TRAINING, PREDICTION, "05_ensemble"]


def result_of(fake, step, **changed):
    path = fake.run / step / "metrics.json"
    write_json(path, read_json(path) | changed)


def write_fixes(fake, reason):
    fix = f"- {{image: ID001/imageID001, why: {reason}, drop_polygons: [bone]}}\n"
    (fake.root / "fixes.yaml").write_text(fix)
    text = (fake.root / PROFILE).read_text()
    if "label_fixes" not in text:
        fake.edit(PROFILE, "{n_folds: 2}", "{n_folds: 2, label_fixes: fixes.yaml}")


def change_prediction_and_eda(fake):
    fake.edit(PROFILE, "tta: hflip", "tta: none")
    fake.edit("notebooks/01_eda.ipynb", "scores = {}", "scores = dict()")


CHANGES = {
    "a parameter": (lambda f: f.edit(PROFILE, "tta: hflip", "tta: none"), EVERYTHING[2:], "its parameters changed"),
    "a parameter and a notebook": (change_prediction_and_eda, ["01_eda", *EVERYTHING[2:]], "the notebook changed"),
    "one without effect": (lambda f: f.edit(PROFILE, "epochs: 6,", "epochs: 6, num_workers: 1,"), [], ""),
    "a data file": (lambda f: os.utime(next(f.data.glob("test/DCM/*/*.png")), (1, 1)), EVERYTHING, "the data changed"),
    "label fixes": (lambda f: write_fixes(f, "wrong"), EVERYTHING, "its parameters, the data changed"),
    "a notebook": (
        lambda f: f.edit("notebooks/05_ensemble.ipynb", "0.92", "0.93"),
        EVERYTHING[3:],
        "the notebook changed",
    ),
    "an earlier result": (lambda f: result_of(f, TRAINING, val_dice=0.5), EVERYTHING[2:], f"{TRAINING} changed"),
    "a result that is gone": (lambda f: (f.run / PREDICTION / "metrics.json").unlink(), EVERYTHING[2:], "did not end"),
    "one made by somebody else": (lambda f: (f.run / TRAINING / "inputs.json").unlink(), EVERYTHING[1:], "nobody"),
    "the submission": (
        lambda f: (f.root / "submissions" / "quick-the data.csv").unlink(),
        EVERYTHING[3:],
        "submissions/quick-the data.csv is missing",
    ),
    "folds": (
        lambda f: f.edit(PROFILE, "folds: [0]", "folds: [0, 1]"),
        ["03_train/thin/fold1", "04_inference_tta/thin/fold1", "05_ensemble"],
        "it has no result yet",
    ),
}
REALLY_RUN = ("a parameter and a notebook", "an earlier result", "a result that is gone", "folds")


@pytest.mark.parametrize("kind", CHANGES)
def test_dry_run_hours_and_the_run_agree_on_what_is_out_of_date(fake, kind):
    change, expected, reason = CHANGES[kind]
    change(fake)
    status, output, new = fake.start("--dry-run")
    assert (status, new) == (0, []), output
    planned = dict(re.findall(r"would run (\S+): (.+)", output))
    assert list(planned) == expected and reason in next(iter(planned.values()), ""), output
    trained = any(name.startswith("03_train") for name in planned)
    assert ("hours: not measured for thin" in output) == trained != ("hours: no training is left" in output)
    if kind in REALLY_RUN:
        status, output, new = fake.start()
        assert status == 0, output
        ran = list(dict.fromkeys(line.partition(" ")[0] for line in new))  # two at a time: the order may vary
        assert sorted(ran) == sorted(expected) and ran[-1] == expected[-1]
        assert ("hours: not measured for thin" in output) == trained
        assert "nothing to do" in fake.start("--dry-run")[1]


def test_the_reason_of_a_label_fix_reruns_nothing(fake):
    write_fixes(fake, "wrong")
    assert fake.start()[0] == 0
    write_fixes(fake, "another")
    assert "nothing to do" in fake.start("--dry-run")[1]


def test_a_new_notebook_joins_a_run_by_one_row(fake):
    row = '    Row("analysis", record=records.Analysis, needs=("ensemble",)),\n'
    mine = '    Row("mine", "11_mine", needs=("ensemble",)),\n'
    look = '    Row("look", "12_look", needs=("train",), models="models"),\n'
    fake.edit("utils/pipeline/steps.py", row, row + mine + look)
    own = "times: int = 1  # how often\n"
    add_notebook(fake.root, "11_mine", COMMON + own, 'STEP = "11_mine"\n', 'scores = {"times": times}')
    add_notebook(fake.root, "12_look", OF_FOLD, 'STEP = f"12_look/{model}/fold{fold}"\n', "scores = {}")
    assert "nothing to do" in fake.start("--dry-run")[1], "the profile names neither"
    fake.edit(PROFILE, "predict:", "mine: {times: 3}\nlook:\npredict:")
    status, output, new = fake.start()
    assert (status, sorted(new)) == (0, ["11_mine", "12_look/thin/fold0"]), output
    assert read_json(fake.run / "11_mine" / "metrics.json")["times"] == 3
    assert "11_mine.html" in (fake.run / "report" / "index.html").read_text()
    fake.edit(PROFILE, "tta: hflip", "tta: none")
    assert re.findall(r"would run (\S+): ", fake.start("--dry-run")[1]) == [PREDICTION, "05_ensemble", "11_mine"]
    fake.edit(PROFILE, "times: 3", "time: 3")
    status, output, _ = fake.start("--dry-run")
    assert status == 1 and "mine: unknown parameter 'time': did you mean times" in output


def test_parameters_that_can_not_change_results_rerun_nothing(fake):
    fake.edit("notebooks/profiles/quick.yaml", "epochs: 6,", "epochs: 6, num_workers: 1,")
    status, output, new = fake.start()
    assert (status, new) == (0, []), output
    others = fake.run / "parameters" / "03_train" / "thin" / "fold0.others.yaml"
    assert yaml.safe_load(others.read_text()) == {"num_workers": 1}


def test_a_dry_run_changes_nothing(fake):
    before = fake.tree()
    fake.edit("notebooks/profiles/quick.yaml", "folds: [0]", "folds: [1]")
    status, output, new = fake.start("--dry-run", "--force")
    assert (status, new) == (0, []) and "would run 03_train/thin/fold1" in output
    assert fake.tree() == before


def test_force_runs_everything_again_and_makes_the_cache_anew(fake):
    (fake.run / "cache" / "64").mkdir(parents=True)
    status, _, new = fake.start("--force")
    steps = {line.partition(" ")[0] for line in new}
    assert status == 0 and steps == {"01_eda", "03_train/thin/fold0", "04_inference_tta/thin/fold0", "05_ensemble"}
    assert not (fake.run / "cache").exists()


def test_a_ladder_runs_in_order_and_again_from_a_changed_step(fake):
    fake.edit("notebooks/profiles/quick.yaml", "models: {", "models: {top: {after: thin, lr: 1e-4}, ")
    status, output, new = fake.start()
    assert status == 0, output
    steps_run = list(dict.fromkeys(line.partition(" ")[0] for line in new))
    assert set(steps_run) == {"03_train/top/fold0", "04_inference_tta/top/fold0", "05_ensemble"}
    assert "nothing to do" in fake.start("--dry-run")[1]
    fake.edit("notebooks/profiles/quick.yaml", "epochs: 6", "epochs: 7")
    fake.edit("notebooks/profiles/quick.yaml", "lr: 1e-4}", "lr: 1e-4, epochs: 2}")
    planned = re.findall(r"would run (\S+): ", fake.start("--dry-run")[1])
    trained = [name for name in planned if name.startswith("03_train")]
    assert trained == ["03_train/thin/fold0", "03_train/top/fold0"]


def test_yolo_models_run_beside_the_others_and_vote_with_them(fake):
    fake.edit("notebooks/profiles/quick.yaml", "models: {", "yolo: {y: {network: yolo26n-seg}}\nmodels: {")
    status, output, new = fake.start()
    assert (status, set(new)) == (0, {"09_yolo/y/fold0", "05_ensemble"}), output
    assert read_json(fake.run / "05_ensemble" / "metrics.json")["models"].keys() == {"thin", "y"}
    board = read_leaderboard(fake.run).set_index(["kind", "model"])
    assert board.loc[("fold model", "y"), "oof_dice"] == 0.88
    fake.edit("notebooks/profiles/quick.yaml", "{y: {network", "{thin: {network")
    status, output, new = fake.start()
    assert (status, new) == (1, []) and "yolo.thin: there is a model of this name" in output


def test_a_wrist_stage_runs_after_the_predictions_and_again_when_they_change(fake):
    fake.edit("notebooks/profiles/quick.yaml", "models: {", "models: {wrist: {wrist_of: thin}, ")
    status, output, new = fake.start()
    assert status == 0, output
    steps_run = list(dict.fromkeys(line.partition(" ")[0] for line in new))
    assert steps_run == ["03_train/wrist/fold0", "04_inference_tta/wrist/fold0", "05_ensemble"]
    assert read_json(fake.run / "05_ensemble" / "metrics.json")["models"].keys() == {"thin"}
    fake.edit("notebooks/profiles/quick.yaml", "tta: hflip", "tta: none")
    planned = re.findall(r"would run (\S+): ", fake.start("--dry-run")[1])
    assert planned[0] == "04_inference_tta/thin/fold0" and set(planned[1:]) == set(steps_run)


PLUGIN = """
from utils.registry import register_loss

register_loss("mine")(lambda logits, labels: logits.mean())
"""


UNUSED = """
from utils.registry import register_tta

register_tta("own")(lambda side: [])
"""


def test_an_edited_plugin_reruns_the_steps_that_name_its_parts_and_what_depends_on_them(fake):
    (fake.root / "parts.py").write_text(PLUGIN)
    (fake.root / "flips.py").write_text(UNUSED)
    profile = "notebooks/profiles/quick.yaml"
    fake.edit(profile, "{n_folds: 2}", "{n_folds: 2, plugins: [parts.py, flips.py]}")
    fake.edit(profile, "models: {thin:", "models: {own: {loss: mine}, thin:")
    status, output, new = fake.start()
    assert status == 0, output
    own = ["03_train/own/fold0", "04_inference_tta/own/fold0", "05_ensemble"]
    assert sorted({line.partition(" ")[0] for line in new}) == own
    plugins = {
        step: yaml.safe_load((fake.run / "parameters" / f"{step}.yaml").read_text()).get("plugins")
        for step in (*own, "01_eda", "03_train/thin/fold0")
    }
    assert list(plugins.values()) == [["parts.py"]] * 3 + [None] * 2, "passed on to later steps, and to nobody else"
    (fake.root / "flips.py").write_text((fake.root / "flips.py").read_text() + "# nobody uses it\n")
    assert "nothing to do" in fake.start("--dry-run")[1]
    (fake.root / "parts.py").write_text(PLUGIN.replace("mean", "sum"))
    (fake.run / "03_train" / "own" / "fold0" / "last.ckpt").write_text("2")  # as if it had been interrupted
    assert re.findall(r"would run (\S+): ", fake.start("--dry-run")[1]) == own
    status, output, new = fake.start()
    assert status == 0 and sorted({line.partition(" ")[0] for line in new}) == own
    assert "03_train/own/fold0 epoch 0" in new, "from the start: the plugin belongs to what is resumed"
    (fake.root / "parts.py").write_text("def broken(:\n")
    status, output, new = fake.start()
    assert (status, new) == (1, []) and "parts.py: SyntaxError" in output


def test_an_analysis_is_reported_and_its_failure_costs_no_submission(fake):
    fake.edit("notebooks/profiles/quick.yaml", "predict:", "analysis: {worst: -1}\npredict:")
    status, output, new = fake.start()
    assert (status, set(new)) == (1, {"07_analysis"})
    assert "ValueError: no worst image" in output.split("FAILED")[1]
    assert "submission  submissions/quick-the data.csv" in output
    assert (fake.root / "submissions" / "quick-the data.csv").exists()
    assert "beats" not in (fake.run / "report" / "index.html").read_text()
    fake.edit("notebooks/profiles/quick.yaml", "analysis: {worst: -1}", "analysis:")
    status, output, new = fake.start()
    assert (status, new) == (0, ["07_analysis"]), output
    index = (fake.run / "report" / "index.html").read_text()
    assert "quick/ensemble beats quick/thin by 0.0012" in index and "0.9400" in index and "57% are bent" in index
    assert "07_analysis.html" in index


def test_instances_of_every_fold_model_are_looked_at_where_the_profile_asks_for_it(fake):
    fake.edit("notebooks/profiles/quick.yaml", "predict:", "instances:\npredict:")
    status, output, new = fake.start()
    assert (status, new) == (0, ["08_instances/thin/fold0"]), output
    assert "08_instances" in (fake.run / "report" / "index.html").read_text()
    fake.edit("notebooks/profiles/quick.yaml", "instances:\n", "")
    status, output, new = fake.start()
    assert (status, new) == (0, []), output
    assert not (fake.run / "08_instances/thin/fold0").exists(), "it is in previous/ now"


def test_changed_data_reruns_everything(fake):
    image = next(fake.data.glob("test/DCM/*/*.png"))
    before = image.stat()
    os.utime(image, (1, 1))
    assert fake.start("--dry-run")[1].count("would run") == 4
    os.utime(image, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert "nothing to do" in fake.start("--dry-run")[1]


def test_without_a_failed_fold_model_the_others_vote_until_it_is_mended(fake):
    shutil.rmtree(fake.root / "papermill")  # the errors are papermill's, from kernels
    profile = "notebooks/profiles/quick.yaml"
    fake.edit(profile, "models: {thin:", "models: {bad: {lr: 10}, thin:")
    fake.edit("notebooks/01_eda.ipynb", "scores = {}", "raise OSError('no space left')")
    status, output, new = fake.start()
    assert status == 1
    assert sorted(new) == ["01_eda"] * 2 + ["03_train/bad/fold0"] * 2 + ["05_ensemble"], "once more each"
    shown = output.split("FAILED")[1]
    assert shown.index("ValueError: the loss is not finite") < shown.index("fold Dice"), "failures come first"
    assert "OSError: no space left" in shown
    assert "notebook outputs/quick-the data/03_train/bad/fold0/03_train.ipynb" in shown
    assert "waiting for them: 04_inference_tta/bad/fold0, 05_ensemble" in shown
    assert "submission  submissions/quick-the data.csv  PARTIAL: 1 of 2 fold models" in shown
    about = read_json(fake.run / "05_ensemble" / "metrics.json")
    reason = "03_train/bad/fold0 failed: ValueError: the loss is not finite"
    assert about["missing"] == {"bad/fold0": reason}
    assert list(about["models"]) == about["parameters"]["models"] == ["thin"]
    assert about["parameters"]["weights"] == [] and about["parameters"]["tune_weights"] is False
    board = read_leaderboard(fake.run)
    assert board.loc[board["kind"] == "ensemble", "model"].tolist() == ["PARTIAL: 1 of 2 voted"]
    assert f"bad/fold0: {reason}" in (fake.run / "report" / "index.html").read_text()

    assert "would run 05_ensemble" in fake.start("--dry-run")[1]
    assert (fake.run / "05_ensemble" / "metrics.json").exists(), "a dry run changes nothing"
    fake.edit(profile, "{lr: 10}", "{lr: 1e-2}")
    fake.edit("notebooks/01_eda.ipynb", "raise OSError('no space left')", "scores = {}")
    status, output, new = fake.start()
    assert status == 0, output
    steps = {line.partition(" ")[0] for line in new}
    assert steps == {"01_eda", "03_train/bad/fold0", "04_inference_tta/bad/fold0", "05_ensemble"}
    about = read_json(fake.run / "05_ensemble" / "metrics.json")
    assert about["missing"] == {} and list(about["models"]) == ["bad", "thin"]
    assert "PARTIAL" not in output + (fake.run / "report" / "index.html").read_text()


def test_one_run_at_a_time_and_unknown_options(fake):
    with FileLock(fake.run / ".lock"):
        status, output, _ = fake.start()
    assert status == 1
    assert "another process is working on" in output
    assert fake.start("--executor", "slurm")[0] == 2
    status, output, _ = fake.start("--data", "no-such-folder")
    assert status == 1
    assert "--data no-such-folder: no such folder" in output
    assert not (fake.root / "outputs" / "quick-no-such-folder").exists()


@pytest.mark.parametrize(
    ("options", "status", "expected"),
    [
        (["--profle", "x"], 2, "unknown option: --profle"),
        (["--data"], 2, "--data needs a value"),
        (["--help"], 0, "usage: bash run_all.sh"),
    ],
)
def test_run_all_reads_its_options_first(tmp_path, options, status, expected):
    command = ["bash", str(ROOT / "run_all.sh"), *options]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == status
    assert expected in result.stdout + result.stderr


def test_the_leaderboard_is_sorted_and_fits_the_terminal(tmp_path):
    name = "deeplabv3plus-timm-mobilenetv3_small_minimal_100-and-a-long-story"
    for fold, dice in ((0, 0.91), (1, 0.93)):
        write_json(tmp_path / "03_train" / name / f"fold{fold}" / "metrics.json", {"val_dice": dice, "minutes": 100.5})
    oof = {"oof_dice": 0.92, "test_dice": None, "minutes": 1}
    write_json(tmp_path / "04_inference_tta" / name / "fold0" / "metrics.json", oof)
    models = {name: {"oof_dice": 0.92, "test_dice": 0.9, "weight": 0.5}}
    write_json(tmp_path / "05_ensemble" / "metrics.json", {"oof_dice": 0.93, "models": models, "minutes": 2})
    write_json(tmp_path / "02_baseline_fcn" / "metrics.json", {"val_dice": 0.8, "fold": 0, "minutes": 30})
    assert as_text(read_leaderboard(tmp_path / "empty")) == ["no step with a score has ended yet"]
    table = read_leaderboard(tmp_path)
    assert table["kind"].tolist() == ["ensemble", "model", "fold model", "fold model", "baseline"]
    assert table["fold"].tolist()[2:] == [1, 0, 0]
    assert table["minutes"].tolist() == [2, 202, 100.5, 101.5, 30]
    assert max(map(len, as_text(table))) <= 100
    assert show_leaderboard(tmp_path).endswith("234 minutes in all")
    assert len(pd.read_csv(tmp_path / "leaderboard.csv")) == 5


def test_a_run_is_written_down(fake):
    about = read_json(fake.run / "run.json")
    assert about["models"] == ["thin"]
    parameters = yaml.safe_load((fake.run / "parameters" / "03_train" / "thin" / "fold0.yaml").read_text())
    assert parameters["lr"] == 1e-3
    metrics = json.loads((fake.run / "03_train" / "thin" / "fold0" / "metrics.json").read_text())
    assert metrics["parameters"]["data_dir"] == str(fake.data)
