"""FC-DenseNet, the hundred layers tiramisu (Jégou, Drozdzal, Vazquez, Romero, Bengio 2017)."""

import torch
from torch import nn

from utils.models.base import PaddedModel
from utils.registry import register_model

NETWORKS = {
    "fcdensenet56": (12, (4,) * 11),
    "fcdensenet67": (16, (5,) * 11),
    "fcdensenet103": (16, (4, 5, 7, 10, 12, 15, 12, 10, 7, 5, 4)),
}
"""Growth rate and the number of layers in each of the eleven dense blocks, down, bottleneck and up."""
FIRST_CHANNELS = 48
DROPOUT = 0.2


def convolution(inputs: int, outputs: int, size: int) -> nn.Sequential:
    """Batch norm, ReLU, convolution, dropout (Jégou et al. 2017, table 1)."""
    conv = nn.Conv2d(inputs, outputs, size, padding=size // 2)
    nn.init.kaiming_uniform_(conv.weight, nonlinearity="relu")
    return nn.Sequential(nn.BatchNorm2d(inputs), nn.ReLU(inplace=True), conv, nn.Dropout(DROPOUT))


class DenseBlock(nn.Module):
    """`layers` convolutions, each of which gets the block's input and the outputs of all layers before it."""

    def __init__(self, inputs: int, growth: int, layers: int):
        super().__init__()
        self.layers = nn.ModuleList(convolution(inputs + i * growth, growth, 3) for i in range(layers))

    def forward(self, maps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Everything (N, inputs + layers · growth, h, w), and the block's own part of it, its last layers · growth."""
        inputs = maps.shape[1]
        for layer in self.layers:
            maps = torch.cat([maps, layer(maps)], 1)
        return maps, maps[:, inputs:]


class FCDenseNet(nn.Module):
    """Dense blocks down and up with skips; only a block's own maps are upsampled, else their number would explode.

    Parameters for CamVid's 11 classes (Jégou et al. 2017, table 3): FC-DenseNet103 9.4 M, here 9.32 M; FC-DenseNet67
    3.5 M, here 3.46 M; FC-DenseNet56 1.5 M, here 1.38 M. The authors' program also counts batch norm's running mean and
    deviation: with them 9.43, 3.50 and 1.40 M. So the table's 1.5 M does not fit the paper's own 12 maps per layer and
    4 layers per block (section 4.1), which give 1.4 M; the authors' network built from them has no more either.
    """

    def __init__(self, classes: int, growth: int, layers: tuple[int, ...]):
        super().__init__()
        down, bottleneck, up = layers[:5], layers[5], layers[6:]
        self.first = nn.Conv2d(3, FIRST_CHANNELS, 3, padding=1)
        nn.init.kaiming_uniform_(self.first.weight, nonlinearity="relu")
        channels, skips = FIRST_CHANNELS, []
        self.down, self.shrink = nn.ModuleList(), nn.ModuleList()
        for number in down:
            self.down.append(DenseBlock(channels, growth, number))
            channels += number * growth
            skips.append(channels)
            self.shrink.append(nn.Sequential(convolution(channels, channels, 1), nn.MaxPool2d(2)))
        self.bottleneck = DenseBlock(channels, growth, bottleneck)
        self.grow, self.up = nn.ModuleList(), nn.ModuleList()
        own = bottleneck * growth
        for number, skip in zip(up, reversed(skips), strict=True):
            self.grow.append(nn.ConvTranspose2d(own, own, 3, stride=2, padding=1, output_padding=1))
            self.up.append(DenseBlock(own + skip, growth, number))
            channels, own = own + skip + number * growth, number * growth
        self.score = nn.Conv2d(channels, classes, 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Logits (N, classes, H, W); H and W multiples of 32."""
        maps, skips = self.first(image), []
        for block, shrink in zip(self.down, self.shrink, strict=True):
            maps, _ = block(maps)
            skips.append(maps)
            maps = shrink(maps)
        _, own = self.bottleneck(maps)
        for grow, block, skip in zip(self.grow, self.up, reversed(skips), strict=True):
            maps, own = block(torch.cat([grow(own), skip], 1))
        return self.score(maps)


@register_model(*NETWORKS, family="unpooling, dense blocks")
def build(name: str, classes: int) -> PaddedModel:
    """FC-DenseNet56, 67 or 103, trained from scratch as in the paper."""
    return PaddedModel(FCDenseNet(classes, *NETWORKS[name]), 32)
