"""Deep supervision for decoders that have none of their own: logits of coarser scales are trained, too."""

from typing import Any

import torch
from torch import nn

from utils.models.base import Loss, ModelError
from utils.models.blocks import halved_supervision


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


SUPERVISED = ("unet", "unetplusplus", "manet", "linknet")
"""The decoders of `models.smp` that it fits."""
