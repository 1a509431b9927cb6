"""A full disk: a file is written whole or not at all, and the error says which, how much is free, and what to do."""

import json
import shlex
import subprocess
import sys

import pytest

from utils.files import ROOT

pytestmark = pytest.mark.slow
FILES = {"metrics": ["a.json"], "table": ["a.csv"], "store": ["a.png.npz"], "checkpoint": ["best"]}
FILES |= {"resume file": ["resume.ckpt"], "cache": []}


@pytest.fixture(scope="module")
def found(sample, tmp_path_factory):
    """What `tests.full_disk` saw on a disk of one megabyte, mounted where only its own process sees it."""
    disk = tmp_path_factory.mktemp("disk")
    mount = f"mount -t tmpfs -o size=1m none {shlex.quote(str(disk))}"
    if subprocess.run(["unshare", "-rm", "sh", "-c", mount], capture_output=True).returncode:
        pytest.skip("this machine does not allow mounting a small disk (unshare -rm, mount -t tmpfs)")
    command = shlex.join([sys.executable, "-m", "tests.full_disk", str(sample), str(disk)])
    ended = subprocess.run(
        ["unshare", "-rm", "sh", "-c", f"{mount} && {command}"], cwd=ROOT, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout.splitlines()[-1])


@pytest.mark.parametrize("kind", FILES)
def test_what_does_not_fit_leaves_what_was_there(found, kind):
    name, message = found[kind]["error"]
    assert name == "DiskFullError" and "can't be written: the disk is full. It needs more than" in message
    assert "MB are left there" in message and "start the same command again" in message
    assert found[kind]["kept"] and found[kind]["files"] == FILES[kind]
    assert any(file in message for file in FILES[kind] or [".png.npz"])
