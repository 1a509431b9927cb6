"""A short soak: twenty rounds of predict, vote, check and score in one process leave nothing behind."""

import subprocess
import sys

import pytest

from utils.files import ROOT


@pytest.mark.slow
def test_twenty_rounds_leave_nothing_behind():
    command = [sys.executable, "-m", "tests.memory", "--soak", "--rounds", "20"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "nothing grows" and done.stdout.count("round ") == 10
