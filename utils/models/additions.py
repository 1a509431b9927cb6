"""What smp's networks may be given besides: logits of coarser scales that are trained too, and what is known of the
person."""

from typing import Any

import numpy as np
import torch
from torch import nn

from utils.models.base import Loss, ModelError
from utils.models.blocks import halved_supervision

SUPERVISED = ("unet", "unetplusplus", "manet", "linknet")
"""The decoders of `models.smp` that deep supervision fits."""
VALUES = 4
"""Values of a person; as many marks of what is known follow them, see `utils.data.people.person_values`."""
HIDDEN = 32
FORGOTTEN = 0.1
"""Share of training images whose person is left out, so that the network learns what to do without."""


class DeeplySupervised(nn.Module):
    """An smp network whose decoder gives logits at 1/2, 1/4 and 1/8 of the image's size as well, while it is trained.

    A 1 × 1 convolution makes them from the outputs of the decoder's blocks; of U-Net++'s, from the nodes x_0_i. As in
    nnU-Net, the coarsest block is not trained and each scale has half the weight of the finer one; see
    `blocks.halved_supervision`. `forward` is the network's own: predictions cost nothing more.

    network: one with encoder, decoder.blocks and segmentation_head. side: of an image that it takes, pixels. Raises
    ModelError for a decoder without such blocks.
    """

    def __init__(self, network: nn.Module, classes: int, side: int):
        super().__init__()
        self.heads = nn.ModuleList()  # first: `start_from_prior` takes the model's last layer for its output
        self.network = network.eval()
        with torch.no_grad():
            maps = self._run(torch.zeros(1, 3, side, side))[1]
        network.train()
        self.heads.extend(nn.Conv2d(level.shape[1], classes, 1) for level in maps)

    @property
    def encoder(self) -> nn.Module:
        """The network's encoder."""
        return self.network.encoder

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Float (N, 3, H, W) to logits (N, classes, H, W)."""
        return self.network(image)

    def training_loss(self, image: torch.Tensor, label: torch.Tensor, loss: Loss) -> torch.Tensor:
        """The weighted mean of `loss` at the image's size and at each scale."""
        logits, maps = self._run(image)
        scales = [head(level) for head, level in zip(self.heads, maps, strict=True)]
        return halved_supervision([logits, *scales], label, loss)

    def _levels(self) -> list[nn.Module]:
        """The decoder's blocks whose outputs are trained, the finest first."""
        decoder = getattr(self.network, "decoder", None)
        blocks = getattr(decoder, "blocks", None)
        if isinstance(blocks, nn.ModuleDict):  # U-Net++
            blocks = [blocks[f"x_0_{depth}"] for depth in range(decoder.depth + 1)]
        if blocks is None or len(blocks) < 3:
            found = type(decoder).__name__
            raise ModelError(f"deep_supervision: {found} has no blocks of several scales; take {', '.join(SUPERVISED)}")
        return list(blocks)[-2:0:-1]

    def _run(self, image: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Logits, and the outputs of `_levels`."""
        found: dict[nn.Module, torch.Tensor] = {}

        def keep(block: nn.Module, _: Any, made: torch.Tensor) -> None:
            found[block] = made

        levels = self._levels()
        hooks = [level.register_forward_hook(keep) for level in levels]
        try:
            return self.network(image), [found[level] for level in levels]
        finally:
            for hook in hooks:
                hook.remove()


class WithMetadata(nn.Module):
    """An smp network whose deepest features are scaled and shifted by what is known of the person.

    FiLM (Perez et al. 2018): two linear layers give a factor and an offset for each channel; the last one starts at 0,
    so that the network starts as the plain one. The image's channels after the first three hold the person's numbers,
    the same at each pixel, so that flips, resizing, padding and windows need not know of them; without them, the person
    is unknown. Values are standardised by the training images' means and deviations, which are buffers and so part of
    the checkpoint; unknown ones are 0 and marked.
    """

    def __init__(self, network: nn.Module):
        super().__init__()
        channels = network.encoder.out_channels[-1]
        self.film = nn.Sequential(nn.Linear(2 * VALUES, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 2 * channels))
        nn.init.zeros_(self.film[-1].weight)
        nn.init.zeros_(self.film[-1].bias)
        self.register_buffer("mean", torch.zeros(VALUES))
        self.register_buffer("deviation", torch.ones(VALUES))
        self.network = network

    @property
    def encoder(self) -> nn.Module:
        """The network's encoder."""
        return self.network.encoder

    @property
    def decoder(self) -> nn.Module:
        """The network's decoder."""
        return self.network.decoder

    def standardise_by(self, values: np.ndarray) -> None:
        """Take means and deviations from the training images' rows (images, 8) of `person_values`."""
        numbers, known = values[:, :VALUES].astype(np.float64), values[:, VALUES:] > 0
        counts = np.maximum(known.sum(0), 1)
        mean = (numbers * known).sum(0) / counts
        deviation = np.sqrt((((numbers - mean) * known) ** 2).sum(0) / counts)
        self.mean.copy_(torch.from_numpy(mean))
        self.deviation.copy_(torch.from_numpy(np.where(deviation > 0, deviation, 1)))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Float (N, 3, H, W), or (N, 3 + 8, H, W) with the person's numbers, to logits (N, classes, H, W)."""
        features = list(self.network.encoder(image[:, :3]))
        count = image.shape[0]  # len() would fix it in an exported file
        person = image[:, 3:, 0, 0] if image.shape[1] > 3 else image.new_zeros(count, 2 * VALUES)
        known = person[:, VALUES:]
        if self.training:
            known = known * (torch.rand(count, 1, device=image.device) >= FORGOTTEN)
        values = (person[:, :VALUES] - self.mean) / self.deviation * known
        factor, offset = self.film(torch.cat([values, known], 1))[..., None, None].chunk(2, 1)
        features[-1] = features[-1] * (1 + factor) + offset
        return self.network.segmentation_head(self.network.decoder(features))
