"""DilatedNet, and DeepLab v1, v2, v3 and v3+, as in the papers (Yu, Koltun 2016; Chen et al. 2015, 2018, 2017, 2018).

segmentation-models-pytorch's `deeplabv3` and `deeplabv3plus` differ from the papers: v3 works at output stride 8,
without multi-grid and with one more 3 × 3 convolution; v3+ has that stride's rates at 16 and refines once, not twice.
"""

from collections import OrderedDict
from itertools import pairwise

import torch
from torch import nn
from torchvision.models import get_model
from torchvision.ops.misc import Conv2dNormActivation

from utils.files import unknown
from utils.models.base import Loss, ModelError, PaddedModel
from utils.models.blocks import VGG16, EncoderHead, atrous_pyramid, convolve_twice, upsample_to
from utils.models.pretrained import load_encoder
from utils.registry import register_model


class DilatedVGG16(VGG16):
    """VGG16 at output stride 8 as in DeepLab v1 and v2: 3 × 3 poolings, the last two without stride, conv5 dilated."""

    def __init__(self):
        super().__init__()
        for number, i in enumerate(self.pools):
            self.features[i] = nn.MaxPool2d(3, stride=2 if number < 3 else 1, padding=1)
        self.dilate_last_stage()


class ResNet(nn.Sequential):
    """A torchvision ResNet up to layer4, tensors named as there; forward gives the maps of layer1 and layer4.

    output_stride: 16 or 8, reached by dilation in place of the last strides (Chen et al. 2017). multi_grid: dilations
    of layer4's blocks, as multiples of that stage's own (DeepLabV3, section 3.3); () leaves torchvision's.
    """

    def __init__(self, name: str, output_stride: int, multi_grid: tuple[int, ...] = ()):
        resnet = get_model(name, weights=None, replace_stride_with_dilation=[False, output_stride == 8, True])
        super().__init__(OrderedDict((n, m) for n, m in resnet.named_children() if n not in ("avgpool", "fc")))
        for block, grid in zip(self.layer4, multi_grid, strict=False):
            block.conv2.dilation = block.conv2.padding = (grid * 32 // output_stride,) * 2

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(N, 256, H/4, W/4) of layer1 and (N, 2048, H/output_stride, W/output_stride) of layer4."""
        stem = self.maxpool(self.relu(self.bn1(self.conv1(image))))
        first = self.layer1(stem)
        return first, self.layer4(self.layer3(self.layer2(first)))


def large_field_of_view(classes: int, rate: int) -> nn.Sequential:
    """VGG16's fc6 cut to 3 × 3, dilated, fc7 and the scores, with 1024 channels (Chen et al. 2015, section 4.3)."""
    return nn.Sequential(
        *(*Conv2dNormActivation(512, 1024, 3, norm_layer=None, dilation=rate), nn.Dropout(0.5)),
        *(*Conv2dNormActivation(1024, 1024, 1, norm_layer=None), nn.Dropout(0.5)),
        nn.Conv2d(1024, classes, 1),
    )


def deeplab_v1(classes: int, encoder: str) -> EncoderHead:
    """DeepLab-LargeFOV (Chen et al. 2015): VGG16 at output stride 8, its fc6 3 × 3 with rate 12.

    Paper: 20.5 M parameters (table 2, 3 × 3 with rate 12; 21 classes), here 20.5 M. The CRF after it is left out.
    """
    pool = nn.AvgPool2d(3, stride=1, padding=1)
    return EncoderHead(encoder=DilatedVGG16(), pool=pool, head=large_field_of_view(classes, 12))


class Sum(nn.ModuleList):
    """The sum of what its layers make of the same maps."""

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """Maps of any size to what each of the layers makes of them."""
        return sum(layer(maps) for layer in self)


def deeplab_v2(classes: int, encoder: str) -> EncoderHead:
    """DeepLab-ASPP-L (Chen et al. 2018, sections 3.2 and 4.1): scores at rates 6, 12, 18 and 24, summed.

    On VGG16 each rate is a whole LargeFOV head, on ResNet-101 (output stride 8) one convolution to the classes. The
    paper gives no counts; the layers make 37.9 M with VGG16 and 44.0 M with ResNet-101 for 21 classes. Its CRF and the
    maximum over three image scales are left out: the second is test-time augmentation here.
    """
    rates = (6, 12, 18, 24)
    if encoder == "vgg16":
        return EncoderHead(encoder=DilatedVGG16(), branches=Sum(large_field_of_view(classes, rate) for rate in rates))
    resnet = ResNet(encoder, 8)
    return EncoderHead(encoder=resnet, branches=Sum(nn.Conv2d(2048, classes, 3, 1, rate, rate) for rate in rates))


def deeplab_v3(classes: int, encoder: str) -> EncoderHead:
    """DeepLabV3 (Chen et al. 2017): ResNet at output stride 16 with multi-grid (1, 2, 4), ASPP, bilinear upsampling.

    The paper gives no count; its layers make 58.0 M with ResNet-101 for 21 classes.
    """
    resnet = ResNet(encoder, 16, multi_grid=(1, 2, 4))
    return EncoderHead(encoder=resnet, pyramid=atrous_pyramid(2048), score=nn.Conv2d(256, classes, 1))


class DeepLabV3Plus(nn.Module):
    """DeepLabV3+ (Chen et al. 2018, section 4.1): ASPP, then two 3 × 3 convolutions at stride 4 with 48 low-level maps.

    The paper gives multiply-adds but no count of parameters; its layers make 59.3 M with ResNet-101 for 21 classes.
    """

    def __init__(self, classes: int, encoder: str):
        super().__init__()
        self.encoder = ResNet(encoder, 16)
        self.pyramid = atrous_pyramid(2048)
        self.low = Conv2dNormActivation(256, 48, 1)
        self.refine = convolve_twice(256 + 48, 256)
        self.score = nn.Conv2d(256, classes, 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Logits (N, classes, H, W); H and W multiples of 16."""
        low, high = self.encoder(image)
        low = self.low(low)
        return upsample_to(self.score(self.refine(torch.cat([upsample_to(self.pyramid(high), low), low], 1))), image)


NETWORKS = {
    "deeplabv1": (deeplab_v1, 8, ("vgg16",)),
    "deeplabv2": (deeplab_v2, 8, ("resnet101", "vgg16")),
    "deeplabv3_paper": (deeplab_v3, 16, ("resnet101", "resnet50")),
    "deeplabv3plus_paper": (DeepLabV3Plus, 16, ("resnet101", "resnet50")),
}
"""What makes the network, its output stride, and the paper's encoders, the best first.

torchvision lacks DeepLabV3+'s Xception.
"""


@register_model(*NETWORKS, family="dilated")
def build_deeplab(name: str, classes: int, encoder: str | None, encoder_weights: str | None) -> PaddedModel:
    """One of NETWORKS on one of its encoders. encoder_weights: "imagenet" or a file of torchvision's.

    VGG16's fully connected layers are not used: LargeFOV's have another size.
    """
    network, stride, encoders = NETWORKS[name]
    encoder = encoder or encoders[0]
    if encoder not in encoders:
        raise ModelError(unknown(f"encoder of {name}", encoder, encoders))
    return load_encoder(PaddedModel(network(classes, encoder), stride), encoder_weights, encoder)


DILATIONS = (1, 1, 2, 4, 8, 16, 1)
"""Of the context module's 3 × 3 convolutions; a 1 × 1 convolution follows (Yu, Koltun 2016, table 1)."""
CONTEXTS = {"basic": (1, 1, 1, 1, 1, 1, 1), "large": (2, 2, 4, 8, 16, 32, 32)}
"""Channels after each of them, as multiples of the number of classes."""


class ContextModule(nn.Module):
    """Class scores in, class scores out, each pixel having seen 67 × 67 of them (Yu, Koltun 2016, section 3).

    Every layer starts as the identity: it copies its input's channels, with a little noise (equations 4 and 5). ReLU
    follows all but the last. Paper: about 64 · classes² parameters for "basic" (section 3), here exactly, and biases.
    """

    def __init__(self, classes: int, multiples: tuple[int, ...]):
        super().__init__()
        channels = [classes, *(m * classes for m in multiples), classes]
        self.layers = nn.ModuleList(
            identity_convolution(inputs, outputs, rate, classes)
            for (inputs, outputs), rate in zip(pairwise(channels), (*DILATIONS, 0), strict=True)
        )

    def forward(self, scores: torch.Tensor) -> torch.Tensor:
        """(N, classes, h, w) to the same."""
        for layer in self.layers[:-1]:
            scores = torch.relu(layer(scores))
        return self.layers[-1](scores)


def identity_convolution(inputs: int, outputs: int, rate: int, classes: int) -> nn.Conv2d:
    """A 3 × 3 convolution dilated by `rate`, or a 1 × 1 convolution for rate 0, that starts as the identity.

    Output channel b becomes the mean of the input channels a of its class: ⌊aC/in⌋ = ⌊bC/out⌋, weight C/out.
    """
    layer = nn.Conv2d(inputs, outputs, 3 if rate else 1, padding=rate, dilation=max(rate, 1))
    nn.init.normal_(layer.weight, std=0.001 * classes / outputs)
    nn.init.zeros_(layer.bias)
    own = torch.arange(inputs) * classes // inputs == (torch.arange(outputs) * classes // outputs)[:, None]
    middle = layer.kernel_size[0] // 2
    layer.weight.data[:, :, middle, middle] += own * classes / outputs
    return layer


class DilatedNet(nn.Module):
    """VGG16 without its last two poolings, dilated by 2 and 4 instead, then the context module (Yu, Koltun 2016).

    Scores at an eighth of the image are upsampled bilinearly. No total is given in the paper; here 134.4 M for 21
    classes, VGG16's 134.3 M of them. The paper trains the front end alone, then the context module with it; here both
    at once, the front end's scores as an auxiliary output. Maps are padded with zeros, not the image by reflection.
    """

    def __init__(self, classes: int, context: str = "basic", width: float = 1.0):
        super().__init__()
        self.encoder = VGG16(width, fc_dilation=4)
        for i in self.encoder.pools[3:]:
            self.encoder.features[i] = nn.Identity()
        self.encoder.dilate_last_stage()
        self.score = nn.Conv2d(self.encoder.fc_channels, classes, 1)
        self.context = ContextModule(classes, CONTEXTS[context])

    def front_end(self, image: torch.Tensor) -> torch.Tensor:
        """Scores (N, classes, H/8, W/8) before the context module."""
        return self.score(self.encoder.fully_connected(self.encoder(image)[-1]))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Logits (N, classes, H, W); H and W multiples of 8."""
        return upsample_to(self.context(self.front_end(image)), image)

    def training_loss(self, image: torch.Tensor, label: torch.Tensor, loss: Loss) -> torch.Tensor:
        """The loss after the context module plus the front end's own, so that ReLUs find scores to pass on."""
        scores = self.front_end(image)
        return sum(loss(upsample_to(s, image), label) for s in (self.context(scores), scores))


@register_model("dilatednet", family="dilated")
def build_dilatednet(
    classes: int, encoder_weights: str | None, context: str = "basic", width: float = 1.0
) -> PaddedModel:
    """DilatedNet on VGG16. `context` is "basic" or "large"; `width` scales VGG16's channels, for small machines.

    encoder_weights: "imagenet" or a file of torchvision's VGG16, fully connected layers included; these need width 1.
    """
    if context not in CONTEXTS:
        raise ModelError(unknown("context of dilatednet", context, CONTEXTS))
    return load_encoder(PaddedModel(DilatedNet(classes, context, width), 8), encoder_weights, "vgg16")
