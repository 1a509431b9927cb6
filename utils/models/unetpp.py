"""U-Net++: nested skips, deep supervision, and an output that may be taken early."""

import torch
from torch import nn
from torch.nn import functional as F

from utils.models.base import Loss, ModelError, PaddedModel
from utils.models.blocks import convolve_twice, deep_supervision
from utils.registry import register_model

WIDTHS = (32, 64, 128, 256, 512)


class UNetPlusPlus(nn.Module):
    """U-Net++ (Zhou et al. 2018, figure 1; 2020): 9.04 M parameters (the paper's count) for one class.

    Node x[i][j] at depth i gets all nodes x[i][0 … j-1] beside it and the upsampled x[i+1][j-1] below it. The outputs
    L1 … L4 are read from x[0][1] … x[0][4]; all four are trained (deep supervision), so that inference may stop at a
    smaller one. `prune` is the output that `forward` gives, and nodes that it does not need are not computed: L1, L2
    and L3 take 0.1, 0.5 and 2.2 M of the parameters. A checkpoint fits every `prune`.

    Batch norm after each convolution is added, as in most implementations, and the upsampling is a 2 × 2 transposed
    convolution. Bilinear upsampling instead would give 9.2 M.
    """

    def __init__(self, classes: int, prune: int):
        super().__init__()
        self.prune, depth = prune, len(WIDTHS)
        self.nodes, self.up = nn.ModuleDict(), nn.ModuleDict()
        for j in range(depth):
            for i in range(depth - j):
                above = WIDTHS[i - 1] if i else 3
                first, second = convolve_twice((j + 1) * WIDTHS[i] if j else above, WIDTHS[i])
                self.nodes[f"{i}_{j}"] = nn.Sequential(*first, *second)
                if j:
                    self.up[f"{i}_{j}"] = nn.ConvTranspose2d(WIDTHS[i + 1], WIDTHS[i], 2, 2)
        self.heads = nn.ModuleList(nn.Conv2d(WIDTHS[0], classes, 1) for _ in WIDTHS[1:])

    def _outputs(self, image: torch.Tensor, last: int) -> list[torch.Tensor]:
        """The maps x[0][1] … x[0][last]; no node below that pyramid is computed."""
        x: dict[tuple[int, int], torch.Tensor] = {}
        for i in range(last + 1):
            x[i, 0] = self.nodes[f"{i}_0"](F.max_pool2d(x[i - 1, 0], 2) if i else image)
        for j in range(1, last + 1):
            for i in range(last + 1 - j):
                beside = [x[i, k] for k in range(j)]
                x[i, j] = self.nodes[f"{i}_{j}"](torch.cat([*beside, self.up[f"{i}_{j}"](x[i + 1, j - 1])], 1))
        return [x[0, j] for j in range(1, last + 1)]

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Float (N, 3, H, W), H and W multiples of 16, to the logits (N, classes, H, W) of output L`prune`."""
        return self.heads[self.prune - 1](self._outputs(image, self.prune)[-1])

    def training_loss(self, image: torch.Tensor, label: torch.Tensor, loss: Loss) -> torch.Tensor:
        """The mean of `loss` over all four outputs, whatever `prune` is."""
        outputs = self._outputs(image, len(self.heads))
        return deep_supervision([head(maps) for head, maps in zip(self.heads, outputs, strict=True)], label, loss)


@register_model("unetplusplus_paper", family="U-Net and pyramids")
def build(classes: int, prune: int = 4) -> PaddedModel:
    """U-Net++ from scratch; smp's `unetplusplus` has the same decoder on a pretrained encoder. prune: 1 to 4."""
    if prune not in (1, 2, 3, 4):
        raise ModelError(f"unetplusplus_paper: prune is the output to predict with, 1 to 4; found {prune!r}")
    return PaddedModel(UNetPlusPlus(classes, prune), 16)
