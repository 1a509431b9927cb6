"""Train one fold model: `fit` builds what a training needs; `TrainingModule` is its epochs, validation and saving."""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import albumentations as A
import lightning as L
import numpy as np
import pandas as pd
import torch
from lightning.fabric.utilities import move_data_to_device
from torch import nn
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
from torch.utils.data import Sampler

from utils.data.augment import Augmenter, as_augmenter
from utils.data.fold_data import FoldData
from utils.data.loader import network_input, plain_loader, training_loader
from utils.device import Precision, choose_device, denormals_as_zero
from utils.files import delete_temporary, restore_folder, shown, write_table
from utils.masks import upsampling
from utils.masks.dice import dice_of_masks, dice_table, mean_dice
from utils.masks.masks import Masks
from utils.models.base import Loss, PaddedModel
from utils.models.checkpoint import Config, load_weights, save_checkpoint
from utils.training.faults import explained, train_to_the_end
from utils.training.key import describe_parts, refuse_used_parts, training_key
from utils.training.losses import batch_loss
from utils.training.optimizers import exponential_average, plain_mean
from utils.training.resume import RESUME, ResumableModule, finished, mark_finished, saved_epochs, set_aside
from utils.training.settings import Metric, Settings, Trained, print_epoch
from utils.training.start import build_config, check_parts, load_start, settle_precision


@explained
def fit(
    model: nn.Module,
    loss: Loss,
    augmentation: Augmenter | A.Compose,
    optimizer: torch.optim.Optimizer,
    schedule: LRScheduler | ReduceLROnPlateau | None,
    data: FoldData,
    settings: Settings,
    folder: str | Path,
    *,
    module: "type[TrainingModule] | None" = None,
    metric: Metric = dice_of_masks,
    callbacks: Sequence[L.Callback] = (),
    sampler: Sampler | None = None,
) -> Trained:
    """Train a network on `data.train`, validate it on `data.validation`, and write everything below `folder`.

    Writes best/ and last/ (checkpoint folders), history.csv, val_dice.csv (images × classes of the best epoch), logs/
    (TensorBoard) and, while it runs, resume.ckpt: started again with the same parts, settings and data, training goes
    on after the last finished epoch with the same numbers as an uninterrupted one (bit for bit on a CPU with a fixed
    number of threads). A finished training that is found again is taken up at once. With anything changed, the results
    that are there move to previous/<folder>-<number> beside the folder, and training starts anew; so it does where a
    part of one's own has no `version`, see `training.key`.

    If a loss is not finite, its batch is saved as nonfinite-….npz, and training goes back to the last good epoch, once,
    and on at a tenth of the learning rate; the history's column `retries` says from which epoch on.

    Args:
        model: gives logits, float (N, classes, H, W), for normalised images, float (N, 3, H, W). From `build_model` or
            any module of your own, which is normalised by ImageNet's values unless it has `mean` and `std`.
        loss: any callable (logits, labels) -> scalar; both float32 (N, classes, H, W), labels in [0, 1].
        augmentation: from `build_augmentation`, or any albumentations.Compose that keeps the image's size and uint8.
        optimizer: any torch optimiser over parameters of `model`.
        schedule: any torch scheduler over `optimizer`, or None. It steps once per optimiser step; ReduceLROnPlateau
            gets the metric of each validation, so it needs mode="max".
        data: the images of this fold, from `Run.fold_data`.
        settings: everything else, see `Settings`.
        folder: where results go; made if missing.
        module: a subclass of TrainingModule with methods of your own; None is TrainingModule itself.
        metric: chooses the best epoch, by its mean over the validation images. The config of the checkpoints names it,
            the history has it as val_<name>. Dice is always computed, too.
        callbacks: of Lightning. What is logged for them: val_dice and val_<metric>, then loss and lr.
        sampler: any torch sampler over the rows of `data.train`; None takes each image once per epoch.

    Returns:
        The finished training, with the best epoch's network.

    Raises:
        TypeError, ValueError: parts that do not fit together, or that have been trained before.
        ModelError: an init_checkpoint that does not fit or knows people of the validation images.
        TrainingError: a loss that is not finite, after the retry too, or a metric; logits of another shape than the
            labels; a process that prepares batches has died; memory does not suffice, with what fits.
        DiskFullError: a file does not fit on the disk.
        RuntimeError: a device that is not there.
    """
    started, device, folder = time.monotonic(), choose_device(settings.device), Path(folder)
    network = model if isinstance(model, PaddedModel) else PaddedModel(model, 32)
    network.window, module = data.crop, module or TrainingModule
    check_parts(network, loss, optimizer, schedule, data, sampler)
    parts = {"network": model, "loss": loss, "augmentation": augmentation, "optimizer": optimizer, "schedule": schedule}
    parts |= {"module": module, "metric": metric, "callbacks": list(callbacks), "sampler": sampler}
    described = describe_parts(parts)
    folder.mkdir(parents=True, exist_ok=True)
    delete_temporary(folder)
    for name in ("best", "last"):
        restore_folder(folder / name)

    people = load_start(network, settings, data)
    augmenter = as_augmenter(augmentation)
    settings = settle_precision(network, loss, augmenter, settings, data, device, folder)
    config = build_config(network, metric, settings, data, people)
    training = module(network, loss, optimizer, schedule, data, settings, folder, config, metric)
    training.key = training_key(described, settings, data, network.takes_person)
    if ended := finished(folder, training.key):
        print(f"{shown(folder)} holds this training, finished: nothing is trained again")
        return training.trained(ended["score"], ended["minutes"])
    done = saved_epochs(folder / RESUME, training.key)
    if done is None:
        refuse_used_parts(parts)
        if settings.resumable:
            set_aside(folder)

    size, workers = settings.batch_size, settings.num_workers
    train = training_loader(data, augmenter, size, settings.seed, workers, sampler, device)
    validation = plain_loader(data.cache, training.names, size, workers, data.windows, device)
    train_to_the_end(training, train, validation if training.names else None, callbacks, done)
    score = training.best["dice"] if training.names else math.nan
    training.save("last", training.history[-1]["val_dice"])
    if not training.names:
        training.save("best", math.nan)
    minutes = (time.monotonic() - started) / 60
    if settings.resumable:
        mark_finished(folder, training.key, score, minutes)
    (folder / RESUME).unlink(missing_ok=True)
    return training.trained(score, minutes)


class TrainingModule(ResumableModule):
    """A network with its loss, its averaged weights and its full-size validation; arguments as of `fit`.

    A subclass may override `training_step`, `scores` or `masks`, and every hook of Lightning. config: what its
    checkpoints say.
    """

    def __init__(
        self,
        model: PaddedModel,
        loss: Loss,
        optimizer: torch.optim.Optimizer,
        schedule: LRScheduler | ReduceLROnPlateau | None,
        data: FoldData,
        settings: Settings,
        folder: Path,
        config: Config,
        metric: Metric,
    ):
        super().__init__(optimizer, schedule, settings, folder, f"val_{config.metric}")
        self.computes = Precision(settings.precision)
        self.model, self.loss, self.data, self.metric = self.computes.prepare(model), loss, data, metric
        self.config, self.names = config, data.validation["image_name"].tolist()
        self.average = exponential_average(model, settings.ema_decay) if settings.ema_decay else None
        self.swa = plain_mean(model) if settings.swa_epochs else None

    def on_train_epoch_start(self) -> None:
        """Start the epoch's clock, losses and scores; the last epoch is validated whatever `validate_every` says."""
        self.started, self.losses, self.dice, self.values = time.monotonic(), [], {}, {}
        if self.current_epoch + 1 == self.settings.epochs:
            self.trainer.check_val_every_n_epoch = 1

    def on_train_batch_start(self, batch: object, index: int) -> None:
        """Until the end of the step, denormal numbers are zero; see `utils.device`."""
        torch.set_flush_denormal(True)

    def training_step(self, batch: dict[str, Any], index: int) -> torch.Tensor:
        """The loss of one batch of `training_loader`; what torch draws in it derives from (seed, epoch, batch)."""
        draw = np.random.SeedSequence((self.settings.seed, self.current_epoch, index))
        torch.manual_seed(int(draw.generate_state(1)[0]))  # of dropout
        loss = batch_loss(self.model, self.loss, batch, self.computes)
        self.losses.append(loss.detach())
        if index % 50 == 49:
            self.mean_loss()  # not every step: reading a value makes a GPU wait
        return loss

    def on_train_batch_end(self, outputs: object, batch: object, index: int) -> None:
        """Average the weights after each optimiser step, and at the end of each of the last epochs."""
        if self.average is not None and self.global_step > self.average.updates:
            self.average.update(self.model)
        last = self.current_epoch >= self.settings.epochs - self.settings.swa_epochs
        if self.swa is not None and last and index + 1 == self.trainer.num_training_batches:
            self.swa.update(self.model)
        torch.set_flush_denormal(False)

    def validated_model(self) -> PaddedModel:
        """The network that is validated and saved: the averaged one where there is one."""
        if self.swa is not None and self.swa.updates:
            return self.swa.module
        return self.average.module if self.average is not None else self.model

    def on_validation_epoch_start(self) -> None:
        """Stop here if the loss is not finite: what follows would be worth nothing."""
        self.mean_loss()
        self.validated_model().eval()

    def validation_step(self, batch: dict[str, torch.Tensor], index: int) -> None:
        """Dice and metric of each image at full size."""
        for name, masks in self.full_size(self.validated_model(), batch, self.names):
            truth = self.data.truth(name)
            self.dice[name] = dice_of_masks(masks, truth)
            self.values[name] = float(np.mean(self.metric(masks, truth)))

    def full_size(
        self, model: nn.Module, batch: dict[str, torch.Tensor], names: Sequence[str]
    ) -> Iterator[tuple[str, Masks]]:
        """Name and full-size masks of each image of a batch of `plain_loader`, which has them from `names`."""
        with denormals_as_zero():
            model_input = network_input(
                batch, self.model.mean, self.model.std, self.model.takes_person, self.computes.layout
            )
            scores, limit = self.scores(model(model_input).float())
        for maps, number in zip(scores.cpu().numpy(), batch["index"].tolist(), strict=True):
            yield names[number], self.masks(names[number], maps, limit)

    def scores(self, logits: torch.Tensor) -> tuple[torch.Tensor, float]:
        """What of the logits, (N, classes, h, w), is upsampled to full size, and above which limit a pixel is mask."""
        return logits.sigmoid(), self.settings.threshold

    def masks(self, name: str, scores: np.ndarray, limit: float) -> Masks:
        """The full-size masks of the judged classes from an image's scores, float32 (classes, h, w)."""
        size = self.data.cache.read(name).size
        if self.data.windows is not None:
            return self.data.windows.masks(name, scores, size, limit)
        return upsampling.upsample_masks(scores, size, limit)

    def on_validation_epoch_end(self) -> None:
        """Tell callbacks and loggers what the epoch is worth."""
        self.log("val_dice", mean_dice(dice_table(self.dice, self.data.judged)))
        if self.column != "val_dice":
            self.log(self.column, float(np.mean(list(self.values.values()))))

    def on_train_epoch_end(self) -> None:
        """Add the epoch to the history; save the state, and the network where it is the best so far."""
        row = {
            "epoch": self.current_epoch + 1,
            "of": self.settings.epochs,
            "loss": self.mean_loss(),
            "val_dice": mean_dice(dice_table(self.dice, self.data.judged)),
            "lr": self.rate(),
            "seconds": time.monotonic() - self.started,
            "retries": self.retries,
        }
        if self.column != "val_dice":
            row[self.column] = float(np.mean(list(self.values.values()))) if self.values else math.nan
        self.log_dict({"loss": row["loss"], "lr": row["lr"]})
        images = {name: dice.tolist() for name, dice in self.dice.items()}
        if self.keep(row, images):
            self.save_best()
        (self.settings.on_epoch or print_epoch)(self.history)

    def save_best(self) -> None:
        """Write the validated network as the best one, and its Dice of each image and class."""
        self.save("best", self.best["dice"])
        write_table(self.folder / "val_dice.csv", dice_table(self.best["images"], self.data.judged))

    def save(self, name: str, score: float) -> None:
        """Write the validated network as the checkpoint folder `name`. score: its validation Dice, NaN for none."""
        thresholds = [self.settings.threshold] * len(self.config.classes)
        score = score if math.isfinite(score) else None
        config = replace(self.config, thresholds=thresholds, epoch=len(self.history), score=score)
        save_checkpoint(self.folder / name, self.validated_model(), config)

    @torch.inference_mode()
    def predict(self, names: Sequence[str]) -> Iterator[tuple[str, Masks]]:
        """Name and full-size masks of each image of the cache, by the network as it is, made as validation does."""
        device, size = choose_device(self.settings.device), self.settings.batch_size
        model = self.model.to(device).eval()
        for batch in plain_loader(self.data.cache, names, size, 0, self.data.windows, device):
            with self.computes.computing(device):  # all of the batch: between yields, autocast would be the caller's
                made = list(self.full_size(model, move_data_to_device(batch, device), names))
            yield from made
        model.cpu()

    def trained(self, score: float, minutes: float) -> Trained:
        """What the finished training left in its folder. score: Dice of the best epoch."""
        load_weights(self.model.cpu(), self.folder / "best")
        self.model._compiled_call_impl = None  # whoever uses it next does so on the CPU
        none = pd.DataFrame(columns=self.data.judged)
        return Trained(
            score=score,
            model=self.model.eval(),
            history=pd.read_csv(self.folder / "history.csv", float_precision="round_trip"),
            val_dice=none if math.isnan(score) else pd.read_csv(self.folder / "val_dice.csv", index_col=0),
            checkpoint=self.folder / "best",
            minutes=minutes,
            predict=self.predict,
        )
