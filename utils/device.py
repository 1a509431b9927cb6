"""The device and the precision a notebook computes with; a GPU is held by a lock file while the process lives."""

import ctypes
import functools
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from torch import nn

from utils.files import WORKS_FOR, shown

FREE = 0.8
"""Share of a GPU's memory that must be free for it to count as free: other programs take some of it, too."""
LEAST_MEMORY = 2 * 2**30
"""Bytes of free memory without which a GPU is not even shared."""
PATIENCE = 30 * 60
"""Seconds that `auto` waits for a free GPU before it shares one."""

_held: list[FileLock] = []

HALF = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
PRECISIONS = tuple(
    name + layout + compiled
    for compiled in ("", " compile")
    for name in ("32-true", *HALF)
    for layout in ("", " channels_last")
)
"""Names of precisions: Lightning's, each with one of two orders of the feature maps in memory, and compiled or not."""


@dataclass(frozen=True)
class Precision:
    """How a network computes. Made from its name, one of PRECISIONS; ValueError for another.

    lightning: "32-true" (float32), "bf16-mixed" or "16-mixed" (matrix products and convolutions in bfloat16 or float16,
    everything else in float32). channels_last: the channels of one pixel lie beside each other in memory. compile: with
    torch.compile, which takes a minute at the start and needs a C++ compiler; never chosen by itself.
    """

    name: str

    def __post_init__(self) -> None:
        """Refuse unknown names."""
        if self.name not in PRECISIONS:
            raise ValueError(f"unknown precision {self.name!r}; known are auto, {', '.join(PRECISIONS)}")

    @property
    def lightning(self) -> str:
        """Lightning's name."""
        return self.name.partition(" ")[0]

    @property
    def layout(self) -> torch.memory_format:
        """The order of feature maps, and of the images and labels they meet."""
        return torch.channels_last if "channels_last" in self.name else torch.contiguous_format

    def prepare(self, model: nn.Module) -> nn.Module:
        """The network with its weights in this order, compiled where the name says so."""
        tune_process()
        if self.name.endswith(" compile"):
            model.compile()
        return model.to(memory_format=self.layout)

    @contextmanager
    def computing(self, device: torch.device) -> Iterator[None]:
        """The context to run the network in, where Lightning does not."""
        half = HALF.get(self.lightning)
        with denormals_as_zero(), torch.autocast(device.type, half) if half else nullcontext():
            yield


@contextmanager
def denormals_as_zero() -> Iterator[None]:
    """Take numbers below 1e-38 for zero in this thread, while a network is trained or predicts.

    Processors take many times as long for them, and the gradients of a trained network are full of them. Not for the
    whole process: SciPy's KD-tree, for one, steps from 0 to the next larger number, and would never get on.
    """
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


@functools.cache
def tune_process() -> None:
    """Make this process keep its memory, and torch's threads take denormal numbers for zero; call it before they start.

    glibc gives each large tensor back to the system when it is freed and takes zeroed pages again for the next one,
    which was 28 % of the machine's time in notebook 03. Other C libraries have no such setting. A thread inherits how
    it treats denormal numbers from the one that starts it, and torch's threads, which compute nothing but tensors, live
    as long as the process.
    """
    with denormals_as_zero():
        torch.ones(2**20).add_(1)  # large enough for all threads
    if sys.platform == "linux" and hasattr(ctypes.CDLL(None), "mallopt"):
        trim_threshold, top_pad, mmap_threshold = -1, -2, -3  # of malloc.h
        for option, size in ((trim_threshold, 2**31 - 1), (top_pad, 2**26), (mmap_threshold, 2**30)):
            ctypes.CDLL(None).mallopt(option, size)


@dataclass(frozen=True)
class Gpu:
    """A GPU that this process may use. index: torch's. free, total: bytes of its memory, whoever took the rest."""

    index: int
    uuid: str
    free: int
    total: int


def visible_gpus() -> list[Gpu]:
    """The GPUs that CUDA_VISIBLE_DEVICES leaves, in torch's order.

    The driver's command tells the free memory; asking torch would take some 500 MB of every GPU that is asked about.
    """
    free = {}
    query = ["nvidia-smi", "--query-gpu=uuid,memory.free", "--format=csv,noheader,nounits"]
    with suppress(OSError, ValueError, subprocess.SubprocessError):
        lines = subprocess.run(query, capture_output=True, text=True, timeout=60, check=True).stdout.splitlines()
        free = {uuid: int(mib) * 2**20 for uuid, mib in (line.split(",") for line in lines)}
    gpus = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        uuid = f"GPU-{properties.uuid}"
        gpus.append(Gpu(index, uuid, free.get(uuid) or torch.cuda.mem_get_info(index)[0], properties.total_memory))
    return gpus


def take_gpu(gpus: Callable[[], list[Gpu]] = visible_gpus, patience: float = PATIENCE, pause: float = 5.0) -> Gpu:
    """A GPU that nobody uses, held by a lock until this process ends: no other process of this project gets it.

    Waits while all are held, or mostly filled by other programs, and prints by whom; after `patience` seconds, takes
    the one with most free memory, beside its holder. gpus: lists the GPUs anew. pause: seconds between two looks.

    Raises:
        RuntimeError: no GPU is free, and none has LEAST_MEMORY to share; the message says who holds them.
    """
    end, told = time.monotonic() + patience, ""
    while True:
        listed = sorted(gpus(), key=lambda gpu: -gpu.free)
        users = {}
        for gpu in listed:
            lock = FileLock(Path(tempfile.gettempdir()) / f"hand-bone-{gpu.uuid}.lock", mode=0o666)
            try:
                lock.acquire(timeout=0)
            except Timeout:
                users[gpu] = f"held by {_holder(lock) or 'another process'}"
                continue
            if gpu.free >= FREE * gpu.total:
                _write_holder(lock)
                _held.append(lock)
                return gpu
            lock.release()
            users[gpu] = "taken by another program"
        described = "; ".join(f"{g.uuid} ({g.free / 2**30:.1f} GiB free) is {user}" for g, user in users.items())
        if time.monotonic() >= end:
            if listed and listed[0].free >= LEAST_MEMORY:
                print(
                    f"no GPU became free; sharing {listed[0].uuid}, which has most memory left: {described}", flush=True
                )
                return listed[0]
            raise RuntimeError(
                f"no GPU became free in {patience / 60:.0f} minutes, and none has {LEAST_MEMORY / 2**30:.0f} GiB to "
                f"share: {described}. Stop what holds them, name one with device='cuda:N', or use device='cpu'"
            )
        who = ", ".join(users.values())
        if who != told:
            print(f"waiting for a GPU, {(end - time.monotonic()) / 60:.0f} minutes at most: {described}", flush=True)
            told = who
        time.sleep(pause)


def _holder(lock: FileLock) -> str:
    with suppress(OSError):
        return Path(lock.lock_file).read_text(encoding="utf-8", errors="replace").strip()[:200]
    return ""


def _write_holder(lock: FileLock) -> None:
    step = shown(os.environ[WORKS_FOR]) if WORKS_FOR in os.environ else "a notebook"
    with suppress(OSError), Path(lock.lock_file).open("r+", encoding="utf-8") as file:  # only tells who it is
        file.truncate()
        file.write(f"process {os.getpid()} on {socket.gethostname()} ({step})\n")


@functools.cache
def _own_gpu() -> torch.device:
    """The GPU of this process: the one that was assigned to it, else a free one."""
    assigned = torch.cuda.device_count() == 1 and os.environ.get("CUDA_VISIBLE_DEVICES")
    index = 0 if assigned else take_gpu().index
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


def choose_device(device: str = "auto") -> torch.device:
    """`auto`, `cpu`, `cuda` or `cuda:N` as a torch device.

    `auto` takes a GPU that nobody uses (see `take_gpu`), because Snakemake counts GPUs but does not assign them. Where
    CUDA_VISIBLE_DEVICES names several, by number or UUID, it is one of these; where it names one, somebody assigned it,
    and it is taken without a lock. Without any GPU it is the CPU. Raises RuntimeError for a GPU that is not there, and
    where none can be had.
    """
    if device == "cpu" or (device == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise RuntimeError(f"device={device!r}, but torch {torch.__version__} sees no GPU; use device='auto' or 'cpu'")
    if device == "auto":
        return _own_gpu()
    index = torch.device(device).index or 0
    if index >= torch.cuda.device_count():
        raise RuntimeError(f"device={device!r}, but there are {torch.cuda.device_count()} GPUs")
    return torch.device("cuda", index)


def candidates(device: torch.device) -> list[str]:
    """The precisions worth timing on a device, the plain one first: half precision where the hardware has it."""
    if device.type == "cuda":
        half = "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "16-mixed"
        return [half, f"{half} channels_last"]
    names = ["32-true", "32-true channels_last"]
    return names + ["bf16-mixed", "bf16-mixed channels_last"] * has_bfloat16()


def has_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 in hardware (AVX-512 BF16, AMX, or Arm's BF16)."""
    flags = Path("/proc/cpuinfo").read_text(encoding="utf-8") if Path("/proc/cpuinfo").exists() else ""
    return any(name in flags.split() for name in ("avx512_bf16", "amx_bf16", "bf16"))


def usable(name: str, device: torch.device) -> Precision:
    """The precision called `name`, or float32 in the same order of maps where this device lacks its half precision."""
    precision = Precision(name)
    known = {Precision(candidate).lightning for candidate in candidates(device)} | {"32-true"}
    if precision.lightning in known or (precision.lightning == "16-mixed" and device.type == "cuda"):
        return precision
    return Precision(name.replace(precision.lightning, "32-true"))


def peak_memory() -> float:
    """The largest resident set this process has had so far, in MB."""
    status = Path("/proc/self/status")
    if status.exists():  # Linux: what getrusage says there includes the parent's memory before exec
        return int(status.read_text().partition("VmHWM:")[2].split()[0]) / 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # bytes on macOS
