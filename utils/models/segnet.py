"""SegNet (Badrinarayanan, Kendall, Cipolla 2017): VGG16 and its mirror image, unpooled by the encoder's indices."""

import torch
from torch import nn
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

NETWORKS = ("segnet",)


class SegNet(nn.Module):
    """VGG16's 13 convolutions with batch norm, and 13 that mirror them (Badrinarayanan et al. 2017, section 3).

    Every pooling remembers where its maxima were, the decoder puts values back there; nothing else crosses from encoder
    to decoder. The mirror of the first convolution gives the classes.

    The paper counts its encoder alone, 14.7 M (section 1). Jégou et al. 2017 (table 3) give 29.5 M for the whole and
    the 11 classes of CamVid; here 29.45 M.
    """

    def __init__(self, classes: int):
        super().__init__()
        self.encoder = VGG16(batch_norm=True)
        pool_with_indices(self.encoder)
        self.decoder = nn.ModuleList(
            UnpoolingStage(inputs, outputs, nn.Conv2d)
            for inputs, outputs in (
                (512, [512, 512, 512]),
                (512, [512, 512, 256]),
                (256, [256, 256, 128]),
                (128, [128, 64]),
                (64, [64]),
            )
        )
        self.score = nn.Conv2d(64, classes, 3, padding=1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Logits (N, classes, H, W); H and W multiples of 32."""
        maps, indices = encode_with_indices(self.encoder, image)
        for stage, where in zip(self.decoder, reversed(indices), strict=True):
            maps = stage(maps, where)
        return self.score(maps)


def build(name: str, classes: int, encoder: str | None, encoder_weights: str | None) -> PaddedModel:
    """SegNet on VGG16 with batch norm; encoder_weights are torchvision's for that ("imagenet" or a file of them)."""
    only_encoder(name, encoder, ("vgg16_bn",))
    network = SegNet(classes)
    load_pretrained(network.encoder, encoder_weights, VGG16_BN_Weights.IMAGENET1K_V1)
    return PaddedModel(network, 32)
