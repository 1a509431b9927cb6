"""Training one member: Lightning runs the loop, every epoch is validated at full size and can be resumed exactly."""

import hashlib
import json
import logging
import math
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import lightning as L
import numpy as np
import pandas as pd
import psutil
import torch
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.loggers import TensorBoardLogger
from torch.optim.swa_utils import AveragedModel

from utils import fullres
from utils.augment import Augmentation, Augmenter
from utils.cache import Cache
from utils.checkpoint import Config, load_weights, read_config, save_checkpoint
from utils.device import choose_precision
from utils.files import interactive, replacing, shown
from utils.loader import normalise, plain_loader, training_loader
from utils.losses import build_loss
from utils.metrics import dice_per_class, dice_table, mean_dice
from utils.models.base import ModelError, PaddedModel, start_from_prior
from utils.predict import to_scores

RESUME = "resume.ckpt"


class TrainingError(RuntimeError):
    """Training can't go on; the message says where it stopped and what to try."""


@dataclass(frozen=True)
class Settings:
    """How a member is trained. Lengths are in epochs; `accumulate` batches make one optimiser step.

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
        """Refuse names that are not known."""
        for name, known in (
            ("optimizer", ("adamw", "adam")),
            ("schedule", ("cosine", "constant")),
            ("upsample", ("probabilities", "logits")),
            ("precision", ("auto", "32-true", "16-mixed", "bf16-mixed")),
        ):
            if getattr(self, name) not in known:
                raise ValueError(f"unknown {name} {getattr(self, name)!r}; known are {', '.join(known)}")


class Member(L.LightningModule):
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
    ):
        super().__init__()
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

    def logits(self, network: PaddedModel, image: torch.Tensor) -> torch.Tensor:
        """Logits (N, classes, h, w) of uint8 images (N, 1 or 3, h, w)."""
        return network(normalise(image, self.config.mean, self.config.std))

    def on_train_epoch_start(self) -> None:
        """Start the epoch's clock and losses."""
        self.losses, self.started = [], time.monotonic()

    def training_step(self, batch: dict[str, torch.Tensor], index: int) -> torch.Tensor:
        """The loss of one batch; what torch draws in it (dropout) derives from (seed, epoch, batch)."""
        draw = np.random.SeedSequence((self.settings.seed, self.current_epoch, index))
        torch.manual_seed(int(draw.generate_state(1)[0]))
        loss = self.loss(self.logits(self.model, batch["image"]), batch["label"].float() / 255)
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
        logits = self.logits(self.validated_model(), batch["image"])
        scores, limit = to_scores(logits, self.settings.threshold, self.settings.upsample)
        for maps, number in zip(scores, batch["index"].tolist(), strict=True):
            entry = self.cache.read(self.names[number])
            masks = fullres.encode_masks(maps, entry.size, limit)
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
        checkpoint["member"] = {"key": self.key, "history": self.history, "best": self.best}

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        """Take up the history where it stopped."""
        self.history, self.best = checkpoint["member"]["history"], checkpoint["member"]["best"]

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


@dataclass(frozen=True)
class Trained:
    """A finished training. score: full-size validation Dice of `best` (NaN without validation images)."""

    score: float
    history: pd.DataFrame
    val_dice: pd.DataFrame
    checkpoint: Path
    minutes: float


def fit(
    config: Config,
    settings: Settings,
    augmentation: Augmentation,
    cache: Cache,
    train: list[str],
    validation: list[str],
    folder: str | Path,
    device: torch.device,
    encoder_weights: str | None = None,
    init_checkpoint: str | Path | None = None,
    on_epoch: Callable[[list[dict]], None] | None = None,
    wandb_project: str = "",
) -> Trained:
    """Train on the images named `train`, validate on `validation` (may be empty), write everything below `folder`.

    Writes best/ and last/ (checkpoint folders), history.csv, val_dice.csv (images × classes of the best epoch), logs/
    (TensorBoard) and, while it runs, resume.ckpt: started again with the same configuration and data, training goes on
    after the last finished epoch with the same numbers as an uninterrupted one (bit for bit on a CPU with a fixed
    number of threads). With anything changed, it starts anew. `on_epoch` gets the history after each epoch.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    torch.manual_seed(settings.seed)
    model = config.build(encoder_weights)
    if init_checkpoint:
        start_from(model, config, init_checkpoint)
    elif settings.start_from_prior:
        start_from_prior(model, class_shares(cache, train))
    loader = training_loader(
        cache, train, Augmenter(augmentation), settings.batch_size, settings.seed, settings.num_workers
    )
    key = _resume_key(
        config, settings, augmentation, cache, [*train, "|", *validation], encoder_weights, init_checkpoint
    )
    resume = _resumable(folder / RESUME, key)
    member = Member(model, config, settings, folder, cache, validation, key, on_epoch or print_epoch)
    trainer = _trainer(settings, folder, device, bool(validation), wandb_project)
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message=".*does not have many workers.*|.*smaller than the logging interval.*"
        )
        trainer.fit(
            member,
            loader,
            plain_loader(cache, validation, settings.batch_size, settings.num_workers) if validation else None,
            ckpt_path=resume,
            weights_only=True,
        )
    member.save("last", member.best if validation else None)
    if not validation:
        member.save("best", None)
    (folder / RESUME).unlink(missing_ok=True)
    scores = folder / "val_dice.csv"
    return Trained(
        score=member.best if validation else float("nan"),
        history=pd.DataFrame(member.history),
        val_dice=pd.read_csv(scores, index_col=0) if validation else pd.DataFrame(columns=config.classes),
        checkpoint=folder / "best",
        minutes=(time.monotonic() - started) / 60,
    )


def warmup_cosine(step: int, warmup: int, steps: int) -> float:
    """Factor of the learning rate: linear up over `warmup` steps, then a cosine down to 0.01 at `steps`."""
    if step < warmup:
        return (step + 1) / (warmup + 1)
    done = min((step - warmup) / max(steps - warmup, 1), 1.0)
    return 0.01 + 0.99 * (1 + math.cos(math.pi * done)) / 2


def class_shares(cache: Cache, names: list[str]) -> torch.Tensor:
    """Mean share of the image's pixels that each class covers, float32 (classes,)."""
    shares = [[patch.sum() / 255 for patch, _ in cache.read(name).label.patches()] for name in names]
    return torch.tensor(np.mean(shares, axis=0) / math.prod(cache.grid), dtype=torch.float32)


def start_from(model: PaddedModel, config: Config, folder: str | Path) -> None:
    """Load an earlier member's weights to fine-tune from, for example at a higher resolution."""
    earlier = read_config(folder)
    for name in ("architecture", "encoder", "classes", "options"):
        if getattr(earlier, name) != getattr(config, name):
            raise ModelError(
                f"init_checkpoint {shown(folder)} has {name} {getattr(earlier, name)!r}, this training "
                f"{getattr(config, name)!r}: they must be the same"
            )
    load_weights(model, folder)


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


def _ema(decay: float) -> Callable:
    """Exponential average whose decay grows to `decay` over the first steps: min(decay, (1 + n) / (10 + n))."""

    def average(averaged: torch.Tensor, current: torch.Tensor, n: torch.Tensor) -> torch.Tensor:
        if not averaged.is_floating_point():  # batch norm's counter
            return current
        return averaged.lerp(current, 1 - min(decay, (1 + float(n)) / (10 + float(n))))

    return average


def _resume_key(
    config: Config, settings: Settings, augmentation: Augmentation, cache: Cache, names: list[str], *more
) -> str:
    """A digest of everything that shapes a training; a resume file with another one is of no use."""
    described = {k: v for k, v in asdict(config).items() if k != "versions"}
    parts = [described, asdict(settings), asdict(augmentation), [str(m or "") for m in more]]
    parts += [[name, cache.signature(name)] if name in cache.sources else name for name in names]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _resumable(path: Path, key: str) -> Path | None:
    """The resume file if it belongs to this training."""
    if not path.exists():
        return None
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True, mmap=True)["member"]
    except Exception as error:  # a damaged file must not cost the night
        print(f"{shown(path)} can't be read ({type(error).__name__}): training starts anew")
        return None
    if saved["key"] != key:
        print(f"{shown(path)} is of a training with other parameters or data: training starts anew")
        return None
    print(f"going on after epoch {len(saved['history'])} of an interrupted training")
    return path


def _trainer(settings: Settings, folder: Path, device: torch.device, validated: bool, wandb_project: str) -> L.Trainer:
    loggers = [TensorBoardLogger(folder, name="logs", version="")]
    if wandb_project:
        loggers.append(_wandb(folder, wandb_project))
    stop_early = settings.early_stopping and validated
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # its banner and hints, not its warnings
    return L.Trainer(
        accelerator="gpu" if device.type == "cuda" else "cpu",
        devices=[device.index or 0] if device.type == "cuda" else 1,
        precision=choose_precision(settings.precision, device),
        max_epochs=settings.epochs,
        accumulate_grad_batches=settings.accumulate,
        gradient_clip_val=settings.gradient_clip or None,
        check_val_every_n_epoch=settings.validate_every,
        callbacks=[EarlyStopping("val_dice", mode="max", patience=settings.early_stopping)] if stop_early else [],
        logger=loggers,
        log_every_n_steps=10,
        num_sanity_val_steps=0,
        enable_checkpointing=False,
        enable_progress_bar=interactive(),
        enable_model_summary=False,
        use_distributed_sampler=False,
    )


def _wandb(folder: Path, project: str):
    try:
        import wandb  # noqa: F401
        from lightning.pytorch.loggers import WandbLogger
    except ImportError as error:
        raise TrainingError(
            f"wandb_project={project!r} needs W&B: pip install wandb, or leave wandb_project empty"
        ) from error
    return WandbLogger(name="-".join(folder.parts[-2:]), project=project, save_dir=folder)
