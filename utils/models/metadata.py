"""The person's sex, age, height and weight as an auxiliary input that scales and shifts the encoder's deepest maps."""

import numpy as np
import torch
from torch import nn

VALUES = 4
"""Values of a person; as many marks of what is known follow them, see `utils.data.people.person_values`."""
HIDDEN = 32
FORGOTTEN = 0.1
"""Share of training images whose person is left out, so that the network learns what to do without."""


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
