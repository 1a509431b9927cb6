"""YOLACT: masks as sums of prototypes that all instances of an image share, with coefficients of each anchor."""

from collections.abc import Sequence
from typing import NamedTuple

import segmentation_models_pytorch as smp
import torch
from torch import nn
from torch.nn import functional as F

from utils.models.base import Loss, PaddedModel, check_options
from utils.models.blocks import upsample_to
from utils.models.boxes import BACKGROUND, anchors, decode, encode, fast_nms, match
from utils.models.instances import Instances, targets
from utils.models.smp import DEFAULT_ENCODER, check_encoder, encoder_options, fill_encoder
from utils.registry import register_model

STRIDES = (8, 16, 32, 64, 128)
"""Of the pyramid's levels, P3 to P7."""
RATIOS = (1.0, 0.5, 2.0)
"""Width / height of the anchors at each place."""
BOX_WEIGHT, MASK_WEIGHT, SEGMENTATION_WEIGHT = 1.5, 6.125, 1.0
NEGATIVES = 3
"""Background anchors in the loss for each that has an object."""
MASKS_LEARNT = 100
"""Anchors of an image whose masks are learnt in one step, drawn at random where more have an object."""
BEST, LEAST_SCORE = 200, 0.05
"""Anchors of each class that enter the suppression, and the score below which nothing is an instance."""
OPTIONS = ("channels", "prototypes", "anchor_scale", "instances")


class Found(NamedTuple):
    """What the network says of a batch, in float32.

    offsets (N, A, 4) from the anchors `places` (A, 4), classes (N, A, classes + 1) as logits with the background last,
    coefficients (N, A, k) from -1 to 1, prototypes (N, k, h, w) at a quarter of the image's size, segmentation: logits
    (N, classes, H / 8, W / 8).
    """

    offsets: torch.Tensor
    classes: torch.Tensor
    coefficients: torch.Tensor
    prototypes: torch.Tensor
    segmentation: torch.Tensor
    places: torch.Tensor


class Pyramid(nn.Module):
    """Feature pyramid (Lin et al. 2017) of the last three of an encoder's maps, and two more levels: P3 to P7."""

    def __init__(self, inputs: Sequence[int], channels: int):
        super().__init__()
        self.lateral = nn.ModuleList(nn.Conv2d(c, channels, 1) for c in inputs)
        self.smooth = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in inputs)
        self.halve = nn.ModuleList(nn.Conv2d(channels, channels, 3, stride=2, padding=1) for _ in range(2))

    def forward(self, maps: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Maps at strides 8, 16 and 32 to maps (N, channels, …) at strides 8 to 128."""
        merged = []
        for layer, finer in zip(reversed(self.lateral), reversed(maps), strict=True):
            skip = layer(finer)
            merged.append(skip + upsample_to(merged[-1], skip) if merged else skip)
        levels = [F.relu(layer(level)) for layer, level in zip(self.smooth, reversed(merged), strict=True)]
        for layer in self.halve:
            levels.append(layer(levels[-1]))
        return levels


class Upsample(nn.Module):
    """Twice the size, bilinearly."""

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """(N, C, h, w) to (N, C, 2 h, 2 w)."""
        return F.interpolate(maps, scale_factor=2, mode="bilinear", align_corners=False)


class YOLACT(nn.Module):
    """YOLACT (Bolya et al. 2019, "YOLACT: Real-time Instance Segmentation"), with the details of the authors' code.

    Parameters for COCO's 80 classes: 31.2 M on ResNet-50, 50.2 M on ResNet-101. (OpenVINO's model zoo prints 36.8 M for
    ResNet-50: its file holds the shared head five times, and the anchors.)

    Each anchor predicts a class, a box, and coefficients; its mask is the sigmoid of the sum of prototypes that these
    weigh, cut off at its box. Unlike the authors' code, which made all anchors square by accident, anchors have the
    paper's ratios; and masks are learnt as coverage of the prototypes' pixels, not cut at a half.

    channels: of the pyramid, the prototypes' layers and the head. anchor_scale: side of the square anchor in strides of
    its level; 3 makes the paper's 24 to 384 pixels. instances: the most in an image.
    """

    def __init__(
        self,
        encoder: nn.Module,
        classes: int,
        channels: int = 256,
        prototypes: int = 32,
        anchor_scale: float = 3.0,
        instances: int = 100,
    ):
        super().__init__()
        self.encoder, self.outputs = encoder, (4, classes + 1, prototypes)
        self.sides, self.most = [anchor_scale * stride for stride in STRIDES], instances
        self.pyramid = Pyramid(encoder.out_channels[-3:], channels)
        before = [layer for _ in range(3) for layer in (convolution(channels, channels), nn.ReLU())]
        after = [convolution(channels, channels), nn.ReLU(), nn.Conv2d(channels, prototypes, 1), nn.ReLU()]
        self.protonet = nn.Sequential(*before, Upsample(), *after)
        self.tower = nn.Sequential(convolution(channels, channels), nn.ReLU())
        self.heads = nn.ModuleList(convolution(channels, len(RATIOS) * number) for number in self.outputs)
        self.segmentation = nn.Conv2d(channels, classes, 1)
        for part in (self.pyramid, self.protonet, self.tower, self.heads, self.segmentation):
            for layer in part.modules():
                if isinstance(layer, nn.Conv2d):
                    nn.init.xavier_uniform_(layer.weight)
                    nn.init.zeros_(layer.bias)

    def predict(self, image: torch.Tensor) -> Found:
        """All outputs for float (N, 3, H, W), H and W multiples of 32."""
        levels = self.pyramid(self.encoder(image)[-3:])
        towers = [self.tower(level) for level in levels]
        offsets, classes, coefficients = (
            torch.cat([head(maps).permute(0, 2, 3, 1).flatten(1).unflatten(1, (-1, number)) for maps in towers], 1)
            for head, number in zip(self.heads, self.outputs, strict=True)
        )
        sizes = [tuple(level.shape[-2:]) for level in levels]
        return Found(
            offsets.float(),
            classes.float(),
            coefficients.float().tanh(),
            self.protonet(levels[0]).float(),
            self.segmentation(levels[0]).float(),
            anchors(sizes, *image.shape[-2:], self.sides, RATIOS).to(image.device),
        )

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Float (N, 3, H, W), H and W multiples of 32, to logits (N, classes, H, W) of the union of instances."""
        found = self.predict(image)
        with torch.autocast(image.device.type, enabled=False):
            _, labels, scores, masks = self.detect(found, image.shape[-2:])
            union = masks.new_zeros(len(image), self.outputs[1] - 1, *masks.shape[2:])
            where = labels[:, :, None, None].expand_as(masks)
            union = union.scatter_reduce(1, where, masks * scores[:, :, None, None], "amax")
            return upsample_to(union, image).logit(eps=1e-6)

    def instances(self, image: torch.Tensor) -> list[Instances]:
        """Those of each image of float (N, 3, H, W), the highest score first."""
        found = self.predict(image)
        with torch.autocast(image.device.type, enabled=False):
            boxes, labels, scores, masks = self.detect(found, image.shape[-2:])
            return [
                Instances(box[s > 0], label[s > 0], s[s > 0], upsample_to(mask[s > 0][None], image)[0])
                for box, label, s, mask in zip(boxes, labels, scores, masks, strict=True)
            ]

    def detect(self, found: Found, size: tuple[int, int]) -> tuple[torch.Tensor, ...]:
        """Boxes (N, K, 4), classes (N, K), scores (N, K) and masks (N, K, h, w) at the prototypes' size, best first.

        K is the same for each image, so that the network can be exported; what is no instance has the score 0.
        """
        boxes = decode(found.offsets, found.places)
        limits = boxes.new_tensor([size[1], size[0], size[1], size[0]])
        boxes = boxes.clamp(min=0).minimum(limits)
        scores = found.classes.softmax(-1)[..., :-1].transpose(1, 2)  # (N, classes, A)
        scores, which = scores.topk(min(BEST, scores.shape[2]), 2)
        of_class = boxes.gather(1, which.flatten(1)[..., None].expand(-1, -1, 4)).unflatten(1, which.shape[1:])
        scores = scores * (fast_nms(of_class) & (scores > LEAST_SCORE))
        per_class = which.shape[2]
        scores, best = scores.flatten(1).topk(min(self.most, scores[0].numel()), 1)
        which = which.flatten(1).gather(1, best)[..., None]
        boxes = boxes.gather(1, which.expand(-1, -1, 4))
        coefficients = found.coefficients.gather(1, which.expand(-1, -1, self.outputs[2]))
        masks = torch.einsum("nkp,nphw->nkhw", coefficients, found.prototypes).sigmoid()
        return boxes, best // per_class, scores, masks * inside(boxes, masks.shape[2:], size)

    def training_loss(self, image: torch.Tensor, label: torch.Tensor, loss: Loss) -> torch.Tensor:
        """The paper's losses (sections 3 and 4.2) in place of `loss`: of classes, boxes, masks and segmentation."""
        found = self.predict(image)
        with torch.autocast(image.device.type, enabled=False):
            return sum(losses(found, label.float()).values())


def convolution(inputs: int, outputs: int) -> nn.Conv2d:
    """3 × 3, of the map's size."""
    return nn.Conv2d(inputs, outputs, 3, padding=1)


def inside(boxes: torch.Tensor, shape: tuple[int, int], size: tuple[int, int]) -> torch.Tensor:
    """Which pixels of maps of `shape` lie in each box, or one pixel beside it: bool (…, h, w) of boxes (…, 4).

    size: height and width of the image that the boxes lie in.
    """
    (rows, columns), (height, width) = shape, size
    left, top, right, bottom = boxes[..., None].unbind(-2)
    x = torch.arange(columns, device=boxes.device) * (width / columns)
    y = torch.arange(rows, device=boxes.device) * (height / rows)
    across = (x >= left - width / columns) & (x < right + width / columns)
    down = (y >= top - height / rows) & (y < bottom + height / rows)
    return down[..., :, None] & across[..., None, :]


def losses(found: Found, label: torch.Tensor) -> dict[str, torch.Tensor]:
    """The weighted losses classes, boxes, masks and segmentation of float (N, classes, H, W) labels, each a scalar.

    The first three are sums over anchors divided by the number of those that have an object, in the whole batch.
    """
    size = label.shape[-2:]
    truth = targets(label)
    matched = torch.stack([match(each.boxes, found.places) for each in truth])
    positive = matched >= 0
    boxes, masks = found.offsets.new_zeros(()), found.offsets.new_zeros(())
    classes = torch.where(positive, 0, found.classes.shape[2] - 1)
    for number, each in enumerate(truth):
        which = positive[number].nonzero()[:, 0]
        of_which = matched[number][which]
        classes[number, which] = each.labels[of_which]
        offsets = encode(each.boxes[of_which], found.places[which])
        boxes = boxes + F.smooth_l1_loss(found.offsets[number, which], offsets, reduction="sum")
        drawn = torch.randperm(len(which), device=which.device)[:MASKS_LEARNT]
        sampled = len(which) / max(len(drawn), 1)
        masks = masks + sampled * mask_loss(
            found.coefficients[number, which[drawn]], found.prototypes[number], each, of_which[drawn], size
        )
    coverage = F.adaptive_avg_pool2d(label, found.segmentation.shape[-2:])
    segmentation = F.binary_cross_entropy_with_logits(found.segmentation, coverage) * label.shape[1]
    counted = positive | hard_negatives(found.classes, matched)
    entropy = F.cross_entropy(found.classes[counted], classes[counted], reduction="sum")
    objects = positive.sum().clamp(min=1)
    return {
        "classes": entropy / objects,
        "boxes": BOX_WEIGHT * boxes / objects,
        "masks": MASK_WEIGHT * masks / objects,
        "segmentation": SEGMENTATION_WEIGHT * segmentation,
    }


def hard_negatives(classes: torch.Tensor, matched: torch.Tensor) -> torch.Tensor:
    """The background anchors that are learnt, bool (N, A): in each image, those that look least like background.

    classes: logits (N, A, classes + 1). matched: (N, A), see `boxes.match`.
    """
    background = matched == BACKGROUND
    surprise = -classes.detach().log_softmax(-1)[..., -1]
    rank = surprise.masked_fill(~background, -1).argsort(1, descending=True).argsort(1)
    return background & (rank < NEGATIVES * (matched >= 0).sum(1, keepdim=True))


def mask_loss(
    coefficients: torch.Tensor, prototypes: torch.Tensor, truth: Instances, which: torch.Tensor, size: tuple[int, int]
) -> torch.Tensor:
    """Sum over P anchors of the mean cross-entropy of their masks within their true boxes.

    coefficients (P, k); prototypes (k, h, w); which: number (P,) of each anchor's instance in `truth`; size: height and
    width of the image.
    """
    shape = prototypes.shape[1:]
    goal = F.adaptive_avg_pool2d(truth.masks, shape)[which]
    logits = torch.einsum("pk,khw->phw", coefficients, prototypes)
    entropy = F.binary_cross_entropy_with_logits(logits, goal, reduction="none")
    entropy = (entropy * inside(truth.boxes, shape, size)[which]).sum((1, 2))
    sides = (truth.boxes[:, 2:] - truth.boxes[:, :2])[which]
    return (entropy / sides.prod(1) * (size[0] / shape[0]) * (size[1] / shape[1])).sum()


@register_model("yolact", family="instances")
def build(
    name: str, classes: int, encoder: str | None, encoder_weights: str | None, image_size: int | None = None, **options
) -> PaddedModel:
    """YOLACT on any encoder, with the `options` of the class. `image_size` matters to encoders built for one size."""
    check_options(name, options, OPTIONS)
    encoder = encoder or DEFAULT_ENCODER
    check_encoder(name, encoder)
    settings, multiple = encoder_options(encoder, encoder_weights, image_size)
    weights = encoder_weights if encoder_weights == "imagenet" else None
    network = YOLACT(smp.encoders.get_encoder(encoder, weights=weights, **settings), classes, **options)
    return fill_encoder(PaddedModel(network, multiple), encoder, encoder_weights)


@register_model("yolact_resnet50", "yolact_resnet101", family="instances")
def build_on_resnet(name: str, classes: int, encoder_weights: str | None, **options) -> PaddedModel:
    """The paper's networks: `build` on the encoder in their name."""
    return build(name, classes, name.removeprefix("yolact_"), encoder_weights, **options)
