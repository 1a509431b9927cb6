"""A fold model while it trains: settings, loss, averaged weights and full-size validation, as a Lightning module."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import lightning as L
import numpy as np
import pandas as pd
import torch
from torch.optim.swa_utils import AveragedModel

from utils.data.cache import Cache
from utils.data.loader import normalise
from utils.files import replacing
from utils.masks import upsampling
from utils.masks.dice import dice_per_class, dice_table, mean_dice
from utils.masks.upsampling import to_scores
from utils.models.base import PaddedModel
from utils.models.checkpoint import Config, save_checkpoint
from utils.training.losses import build_loss

RESUME = "resume.ckpt"


class TrainingError(RuntimeError):
    """Training can't go on; the message says where it stopped and what to try."""


@dataclass(frozen=True)
class Settings:
    """How a fold model is trained. Lengths are in epochs; `accumulate` batches make one optimiser step.

    ema_decay: of the averaged weights that are validated and saved, warmed up from 0.1 so that short trainings profit;
    0 switches averaging off. early_stopping: epochs without a better validation Dice, 0 for never. gradient_clip: norm,
    0 for none. precision: see `device.choose_precision`. upsample: what is brought to full size in validation; the
    official baseline takes logits, everything else here probabilities. start_from_prior: see `models.base`.
    """

    epochs: int = 30
    batch_size: int = 8
    lr: float = 1e-3
    weight_decay: float = 1e-2
    warmup_epochs: float = 1.0
    loss: str = "bce_dice"
    optimizer: str = "adamw"
    ema_decay: float = 0.99
    accumulate: int = 1
    gradient_clip: float = 0.0
    early_stopping: int = 0
    validate_every: int = 1
    precision: str = "auto"
    num_workers: int = 0
    threshold: float = 0.5
    seed: int = 0
    schedule: str = "cosine"
    upsample: str = "probabilities"
    start_from_prior: bool = True

    def __post_init__(self) -> None:
        """Refuse names that are not known, before any data is read."""
        build_loss(self.loss)
        for name, known in (
            ("optimizer", ("adamw", "adam")),
            ("schedule", ("cosine", "constant")),
            ("upsample", ("probabilities", "logits")),
            ("precision", ("auto", "32-true", "16-mixed", "bf16-mixed")),
        ):
            if getattr(self, name) not in known:
                raise ValueError(f"unknown {name} {getattr(self, name)!r}; known are {', '.join(known)}")


class TrainingModule(L.LightningModule):
    """A network with its loss, its averaged weights and its full-size validation."""

    def __init__(
        self,
        model: PaddedModel,
        config: Config,
        settings: Settings,
        folder: Path,
        cache: Cache,
        names: list[str],
        key: str,
        on_epoch: Callable[[list[dict]], None],
        resumable: bool = True,
    ):
        super().__init__()
        self.resumable = resumable
        self.key, self.on_epoch = key, on_epoch
        self.model, self.config, self.settings, self.folder = model, config, settings, folder
        self.cache, self.names = cache, names  # of the validation images
        self.loss = build_loss(settings.loss)
        self.average = (
            AveragedModel(model, avg_fn=_ema(settings.ema_decay), use_buffers=True) if settings.ema_decay else None
        )
        if self.average is not None:
            self.average.requires_grad_(False)
        self.history: list[dict] = []
        self.best = -1.0
        self.losses: list[torch.Tensor] = []
        self.rows: dict[str, np.ndarray] = {}

    def validated_model(self) -> PaddedModel:
        """The network that is validated and saved: the averaged one where there is one."""
        return self.average.module if self.average is not None else self.model

    def on_train_epoch_start(self) -> None:
        """Start the epoch's clock and losses."""
        self.losses, self.started = [], time.monotonic()

    def training_step(self, batch: dict[str, torch.Tensor], index: int) -> torch.Tensor:
        """The loss of one batch; what torch draws in it (dropout) derives from (seed, epoch, batch)."""
        draw = np.random.SeedSequence((self.settings.seed, self.current_epoch, index))
        torch.manual_seed(int(draw.generate_state(1)[0]))
        image = normalise(batch["image"], self.config.mean, self.config.std)
        loss = self.model.training_loss(image, batch["label"].float() / 255, self.loss)
        self.losses.append(loss.detach())
        if index % 50 == 49:
            self._mean_loss()  # not every step: reading a value makes a GPU wait
        return loss

    def on_train_batch_end(self, *_: object) -> None:
        """Average the weights after each optimiser step."""
        if self.average is not None and self.global_step > int(self.average.n_averaged):
            self.average.update_parameters(self.model)

    def on_validation_epoch_start(self) -> None:
        """Forget the last epoch's scores."""
        self._mean_loss()
        self.rows = {}
        self.validated_model().eval()

    def validation_step(self, batch: dict[str, torch.Tensor], index: int) -> None:
        """Full-size Dice of each image: sigmoid at network resolution, bilinear upsampling, threshold."""
        logits = self.validated_model()(normalise(batch["image"], self.config.mean, self.config.std))
        scores, limit = to_scores(logits, self.settings.threshold, self.settings.upsample)
        for maps, number in zip(scores, batch["index"].tolist(), strict=True):
            entry = self.cache.read(self.names[number])
            masks = upsampling.encode_masks(maps, entry.size, limit)
            self.rows[self.names[number]] = dice_per_class(masks, entry.truth)

    def on_validation_epoch_end(self) -> None:
        """Keep the best weights with their scores."""
        table = dice_table(self.rows, self.config.classes)
        score = mean_dice(table)
        self.log("val_dice", score)
        if score > self.best:
            self.best = score
            self.save("best", score)
            with replacing(self.folder / "val_dice.csv") as temporary:
                table.to_csv(temporary)

    def on_train_epoch_end(self) -> None:
        """Add the epoch to the history, on disk too, and save what a resumed training needs."""
        loss = self._mean_loss()
        validated = bool(self.rows) and (self.current_epoch + 1) % self.settings.validate_every == 0
        row = {
            "epoch": self.current_epoch + 1,
            "of": self.settings.epochs,
            "loss": loss,
            "val_dice": mean_dice(dice_table(self.rows, self.config.classes)) if validated else float("nan"),
            "lr": self.optimizers().param_groups[0]["lr"],
            "seconds": time.monotonic() - self.started,
        }
        self.history.append(row)
        self.log("loss", loss)
        self.log("lr", row["lr"])
        with replacing(self.folder / "history.csv") as temporary:
            pd.DataFrame(self.history).to_csv(temporary, index=False)
        if self.resumable:
            self.trainer.save_checkpoint(self.folder / RESUME)
        self.on_epoch(self.history)

    def configure_optimizers(self) -> dict:
        """AdamW, warmed up linearly, then a cosine down to 1 % of `lr`; the baseline's Adam stays constant."""
        settings = self.settings
        kind = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}[settings.optimizer]
        optimizer = kind(self.model.parameters(), lr=settings.lr, weight_decay=settings.weight_decay)
        if settings.schedule == "constant":
            return {"optimizer": optimizer}
        steps = int(self.trainer.estimated_stepping_batches)
        warmup = round(settings.warmup_epochs * steps / settings.epochs)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: warmup_cosine(step, warmup, steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        """What Lightning would forget."""
        checkpoint["fold model"] = {"key": self.key, "history": self.history, "best": self.best}

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        """Take up the history where it stopped."""
        self.history, self.best = checkpoint["fold model"]["history"], checkpoint["fold model"]["best"]

    def _mean_loss(self) -> float:
        loss = torch.stack(self.losses).mean().item()
        if not math.isfinite(loss):
            raise TrainingError(
                f"{self.settings.loss} became {loss} in epoch {self.current_epoch + 1}: try a smaller lr, "
                "gradient_clip=1 or precision='32-true'. The epochs before are kept."
            )
        return loss

    def save(self, name: str, score: float | None) -> None:
        """Write the validated network as the checkpoint folder `name`."""
        config = replace(
            self.config,
            thresholds=[self.settings.threshold] * len(self.config.classes),
            epoch=self.current_epoch + 1,
            score=score,
        )
        save_checkpoint(self.folder / name, self.validated_model(), config)


def warmup_cosine(step: int, warmup: int, steps: int) -> float:
    """Factor of the learning rate: linear up over `warmup` steps, then a cosine down to 0.01 at `steps`."""
    if step < warmup:
        return (step + 1) / (warmup + 1)
    done = min((step - warmup) / max(steps - warmup, 1), 1.0)
    return 0.01 + 0.99 * (1 + math.cos(math.pi * done)) / 2


def _ema(decay: float) -> Callable:
    """Exponential average whose decay grows to `decay` over the first steps: min(decay, (1 + n) / (10 + n))."""

    def average(averaged: torch.Tensor, current: torch.Tensor, n: torch.Tensor) -> torch.Tensor:
        if not averaged.is_floating_point():  # batch norm's counter
            return current
        return averaged.lerp(current, 1 - min(decay, (1 + float(n)) / (10 + float(n))))

    return average
