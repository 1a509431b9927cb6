"""Checkpoints, resume files, stores and caches from others: no pickled code runs, nothing fills the memory."""

import io
import json
import pickle
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.small import THIN, fit, small_data, thin_config
from utils.data.cache import Cache
from utils.data.competition import read_classes, read_index
from utils.inference.probabilities import ProbabilityStore
from utils.models import ModelError, build_model
from utils.models.checkpoint import check_classes, load_checkpoint, read_config, save_checkpoint
from utils.training.resume import saved_epochs


class Payload:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.fixture
def harm(tmp_path):
    """The path of a file that must not exist after the test; that the payload works is checked first."""
    path = tmp_path / "harm"
    pickle.loads(pickle.dumps(Payload(path)))
    assert path.exists()
    path.unlink()
    yield path
    assert not path.exists()


@pytest.fixture(scope="module")
def data(sample, tmp_path_factory):
    return small_data(sample, tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint") / "best"
    model = build_model(THIN["architecture"], len(data.cache.classes), THIN["encoder"], **THIN["options"])
    save_checkpoint(folder, model, thin_config(data))
    load_checkpoint(folder)
    return folder


@pytest.fixture
def checkpoint(whole, tmp_path):
    """A checkpoint that a test may damage."""
    return shutil.copytree(whole, tmp_path / "best")


@pytest.mark.parametrize("form", ["pickle", "torch"])
def test_a_pickle_in_place_of_weights_is_refused(checkpoint, harm, form):
    path = checkpoint / "model.safetensors"
    if form == "pickle":
        path.write_bytes(pickle.dumps(Payload(harm)))
    else:
        torch.save(Payload(harm), path)
    with pytest.raises(ModelError, match="is no safetensors file that can be read"):
        load_checkpoint(checkpoint)


def test_missing_weights_are_called_missing(checkpoint):
    (checkpoint / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"model\.safetensors is missing: copy the whole checkpoint folder"):
        load_checkpoint(checkpoint)


HUGE = 10**9


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": "../../../etc/passwd"}, "unknown architecture"),
        ({"encoder": "tu-../../weights"}, "unknown timm encoder"),
        ({"options": {"encoder_weights": "../../secret.pth"}}, "options: encoder, weights"),
        ({"options": {"encoder_weights": "imagenet"}}, "options: encoder, weights"),
        ({"options": {"decoder_channels": HUGE}}, "far larger than|can't be built"),
        ({"options": {"decoder_channels": "many"}}, "can't be built"),
        ({"options": []}, "not a config"),
        ({"image_size": HUGE}, f"image_size {HUGE}: expected 1 to"),
        ({"image_size": "64"}, "valid integer"),
        ({"classes": "bone"}, "valid array"),
        ({"classes": [f"class {n}" for n in range(300_000)]}, "far larger than|does not fit"),
        ({"classes": ["a", "a"]}, "classes: expected different names"),
        ({"mean": [0.5]}, "mean, std: expected three"),
        ({"std": [0.0, 0.0, 0.0]}, "std above 0"),
        ({"score": float("nan")}, "finite number"),
        ({"thresholds": [2.0] * 29}, "thresholds: expected"),
        ({"flip_order": [28] * 29}, "flip_order: expected"),
        ({"people": {"a": 1}}, "valid array"),
        ({"another": 1}, "another"),
    ],
)
def test_configs_that_could_do_harm_are_refused(checkpoint, changes, message):
    path = checkpoint / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(ModelError, match=message):
        load_checkpoint(checkpoint)


@pytest.mark.parametrize(
    "content",
    [b"[]", b"{", b"\xff\xfe", b"", b"[" * 10**6, b" " * 2**25],
    ids=["list", "cut", "utf", "no", "deep", "big"],
)
def test_configs_that_are_no_json_are_refused(checkpoint, content):
    (checkpoint / "config.json").write_bytes(content)
    with pytest.raises(ModelError, match="not a config this version understands"):
        read_config(checkpoint)


def test_other_classes_than_the_datas_are_refused(data):
    config, classes = thin_config(data), list(data.cache.classes)
    check_classes(config, classes, "here")
    swapped = [*classes[:2][::-1], *classes[2:]]
    with pytest.raises(
        ModelError, match=f"here was trained on other.*class 1 is '{classes[0]}' there, '{classes[1]}' here"
    ):
        check_classes(config, swapped, "here")
    with pytest.raises(ModelError, match="29 classes, the data have 28"):
        check_classes(config, classes[:-1], "here")


def test_a_resume_file_runs_no_code(data, tmp_path, harm, capsys):
    path = tmp_path / "run" / "resume.ckpt"
    path.parent.mkdir()
    for evil in (Payload(harm), {"training": {"key": Payload(harm), "history": []}}):
        torch.save(evil, path)
        assert saved_epochs(path, "key") is None
        assert "can't be read" in capsys.readouterr().out
    for odd in ([], {"training": 3}, {"training": {"history": 3}}):
        torch.save(odd, path)
        assert saved_epochs(path, "key") is None
    torch.save(Payload(harm), path)
    assert len(fit(data, path.parent, epochs=1).history) == 1


def objects(payload):
    """The bytes of an .npz file whose arrays hold a Python object."""
    file = io.BytesIO()
    np.savez(file, grid=np.array([8, 8]), boxes=np.array([[payload]], object), values=np.array([payload], object))
    return file.getvalue()


def bomb():
    """A small .npz file that would unpack to eight gigabytes."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("size.npy", b"")
    content = bytearray(file.getvalue())
    directory = content.rindex(b"PK\x01\x02")
    content[directory + 24 : directory + 28] = (2**32 - 2).to_bytes(4, "little")
    return bytes(content)


def test_a_store_loads_no_objects_and_no_bombs(tmp_path, harm):
    store = ProbabilityStore(tmp_path)
    maps = np.zeros((2, 8, 8), np.float32)
    store.write("a.png", maps, (8, 8))
    whole = store.path("a.png").read_bytes()
    with np.load(store.path("a.png")) as arrays:
        arrays = dict(arrays)
    lone = io.BytesIO()
    np.save(lone, np.zeros(3))
    broken = [objects(Payload(harm)), pickle.dumps(Payload(harm)), bomb(), lone.getvalue(), b"", whole[:-40]]
    for changes in ({"size": np.array([10**9] * 2)}, {"boxes": np.array([[0, 0, -1, 8]] * 2)}, {"grid": np.zeros(2)}):
        file = io.BytesIO()
        np.savez(file, **(arrays | changes | ({"values": np.ones(64, np.uint16)} if "grid" in changes else {})))
        broken.append(file.getvalue())
    for content in broken:
        store.path("a.png").write_bytes(content)
        with pytest.raises(ValueError, match=r"a\.png\.npz is damaged.*delete it and run 04_inference_tta again"):
            store.read("a.png")


def test_a_cache_file_with_objects_is_made_again(sample, tmp_path, harm):
    table = read_index(sample)
    cache = Cache(tmp_path / "cache", table, read_classes(sample), 32)
    cache.build()
    first, second = table["image_name"][:2]
    cache.path(first).write_bytes(objects(Payload(harm)))
    cache.path(second).write_bytes(pickle.dumps(Payload(harm)))
    for name in (first, second):
        with pytest.raises(ValueError, match="is damaged"):
            cache.read(name)
    assert cache.build() == 2 and cache.read(first).size == (256, 256)
