"""Optimisers and learning-rate schedules by name; a schedule steps once per optimiser step."""

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
