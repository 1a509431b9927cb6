"""YOLACT: masks as sums of prototypes that all instances of an image share, with coefficients of each anchor."""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from utils.models.base import Loss, ModelError, PaddedModel, check_options
from utils.models.blocks import upsample_to
from utils.models.boxes import anchors, decode, fast_nms
from utils.models.instances import Instances
from utils.models.pretrained import load_but_heads, read_state
from utils.models.smp import build_encoder, fill_encoder
from utils.models.yolact_losses import Found, inside, losses
from utils.registry import register_model

RATIOS = (1.0, 0.5, 2.0)
"""Width / height of the anchors at each place."""
BEST, LEAST_SCORE = 200, 0.05
"""Anchors of each class that enter the suppression, and the score below which nothing is an instance."""
LEAST_ANCHOR = 16
"""Pixels: two steps of the finest grid; smaller anchors leave gaps in which bones have none, see `maskrcnn`."""
OPTIONS = {"channels": 256, "prototypes": 32, "smallest_anchor": 24.0, "instances": 100}
"""And the paper's values."""
AUTHORS = "prediction_layers.0."
"""Where the head is in the authors' files, by which they are known."""
NAMES = {
    **{f"backbone.layers.{i}.": f"encoder.layer{i + 1}." for i in range(4)},
    "backbone.": "encoder.",
    "fpn.lat_layers.": "pyramid.lateral.",
    "fpn.pred_layers.": "pyramid.smooth.",
    "fpn.downsample_layers.": "pyramid.halve.",
    "proto_net.8.": "protonet.7.",
    "proto_net.10.": "protonet.9.",
    "proto_net.": "protonet.",
    f"{AUTHORS}upfeature.": "tower.",
    f"{AUTHORS}bbox_layer.": "heads.0.",
    f"{AUTHORS}mask_layer.": "heads.2.",
}
"""Beginnings of the tensors' names in the authors' files, and here."""
OF_CLASSES = ("heads.1.", "segmentation.")
"""What learns the classes: not taken from the authors, whose classes are COCO's, the background first."""


class Pyramid(nn.Module):
    """Feature pyramid (Lin et al. 2017) of the last three of an encoder's maps, and two more levels: P3 to P7.

    inputs: channels of the encoder's maps, the finest first. The layers' order is the authors': the coarsest first.
    """

    def __init__(self, inputs: Sequence[int], channels: int):
        super().__init__()
        self.lateral = nn.ModuleList(nn.Conv2d(number, channels, 1) for number in reversed(inputs))
        self.smooth = nn.ModuleList(convolution(channels, channels) for _ in inputs)
        self.halve = nn.ModuleList(nn.Conv2d(channels, channels, 3, stride=2, padding=1) for _ in range(2))

    def forward(self, maps: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Maps at strides 8, 16 and 32 to maps (N, channels, …) at strides 8 to 128."""
        merged = []
        for layer, finer in zip(self.lateral, reversed(maps), strict=True):
            skip = layer(finer)
            merged.append(skip + upsample_to(merged[-1], skip) if merged else skip)
        levels = [F.relu(layer(level)) for layer, level in zip(self.smooth, merged, strict=True)][::-1]
        for layer in self.halve:
            levels.append(layer(levels[-1]))
        return levels


class YOLACT(nn.Module):
    """YOLACT (Bolya et al. 2019, "YOLACT: Real-time Instance Segmentation"), with the details of the authors' code.

    Parameters for COCO's 80 classes: 31.2 M on ResNet-50, 50.2 M on ResNet-101. (OpenVINO's model zoo prints 36.8 M for
    ResNet-50: its file holds the shared head five times, and the anchors.)

    Each anchor predicts a class, a box, and coefficients; its mask is the sigmoid of the sum of prototypes that these
    weigh, cut off at its box. Unlike the authors' code, which made all anchors square by accident, anchors have the
    paper's ratios; and masks are learnt as coverage of the prototypes' pixels, not cut at a half.

    options: those of OPTIONS. channels: of the pyramid, the prototypes' layers and the head. smallest_anchor: side of
    the smallest square anchor, pixels; each of the five levels doubles it, in the paper from 24 to 384. instances: the
    most in an image.
    """

    def __init__(self, encoder: nn.Module, classes: int, **options: float):
        super().__init__()
        channels, prototypes, smallest_anchor, instances = (OPTIONS | options).values()
        self.encoder, self.outputs = encoder, (4, classes + 1, prototypes)
        self.sides, self.most = [smallest_anchor * 2**level for level in range(5)], instances
        self.pyramid = Pyramid(encoder.out_channels[-3:], channels)
        layers = [layer for _ in range(4) for layer in (convolution(channels, channels), nn.ReLU())]
        layers.insert(6, nn.Upsample(scale_factor=2, mode="bilinear"))
        self.protonet = nn.Sequential(*layers, nn.Conv2d(channels, prototypes, 1), nn.ReLU())
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
            count = image.shape[0]  # len() would fix it in an exported file
            union = masks.new_zeros(count, self.outputs[1] - 1, *masks.shape[2:])
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

    def load(self, state: dict[str, torch.Tensor], source: str) -> None:
        """Fill the network from one of the authors' files, but for what learns the classes, which a line says.

        Raises ModelError for a file of another encoder or of other sizes.
        """
        kept = {}
        for name, tensor in state.items():
            start = next((start for start in NAMES if name.startswith(start)), "")
            if not (here := NAMES.get(start, "") + name.removeprefix(start)).startswith(OF_CLASSES):
                kept[here] = tensor
        load_but_heads(self, kept, source, OF_CLASSES)


def convolution(inputs: int, outputs: int) -> nn.Conv2d:
    """3 × 3, of the map's size."""
    return nn.Conv2d(inputs, outputs, 3, padding=1)


@register_model("yolact", family="instances")
def build(
    name: str, classes: int, encoder: str | None, encoder_weights: str | None, image_size: int | None = None, **options
) -> PaddedModel:
    """YOLACT on any encoder, with the `options` of the class.

    image_size: without `smallest_anchor`, anchors are as large in it as the paper's in 550 pixels, and at least
    LEAST_ANCHOR; besides, encoders built for one size need it.
    """
    check_options(name, options, OPTIONS)
    body, encoder, multiple = build_encoder(name, encoder, encoder_weights, image_size)
    network = YOLACT(body, classes, **{"smallest_anchor": max(24 * (image_size or 550) / 550, LEAST_ANCHOR)} | options)
    return fill_encoder(PaddedModel(network, multiple), encoder, encoder_weights)


@register_model("yolact_resnet50", "yolact_resnet101", family="instances")
def build_on_resnet(
    name: str, classes: int, encoder_weights: str | None, image_size: int | None = None, **options
) -> PaddedModel:
    """The paper's networks: `build` on the encoder in their name.

    encoder_weights: may also be the path of the authors' file for COCO, such as yolact_resnet50_54_800000.pth.
    """
    encoder = name.removeprefix("yolact_")
    if encoder_weights == "coco":
        raise ModelError(
            f"{name}: no hub has COCO's weights. Download the authors' file (github.com/dbolya/yolact, section "
            "Evaluation) and give its path as encoder_weights"
        )
    state = {} if encoder_weights in (None, "imagenet", "pip") else read_state(encoder_weights)
    if not any(tensor.startswith(AUTHORS) for tensor in state):
        return build(name, classes, encoder, encoder_weights, image_size, **options)
    model = build(name, classes, encoder, None, image_size, **options)
    model.network.load(state, encoder_weights)
    return model
