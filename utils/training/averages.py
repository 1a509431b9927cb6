"""Averages of a network's weights over a training: exponential (EMA), or the plain mean of the last epochs (SWA)."""

from collections.abc import Callable

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel


def exponential_average(model: nn.Module, decay: float) -> AveragedModel:
    """An average that `update_parameters` moves towards the network by 1 - min(decay, (1 + n) / (10 + n)), n steps in.

    Lightning's EMAWeightAveraging has a fixed decay, and keeps its weights where exact resume does not find them.
    """
    return _average(model, lambda n: 1 - min(decay, (1 + n) / (10 + n)))


def plain_mean(model: nn.Module) -> AveragedModel:
    """The mean of the network's weights at each call of `update_parameters`."""
    return _average(model, lambda n: 1 / (n + 1))


def _average(model: nn.Module, share: Callable[[float], float]) -> AveragedModel:
    """A copy of the network that moves towards it by `share(n)` of the way at its update n; the first one copies."""

    def move(averaged: list[torch.Tensor], current: list[torch.Tensor], n: torch.Tensor) -> None:
        if averaged[0].is_floating_point():
            torch._foreach_lerp_(averaged, current, share(float(n)))
        else:  # batch norm's counters
            torch._foreach_copy_(averaged, current)

    average = AveragedModel(model, multi_avg_fn=move, use_buffers=True)
    average.requires_grad_(False)
    return average
