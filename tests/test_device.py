"""Choosing a GPU: real lock files and real processes, over a list of GPUs that is written to a file."""

import json
import multiprocessing
import os
import signal
import tempfile
import time

import pytest
import torch

from utils import device
from utils.device import Gpu, choose_device, take_gpu
from utils.files import WORKS_FOR, write_json

GIB = 2**30
FORK = multiprocessing.get_context("fork")


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine with three GPUs; `machine(GPU-a=3)` says how many of its 24 GiB are free."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(device, "_held", [])
    memory = tmp_path / "memory.json"

    def set_free(**gib):
        write_json(memory, gib)

    def listed():
        found = json.loads(memory.read_text())
        return [Gpu(index, f"GPU-{name}", int(gib * GIB), 24 * GIB) for index, (name, gib) in enumerate(found.items())]

    set_free.listed = listed
    set_free(a=24, b=24, c=24)
    yield set_free
    for lock in device._held:
        lock.release()


@pytest.fixture
def other(machine, tmp_path):
    """Starts another process that takes a GPU, says which, and keeps it until it is killed."""
    processes = []

    def start(step: str = "03_train/unet/fold0") -> tuple[int, str]:
        said = tmp_path / f"said-{len(processes)}"

        def work():
            os.environ[WORKS_FOR] = step
            gpu = take_gpu(machine.listed, patience=20, pause=0.05)
            said.with_suffix(".part").write_text(gpu.uuid)
            said.with_suffix(".part").rename(said)
            time.sleep(60)

        processes.append(FORK.Process(target=work, daemon=True))
        processes[-1].start()
        end = time.monotonic() + 20
        while not said.exists():
            assert time.monotonic() < end
            time.sleep(0.02)
        return processes[-1].pid, said.read_text()

    yield start
    for process in processes:
        process.kill()
        process.join()


def test_every_process_gets_a_gpu_of_its_own_and_the_emptiest_first(machine, other):
    machine(a=20, b=24, c=22)
    assert [other()[1] for _ in range(3)] == ["GPU-b", "GPU-c", "GPU-a"]


def test_a_held_gpu_is_waited_for_with_a_line_that_says_who_holds_it(machine, other, capsys):
    machine(a=24)
    pid, _ = other("03_train/unet/fold4")
    killer = FORK.Process(target=lambda: (time.sleep(1), os.kill(pid, signal.SIGKILL)))
    killer.start()
    began = time.monotonic()
    assert take_gpu(machine.listed, patience=20, pause=0.05).uuid == "GPU-a"
    assert 0.8 < time.monotonic() - began < 15
    killer.join()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1, "one line, not one per look"
    assert f"waiting for a GPU, 0 minutes at most: GPU-a (24.0 GiB free) is held by process {pid} on" in lines[0]
    assert "03_train/unet/fold4" in lines[0]


def test_memory_that_other_programs_took_counts(machine, capsys):
    machine(a=3, b=23)
    assert take_gpu(machine.listed).uuid == "GPU-b"
    machine(a=3, c=10)
    began = time.monotonic()
    emptied = FORK.Process(target=lambda: (time.sleep(0.5), machine(a=24, c=10)))
    emptied.start()
    assert take_gpu(machine.listed, patience=20, pause=0.05).uuid == "GPU-a"
    assert time.monotonic() - began > 0.4
    emptied.join()
    assert "GPU-c (10.0 GiB free) is taken by another program; GPU-a (3.0 GiB free)" in capsys.readouterr().out


def test_after_the_wait_the_gpu_with_most_memory_is_shared_if_it_has_enough(machine, other, capsys):
    machine(a=24, b=24)
    holders = {uuid: pid for pid, uuid in (other(), other())}
    machine(a=5, b=9)
    gpu = take_gpu(machine.listed, patience=0.3, pause=0.05)
    assert (gpu.uuid, gpu.index) == ("GPU-b", 1)
    assert f"sharing GPU-b, which has most memory left: GPU-b (9.0 GiB free) is held by process {holders['GPU-b']}" in (
        capsys.readouterr().out
    )
    machine(a=1, b=1.5)
    with pytest.raises(RuntimeError, match=r"none has 2 GiB to share: GPU-b .* held by process .*Stop what holds them"):
        take_gpu(machine.listed, patience=0.3, pause=0.05)


def test_one_assigned_gpu_is_taken_as_it_is_and_one_of_several_is_locked(machine, other, monkeypatch):
    other()
    chosen = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(device, "take_gpu", lambda: take_gpu(machine.listed))
    for visible, count, index, locks in (("GPU-a", 1, 0, 0), ("GPU-a,GPU-b", 2, 1, 1), (None, 3, 2, 2)):
        monkeypatch.setattr(torch.cuda, "device_count", lambda count=count: count)
        if visible is None:
            monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
        else:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        device._own_gpu.cache_clear()
        assert choose_device() == choose_device("auto") == torch.device("cuda", index), "once per process"
        assert len(device._held) == locks
    device._own_gpu.cache_clear()
    assert chosen == [0, 1, 2]
