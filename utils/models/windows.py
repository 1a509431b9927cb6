"""Sliding windows: a network that was trained on crops sees a larger image in overlapping windows of their size."""

from collections.abc import Callable
from functools import lru_cache

import torch

OVERLAP = 0.5
"""Share of a window that the next one covers again."""
SIGMA = 0.125
"""Standard deviation of the weights, as a share of the window's side."""


@torch.compiler.disable
def sliding_windows(network: Callable[[torch.Tensor], torch.Tensor], image: torch.Tensor, window: int) -> torch.Tensor:
    """The weighted mean of what `network` gives for overlapping windows of an image.

    Logits near a window's border know little of what lies beyond it, so the weights are a Gaussian about the middle
    of the window (standard deviation an eighth of its side, never below a thousandth of the largest weight), and
    windows overlap by a half; the last ones in a row and a column end at the image's border. These are the definitions
    of MONAI's sliding-window inference. Memory: one batch of windows in the network, and the result.

    Args:
        network: maps (N, 3, h, w) to logits (N, classes, h, w).
        image: float (N, 3, H, W).
        window: side of the windows, pixels; where an image is smaller, they are as large as it.

    Returns:
        Float32 logits (N, classes, H, W).
    """
    height, width = image.shape[-2:]
    size = min(window, height), min(window, width)
    weight = (_gaussian(size[0])[:, None] * _gaussian(size[1])).clamp(min=1e-3).to(image.device)
    total, weights = None, torch.zeros(height, width, device=image.device)
    for top in _starts(height, size[0]):
        for left in _starts(width, size[1]):
            part = ..., slice(top, top + size[0]), slice(left, left + size[1])
            logits = network(image[part]).float()
            if total is None:
                total = logits.new_zeros(*logits.shape[:2], height, width)
            total[part] += logits * weight
            weights[part] += weight
    return total.div_(weights)


def _starts(length: int, window: int) -> list[int]:
    """Where windows start along one side."""
    return [*range(0, length - window, max(1, int(window * (1 - OVERLAP)))), length - window]


@lru_cache(maxsize=16)
def _gaussian(length: int) -> torch.Tensor:
    position = torch.arange(length, dtype=torch.float32) - (length - 1) / 2
    return torch.exp(-0.5 * (position / (SIGMA * length)) ** 2)
