"""The device and the precision a notebook computes with; a GPU is held by a lock file while the process lives."""

import ctypes
import functools
import os
import sys
import tempfile
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from torch import nn

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

    def autocast(self, device: torch.device) -> AbstractContextManager:
        """The context to run the network in, where Lightning does not."""
        half = HALF.get(self.lightning)
        return torch.autocast(device.type, half) if half else nullcontext()


@functools.cache
def tune_process() -> None:
    """Make this process keep its memory and take denormal numbers for zero; call it before torch starts its threads.

    glibc gives each large tensor back to the system when it is freed and takes zeroed pages again for the next one,
    which was 28 % of the machine's time in notebook 03. Other C libraries have no such setting. Processors take many
    times as long for numbers below 1e-38, which the gradients of a trained network are full of; a thread inherits the
    setting from the one that starts it, and torch's threads live as long as the process.
    """
    torch.set_flush_denormal(True)
    if sys.platform == "linux" and hasattr(ctypes.CDLL(None), "mallopt"):
        trim_threshold, top_pad, mmap_threshold = -1, -2, -3  # of malloc.h
        for option, size in ((trim_threshold, 2**31 - 1), (top_pad, 2**26), (mmap_threshold, 2**30)):
            ctypes.CDLL(None).mallopt(option, size)


def choose_device(device: str = "auto") -> torch.device:
    """`auto`, `cpu`, `cuda` or `cuda:N` as a torch device.

    `auto` takes the first GPU that no other process of this project holds: Snakemake counts GPUs but does not assign
    them. Where CUDA_VISIBLE_DEVICES is set, somebody already assigned one and the first visible is taken. Raises
    RuntimeError for a GPU that is not there, or when all are taken.
    """
    if device == "auto" and not torch.cuda.is_available():
        return torch.device("cpu")
    if device == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise RuntimeError(f"device={device!r}, but torch {torch.__version__} sees no GPU; use device='auto' or 'cpu'")
    if device != "auto":
        index = torch.device(device).index or 0
        if index >= torch.cuda.device_count():
            raise RuntimeError(f"device={device!r}, but there are {torch.cuda.device_count()} GPUs")
        return torch.device("cuda", index)
    if _held or os.environ.get("CUDA_VISIBLE_DEVICES"):
        return torch.device("cuda", torch.cuda.current_device())
    for index in range(torch.cuda.device_count()):
        lock = FileLock(Path(tempfile.gettempdir()) / f"bones-gpu{index}.lock", mode=0o666)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            continue
        _held.append(lock)
        torch.cuda.set_device(index)
        return torch.device("cuda", index)
    raise RuntimeError(
        f"all {torch.cuda.device_count()} GPUs are held by other notebooks; wait, or name one with device='cuda:N'"
    )


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
