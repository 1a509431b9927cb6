"""Networks that are one of smp's decoders with the encoder a paper put it on, under the paper's name."""

from utils.models import smp
from utils.models.base import PaddedModel
from utils.registry import register_model

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
def build(
    name: str, classes: int, encoder_weights: str | None, image_size: int | None = None, **options
) -> PaddedModel:
    """The pair called `name`; options are those of its decoder in `smp.build`. Swin needs image_size, 512 if None."""
    decoder, encoder, own_options = PAIRS[name]
    model = smp.build(decoder, classes, encoder, encoder_weights, image_size or 512, **{**own_options, **options})
    if encoder.startswith("efficientnet"):  # smp keeps the first layers of the classifier, unused
        del model.network.encoder._conv_head, model.network.encoder._bn1
    return model
