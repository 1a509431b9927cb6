"""A small training in a process of its own, which tests kill or leave little memory: python -m tests.one_training JSON.

sample, cache, folder: paths. kill: [epoch, batch] at which the process kills itself, or [epoch, "write"]: when half of
its resume file is written. memory: bytes that it may use more than before the training, with a network that needs
`per_pixel` bytes for each pixel of a batch. plugin_parts: every part comes from notebooks/plugins/example.py. All else
are settings.
"""

import io
import json
import os
import resource
import signal
import sys
from pathlib import Path

import torch
from torch import nn

from tests.small import fit, small_data
from utils.models import build_model
from utils.registry import build_part, load_plugins
from utils.training.fit import TrainingModule
from utils.training.losses import build_loss
from utils.training.optimizers import build_optimizer, build_schedule


class Hungry(nn.Module):
    """One convolution, and `per_pixel` bytes of memory for each pixel while it computes."""

    def __init__(self, per_pixel: int):
        super().__init__()
        self.conv, self.per_pixel = nn.Conv2d(3, 29, 1), per_pixel

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        needed = torch.ones(image[:, 0].numel() * self.per_pixel, dtype=torch.uint8)
        return self.conv(image) * needed[0]


def plugins_parts() -> dict:
    """The example plugin's parts, as `tests.small.fit` takes them."""
    load_plugins(["notebooks/plugins/example.py"])
    return {
        "model": lambda: build_model("small_net", 29),
        "loss": build_loss("soft_iou"),
        "optimizer": lambda parameters: build_optimizer("radam", parameters, 5e-3, 1e-2),
        "schedule": lambda optimizer: build_schedule("drops", optimizer, 8, 0),
        "augmentation": build_part("augmentation", "wobble", 64),
    }


def kill_at(epoch: int, place: int | str) -> None:
    """Make the training in this process kill it; see above. Epochs and batches count from 0."""
    step, save = TrainingModule.training_step, torch.save

    def until_killed(self, batch, index):
        if (self.current_epoch, index) == (epoch, place):
            os.kill(os.getpid(), signal.SIGKILL)
        return step(self, batch, index)

    def half(checkpoint, file):
        whole = io.BytesIO()
        save(checkpoint, whole)
        killed = place == "write" and len(checkpoint["training"]["history"]) == epoch + 1
        file.write(whole.getvalue()[: len(whole.getvalue()) // (1 + killed)])
        if killed:
            file.flush()
            os.kill(os.getpid(), signal.SIGKILL)

    TrainingModule.training_step, torch.save = until_killed, half


def run(sample, cache, folder, kill=(), memory=0, per_pixel=0, plugin_parts=False, **settings):
    """One training; what `fit` returns."""
    parts = plugins_parts() if plugin_parts else {}
    data = small_data(sample, cache)
    if kill:
        kill_at(*kill)
    if memory:
        parts["model"] = lambda: Hungry(per_pixel)
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + memory, used + memory))
    return fit(data, folder, parts=parts, **settings)


if __name__ == "__main__":
    torch.set_num_threads(1)
    run(**json.loads(sys.argv[1]))
