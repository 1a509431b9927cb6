"""Building blocks that several families share: VGG16, dilated ResNets, learnt upsampling, unpooling decoders."""

from collections import OrderedDict

import torch
from torch import nn
from torch.nn import functional as F
from torchvision import models
from torchvision.models.vgg import make_layers

from utils.models.base import Loss, ModelError

VGG16_LAYERS = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
"""Channels and number of 3 × 3 convolutions at VGG16's five resolutions (Simonyan, Zisserman 2015, table 1, D)."""
FC_CHANNELS = 4096


def only_encoder(name: str, encoder: str | None, known: tuple[str, ...]) -> str:
    """`encoder`, or the first of `known` for None. Raises ModelError for one that architecture `name` can't use."""
    if encoder and encoder not in known:
        others = f" or {', '.join(known)}" if len(known) > 1 else ""
        raise ModelError(f"{name} has its own encoder, {known[0]}; found encoder={encoder!r}, expected ''{others}")
    return encoder or known[0]


class VGG16(nn.Module):
    """VGG16 without its classifier, or with its fc6 and fc7 as convolutions; tensors are named as in torchvision.

    width scales every number of channels. batch_norm: after each convolution of `features`. fc_dilation: None leaves
    fc6 and fc7 out; a number adds them, fc6 (7 × 7) dilated by it and padded so that maps keep their size.
    `features` holds the five poolings too, which a family may replace at `pools`.
    """

    def __init__(self, width: float = 1.0, batch_norm: bool = False, fc_dilation: int | None = None):
        super().__init__()
        self.channels = [int(channels * width) for channels, _ in VGG16_LAYERS]
        plan = [[c] * number + ["M"] for c, (_, number) in zip(self.channels, VGG16_LAYERS, strict=True)]
        self.features = make_layers([layer for stage in plan for layer in stage], batch_norm)
        self.pools = [i for i, layer in enumerate(self.features) if isinstance(layer, nn.MaxPool2d)]
        if fc_dilation is not None:
            self.fc_channels = int(FC_CHANNELS * width)
            fc6 = nn.Conv2d(self.channels[-1], self.fc_channels, 7, padding=3 * fc_dilation, dilation=fc_dilation)
            self.classifier = nn.ModuleDict({"0": fc6, "3": nn.Conv2d(self.fc_channels, self.fc_channels, 1)})
        initialise(self)

    def dilate_last_stage(self) -> None:
        """Convolutions after the fourth pooling look two pixels apart, as they did before it lost its stride."""
        for layer in self.features[self.pools[3] :]:
            if isinstance(layer, nn.Conv2d):
                layer.dilation = layer.padding = (2, 2)

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        """The maps after each of the five poolings: (N, channels[i], H / 2^(i+1), W / 2^(i+1)), if VGG16's own."""
        maps, start = [], 0
        for pool in self.pools:
            image = self.features[start : pool + 1](image)
            maps.append(image)
            start = pool + 1
        return maps

    def fully_connected(self, maps: torch.Tensor) -> torch.Tensor:
        """fc6 and fc7 with ReLU and dropout: pool5 (N, 512, h, w) to (N, 4096, h, w)."""
        for layer in self.classifier.values():
            maps = F.dropout(F.relu(layer(maps)), 0.5, self.training)
        return maps


class ResNet(nn.Sequential):
    """A torchvision ResNet up to layer4, tensors named as there; forward gives the maps of layer1 and layer4.

    output_stride: 16 or 8, reached by dilation in place of the last strides (Chen et al. 2017). multi_grid: dilations
    of layer4's blocks in units of that stage's own (DeepLabV3, section 3.3).
    """

    def __init__(self, name: str, output_stride: int, multi_grid: tuple[int, ...] | None = None):
        dilated = [False, output_stride == 8, True]
        resnet = getattr(models, name)(weights=None, replace_stride_with_dilation=dilated)
        super().__init__(OrderedDict((n, m) for n, m in resnet.named_children() if n not in ("avgpool", "fc")))
        for block, grid in zip(self.layer4, multi_grid or (), strict=bool(multi_grid)):
            rate = grid * (32 // output_stride)
            block.conv2.dilation = block.conv2.padding = (rate, rate)

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(N, 256, H/4, W/4) of layer1 and (N, 2048, H/output_stride, W/output_stride) of layer4."""
        stem = self.maxpool(self.relu(self.bn1(self.conv1(image))))
        first = self.layer1(stem)
        return first, self.layer4(self.layer3(self.layer2(first)))


def convolution(inputs: int, outputs: int, size: int = 1, rate: int = 1) -> nn.Sequential:
    """Convolution dilated by `rate` that keeps the map's size, batch norm, ReLU."""
    conv = nn.Conv2d(inputs, outputs, size, padding=size // 2 * rate, dilation=rate, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


class LearntUpsampling(nn.Module):
    """A transposed convolution that starts as bilinear interpolation: (N, classes, h, w) to (N, classes, h·s, w·s).

    Each class has a kernel of its own. The map is first continued by one pixel beyond its border, so that an untrained
    one equals F.interpolate there too: what padding by 100 pixels and cropping achieve in FCN's published networks.
    """

    def __init__(self, classes: int, scale: int):
        super().__init__()
        size = 2 * scale
        self.conv = nn.ConvTranspose2d(
            classes, classes, size, scale, padding=scale + scale // 2, groups=classes, bias=False
        )
        ramp = 1 - (torch.arange(size) - scale + 0.5).abs() / scale
        with torch.no_grad():
            self.conv.weight.copy_((ramp[:, None] * ramp).expand_as(self.conv.weight))

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """Larger by `scale`."""
        return self.conv(F.pad(maps, (1, 1, 1, 1), mode="replicate"))


class UnpoolingStage(nn.Module):
    """One resolution of a decoder that mirrors VGG16: unpooling by the encoder's indices, then 3 × 3 convolutions.

    outputs: the channels after each convolution, which batch norm and ReLU follow. layer: nn.Conv2d or
    nn.ConvTranspose2d, the same operation at stride 1 with its kernel turned.
    """

    def __init__(self, inputs: int, outputs: list[int], layer: type[nn.Module]):
        super().__init__()
        self.convs = nn.Sequential()
        for previous, channels in zip([inputs, *outputs[:-1]], outputs, strict=True):
            self.convs.extend(
                [layer(previous, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU(inplace=True)]
            )

    def forward(self, maps: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
        """(N, inputs, h, w) to (N, outputs[-1], 2h, 2w); values go where the encoder's maxima were, zeros elsewhere."""
        return self.convs(F.max_unpool2d(maps, indices, 2))


def pool_with_indices(vgg: VGG16) -> None:
    """Let VGG16's poolings also return where each maximum was."""
    for i in vgg.pools:
        vgg.features[i].return_indices = True


def encode_with_indices(vgg: VGG16, image: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """pool5, and the indices of the five poolings from the first to the last; after `pool_with_indices`."""
    indices = []
    for layer in vgg.features:
        image = layer(image)
        if isinstance(image, tuple):
            image, where = image
            indices.append(where)
    return image, indices


def initialise(module: nn.Module) -> None:
    """He et al. 2015: convolutions that keep the variance through ReLUs, biases zero."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def upsample_to(maps: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """`maps` brought bilinearly to the height and width of `like`."""
    return F.interpolate(maps, like.shape[-2:], mode="bilinear", align_corners=False)


def no_encoder(name: str, encoder: str | None, encoder_weights: str | None) -> None:
    """Raise ModelError if an encoder or its weights are asked of an architecture that is trained from scratch."""
    for option, value in (("encoder", encoder), ("encoder_weights", encoder_weights)):
        if value:
            raise ModelError(f"{name} has no encoder to load; found {option}={value!r}, expected ''")


def deep_supervision(outputs: list[torch.Tensor], label: torch.Tensor, loss: Loss) -> torch.Tensor:
    """The mean of `loss` over logits of several scales, each brought bilinearly to the label's size."""
    return torch.stack([loss(upsample_to(logits, label), label) for logits in outputs]).mean()
