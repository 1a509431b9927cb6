"""Class activation maps: segmentation from a classifier that was trained without outlines."""

import torch
from torch import nn
from torch.nn import functional as F
from torchvision.ops.misc import Conv2dNormActivation

from utils.models import smp
from utils.models.base import Loss, PaddedModel
from utils.models.blocks import upsample_to
from utils.registry import register_model

DEFAULT_ENCODER = "resnet18"
VISIBLE = 0.25
"""A crop holds a bone if at least this share of the bone's area lies in it."""
SHARPNESS = 10.0
"""Logits span this range between a map's zero and its maximum."""


class CAM(nn.Module):
    """CAM (Zhou et al. 2016, "Learning Deep Features for Discriminative Localization").

    An encoder, a 3 × 3 convolution and global average pooling feed one linear classifier; because both are linear, the
    classifier applied at every pixel says where its score comes from (section 2). As in the paper the encoder keeps a
    finer map, here an eighth of the image's size, by dilation. The paper gives no parameter count.

    Every radiograph holds all bones, so a classifier can't learn from whole images. It is trained on `crops` random
    crops per image; the label says for each class whether the crop holds it. Small crops locate better: on the
    synthetic sample, eight crops of an eighth of the side led to Dice 0.27, four of a quarter to 0.17. One crop holds
    several bones, so each class has its own sigmoid in place of the paper's softmax.

    Logits are positive where the map exceeds `cutoff` of its maximum in the image, the paper's way to a segment
    (section 3.2). The paper uses 0.2, for objects that fill an image; bones are small, and 0.5 was better on the sample
    (Dice 0.27 against 0.22).
    """

    def __init__(self, encoder: nn.Module, classes: int, crop: float, crops: int, cutoff: float, width: int):
        super().__init__()
        self.encoder = encoder
        self.crop, self.crops, self.cutoff = crop, crops, cutoff
        self.mapping = Conv2dNormActivation(encoder.out_channels[-1], width)
        self.classifier = nn.Conv2d(width, classes, 1, bias=False)
        self.bias = nn.Parameter(torch.zeros(classes))  # of the classifier; a map has none

    def activation(self, image: torch.Tensor) -> torch.Tensor:
        """The maps M_c of the paper, (N, classes, H/8, W/8), unbounded; float (N, 3, H, W), H and W multiples of 32."""
        return self.classifier(self.mapping(self.encoder(image)[-1]))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Logits (N, classes, H, W): how far each map exceeds `cutoff` of its maximum; none above 0 in a flat map."""
        maps = self.activation(image)
        share = maps.relu() / maps.amax((2, 3), keepdim=True).clamp(min=1e-6)
        return upsample_to(SHARPNESS * (share - self.cutoff), image)

    def training_loss(self, image: torch.Tensor, label: torch.Tensor, loss: Loss) -> torch.Tensor:
        """Cross-entropy of the crops' classes in place of `loss`, which would show the classifier the outlines."""
        sides = [max(32, round(self.crop * side / 32) * 32) for side in image.shape[2:]]
        crops, held = random_crops(image, label, (sides[0], sides[1]), self.crops)
        scores = self.activation(crops).mean((2, 3)) + self.bias
        return F.binary_cross_entropy_with_logits(scores, held)


def random_crops(
    image: torch.Tensor, label: torch.Tensor, size: tuple[int, int], count: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """`count` crops of each image, (N · count, 3, *size), and what each holds, float 0 or 1 (N · count, classes).

    A bone counts as held where at least VISIBLE of its area is inside. Places are drawn by torch's generator.
    """
    rows, columns = (image.shape[axis] - side + 1 for axis, side in zip((2, 3), size, strict=True))
    whole = label.sum((2, 3)).clamp(min=1e-6)
    crops, held = [], []
    for number in range(len(image)):
        tops, lefts = torch.randint(rows, (count,)).tolist(), torch.randint(columns, (count,)).tolist()
        for top, left in zip(tops, lefts, strict=True):
            window = (slice(top, top + size[0]), slice(left, left + size[1]))
            crops.append(image[(number, slice(None), *window)])
            held.append(label[(number, slice(None), *window)].sum((1, 2)) >= VISIBLE * whole[number])
    return torch.stack(crops), torch.stack(held).float()


@register_model("cam", family="class activation")
def build(
    classes: int,
    encoder: str | None,
    encoder_weights: str | None,
    crop: float = 0.125,
    crops: int = 8,
    cutoff: float = 0.5,
    width: int = 256,
) -> PaddedModel:
    """CAM on one of smp's or timm's encoders that can be dilated; weights as for smp's decoders.

    crop: side of the crops as a fraction of the image's. crops: per image and step. cutoff: share of the maximum above
    which a pixel belongs to the class. width: channels before the classifier (the paper has 1024 for 1000 classes).
    """
    model = smp.build("deeplabv3", classes, encoder or DEFAULT_ENCODER, encoder_weights, encoder_output_stride=8)
    model.network = CAM(model.network.encoder, classes, crop, crops, cutoff, width)
    return model
