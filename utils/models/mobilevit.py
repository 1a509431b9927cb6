"""DeepLabV3 on MobileViT and MobileViTv2, whose last stage is dilated."""

import timm
from torch import nn

from utils.models.base import PaddedModel
from utils.models.blocks import EncoderHead, atrous_pyramid
from utils.models.pretrained import load_encoder
from utils.registry import register_model

NETWORKS = {
    **{f"mobilevit_deeplabv3_{size}": f"mobilevit_{size}" for size in ("xxs", "xs", "s")},
    **{f"mobilevitv2_deeplabv3_{width:03}": f"mobilevitv2_{width:03}" for width in range(50, 225, 25)},
}


def deeplab_v3(body: str, classes: int) -> EncoderHead:
    """DeepLabV3's pyramid (Chen et al. 2017) on MobileViT (Mehta, Rastegari 2022) or MobileViTv2 (2022).

    Parameters of MobileViT for PASCAL VOC's 21 classes: XXS 1.9, XS 2.9, S 6.4 M (the paper's figures; XXS has 1.855 M,
    which rounds to 1.9); of MobileViTv2 for ADE20K's 150: 0.5 6.3, 0.75 9.6, 1.0 13.4, 1.25 17.7, 1.5 22.6, 1.75 28.1,
    2.0 34.0 M (model zoo of CVNets, the authors' library).

    As in CVNets: output stride 16, the classifier's last 1 × 1 expansion left out, dilation rates 6, 12 and 18 with 256
    channels (v1) or 512 (v2), dropout of 0.1.
    """
    encoder = timm.create_model(body, num_classes=0, global_pool="", output_stride=16)
    expansion = encoder.final_conv  # MobileViTv2 has none
    inputs = encoder.num_features if isinstance(expansion, nn.Identity) else expansion.conv.in_channels
    encoder.final_conv = nn.Identity()
    channels = 512 if body.startswith("mobilevitv2") else 256
    pyramid = atrous_pyramid(inputs, channels, dropout=0.1)
    return EncoderHead(encoder=encoder, pyramid=pyramid, head=nn.Conv2d(channels, classes, 1))


@register_model(*NETWORKS, family="transformer, modern")
def build(name: str, classes: int, encoder_weights: str | None) -> PaddedModel:
    """MobileViT or MobileViTv2 with DeepLabV3's head; encoder_weights: "imagenet" (timm's) or a file of timm's."""
    body = NETWORKS[name]
    return load_encoder(PaddedModel(deeplab_v3(body, classes), 32), encoder_weights, body, timms=True)
