"""The parts of a training, each built from a notebook's parameters: in one place, for notebook 03 and for the trial of
all parts before a run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import albumentations as A
import torch
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from utils.data.augment import Augmenter, build_augmentation
from utils.data.augmentation import read_augmentation
from utils.data.flip import FlipRule
from utils.models import build_model
from utils.models.base import Loss, PaddedModel
from utils.training.losses import build_loss
from utils.training.optimizers import build_optimizer, build_schedule


@dataclass(frozen=True)
class Parts:
    """What builds the parts that parameters name. Each may be replaced by an object of one's own before `fit`.

    parameters: those of notebook 03, or of one that has some of them. classes: their names. side: of a training sample,
    pixels. flip: whether images may be mirrored, see `data.flip`.
    """

    parameters: Mapping[str, Any]
    classes: Sequence[str]
    side: int
    flip: FlipRule

    def network(self) -> PaddedModel:
        """The network; `init_checkpoint` will replace all its weights, so that none are fetched for its encoder."""
        p = self.parameters
        encoder = p.get("encoder", ""), "" if p.get("init_checkpoint") else p.get("encoder_weights", "")
        options = p.get("model_options", {})
        return build_model(p["architecture"], len(self.classes), *encoder, self.side, **options)

    def loss(self) -> Loss:
        """The loss, a function of logits and labels."""
        return build_loss(self.parameters["loss"])

    def augmentation(self) -> Augmenter | A.Compose:
        """The augmentation of images and labels."""
        p = self.parameters
        amounts = read_augmentation(p.get("augment", {}))
        return build_augmentation(p.get("augmentation", "default"), self.side, amounts, self.flip, self.classes)

    def optimizer(self, network: torch.nn.Module) -> torch.optim.Optimizer:
        """The optimiser of the network's weights; Adam, as the official baseline has it, if no parameter names one."""
        p = self.parameters
        name = p.get("optimizer", "adam")
        return build_optimizer(name, network.parameters(), p["lr"], p.get("weight_decay", 0.0))

    def schedule(
        self, optimizer: torch.optim.Optimizer, steps: tuple[int, int]
    ) -> LRScheduler | ReduceLROnPlateau | None:
        """The schedule of its learning rate, None without one. steps: of the training and of its warm-up."""
        name = self.parameters.get("schedule", "")
        return build_schedule(name, optimizer, *steps) if name else None
