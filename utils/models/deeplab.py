"""DeepLab v1 to v3+ (Chen et al. 2015, 2018, 2017, 2018), and torchvision's DeepLabV3.

segmentation-models-pytorch's `deeplabv3` and `deeplabv3plus` differ from the papers: v3 works at output stride 8,
without multi-grid and with one more 3 × 3 convolution; v3+ has that stride's rates at 16 and refines once, not twice.
"""

import torch
from torch import nn
from torchvision.models import ResNet50_Weights, ResNet101_Weights, VGG16_Weights, segmentation

from utils.models.base import PaddedModel
from utils.models.blocks import VGG16, ResNet, convolution, only_encoder, upsample_to
from utils.models.fcn import build_torchvision
from utils.models.weights import load_pretrained

TORCHVISION = {
    "deeplabv3_resnet50": (segmentation.deeplabv3_resnet50, segmentation.DeepLabV3_ResNet50_Weights.DEFAULT),
    "deeplabv3_resnet101": (segmentation.deeplabv3_resnet101, segmentation.DeepLabV3_ResNet101_Weights.DEFAULT),
}
PRETRAINED = {
    "vgg16": VGG16_Weights.IMAGENET1K_V1,
    "resnet50": ResNet50_Weights.IMAGENET1K_V2,
    "resnet101": ResNet101_Weights.IMAGENET1K_V2,
}
ENCODERS = {
    "deeplabv1": ("vgg16",),
    "deeplabv2": ("resnet101", "vgg16"),
    "deeplabv3_paper": ("resnet101", "resnet50"),
    "deeplabv3plus_paper": ("resnet101", "resnet50"),
}
"""The encoders each paper uses, its best first; DeepLabV3+'s Xception, which torchvision lacks, is left out."""


class DilatedVGG16(VGG16):
    """VGG16 at output stride 8 as in DeepLab v1 and v2: 3 × 3 poolings, the last two without stride, conv5 dilated."""

    def __init__(self):
        super().__init__()
        for number, i in enumerate(self.pools):
            self.features[i] = nn.MaxPool2d(3, stride=2 if number < 3 else 1, padding=1)
        self.dilate_last_stage()

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """pool5 (N, 512, H/8, W/8)."""
        return super().forward(image)[-1]


def large_field_of_view(classes: int, rate: int) -> nn.Sequential:
    """VGG16's fc6 cut to 3 × 3, dilated, fc7 and the scores, with 1024 channels (Chen et al. 2015, section 4.3)."""
    return nn.Sequential(
        nn.Conv2d(512, 1024, 3, padding=rate, dilation=rate),
        nn.ReLU(inplace=True),
        nn.Dropout(0.5),
        nn.Conv2d(1024, 1024, 1),
        nn.ReLU(inplace=True),
        nn.Dropout(0.5),
        nn.Conv2d(1024, classes, 1),
    )


class DeepLabV1(nn.Module):
    """DeepLab-LargeFOV (Chen et al. 2015): VGG16 at output stride 8, its fc6 3 × 3 with rate 12.

    Paper: 20.5 M parameters (table 2, 3 × 3 with rate 12; 21 classes), here 20.5 M. The CRF after it is left out.
    """

    def __init__(self, classes: int):
        super().__init__()
        self.encoder = DilatedVGG16()
        self.pool = nn.AvgPool2d(3, stride=1, padding=1)
        self.head = large_field_of_view(classes, 12)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Logits (N, classes, H, W); H and W multiples of 8."""
        return upsample_to(self.head(self.pool(self.encoder(image))), image)


class DeepLabV2(nn.Module):
    """DeepLab-ASPP-L (Chen et al. 2018, sections 3.2 and 4.1): scores at rates 6, 12, 18 and 24, summed.

    On VGG16 each rate is a whole LargeFOV head, on ResNet-101 (output stride 8) one convolution to the classes. The
    paper gives no counts; the layers make 37.9 M with VGG16 and 44.0 M with ResNet-101 for 21 classes. Its CRF and the
    maximum over three image scales are left out: the second is test-time augmentation here.
    """

    RATES = (6, 12, 18, 24)

    def __init__(self, classes: int, encoder: str):
        super().__init__()
        self.encoder = DilatedVGG16() if encoder == "vgg16" else ResNet(encoder, 8)
        if encoder == "vgg16":
            self.branches = nn.ModuleList(large_field_of_view(classes, rate) for rate in self.RATES)
        else:
            self.branches = nn.ModuleList(nn.Conv2d(2048, classes, 3, padding=r, dilation=r) for r in self.RATES)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Logits (N, classes, H, W); H and W multiples of 8."""
        maps = self.encoder(image)
        maps = maps[-1] if isinstance(maps, tuple) else maps
        return upsample_to(sum(branch(maps) for branch in self.branches), image)


class AtrousPyramid(nn.Module):
    """ASPP with image-level features, 256 channels a branch, all batch-normalised (Chen et al. 2017, section 3.3).

    1 × 1, 3 × 3 at rates 6, 12 and 18 (output stride 16), and the image's mean, joined and brought to 256 channels.
    """

    def __init__(self, inputs: int):
        super().__init__()
        self.branches = nn.ModuleList(
            [convolution(inputs, 256), *(convolution(inputs, 256, 3, r) for r in (6, 12, 18))]
        )
        self.image = convolution(inputs, 256)
        self.join = convolution(5 * 256, 256)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """(N, inputs, h, w) to (N, 256, h, w)."""
        image = self.image(maps.mean((2, 3), keepdim=True)).expand(-1, -1, *maps.shape[-2:])
        return self.join(torch.cat([*(branch(maps) for branch in self.branches), image], 1))


class DeepLabV3(nn.Module):
    """DeepLabV3 (Chen et al. 2017): ResNet at output stride 16 with multi-grid (1, 2, 4), ASPP, scores brought up.

    The paper gives no count; its layers make 58.0 M with ResNet-101 for 21 classes.
    """

    def __init__(self, classes: int, encoder: str):
        super().__init__()
        self.encoder = ResNet(encoder, 16, multi_grid=(1, 2, 4))
        self.pyramid = AtrousPyramid(2048)
        self.score = nn.Conv2d(256, classes, 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Logits (N, classes, H, W); H and W multiples of 16."""
        return upsample_to(self.score(self.pyramid(self.encoder(image)[1])), image)


class DeepLabV3Plus(nn.Module):
    """DeepLabV3+ (Chen et al. 2018, section 4.1): ASPP, then two 3 × 3 convolutions at stride 4 with 48 low-level maps.

    The paper gives multiply-adds but no count of parameters; its layers make 59.3 M with ResNet-101 for 21 classes.
    """

    def __init__(self, classes: int, encoder: str):
        super().__init__()
        self.encoder = ResNet(encoder, 16)
        self.pyramid = AtrousPyramid(2048)
        self.low = convolution(256, 48)
        self.refine = nn.Sequential(convolution(256 + 48, 256, 3), convolution(256, 256, 3))
        self.score = nn.Conv2d(256, classes, 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Logits (N, classes, H, W); H and W multiples of 16."""
        low, high = self.encoder(image)
        low = self.low(low)
        return upsample_to(self.score(self.refine(torch.cat([upsample_to(self.pyramid(high), low), low], 1))), image)


def build(name: str, classes: int, encoder: str | None, encoder_weights: str | None) -> PaddedModel:
    """One of ENCODERS' networks, with an encoder it is defined for; encoder_weights are torchvision's ("imagenet") or a
    file of them. VGG16's fully connected layers are not used: LargeFOV's have another size.
    """
    encoder = only_encoder(name, encoder, ENCODERS[name])
    if name == "deeplabv1":
        network = DeepLabV1(classes)
    else:
        make = {"deeplabv2": DeepLabV2, "deeplabv3_paper": DeepLabV3, "deeplabv3plus_paper": DeepLabV3Plus}[name]
        network = make(classes, encoder)
    load_pretrained(network.encoder, encoder_weights, PRETRAINED[encoder])
    return PaddedModel(network, 8 if name in ("deeplabv1", "deeplabv2") else 16)


def build_resnet(name: str, classes: int, encoder: str | None, encoder_weights: str | None) -> PaddedModel:
    """torchvision's DeepLabV3 at output stride 8 with rates 12, 24 and 36; weights as in `fcn.build`.

    torchvision states 42.0 M and 61.0 M parameters for 21 classes, of which 2.4 M are an auxiliary output that is left
    out here.
    """
    only_encoder(name, encoder, (name.removeprefix("deeplabv3_"),))
    return build_torchvision(*TORCHVISION[name], classes, encoder_weights)
