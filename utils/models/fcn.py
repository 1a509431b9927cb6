"""Fully convolutional networks (Long, Shelhamer, Darrell 2015): FCN-32s, FCN-16s and FCN-8s."""

import torch
from torch import nn
from torch.nn import functional as F

from utils.models.base import PaddedModel
from utils.models.blocks import VGG16
from utils.models.pretrained import load_encoder
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
