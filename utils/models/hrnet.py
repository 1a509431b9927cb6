"""HRNetV2, which keeps a map at a quarter of the image's size throughout, and HRNet-OCR on top of it."""

import timm
import torch
from torch import nn
from torchvision.ops.misc import Conv2dNormActivation

from utils.models.base import Loss, PaddedModel
from utils.models.blocks import convolve_twice, upsample_to
from utils.models.pretrained import load_encoder
from utils.registry import register_model

NETWORKS = {f"{kind}_w{width}": f"hrnet_w{width}" for kind in ("hrnetv2", "hrnet_ocr") for width in (18, 32, 48, 64)}


class HRNetV2(nn.Module):
    """HRNetV2 (Wang et al. 2020, "Deep High-Resolution Representation Learning for Visual Recognition", section 3.4).

    The body is timm's; its four streams are resized to a quarter of the image's size, concatenated and mixed by a 1 × 1
    convolution (figure 4 b), another one gives the classes. (smp's `tu-hrnet_*` encoders are something else: the
    classification network's widened streams.) Parameters for Cityscapes' 19 classes: W48 65.9 M (table 3). The paper
    gives none for the others; MMSegmentation lists W18 with 9.6 M.
    """

    def __init__(self, body: str, classes: int):
        super().__init__()
        self.encoder = timm.create_model(body, features_only=True, feature_location="", out_indices=(1, 2, 3, 4))
        self.channels = sum(self.encoder.feature_info.channels())
        mix = Conv2dNormActivation(self.channels, self.channels, 1)
        self.head = nn.Sequential(*mix, nn.Conv2d(self.channels, classes, 1))

    def streams(self, image: torch.Tensor) -> torch.Tensor:
        """Float (N, 3, H, W) to (N, channels, H/4, W/4): the four streams, 15 times the width together."""
        maps = self.encoder(image)
        return torch.cat([maps[0], *(upsample_to(stream, maps[0]) for stream in maps[1:])], 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Float (N, 3, H, W), H and W multiples of 32, to logits (N, classes, H, W)."""
        return upsample_to(self.head(self.streams(image)), image)


class HRNetOCR(HRNetV2):
    """HRNetV2 with object-contextual representations (Yuan, Chen, Wang 2020): W48 has 70.3 M parameters.

    That figure, for Cityscapes' 19 classes, is the one usually cited; the paper counts the module alone. HRNetV2's own
    logits are the soft object regions M_k. A spatial softmax weighs the pixels within each class (section 3.2), f_k =
    Σ_i softmax_i(M_ki) x_i; that is done for each class by itself, never across classes, so overlapping bones need no
    change. Every pixel then attends to the region features f_k and is described by their mixture besides itself.
    `training_loss` trains the regions with weight 0.4.
    """

    def __init__(self, body: str, classes: int, channels: int = 512, key_channels: int = 256):
        super().__init__(body, classes)
        self.regions = self.head
        del self.head  # it must not stand before the regions: the last layer starts from the prior
        self.pixels = Conv2dNormActivation(self.channels, channels)
        self.query, self.key = (convolve_twice(channels, key_channels, size=1) for _ in range(2))
        self.value = Conv2dNormActivation(channels, key_channels, 1)
        self.context = Conv2dNormActivation(key_channels, channels, 1)
        self.fuse = nn.Sequential(Conv2dNormActivation(2 * channels, channels, 1), nn.Dropout2d(0.05))
        self.head = nn.Conv2d(channels, classes, 1)

    def _both(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits and the soft regions' logits, both (N, classes, H/4, W/4)."""
        streams = self.streams(image)
        regions, pixels = self.regions(streams), self.pixels(streams)
        weights = regions.flatten(2).softmax(2)  # (N, classes, pixels)
        objects = (weights @ pixels.flatten(2).transpose(1, 2)).transpose(1, 2)[..., None]  # (N, channels, classes, 1)
        query, key, value = self.query(pixels).flatten(2), self.key(objects).flatten(2), self.value(objects).flatten(2)
        attention = (query.transpose(1, 2) @ key * key.shape[1] ** -0.5).softmax(2)  # (N, pixels, classes)
        context = self.context((value @ attention.transpose(1, 2)).unflatten(2, pixels.shape[2:]))
        return self.head(self.fuse(torch.cat([context, pixels], 1))), regions

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Float (N, 3, H, W), H and W multiples of 32, to logits (N, classes, H, W)."""
        return upsample_to(self._both(image)[0], image)

    def training_loss(self, image: torch.Tensor, label: torch.Tensor, loss: Loss) -> torch.Tensor:
        """`loss` of the logits plus 0.4 times that of the soft regions."""
        logits, regions = (upsample_to(maps, image) for maps in self._both(image))
        return loss(logits, label) + 0.4 * loss(regions, label)


@register_model(*NETWORKS, family="high resolution")
def build(name: str, classes: int, encoder_weights: str | None) -> PaddedModel:
    """HRNetV2 or HRNet-OCR of the width in its name; encoder_weights: "imagenet" (timm's) or a file of timm's HRNet."""
    network = HRNetV2 if name.startswith("hrnetv2") else HRNetOCR
    return load_encoder(PaddedModel(network(NETWORKS[name], classes), 32), encoder_weights, NETWORKS[name], timms=True)
