"""DeconvNet (Noh, Hong, Han 2015): VGG16 down to fc7, and a deconvolution network that mirrors it."""

import torch
from torch import nn
from torch.nn import functional as F
from torchvision.models import VGG16_BN_Weights

from utils.models.base import PaddedModel
from utils.models.blocks import (
    VGG16,
    UnpoolingStage,
    encode_with_indices,
    only_encoder,
    pool_with_indices,
)
from utils.models.weights import load_pretrained

NETWORKS = ("deconvnet",)


class DeconvNet(nn.Module):
    """VGG16 with fc6 and fc7, then deconvolutions with unpooling by indices (Noh et al. 2015, figure 2 and table 2).

    Batch norm and ReLU follow every layer. A 7 × 7 deconvolution, deconv-fc6, leads from 4096 channels to 512.

    Paper: about 252 M parameters (section 5.1), here 251.8 M for its 21 classes, batch norm included: twice VGG16's
    14.7 M of 3 × 3 convolutions, twice 102.8 M for fc6 and deconv-fc6, 16.8 M for fc7. The paper crops proposals of
    224 × 224, whose fc6 is one pixel; here fc6 and deconv-fc6 are padded, so that whole images of any size pass.
    """

    def __init__(self, classes: int, width: float = 1.0):
        super().__init__()
        self.encoder = VGG16(width, batch_norm=True, fc_dilation=1)
        pool_with_indices(self.encoder)
        one, two, three, four, five = self.encoder.channels
        hidden = self.encoder.fc_channels
        self.fc_norms = nn.ModuleList(nn.BatchNorm2d(hidden) for _ in range(2))
        self.deconv_fc6 = nn.Sequential(
            nn.ConvTranspose2d(hidden, five, 7, padding=3), nn.BatchNorm2d(five), nn.ReLU(inplace=True)
        )
        self.decoder = nn.ModuleList(
            UnpoolingStage(inputs, outputs, nn.ConvTranspose2d)
            for inputs, outputs in (
                (five, [five, five, four]),
                (four, [four, four, three]),
                (three, [three, three, two]),
                (two, [two, one]),
                (one, [one, one]),
            )
        )
        self.score = nn.Conv2d(one, classes, 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Logits (N, classes, H, W); H and W multiples of 32."""
        maps, indices = encode_with_indices(self.encoder, image)
        for layer, norm in zip(self.encoder.classifier.values(), self.fc_norms, strict=True):
            maps = F.relu(norm(layer(maps)))
        maps = self.deconv_fc6(maps)
        for stage, where in zip(self.decoder, reversed(indices), strict=True):
            maps = stage(maps, where)
        return self.score(maps)


def build(name: str, classes: int, encoder: str | None, encoder_weights: str | None, width: float = 1.0) -> PaddedModel:
    """DeconvNet on VGG16 with batch norm. `width` scales all its channels (64 to 4096), for small machines.

    encoder_weights: "imagenet" or a file of torchvision's VGG16-BN, fully connected layers included; both need width 1.
    """
    only_encoder(name, encoder, ("vgg16_bn",))
    network = DeconvNet(classes, width)
    load_pretrained(network.encoder, encoder_weights, VGG16_BN_Weights.IMAGENET1K_V1)
    return PaddedModel(network, 32)
