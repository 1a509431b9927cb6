"""The line that a training prints after each epoch."""

import math

import numpy as np
import psutil
import torch


def print_epoch(history: list[dict]) -> None:
    """One log line for the last epoch."""
    row = history[-1]
    left = row["of"] - row["epoch"]
    seconds = np.median([r["seconds"] for r in history])
    dice = "" if math.isnan(row["val_dice"]) else f"  val Dice {row['val_dice']:.4f}"
    print(
        f"epoch {row['epoch']:>3}/{row['of']}  loss {row['loss']:.4f}{dice}  lr {row['lr']:.1e}  {row['seconds']:.0f} s"
        f"  {left * seconds / 60:.0f} min left  {_peak_memory()}",
        flush=True,
    )


def _peak_memory() -> str:
    if torch.cuda.is_available():
        return f"GPU peak {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB"
    return f"memory {psutil.Process().memory_info().rss / 2**30:.1f} GiB"
