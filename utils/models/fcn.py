"""Fully convolutional networks: FCN-32s, -16s and -8s as in the paper, and torchvision's on dilated ResNets."""

import torch
from torch import nn
from torch.nn import functional as F
from torchvision.models import get_model, get_model_weights

from utils.models.base import PaddedModel
from utils.models.blocks import VGG16
from utils.models.pretrained import load_encoder, load_state, read_state, torchvision_state
from utils.registry import register_model

STRIDES = {"fcn32s": 32, "fcn16s": 16, "fcn8s": 8}


class LearntUpsampling(nn.Module):
    """A transposed convolution that starts as bilinear interpolation: (N, classes, h, w) to (N, classes, h·s, w·s).

    Each class has a kernel of its own. The map is first continued by one pixel beyond its border, so that an untrained
    one equals F.interpolate there too: what padding by 100 pixels and cropping achieve in FCN's published networks.
    """

    def __init__(self, classes: int, scale: int):
        super().__init__()
        sizes = {"kernel_size": 2 * scale, "stride": scale, "padding": scale + scale // 2}
        self.conv = nn.ConvTranspose2d(classes, classes, **sizes, groups=classes, bias=False)
        ramp = 1 - (torch.arange(2 * scale) - scale + 0.5).abs() / scale
        with torch.no_grad():
            self.conv.weight.copy_((ramp[:, None] * ramp).expand_as(self.conv.weight))

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """Larger by `scale`."""
        return self.conv(F.pad(maps, (1, 1, 1, 1), mode="replicate"))


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
        for parameter in self.skips.parameters():
            nn.init.zeros_(parameter)
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


@register_model(*STRIDES, family="fully convolutional")
def build(name: str, classes: int, encoder_weights: str | None, width: float = 1.0) -> PaddedModel:
    """fcn32s, fcn16s or fcn8s on VGG16. `width` scales its channels (64 to 4096), for small machines.

    encoder_weights: "imagenet" or a file of torchvision's VGG16, fully connected layers included; these need width 1.
    """
    return load_encoder(PaddedModel(FCN(classes, STRIDES[name], width), 32), encoder_weights, "vgg16")


class MainOutput(nn.Module):
    """Takes the main output out of torchvision's dictionary."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Float (N, 3, H, W) to logits (N, classes, H, W)."""
        return self.network(image)["out"]


@register_model("fcn_resnet50", "fcn_resnet101", family="fully convolutional")
@register_model("deeplabv3_resnet50", "deeplabv3_resnet101", family="dilated")
def build_torchvision(name: str, classes: int, encoder_weights: str | None) -> PaddedModel:
    """One of torchvision's networks at output stride 8, its last layer replaced by one with `classes` channels.

    encoder_weights: "imagenet" takes the whole network, which torchvision trained on COCO, as the competition's
    baseline does; a path loads the ResNet alone; None starts from random weights. DeepLabV3 has the rates 12, 24, 36.

    torchvision states 35.3 and 54.3 M parameters for FCN, 42.0 and 61.0 M for DeepLabV3 (21 classes); 2.4 M of them
    are an auxiliary output, which is left out here.
    """
    network = get_model(name, weights=None, weights_backbone=None, num_classes=21)
    if encoder_weights == "imagenet":
        state = torchvision_state(get_model_weights(name).DEFAULT)
        network.load_state_dict({k: v for k, v in state.items() if not k.startswith("aux_classifier")})
    elif encoder_weights:
        load_state(network.backbone, read_state(encoder_weights), encoder_weights)
    network.classifier[-1] = nn.Conv2d(network.classifier[-1].in_channels, classes, 1)
    return PaddedModel(MainOutput(network), 8)
