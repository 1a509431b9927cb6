r"""One part of each kind, to copy from. Use them by name:

    papermill notebooks/03_train.ipynb outputs/try/mine.ipynb -p plugins '[notebooks/plugins/example.py]' \
        -p architecture small_net -p loss "bce + 0.5*soft_iou" -p augmentation wobble -p optimizer radam

or in a profile: `parameters: {plugins: [notebooks/plugins/example.py]}`.
"""

import albumentations as A
import torch
import ttach
from torch import nn
from torchvision.ops.misc import Conv2dNormActivation

from utils.inference.exportable import ExportFormat, torch_runner
from utils.registry import (
    register_augmentation,
    register_export,
    register_loss,
    register_model,
    register_optimizer,
    register_schedule,
    register_tta,
)


@register_model("small_net", family="mine")
def small_net(classes, width=16):
    """Three convolutions on a quarter of the resolution; `model_options: {width: 32}` makes it wider."""
    return nn.Sequential(
        Conv2dNormActivation(3, width, 3, stride=4),
        Conv2dNormActivation(width, width, 3, dilation=2),
        nn.Conv2d(width, classes, 1),
        nn.Upsample(scale_factor=4, mode="bilinear"),
    )


@register_loss("soft_iou")
def soft_iou(logits, labels):
    """1 - IoU of each class over the batch, on soft labels."""
    probabilities = logits.sigmoid()
    both = (probabilities * labels).sum((0, 2, 3))
    either = (probabilities + labels - probabilities * labels).sum((0, 2, 3))
    return (1 - (both + 1) / (either + 1)).mean()


@register_augmentation("wobble")
def wobble(image_size):
    """Image and labels together; leave out Normalize and ToTensorV2, which training does itself."""
    return A.Compose(
        [
            A.HorizontalFlip(p=0.5),
            A.Affine(rotate=(-15, 15), scale=(0.9, 1.1)),
            A.GridDistortion(num_steps=4, distort_limit=0.1, p=0.5),
            A.RandomGamma(p=0.5),
        ]
    )


@register_optimizer("radam")
def radam(parameters, lr, weight_decay):
    """Adam that warms itself up (Liu et al. 2020)."""
    return torch.optim.RAdam(parameters, lr=lr, weight_decay=weight_decay, decoupled_weight_decay=True)


@register_schedule("drops")
def drops(optimizer, steps, warmup_steps):
    """A tenth after two thirds of the training, and again after five sixths."""
    return torch.optim.lr_scheduler.MultiStepLR(optimizer, [steps * 2 // 3, steps * 5 // 6], gamma=0.1)


@register_tta("brighter")
def brighter(side):
    """Mirror images, as they are and a little brighter."""
    return [ttach.HorizontalFlip(), ttach.Multiply([1.0, 1.1])]


@register_export("pt2")
class Program(ExportFormat):
    """torch.export's own file, for any number of images; notebook 10 writes it with `-p formats '[pt2]'`."""

    file = "model.pt2"

    def write(self, job, path):
        """From the network and an example of its input."""
        shapes = {"image": {0: torch.export.Dim.DYNAMIC}}
        torch.export.save(torch.export.export(job.network, (job.example,), dynamic_shapes=shapes), path)

    def runner(self, path, network, threads):
        """The function that runs the file."""
        return torch_runner(torch.export.load(path).module())
