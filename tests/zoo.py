"""What every architecture of the zoo must show; the families' own files call it with one line per architecture."""

import pytest
import torch
from safetensors.torch import load, save

from utils.models import build_model
from utils.models.base import PaddedModel
from utils.training.losses import build_loss

CLASSES = 3
SIZES = ((64, 64), (45, 70))
"""Heights and widths of the images, the second no multiple of anything a network asks for."""


def check_model(name: str, encoder: str | None = None, **options) -> None:
    """Logits of the image's size in training and evaluation, gradients everywhere, the same again from safetensors.

    encoder and options: as in `build_model`, mostly what makes the network small enough for a test.
    """
    torch.manual_seed(0)
    model = build_model(name, CLASSES, encoder, **options)
    images = [torch.randn(2, 3, height, width) for height, width in SIZES]
    for training in (True, False):
        model.train(training)
        with torch.no_grad():
            for image in images:
                logits = model(image)
                assert logits.shape == (2, CLASSES, *image.shape[-2:])
                assert logits.isfinite().all()
    check_gradients(model.train(), images[1])
    again = build_model(name, CLASSES, encoder, **options).eval()
    again.load_state_dict(load(save(model.state_dict())))
    with torch.inference_mode():
        assert torch.equal(again(images[1]), model.eval()(images[1]))


def check_gradients(model: PaddedModel, image: torch.Tensor) -> None:
    """The loss the model trains with reaches every parameter, within three steps.

    The first step alone need not: layers that start at zero hold back those behind them, stochastic depth drops blocks.
    """
    label = (torch.rand(len(image), CLASSES, *image.shape[-2:]) > 0.5).float()
    missed = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert missed
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    for _ in range(3):
        optimizer.zero_grad()
        model.training_loss(image, label, build_loss("bce_dice")).backward()
        wrong = [n for n, p in model.named_parameters() if p.grad is not None and not p.grad.isfinite().all()]
        assert not wrong, f"gradients that are not finite: {wrong[:5]}"
        missed = {name: p for name, p in missed.items() if p.grad is None or not p.grad.any()}
        if not missed:
            return
        optimizer.step()
    raise AssertionError(f"no gradient in {len(missed)} parameters: {list(missed)[:5]}")


def check_parameter_count(
    name: str, classes: int, expected_millions: float, encoder: str | None = None, tolerance: float = 0.02, **options
) -> None:
    """Parameters at full width for `classes` classes, counted without allocating them."""
    with torch.device("meta"):
        model = build_model(name, classes, encoder, **options)
    found = sum(p.numel() for p in model.parameters()) / 1e6
    assert found == pytest.approx(expected_millions, rel=tolerance), f"{name}: {found:.3f} M"


def shapes(size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Two images float (2, 3, size, size) of a disc, a square and a band that overlap, and their labels."""
    y, x = torch.meshgrid(torch.linspace(0, 1, size), torch.linspace(0, 1, size), indexing="ij")
    labels = torch.stack(
        [
            torch.stack(
                [(x - a).hypot(y - b) < 0.34, ((x - b).abs() < 0.28) & ((y - a).abs() < 0.28), (y - c).abs() < 0.22]
            )
            for a, b, c in ((0.32, 0.34, 0.7), (0.66, 0.3, 0.5))
        ]
    ).float()
    images = labels * torch.tensor([1.0, 1.5, 2.0]).view(1, 3, 1, 1) - 0.7
    return images + 0.1 * torch.randn(images.shape, generator=torch.Generator().manual_seed(0)), labels


def check_overfits(
    name: str,
    encoder: str | None = None,
    size: int = 64,
    steps: int = 40,
    lr: float = 2e-3,
    dice: float = 0.9,
    **options,
) -> tuple[PaddedModel, torch.Tensor, torch.Tensor]:
    """After `steps` of Adam on two images of three large shapes, the mean Dice on them is at least `dice`.

    Returns the trained network, the images and their labels.
    """
    torch.manual_seed(0)
    model = build_model(name, CLASSES, encoder, **options).train()
    images, labels = shapes(size)
    optimizer = torch.optim.Adam(model.parameters(), lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.2)
    for _ in range(steps):
        optimizer.zero_grad()
        model.training_loss(images, labels, build_loss("bce_dice")).backward()
        optimizer.step()
        schedule.step()
    with torch.inference_mode():
        predicted = model.eval()(images) > 0
    found = mean_dice(predicted, labels > 0)
    assert found >= dice, f"{name}: Dice {found:.3f} after {steps} steps"
    return model, images, labels


def mean_dice(predicted: torch.Tensor, truth: torch.Tensor) -> float:
    """Mean over images and classes of boolean (N, classes, H, W) masks."""
    both, total = (predicted & truth).sum((2, 3)), predicted.sum((2, 3)) + truth.sum((2, 3))
    return (2 * both / total).mean().item()
