"""Swin-Unet: a U-Net whose every layer is a Swin Transformer block."""

import timm
import torch
from timm.models.swin_transformer import SwinTransformerStage
from torch import nn

from utils.models.base import PaddedModel
from utils.models.pretrained import load_encoder
from utils.registry import register_model

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
def build(classes: int, encoder_weights: str | None) -> PaddedModel:
    """Swin-Unet; encoder_weights: "imagenet" (of timm's Swin-T, two blocks per stage) or a file of those."""
    return load_encoder(PaddedModel(SwinUnet(classes), 32), encoder_weights, BODY, timms=True)
