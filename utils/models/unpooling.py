"""DeconvNet and SegNet, which unpool by the encoder's indices, and FC-DenseNet's dense blocks."""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain, pairwise

import torch
from torch import nn
from torch.nn import functional as F
from torchvision.ops.misc import Conv2dNormActivation, ConvNormActivation

from utils.models.base import PaddedModel
from utils.models.blocks import VGG16
from utils.models.pretrained import load_encoder
from utils.registry import register_model


class Deconvolution(ConvNormActivation):
    """Transposed convolution with stride 1, which is a convolution with its kernel turned, batch norm, ReLU."""

    def __init__(self, inputs: int, outputs: int, size: int = 3):
        super().__init__(inputs, outputs, size, bias=True, conv_layer=nn.ConvTranspose2d)


class UnpoolingStage(nn.Module):
    """One resolution of the decoder: unpooling by the encoder's indices, then 3 × 3 convolutions.

    outputs: the channels after each convolution. layer: makes a convolution with batch norm and ReLU.
    """

    def __init__(self, inputs: int, outputs: Sequence[int], layer: Callable[[int, int], nn.Sequential]):
        super().__init__()
        self.convs = nn.Sequential(*chain.from_iterable(layer(a, b) for a, b in pairwise([inputs, *outputs])))

    def forward(self, maps: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
        """(N, inputs, h, w) to (N, outputs[-1], 2h, 2w); values go where the encoder's maxima were, zeros elsewhere."""
        size = [2 * n for n in maps.shape[-2:]]  # F.max_unpool2d finds it too, but can't be traced for TorchScript
        return self.convs(torch.ops.aten.max_unpool2d(maps, indices, size))


class Unpooling(nn.Module):
    """VGG16 with batch norm and a decoder that puts values back where the poolings found their maxima.

    Subclasses add `decoder`, from `mirror`, and `score`, the layer that gives the classes.
    """

    def __init__(self, width: float, fc_dilation: int | None = None):
        super().__init__()
        self.encoder = VGG16(width, batch_norm=True, fc_dilation=fc_dilation)
        for i in self.encoder.pools:
            self.encoder.features[i].return_indices = True

    def mirror(self, layer: Callable[[int, int], nn.Sequential], numbers: Sequence[int]) -> nn.ModuleList:
        """The decoder's stages, `numbers` of convolutions each; the last of a stage has the next stage's channels."""
        channels = self.encoder.channels[::-1]
        return nn.ModuleList(
            UnpoolingStage(here, [here] * (number - 1) + [after], layer)
            for here, after, number in zip(channels, [*channels[1:], channels[-1]], numbers, strict=True)
        )

    def between(self, maps: torch.Tensor) -> torch.Tensor:
        """What happens between encoder and decoder, at a 32nd of the image's size."""
        return maps

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Float (N, 3, H, W), H and W multiples of 32, to logits (N, classes, H, W)."""
        maps, indices = image, []
        for layer in self.encoder.features:
            maps = layer(maps)
            if isinstance(maps, tuple):
                maps, where = maps
                indices.append(where)
        maps = self.between(maps)
        for stage in self.decoder:
            maps = stage(maps, indices.pop())
        return self.score(maps)


class DeconvNet(Unpooling):
    """DeconvNet (Noh, Hong, Han 2015, figure 2 and table 2): fc6 and fc7 follow VGG16, then deconvolutions.

    Batch norm and ReLU follow every layer. A 7 × 7 deconvolution, deconv-fc6, leads from 4096 channels to 512.

    Paper: about 252 M parameters (section 5.1), here 251.8 M for its 21 classes, batch norm included: twice VGG16's
    14.7 M of 3 × 3 convolutions, twice 102.8 M for fc6 and deconv-fc6, 16.8 M for fc7. The paper crops proposals of
    224 × 224, whose fc6 is one pixel; here fc6 and deconv-fc6 are padded, so that whole images of any size pass.
    """

    def __init__(self, classes: int, width: float = 1.0):
        super().__init__(width, fc_dilation=1)
        hidden, channels = self.encoder.fc_channels, self.encoder.channels
        self.fc_norms = nn.ModuleList(nn.BatchNorm2d(hidden) for _ in range(2))
        self.deconv_fc6 = Deconvolution(hidden, channels[-1], 7)
        self.decoder = self.mirror(Deconvolution, (3, 3, 3, 2, 2))
        self.score = nn.Conv2d(channels[0], classes, 1)

    def between(self, maps: torch.Tensor) -> torch.Tensor:
        """fc6, fc7 and deconv-fc6."""
        for layer, norm in zip(self.encoder.classifier.values(), self.fc_norms, strict=True):
            maps = F.relu(norm(layer(maps)))
        return self.deconv_fc6(maps)


class SegNet(Unpooling):
    """SegNet (Badrinarayanan, Kendall, Cipolla 2017, section 3): VGG16's 13 convolutions and 13 that mirror them.

    Nothing but the indices of the maxima passes from encoder to decoder besides the last maps. The mirror of the first
    convolution gives the classes.

    The paper counts its encoder alone, 14.7 M (section 1). Jégou et al. 2017 (table 3) give 29.5 M for the whole and
    the 11 classes of CamVid; here 29.45 M.
    """

    def __init__(self, classes: int, width: float = 1.0):
        super().__init__(width)
        self.decoder = self.mirror(partial(Conv2dNormActivation, bias=True), (3, 3, 3, 2, 1))
        self.score = nn.Conv2d(self.encoder.channels[0], classes, 3, padding=1)


NETWORKS = {"deconvnet": DeconvNet, "segnet": SegNet}


@register_model(*NETWORKS, family="unpooling, dense blocks")
def build(name: str, classes: int, encoder_weights: str | None, width: float = 1.0) -> PaddedModel:
    """DeconvNet or SegNet. `width` scales all channels (64 to 4096), for small machines.

    encoder_weights: "imagenet" or a file of torchvision's VGG16 with batch norm, for DeconvNet with its fully connected
    layers; both need width 1.
    """
    return load_encoder(PaddedModel(NETWORKS[name](classes, width), 32), encoder_weights, "vgg16_bn")


DENSE = {
    "fcdensenet56": (12, (4,) * 11),
    "fcdensenet67": (16, (5,) * 11),
    "fcdensenet103": (16, (4, 5, 7, 10, 12, 15, 12, 10, 7, 5, 4)),
}
"""Growth rate and the number of layers in each of the eleven dense blocks, down, bottleneck and up."""
FIRST_CHANNELS = 48
DROPOUT = 0.2


def preactivated(inputs: int, outputs: int, size: int) -> nn.Sequential:
    """Batch norm, ReLU, convolution, dropout (Jégou et al. 2017, table 1)."""
    conv = nn.Conv2d(inputs, outputs, size, padding=size // 2)
    nn.init.kaiming_uniform_(conv.weight, nonlinearity="relu")
    return nn.Sequential(nn.BatchNorm2d(inputs), nn.ReLU(inplace=True), conv, nn.Dropout(DROPOUT))


class DenseBlock(nn.Module):
    """`layers` convolutions, each of which gets the block's input and the outputs of all layers before it."""

    def __init__(self, inputs: int, growth: int, layers: int):
        super().__init__()
        self.layers = nn.ModuleList(preactivated(inputs + i * growth, growth, 3) for i in range(layers))

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
            self.shrink.append(nn.Sequential(preactivated(channels, channels, 1), nn.MaxPool2d(2)))
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


@register_model(*DENSE, family="unpooling, dense blocks")
def build_fcdensenet(name: str, classes: int) -> PaddedModel:
    """FC-DenseNet56, 67 or 103, trained from scratch as in the paper."""
    return PaddedModel(FCDenseNet(classes, *DENSE[name]), 32)
