"""Fully convolutional networks (Long, Shelhamer, Darrell 2015): FCN-32s, -16s, -8s, and torchvision's FCN-ResNet."""

from collections.abc import Callable

import torch
from torch import nn
from torchvision.models import VGG16_Weights, segmentation

from utils.models.base import PaddedModel
from utils.models.blocks import VGG16, LearntUpsampling, only_encoder
from utils.models.weights import load_encoder, load_pretrained, torchvision_state

NETWORKS = {
    "fcn_resnet50": (segmentation.fcn_resnet50, segmentation.FCN_ResNet50_Weights.DEFAULT),
    "fcn_resnet101": (segmentation.fcn_resnet101, segmentation.FCN_ResNet101_Weights.DEFAULT),
}
STRIDES = {"fcn32s": 32, "fcn16s": 16, "fcn8s": 8}


class FCN(nn.Module):
    """FCN-32s, FCN-16s or FCN-8s by the `stride` of its finest scores (Long et al. 2015, figure 3 and section 4.2).

    VGG16 with fc6 and fc7 as convolutions scores pool5; FCN-16s adds scores of pool4 to them, FCN-8s those of pool3
    too, each time after a learnt doubling; the last transposed convolution reaches the image's size. Scores of the
    skips start at zero, as in the paper, so that training starts from the coarse prediction.

    Paper: 134 M parameters (table 1, FCN-VGG16, 21 classes); here 134.4 M. The paper trains 32s, 16s and 8s one after
    the other and keeps the last transposed convolution bilinear; here all is learnt at once.
    """

    def __init__(self, classes: int, stride: int, width: float = 1.0):
        super().__init__()
        self.encoder = VGG16(width, fc_dilation=1)
        skips = {32: [], 16: [3], 8: [3, 2]}[stride]
        self.skips = nn.ModuleDict({f"pool{i + 1}": nn.Conv2d(self.encoder.channels[i], classes, 1) for i in skips})
        for layer in self.skips.values():
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        self.score = nn.Conv2d(self.encoder.fc_channels, classes, 1)
        self.doublings = nn.ModuleList(LearntUpsampling(classes, 2) for _ in skips)
        self.upsampling = LearntUpsampling(classes, stride)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Logits (N, classes, H, W); H and W multiples of 32."""
        pools = self.encoder(image)
        scores = self.score(self.encoder.fully_connected(pools[4]))
        for pool, skip, double in zip((pools[3], pools[2]), self.skips.values(), self.doublings, strict=False):
            scores = double(scores) + skip(pool)
        return self.upsampling(scores)


def build_vgg(
    name: str, classes: int, encoder: str | None, encoder_weights: str | None, width: float = 1.0
) -> PaddedModel:
    """fcn32s, fcn16s or fcn8s on VGG16, part of the name. `width` scales its channels (64 to 4096), for small machines.

    encoder_weights: "imagenet" or a file of torchvision's VGG16, fully connected layers included; these need width 1.
    """
    only_encoder(name, encoder, ("vgg16",))
    network = FCN(classes, STRIDES[name], width)
    load_pretrained(network.encoder, encoder_weights, VGG16_Weights.IMAGENET1K_V1)
    return PaddedModel(network, 32)


class MainOutput(nn.Module):
    """Takes the main output out of torchvision's dictionary."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Logits (N, classes, H, W)."""
        return self.network(image)["out"]


def build(name: str, classes: int, encoder: str | None, encoder_weights: str | None) -> PaddedModel:
    """FCN on a dilated ResNet (output stride 8, logits upsampled bilinearly), its last layer with `classes` channels.

    encoder_weights: "imagenet" takes torchvision's whole pretrained network, as the baseline does; a path loads the
    ResNet alone; None starts from random weights. The encoder is part of the name. torchvision states
    35.3 M and 54.3 M parameters for 21 classes, of which 2.4 M are an auxiliary output that is left out here.
    """
    only_encoder(name, encoder, (name.removeprefix("fcn_"),))
    return build_torchvision(*NETWORKS[name], classes, encoder_weights)


def build_torchvision(
    make: Callable[..., nn.Module],
    pretrained: segmentation.FCN_ResNet50_Weights,
    classes: int,
    encoder_weights: str | None,
) -> PaddedModel:
    """One of torchvision's segmentation networks, its last layer replaced; see `build`."""
    network = make(weights=None, weights_backbone=None, num_classes=21)
    if encoder_weights == "imagenet":
        state = torchvision_state(pretrained)
        network.load_state_dict({k: v for k, v in state.items() if not k.startswith("aux_classifier")})
    elif encoder_weights:
        load_encoder(network.backbone, encoder_weights)
    network.classifier[-1] = nn.Conv2d(network.classifier[-1].in_channels, classes, 1)
    return PaddedModel(MainOutput(network), 8)
