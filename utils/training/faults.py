"""What a training does when something fails: a loss that is not finite, too little memory, a dead loader worker."""

import functools
import gc
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.fabric.utilities import move_data_to_device
from torch.utils.data import DataLoader

from utils.data.loader import dense_labels, stack
from utils.device import Precision, candidates, choose_device
from utils.files import replacing, shown
from utils.models.base import Loss, PaddedModel
from utils.training.losses import NonFiniteLossError, TrainingError, batch_loss
from utils.training.resume import RESUME, RETRY_LR, ResumableModule
from utils.training.settings import Settings, build_trainer

NO_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "CUDNN_STATUS_ALLOC_FAILED")
"""Parts of the messages with which torch says so."""


def explained(fit: Callable) -> Callable:
    """Decorate `fit`: where memory does not suffice or a loader's process has died, its error says what to do.

    Around it and not inside, because an error holds what the failed step had allocated as long as it is handled.
    """

    @functools.wraps(fit)
    def explaining(model, loss, augmentation, optimizer, schedule, data, settings, folder, **options) -> Any:
        try:
            return fit(model, loss, augmentation, optimizer, schedule, data, settings, folder, **options)
        except Exception as error:
            if dead_worker(error):
                raise TrainingError(worker_advice(error, settings.num_workers)) from error
            if not out_of_memory(error):
                raise
            message = str(error).strip().splitlines()[0][:200]
        free_memory()
        network = model if isinstance(model, PaddedModel) else PaddedModel(model, 32)
        device, classes = choose_device(settings.device), len(data.cache.classes)
        raise TrainingError(memory_advice(network, loss, settings, classes, data.side, device, message))

    return explaining


def train_to_the_end(
    module: ResumableModule,
    train: DataLoader,
    validation: DataLoader | None,
    callbacks: Sequence[L.Callback],
    done: int | None,
) -> None:
    """Train by Lightning, after the `done` epochs in the resume file if not None.

    A loss that is not finite is retried once, from the last good epoch on, then raised as TrainingError.
    """
    modes = {each: each.training for each in module.modules()}
    while True:
        train.sampler.set_epoch(done or 0)  # workers draw the first epoch's order before Lightning says which it is
        checkpoint = None if done is None else module.folder / RESUME
        try:
            with warnings.catch_warnings():
                ignored = ".*does not have many workers.*|.*smaller than the logging interval.*|.*treespec.*"
                warnings.filterwarnings("ignore", message=ignored)
                trainer = build_trainer(module.settings, module.folder, callbacks)
                trainer.fit(module, train, validation, ckpt_path=checkpoint, weights_only=True)
            return
        except NonFiniteLossError as error:
            _save_and_explain(module, train, error)
        finally:
            torch.set_flush_denormal(False)
        module.retries += 1
        done = len(module.history)
        for each, training in modes.items():
            each.training = training
        print(f"going back to the end of epoch {done}, and on at {RETRY_LR:g} of the learning rate")


def _save_and_explain(module: ResumableModule, train: DataLoader, error: NonFiniteLossError) -> None:
    """Save the batch whose loss was not finite; raise TrainingError if that was not the first one."""
    batch = module.folder / f"nonfinite-epoch{error.epoch + 1}-batch{error.step + 1}.npz"
    save_batch(batch, train, error.epoch, error.step, error.loss)
    what = f"{error} (saved in {shown(batch)})"
    if module.retries or not module.settings.resumable:
        tried = f", also at {RETRY_LR:g} of the learning rate" if module.retries else ""
        raise TrainingError(
            f"{what}{tried}: try a smaller lr, gradient_clip=1 or precision='32-true', and look at that batch. The "
            "epochs before are kept"
        ) from error
    print(what)


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the memory of the GPU or of this process does not suffice."""
    return isinstance(error, MemoryError) or any(text in str(error) for text in NO_MEMORY)


def dead_worker(error: BaseException) -> bool:
    """Whether an error says that a process of a DataLoader has ended or has failed for want of memory."""
    text = str(error)
    return "DataLoader worker" in text and (out_of_memory(error) or "killed by" in text or "exited unexpect" in text)


def worker_advice(error: BaseException, num_workers: int) -> str:
    """What to do when `dead_worker` is true."""
    return (
        f"one of the num_workers={num_workers} processes that prepare batches died ({str(error).splitlines()[0]}). "
        "Most often memory ran out, or /dev/shm is too small (Docker: --shm-size 8g). The finished "
        "epochs are kept: start the same training again, with a smaller num_workers if it happens again"
    )


def memory_advice(
    model: PaddedModel, loss: Loss, settings: Settings, classes: int, image_size: int, device: torch.device, found: str
) -> str:
    """What fits into the memory after a training ran out of it, found out by real steps on empty images.

    The steps keep as much memory free as averaged weights and Adam's two moments need. found: what torch said. Changes
    the network's gradients and the statistics of its batch norms.
    """
    precision = Precision(candidates(device)[0] if settings.precision == "auto" else settings.precision)
    size = sum(t.numel() * t.element_size() for t in model.state_dict().values())
    held = size * (2 + bool(settings.ema_decay))

    def fits(batch_size: int, side: int) -> bool:
        return step_fits(model, loss, (batch_size, classes, side), precision, device, held)

    smaller = (n for n in range(settings.batch_size - 1, 0, -1) if settings.batch_size % n == 0)
    batch_size = next((n for n in smaller if fits(n, image_size)), 0)
    side = next((side for side in _sides(image_size) if fits(settings.batch_size, side)), 0)
    accumulate = settings.accumulate * settings.batch_size // max(batch_size, 1)
    advice = [
        f"batch_size={batch_size} with accumulate={accumulate} fits, with as many images per optimiser step"
        if batch_size
        else "no smaller batch_size fits",
        f"image_size={side} fits with batch_size={settings.batch_size}" if side else "no smaller image_size fits",
    ]
    return (
        f"out of memory with batch_size={settings.batch_size} at image_size={image_size} ({found}). Tried here: "
        f"{'; '.join(advice)}. A network with fewer channels helps too"
    )


def step_fits(
    model: PaddedModel, loss: Loss, shape: tuple[int, int, int], precision: Precision, device: torch.device, held: int
) -> bool:
    """Whether a step, forward and backward, works beside `held` bytes. shape: batch size, classes, image side."""
    batch_size, classes, side = shape
    label = {"boxes": torch.zeros(batch_size, classes, 4, dtype=torch.int64), "values": torch.zeros(0).byte()}
    batch = {"image": torch.zeros(batch_size, 3, side, side, dtype=torch.uint8), "label": label}
    try:
        rest = torch.empty(held, dtype=torch.uint8, device=device)
        model.to(device).train()
        with precision.computing(device):
            value = batch_loss(model, loss, move_data_to_device(batch, device), precision)
        value.backward()
        return len(rest) == held
    except Exception:  # no memory, or a size that this network can't compute
        return False
    finally:
        model.zero_grad(set_to_none=True)
        free_memory()


def free_memory() -> None:
    """Give back what an ended training still holds."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def save_batch(path: Path, loader: DataLoader, epoch: int, step: int, loss: float) -> None:
    """Write batch `step` (from 0) of an epoch (from 0) as .npz, made again as the training saw it.

    Arrays: image uint8 (N, channels, h, w), label uint8 (N, classes, h, w) with 255 for full coverage, image_name (N,),
    epoch (from 1), batch (from 1), loss.
    """
    loader.sampler.set_epoch(epoch)
    first = step * loader.batch_size
    keys = list(loader.sampler)[first : first + loader.batch_size]
    batch = stack([loader.dataset[key] for key in keys])
    arrays = {"image": batch["image"].numpy(), "label": dense_labels(batch).mul(255).round().byte().numpy()}
    arrays["image_name"] = np.array([loader.dataset.name_of(key) for key in keys])
    with replacing(path) as temporary:
        np.savez_compressed(temporary, epoch=epoch + 1, batch=step + 1, loss=loss, **arrays)


def _sides(image_size: int) -> list[int]:
    """Smaller image sizes to try, multiples of 32 pixels."""
    sides = [int(image_size * share) // 32 * 32 for share in (0.875, 0.75, 0.625, 0.5, 0.375, 0.25)]
    return [side for side in sides if side >= 32]
