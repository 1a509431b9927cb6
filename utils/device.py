"""The device and the precision a notebook computes with; a GPU is held by a lock file while the process lives."""

import os
import tempfile
from pathlib import Path

import torch
from filelock import FileLock, Timeout

_held: list[FileLock] = []


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


def choose_precision(precision: str, device: torch.device) -> str:
    """Lightning's name of a precision; "auto" is bfloat16 where the GPU has it, else float16, and float32 on a CPU."""
    if precision != "auto":
        return precision
    if device.type != "cuda":
        return "32-true"
    return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "16-mixed"


def peak_memory() -> float:
    """The largest resident set this process has had so far, in MB."""
    status = Path("/proc/self/status")
    if status.exists():  # Linux: what getrusage says there includes the parent's memory before exec
        return int(status.read_text().partition("VmHWM:")[2].split()[0]) / 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # bytes on macOS
