"""Parts of one's own: as objects given to `fit`, and by name from a plugin file."""

import json
import subprocess
import sys

import albumentations as A
import cv2
import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import RandomSampler, WeightedRandomSampler

import utils.pipeline.run  # noqa: F401  (registers the built-in parts)
from tests.small import fit, same, small_data, weights
from utils import registry
from utils.data.augment import Augmenter, as_augmenter, build_augmentation
from utils.data.augmentation import NO_AUGMENTATION, Augmentation
from utils.data.flip import FlipRule, flip_rule
from utils.files import ROOT, Problems
from utils.models import ModelError, list_models
from utils.models.checkpoint import load_checkpoint, read_config
from utils.registry import UnknownPart, find_part, list_parts, load_plugins, named_parts, register_loss
from utils.training.key import NoVersionError, describe, resume_key
from utils.training.losses import TrainingError, build_loss
from utils.training.optimizers import build_optimizer

EXAMPLE = "notebooks/plugins/example.py"


@pytest.fixture(scope="module")
def data(sample, tmp_path_factory):
    return small_data(sample, tmp_path_factory.mktemp("cache"))


@pytest.fixture(autouse=True)
def as_before():
    """What a test registers is gone after it."""
    parts = dict(registry._parts)
    yield
    registry._parts.clear()
    registry._parts.update(parts)
    for name in [name for name in sys.modules if name.startswith("plugin_")]:
        del sys.modules[name]


class Net(nn.Module):
    """A network of one's own: one convolution that looks around."""

    def __init__(self, classes, size=5):
        super().__init__()
        self.conv = nn.Conv2d(3, classes, size, padding=size // 2)

    def forward(self, image):
        return self.conv(image)


def squares(logits, labels):
    return ((logits.sigmoid() - labels) ** 2).mean()


def test_any_network_loss_optimiser_and_scheduler_is_trained(data, tmp_path):
    steps = []

    class Counted(torch.optim.lr_scheduler.StepLR):
        def step(self, *arguments):
            steps.append(self.last_epoch)
            super().step(*arguments)

    parts = {
        "model": lambda: Net(29),
        "loss": squares,
        "optimizer": lambda p: torch.optim.Adagrad(p, lr=0.003),
        "schedule": lambda o: Counted(o, 2),
    }
    result = fit(data, tmp_path, parts=parts, epochs=4, accumulate=2)
    assert result.history["loss"].iloc[-1] < result.history["loss"].iloc[0] and result.history["val_dice"].notna().all()
    assert len(steps) == 1 + 4, "once when made, then once per optimiser step"
    assert result.model(torch.zeros(1, 3, 64, 64)).shape == (1, 29, 64, 64)
    with pytest.raises(ModelError, match=r'(?s)given inline.*@register_model\("my_net".*-p architecture my_net'):
        load_checkpoint(result.checkpoint)


def test_an_inline_network_can_be_loaded_once_it_has_a_name(data, tmp_path):
    result = fit(data, tmp_path / "fold0", parts={"model": lambda: Net(29)}, epochs=1)
    plugin = tmp_path / "mine.py"
    plugin.write_text(
        "from torch import nn\nfrom utils.registry import register_model\n\n\n"
        "class Net(nn.Module):\n    def __init__(self, classes):\n        super().__init__()\n"
        "        self.conv = nn.Conv2d(3, classes, 5, padding=2)\n\n    def forward(self, image):\n"
        "        return self.conv(image)\n\n\n"
        '@register_model("net", family="mine")\ndef net(classes, **options):\n    return Net(classes)\n'
    )
    path = result.checkpoint / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"architecture": "net", "plugin": str(plugin)}))
    with pytest.raises(ModelError, match=r"-p plugins '\["):
        load_checkpoint(result.checkpoint)
    load_plugins([plugin])
    model, _ = load_checkpoint(result.checkpoint)
    assert same(model.state_dict(), result.model.state_dict())


def test_a_compose_moves_labels_with_the_image_and_interpolates_them(data, tmp_path):
    entry = data.cache.read(data.train["image_name"].iloc[0])
    rng = np.random.default_rng(0)
    image, label = as_augmenter(A.Compose([A.HorizontalFlip(p=1.0)]))(entry.image, entry.label, rng)
    assert np.array_equal(image, np.repeat(entry.image[:, ::-1, None], 3, axis=2))
    assert np.array_equal(label, entry.label.dense()[:, :, ::-1])
    turn = A.Compose([A.Affine(rotate=(20, 20), p=1.0)])
    _, label = as_augmenter(turn)(entry.image, entry.label, rng)
    matrix = cv2.getRotationMatrix2D((31.5, 31.5), 20, 1.0)
    for plane, before in zip(label, entry.label.dense(), strict=True):
        expected = cv2.warpAffine(before, matrix, (64, 64), flags=cv2.INTER_LINEAR)
        assert np.abs(plane.astype(int) - expected).max() <= 2
    same_draws = [
        as_augmenter(A.Compose([A.RandomGamma(p=1.0)]))(entry.image, entry.label, np.random.default_rng(s))[0]
        for s in (1, 1, 2)
    ]
    assert np.array_equal(same_draws[0], same_draws[1]) and not np.array_equal(same_draws[0], same_draws[2])
    result = fit(data, tmp_path, epochs=1, parts={"augmentation": turn})
    assert result.history["loss"].notna().all()
    for wrong in (A.Normalize(), A.Resize(32, 32)):
        with pytest.raises(ValueError, match="leave out Normalize"):
            as_augmenter(A.Compose([wrong]))(entry.image, entry.label, rng)


def test_any_sampler_chooses_the_images_and_resumes_exactly(data, tmp_path):
    only = [1.0] + [0.0] * (len(data.train) - 1)
    own_draws = RandomSampler(range(len(data.train)), num_samples=6, generator=torch.Generator())
    for sampler in (own_draws, WeightedRandomSampler(only, 8)):
        folder = tmp_path / type(sampler).__name__
        whole = fit(data, folder / "whole", epochs=3, sampler=sampler)
        with pytest.raises(InterruptedError):
            fit(data, folder / "cut", epochs=3, stop_after=1, sampler=sampler)
        resumed = fit(data, folder / "cut", epochs=3, sampler=sampler)
        assert resumed.history["loss"].tolist() == whole.history["loss"].tolist()
        assert same(weights(folder / "whole" / "last"), weights(folder / "cut" / "last"))


def test_resume_with_loader_workers_repeats_no_epoch(data, tmp_path):
    whole = fit(data, tmp_path / "whole", epochs=3, num_workers=1)
    with pytest.raises(InterruptedError):
        fit(data, tmp_path / "cut", epochs=3, num_workers=1, stop_after=1)
    resumed = fit(data, tmp_path / "cut", epochs=3)  # and without workers
    assert resumed.history["loss"].tolist() == whole.history["loss"].tolist()


def test_a_plateau_gets_each_validation_dice(data, tmp_path):
    class Told(torch.optim.lr_scheduler.ReduceLROnPlateau):
        def step(self, metrics, *more):
            seen.append(float(metrics))
            super().step(metrics, *more)

    seen = []
    result = fit(data, tmp_path, epochs=3, parts={"schedule": lambda o: Told(o, mode="max", patience=0)})
    assert seen == pytest.approx(result.history["val_dice"].tolist())
    with pytest.raises(ValueError, match='mode="max"'):
        fit(data, tmp_path, parts={"schedule": lambda o: Told(o, mode="min")})


def test_parts_that_do_not_fit_are_refused(data, tmp_path):
    other = Net(29)
    with pytest.raises(ValueError, match="no parameter of this model"):
        fit(data, tmp_path, parts={"optimizer": lambda p: torch.optim.Adam(other.parameters())})
    with pytest.raises(ValueError, match="steps another optimiser"):
        schedule = torch.optim.lr_scheduler.StepLR(torch.optim.Adam(other.parameters()), 1)
        fit(data, tmp_path, parts={"schedule": lambda o: schedule})
    with pytest.raises(TypeError, match="expected a torch optimiser and a callable loss"):
        fit(data, tmp_path, parts={"loss": 3})
    with pytest.raises(TrainingError, match=r"logits \(4, 7, 64, 64\) for labels \(4, 29, 64, 64\)"):
        fit(data, tmp_path, parts={"model": lambda: Net(7)})


def versioned(version, factor=1.0):
    """A loss of one's own that says its version and holds a value."""

    def scaled(logits, labels):
        return factor * squares(logits, labels)

    scaled.version = version
    return scaled


@pytest.mark.parametrize("other", [versioned(2), versioned(1, factor=2.0)], ids=["version", "closure"])
def test_an_own_loss_of_the_same_version_goes_on_and_another_starts_anew(data, tmp_path, capsys, other):
    with pytest.raises(InterruptedError):
        fit(data, tmp_path, stop_after=1, epochs=3, parts={"loss": versioned(1)})
    with pytest.raises(InterruptedError):
        fit(data, tmp_path, stop_after=2, epochs=3, parts={"loss": versioned(1)})
    assert "going on after epoch 1" in capsys.readouterr().out
    fit(data, tmp_path, epochs=3, parts={"loss": other})
    assert "other parameters, parts or data: training starts anew" in capsys.readouterr().out


def test_without_a_version_there_is_no_resume_and_it_says_what_to_write(data, tmp_path, capsys):
    with pytest.raises(InterruptedError):
        fit(data, tmp_path, stop_after=1, parts={"loss": squares})
    said = capsys.readouterr().out
    assert "loss: squares has no version" in said and "`squares.version = 1`" in said
    assert len(fit(data, tmp_path, parts={"loss": squares}).history) == 2
    assert "training starts anew" in capsys.readouterr().out
    fit(data, tmp_path, parts={"loss": squares})
    assert "nothing is trained again" not in capsys.readouterr().out and (tmp_path.parent / "previous").exists()


KEYS = """
import albumentations as A, torch
import utils.pipeline.run
from torch import nn
from utils.models import build_model
from utils.training.losses import build_loss
from utils.training.key import resume_key
from utils.training.optimizers import build_optimizer, build_schedule
model = build_model("unet", 3)
optimizer = build_optimizer("adamw", model.parameters(), 1e-3, 0.0)
schedule = build_schedule("cosine", optimizer, 10, 1)
compose = A.Compose([A.Affine(rotate=(-5, 5)), A.OneOf([A.RandomGamma(), A.CLAHE()])])
print(resume_key(a=model, b=optimizer, c=schedule, d=compose, e=build_loss("bce_dice"), f=nn.Dropout(0.3)))
"""


def test_keys_are_the_same_in_every_process_and_tell_settings_apart():
    command = [sys.executable, "-c", KEYS]
    keys = {subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout for _ in range(2)}
    assert len(keys) == 1 and len(keys.pop()) == 65
    values = [nn.Parameter(torch.ones(2))]
    for one, other in (
        (nn.Dropout(0.3), nn.Dropout(0.4)),
        (A.Compose([A.Affine(rotate=(-5, 5))]), A.Compose([A.Affine(rotate=(-6, 5))])),
        (build_loss("bce + dice"), build_loss("bce + 0.5*dice")),
        (versioned(1), versioned(2)),
        (versioned(1), versioned(1, factor=2.0)),
        (nn.BCEWithLogitsLoss(pos_weight=torch.tensor(1.0)), nn.BCEWithLogitsLoss(pos_weight=torch.tensor(2.0))),
        (build_optimizer("adam", values, 0.1, 0), build_optimizer("adam", values, 0.2, 0)),
    ):
        assert resume_key(part=one) != resume_key(part=other)
        assert resume_key(part=one) == resume_key(part=one)
    for own in (Net(3), lambda: 1, [squares], {"a": nn.Sequential(Net(3))}):
        with pytest.raises(NoVersionError):
            resume_key(part=own)
    assert describe(torch.float32) == ["torch.dtype", None, "torch.float32"] != describe(torch.float16)


def test_a_description_grows_with_what_it_describes_not_with_its_depth():
    """JSON within JSON would double its backslashes at every level; networks of transformers are 20 levels deep."""
    nested, first = {"settings": {"b", 'a"'}}, 0
    for _ in range(40):
        nested = {"child": nested, "width": 3}
        first = first or len(json.dumps(describe(nested)))
    assert len(json.dumps(describe(nested))) < 40 * first
    assert describe({"b": 1, "a": {2, 1}}) == describe({"a": {1, 2}, "b": 1})


def test_the_example_plugin_has_one_part_of_each_kind():
    assert len((ROOT / EXAMPLE).read_text().splitlines()) <= 100
    load_plugins([EXAMPLE])
    kinds = set(registry.PARAMETERS.values())
    added = {kind: {name for name in list_parts(kind) if find_part(kind, name).plugin == EXAMPLE} for kind in kinds}
    assert [len(names) for names in added.values()] == [1] * len(kinds) and len(kinds) == 7
    assert "small_net" in list_models() and find_part("model", "small_net").family == "mine"
    load_plugins([EXAMPLE])  # again, as when a notebook's cell is run twice
    assert all(find_part(kind, name).plugin == EXAMPLE for kind, (name,) in added.items())


def test_a_plugin_that_is_edited_is_imported_again(tmp_path):
    plugin = tmp_path / "p.py"
    plugin.write_text('from utils.registry import register_loss\nregister_loss("own")(lambda logits, labels: 1)\n')
    load_plugins([plugin])
    first = find_part("loss", "own")
    plugin.write_text('from utils.registry import register_loss\nregister_loss("mine")(lambda logits, labels: 2)\n')
    load_plugins([plugin])
    assert "own" not in list_parts("loss") and find_part("loss", "mine").sha256 != first.sha256


def test_broken_plugins_are_reported_together(tmp_path):
    (tmp_path / "a.py").write_text("def broken(:\n")
    (tmp_path / "b.py").write_text(
        'from utils.registry import register_loss\n@register_loss("bce")\ndef f(l, t): ...\n'
    )
    with pytest.raises(Problems) as caught:
        load_plugins([tmp_path / "a.py", tmp_path / "b.py", "nowhere.py"])
    text = str(caught.value)
    assert (
        "SyntaxError" in text and "'bce' exists already (built in)" in text and "nowhere.py: FileNotFoundError" in text
    )
    assert find_part("loss", "bce").plugin == ""


def test_one_error_names_the_nearest_part_of_every_kind():
    wrong = {
        "architecture": "unetplusplusplus",
        "loss": "bce_dcie + 0.5*dise",
        "augmentation": "defalt",
        "optimizer": "adamv",
        "schedule": "cosin",
        "tta": "hflop",
    }
    with pytest.raises(UnknownPart) as caught:
        named_parts(wrong)
    hints = ("unetplusplus", "bce_dice", "dice", "default", "adam", "cosine", "hflip")
    assert len(caught.value.problems) == 7
    assert all(f"did you mean {hint}" in problem for hint, problem in zip(hints, caught.value.problems, strict=True))
    assert named_parts({"architecture": "unet", "loss": "0.7*bce + dice"})[1].name == "bce"
    with pytest.raises(Problems, match="no positive number"):
        build_loss("x*bce")


def test_a_class_works_as_a_loss_and_names_are_taken_once():
    @register_loss("own")
    class Own:
        def __call__(self, logits, labels):
            return logits.mean()

    assert build_loss("2*own")(torch.ones(1, 1, 2, 2), torch.zeros(1, 1, 2, 2)) == 2
    with pytest.raises(ValueError, match="exists already"):
        load_plugins([]) or register_loss("dice")(squares)


def test_numbers_beside_another_augmentation_are_refused():
    load_plugins([EXAMPLE])
    assert isinstance(build_augmentation("wobble", 64, Augmentation()), A.Compose)
    assert isinstance(build_augmentation("default", 64, NO_AUGMENTATION), Augmenter)
    with pytest.raises(Problems, match=r"(?s)'wobble' replaces the default.*rotate = 30"):
        build_augmentation("wobble", 64, Augmentation(rotate=30))


def test_a_checkpoint_names_its_plugin_and_loading_runs_no_code(data, tmp_path, capsys):
    plugin = tmp_path / "mine.py"
    source = "from torch import nn\nfrom utils.registry import register_model\n\n\n@register_model('tiny')\n"
    plugin.write_text(source + "def tiny(classes, **options):\n    return nn.Conv2d(3, classes, 3, padding=1)\n")
    load_plugins([plugin])
    from utils.models import build_model

    result = fit(data, tmp_path / "fold0", epochs=1, parts={"model": lambda: build_model("tiny", 29)})
    config = read_config(result.checkpoint)
    assert (config.architecture, config.plugin) == ("tiny", str(plugin))
    assert config.plugin_sha256 == registry.file_sha256(plugin)
    load_checkpoint(result.checkpoint)
    assert "has changed" not in capsys.readouterr().out
    plugin.write_text(plugin.read_text() + "# edited\n")
    load_plugins([plugin])
    load_checkpoint(result.checkpoint)
    assert "mine.py has changed since" in capsys.readouterr().out
    command = f"from utils.models.checkpoint import load_checkpoint\nload_checkpoint({str(result.checkpoint)!r})"
    done = subprocess.run([sys.executable, "-c", command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and "which is not among `plugins`. Add" in done.stderr


def organs(tmp_path, sides):
    """Images with a left and a right organ and a spine; `sides` says for each whether left is left."""
    folder = tmp_path / "organs"
    for number, right in enumerate(sides):
        name = f"P{number:03}"
        image = folder / "train" / "DCM" / name / f"{name}.png"
        image.parent.mkdir(parents=True)
        cv2.imwrite(str(image), np.full((64, 64), 90, np.uint8))
        places = {"left": 12, "right": 48} if right else {"left": 48, "right": 12}
        boxes = {**{k: (x, 20, 8, 14) for k, x in places.items()}, "spine": (30, 4, 6, 56)}
        shapes = [
            {"type": "poly_seg", "label": k, "points": [[x, y], [x + w, y], [x + w, y + h], [x, y + h]]}
            for k, (x, y, w, h) in boxes.items()
        ]
        path = folder / "train" / "outputs_json" / name / f"{name}.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps({"annotations": shapes}))
    (folder / "classes.txt").write_text("left\nright\nspine\n")
    from utils.data.cache import Cache
    from utils.data.competition import read_index

    table = read_index(folder, ("train",))
    cache = Cache(tmp_path / "cache", table, ["left", "right", "spine"], 64)
    cache.build()
    return cache, table["image_name"].tolist()


def test_flips_are_off_where_classes_are_told_apart_by_their_side(tmp_path, data):
    cache, names = organs(tmp_path / "sided", [True] * 20)
    rule = flip_rule("auto", [], cache, names)
    assert not rule.allowed and "left and right" in rule.why
    entry = cache.read(names[0])
    image, label = Augmenter(Augmentation(hflip=1.0, rotate=0, scale=0, shift=0, brightness=0, contrast=0), rule)(
        entry.image, entry.label, np.random.default_rng(0)
    )
    assert np.array_equal(image, entry.image) and np.array_equal(label.dense(), entry.label.dense())
    swapped = flip_rule("auto", [["left", "right"]], cache, names)
    assert swapped.allowed and swapped.order == (1, 0, 2)
    only = Augmentation(hflip=1.0, rotate=0, scale=0, shift=0, brightness=0, contrast=0)
    image, label = Augmenter(only, swapped)(entry.image, entry.label, np.random.default_rng(0))
    assert np.array_equal(image, entry.image[:, ::-1])
    assert np.array_equal(label.dense(), entry.label.dense()[[1, 0, 2], :, ::-1])
    assert flip_rule("on", [], cache, names).allowed and not flip_rule("off", [], cache, names).allowed
    mixed, names = organs(tmp_path / "mixed", [True, False] * 10)
    assert flip_rule("auto", [], mixed, names).allowed
    almost, names = organs(tmp_path / "almost", [True] * 18 + [False] * 2)
    assert flip_rule("auto", [], almost, names).allowed, "0.9 is less than 0.95"
    hands = data.train["image_name"].tolist()
    assert flip_rule("auto", [], data.cache, hands) == FlipRule(True, (), flip_rule("auto", [], data.cache, hands).why)
    for wrong in (("perhaps", []), ("auto", [["left"]]), ("auto", [["left", "spleen"]])):
        with pytest.raises(Problems, match=r"flip"):
            flip_rule(*wrong, cache, [])
