"""Transformers and modern encoders: MobileViT, Swin-Unet, and smp's decoders on the encoders papers put them on."""

import timm
import torch
from timm.models.swin_transformer import SwinTransformerStage
from torch import nn

from utils.models import smp
from utils.models.base import PaddedModel
from utils.models.blocks import EncoderHead, atrous_pyramid
from utils.models.pretrained import load_encoder
from utils.registry import register_model

NETWORKS = {
    **{f"mobilevit_deeplabv3_{size}": f"mobilevit_{size}" for size in ("xxs", "xs", "s")},
    **{f"mobilevitv2_deeplabv3_{width:03}": f"mobilevitv2_{width:03}" for width in range(50, 225, 25)},
}


def mobilevit_deeplab(body: str, classes: int) -> EncoderHead:
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
def build_mobilevit(name: str, classes: int, encoder_weights: str | None) -> PaddedModel:
    """MobileViT or MobileViTv2 with DeepLabV3's head; encoder_weights: "imagenet" (timm's) or a file of timm's."""
    body = NETWORKS[name]
    return load_encoder(PaddedModel(mobilevit_deeplab(body, classes), 32), encoder_weights, body, timms=True)


BODY = "swin_tiny_patch4_window7_224"
DEPTH = 2
"""Blocks per stage, half of them with shifted windows; Swin-T itself has six in its third stage."""


class SwinUnet(nn.Module):
    """Swin-Unet (Cao et al. 2021, figure 1): 27.2 M parameters for Synapse's 9 classes.

    The encoder is Swin-T's patch embedding and first two blocks of each stage, the bottleneck its last stage; each step
    of the decoder expands patches (more channels, then twice the size with half of them), concatenates the skip, joins
    both by a linear layer and runs two blocks; a last expansion by four reaches the image's size. The paper prints no
    count; its repository's network has 27.17 M. Windows at the border of an image whose map is no multiple of 7 are
    padded, so that other sizes than the paper's 224 work.
    """

    def __init__(self, classes: int):
        super().__init__()
        self.encoder = timm.create_model(BODY, num_classes=0, depths=(DEPTH,) * 4, strict_img_size=False)
        widths = [stage["num_chs"] for stage in self.encoder.feature_info]
        self.expand, self.join, self.stages = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        settings = {"downsample": False, "window_size": 7, "dynamic_mask": True, "drop_path": 0.1}
        for level in (2, 1, 0):
            width, side, heads = widths[level], 56 >> level, 3 << level
            self.expand.append(PatchExpanding(2 * width, 2, width))
            self.join.append(nn.Linear(2 * width, width))
            self.stages.append(SwinTransformerStage(width, width, (side, side), DEPTH, num_heads=heads, **settings))
        self.norm = nn.LayerNorm(widths[0])
        self.full_size = PatchExpanding(widths[0], 4, widths[0])
        self.head = nn.Conv2d(widths[0], classes, 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Float (N, 3, H, W), H and W multiples of 32, to logits (N, classes, H, W)."""
        maps, skips = self.encoder.patch_embed(image), []  # channels last in all of Swin
        for stage in self.encoder.layers:
            maps = stage(maps)
            skips.append(maps)
        maps = self.encoder.norm(skips.pop())
        for expand, join, stage in zip(self.expand, self.join, self.stages, strict=True):
            maps = stage(join(torch.cat([expand(maps), skips.pop()], -1)))
        return self.head(self.full_size(self.norm(maps)).permute(0, 3, 1, 2))


class PatchExpanding(nn.Module):
    """A linear layer whose channels become pixels, then layer norm: (N, h, w, inputs) to (N, h·s, w·s, outputs)."""

    def __init__(self, inputs: int, scale: int, outputs: int):
        super().__init__()
        self.linear = nn.Linear(inputs, outputs * scale**2, bias=False)
        self.shuffle = nn.PixelShuffle(scale)
        self.norm = nn.LayerNorm(outputs)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """Larger by `scale`."""
        return self.norm(self.shuffle(self.linear(maps).permute(0, 3, 1, 2)).permute(0, 2, 3, 1))


@register_model("swin_unet", family="transformer, modern")
def build_swin_unet(classes: int, encoder_weights: str | None) -> PaddedModel:
    """Swin-Unet; encoder_weights: "imagenet" (of timm's Swin-T, two blocks per stage) or a file of those."""
    return load_encoder(PaddedModel(SwinUnet(classes), 32), encoder_weights, BODY, timms=True)


SIZES = {"t": "tiny", "s": "small", "b": "base"}
SEGFORMER_WIDTH, UPERNET = "decoder_segmentation_channels", {"decoder_channels": 512}
PAIRS: dict[str, tuple[str, str, dict[str, int]]] = {
    **{f"segformer_b{i}": ("segformer", f"mit_b{i}", {SEGFORMER_WIDTH: 256 if i < 2 else 768}) for i in range(6)},
    **{f"upernet_swin_{s}": ("upernet", f"tu-swin_{size}_patch4_window7_224", UPERNET) for s, size in SIZES.items()},
    **{f"upernet_convnext_{s}": ("upernet", f"tu-convnext_{size}", UPERNET) for s, size in SIZES.items()},
    **{f"upernet_pvtv2_b{i}": ("upernet", f"tu-pvt_v2_b{i}", UPERNET) for i in range(6)},
    **{f"eff_{unet}_b{i}": (unet, f"efficientnet-b{i}", {}) for unet in ("unet", "unetplusplus") for i in range(8)},
    **{f"mobile_{unet}": (unet, "mobilenet_v2", {}) for unet in ("unet", "unetplusplus")},
}
"""Decoder, encoder and the decoder's options. Parameters for ADE20K's 150 classes, in millions:

SegFormer (Xie et al. 2021, table 1): B0 3.8, B1 13.7, B2 27.5, B3 47.3, B4 64.1, B5 84.7. The widths of its decoder are
    the authors' configurations' (256 for B0 and B1, 768 above); smp's own `segformer` has 256 throughout.
UPerNet (Xiao et al. 2018) on Swin (Liu et al. 2021, table 3): T 60, S 81, B 121; on ConvNeXt (Liu et al. 2022):
    T 60, S 82, B 122. Both count an auxiliary FCN head of about a million for training, which smp lacks. On PVTv2
    (Wang et al. 2022) the paper itself has Semantic FPN, so that there is no figure to compare with.
Eff-UNet (Baheti et al. 2020; its best encoder is B7) and Mobile-UNet: U-Net's decoder as smp has it.
"""


@register_model(*(n for n in PAIRS if n.startswith(("eff_", "mobile_"))), family="U-Net and pyramids")
@register_model(*(n for n in PAIRS if n.startswith(("segformer_", "upernet_"))), family="transformer, modern")
def build_pair(
    name: str, classes: int, encoder_weights: str | None, image_size: int | None = None, **options
) -> PaddedModel:
    """The pair called `name`; options are those of its decoder in `smp.build`. Swin needs image_size, 512 if None."""
    decoder, encoder, own_options = PAIRS[name]
    model = smp.build(decoder, classes, encoder, encoder_weights, image_size or 512, **{**own_options, **options})
    if encoder.startswith("efficientnet"):  # smp keeps the first layers of the classifier, unused
        del model.network.encoder._conv_head, model.network.encoder._bn1
    return model
