"""Optimisers and learning-rate schedules by name, and averages of the weights over a training."""

import copy
import math
from collections.abc import Callable, Iterable

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, ReduceLROnPlateau

from utils.registry import build_part, register_optimizer, register_schedule


@register_optimizer("adamw")
def adamw(parameters: Iterable[nn.Parameter], lr: float, weight_decay: float) -> torch.optim.Optimizer:
    """AdamW (Loshchilov, Hutter 2019)."""
    return torch.optim.AdamW(parameters, lr=lr, weight_decay=weight_decay, fused=True)


@register_optimizer("adam")
def adam(parameters: Iterable[nn.Parameter], lr: float, weight_decay: float) -> torch.optim.Optimizer:
    """Adam with its weight decay in the gradient, as the official baseline has it."""
    return torch.optim.Adam(parameters, lr=lr, weight_decay=weight_decay, fused=True)


@register_optimizer("sgd")
def sgd(parameters: Iterable[nn.Parameter], lr: float, weight_decay: float) -> torch.optim.Optimizer:
    """Stochastic gradient descent with Nesterov momentum 0.9."""
    return torch.optim.SGD(parameters, lr=lr, momentum=0.9, nesterov=True, weight_decay=weight_decay, fused=True)


@register_schedule("cosine")
def cosine(optimizer: torch.optim.Optimizer, steps: int, warmup_steps: int) -> LRScheduler:
    """Linear warm-up, then a cosine down to 1 % of the peak."""
    return _after_warmup(optimizer, steps, warmup_steps, lambda done: 0.01 + 0.99 * (1 + math.cos(math.pi * done)) / 2)


@register_schedule("polynomial")
def polynomial(optimizer: torch.optim.Optimizer, steps: int, warmup_steps: int) -> LRScheduler:
    """Linear warm-up, then (1 - done)^0.9 down to zero, as DeepLab is trained (Chen et al. 2018)."""
    return _after_warmup(optimizer, steps, warmup_steps, lambda done: (1 - done) ** 0.9)


@register_schedule("constant")
def constant(optimizer: torch.optim.Optimizer, steps: int, warmup_steps: int) -> LRScheduler:
    """Linear warm-up, then always the peak."""
    return _after_warmup(optimizer, steps, warmup_steps, lambda done: 1.0)


@register_schedule("plateau")
def plateau(optimizer: torch.optim.Optimizer, steps: int, warmup_steps: int) -> ReduceLROnPlateau:
    """A tenth of the learning rate after five validations without a better Dice; no warm-up."""
    return ReduceLROnPlateau(optimizer, mode="max", factor=0.1, patience=5)


def build_optimizer(
    name: str, parameters: Iterable[nn.Parameter], lr: float, weight_decay: float
) -> torch.optim.Optimizer:
    """The registered optimiser `name` over a network's parameters; UnknownPart where there is none."""
    return build_part("optimizer", name, parameters, lr, weight_decay)


def build_schedule(name: str, optimizer: torch.optim.Optimizer, steps: int, warmup_steps: int) -> LRScheduler:
    """The registered schedule `name`; lengths are in optimiser steps; UnknownPart where there is none."""
    return build_part("schedule", name, optimizer, steps, warmup_steps)


def _after_warmup(
    optimizer: torch.optim.Optimizer, steps: int, warmup_steps: int, factor: Callable[[float], float]
) -> LambdaLR:
    """Linear up over `warmup_steps`, then `factor` of the share of the remaining steps that is done, 0 to 1."""

    def of_step(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / (warmup_steps + 1)
        return factor(min((step - warmup_steps) / max(steps - warmup_steps, 1), 1.0))

    return LambdaLR(optimizer, of_step)


def exponential_average(model: nn.Module, decay: float) -> "WeightAverage":
    """An average (EMA) that moves towards the network by 1 - min(decay, (1 + n) / (10 + n)) at its update n.

    Lightning's EMAWeightAveraging has a fixed decay, and keeps its weights where exact resume does not find them.
    """
    return WeightAverage(model, lambda n: 1 - min(decay, (1 + n) / (10 + n)))


def plain_mean(model: nn.Module) -> "WeightAverage":
    """The mean (SWA) of the network's weights at each update."""
    return WeightAverage(model, lambda n: 1 / (n + 1))


class WeightAverage(nn.Module):
    """A copy of a network, `module`, that moves towards it by `share(n)` of the way at update n; the first one copies.

    updates: their number. It is no tensor, as in torch's AveragedModel: reading one makes a GPU wait at every step.
    """

    def __init__(self, model: nn.Module, share: Callable[[int], float]):
        super().__init__()
        self.module, self.share, self.updates = copy.deepcopy(model).requires_grad_(False), share, 0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move parameters and buffers; batch norm's counters are copied."""
        pairs = list(zip(_tensors(self.module), _tensors(model), strict=True))
        moved = [(mine, its) for mine, its in pairs if self.updates and mine.is_floating_point()]
        copied = [(mine, its) for mine, its in pairs if not (self.updates and mine.is_floating_point())]
        if moved:
            torch._foreach_lerp_(*map(list, zip(*moved, strict=True)), self.share(self.updates))
        if copied:
            torch._foreach_copy_(*map(list, zip(*copied, strict=True)))
        self.updates += 1

    def get_extra_state(self) -> int:
        """The number of updates, for `state_dict`."""
        return self.updates

    def set_extra_state(self, state: int) -> None:
        """Take up the number of updates."""
        self.updates = state


def _tensors(model: nn.Module) -> list[torch.Tensor]:
    return [*model.parameters(), *model.buffers()]
