"""Mask R-CNN: boxes are proposed, classified and refined, and each gets a mask of its own (torchvision)."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torchvision.models import get_model, get_model_weights
from torchvision.models.detection import MaskRCNN as TorchvisionMaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from utils.models.base import Loss, ModelError, PaddedModel, check_options
from utils.models.instances import Instances, class_logits, targets
from utils.models.pretrained import load_but_heads, load_encoder, read_state, torchvision_state
from utils.models.smp import build_encoder, fill_encoder
from utils.registry import register_model

OF_CLASSES = ("roi_heads.box_predictor.", "roi_heads.mask_predictor.mask_fcn_logits.")
"""Layers with an output per class, which weights trained on other classes don't fit."""
ANCHORS_IN_IMAGE = 32
"""Smallest anchors side by side in an image: of 2048 pixels, the smallest bones take 66, the largest a half."""
LEAST_ANCHOR = 16
"""Pixels: four steps of the finest grid. With anchors as wide as a step or two, a small image has one for each bone at
best, and training is slow: two images of 64 pixels are learnt to Dice 0.976 in 100 steps; with 4, to 0.27 in 240."""
OPTIONS = ("smallest_anchor", "proposals", "detections")
LEAST_SCORE = 0.01
"""Below it, nothing is an instance. torchvision's 0.05 leaves little after few epochs where classes are many."""
HALF_PIXEL = 0.5
"""torchvision's `roi_align` takes a whole number for the middle of a pixel, boxes here for its left edge."""


class MaskRCNN(nn.Module):
    """Mask R-CNN (He et al. 2017, "Mask R-CNN"), on images that are normalised and resized already.

    network: torchvision's, whose parts are taken over, without its own resizing and normalisation. anchor: side of the
    smallest anchor in pixels; each of the five levels of the feature pyramid doubles it.

    Parameters for COCO's 90 classes and background, as torchvision states: maskrcnn_resnet50_fpn 44.4 M, its second
    version (Li et al. 2021) 46.4 M; the norms are plain batch normalisation in both, so that they learn the data.
    Convolutions may run in half precision; boxes, losses and masks in the image are computed in float32.
    """

    def __init__(self, network: TorchvisionMaskRCNN, classes: int, anchor: int):
        super().__init__()
        self.backbone, self.rpn, self.roi_heads = network.backbone, network.rpn, network.roi_heads
        self.classes = classes
        sizes = tuple((anchor * 2**level,) for level in range(5))
        self.rpn.anchor_generator = AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * len(sizes))
        for part in (self.rpn.head, self.roi_heads.box_predictor, self.roi_heads.mask_predictor):
            part.register_forward_hook(_in_float32)

    @property
    def encoder(self) -> nn.Module:
        """The part that ImageNet's weights fill."""
        return self.backbone.body

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Float (N, 3, H, W), H and W multiples of 32, to logits (N, classes, H, W) of the union of the instances."""
        size = image.shape[-2:]
        return torch.cat([class_logits([_in_image(found, size)], self.classes) for found in self._detect(image)])

    def instances(self, image: torch.Tensor) -> list[Instances]:
        """The instances in each image, highest score first."""
        return [_in_image(found, image.shape[-2:]) for found in self._detect(image)]

    def training_loss(self, image: torch.Tensor, label: torch.Tensor, loss: Loss) -> torch.Tensor:
        """The paper's five losses (of proposals, classes, boxes and masks) in place of `loss`, which knows no boxes.

        Masks are learnt from soft labels, a box's 28 × 28 values by the share that each covers.
        """
        truth = [{"boxes": t.boxes - HALF_PIXEL, "labels": t.labels + 1, "masks": t.masks} for t in targets(label)]
        features, images = self._features(image)
        self.rpn.training = self.roi_heads.training = True
        proposals, losses = self.rpn(images, features, truth)
        _, more = self.roi_heads(features, proposals, images.image_sizes, truth)
        return sum((losses | more).values())

    def _detect(self, image: torch.Tensor) -> list[dict[str, torch.Tensor]]:
        """torchvision's boxes, labels, scores and masks (K, 1, 28, 28) for each image."""
        features, images = self._features(image)
        self.rpn.training = self.roi_heads.training = False  # in training too, they must detect, not compute losses
        proposals, _ = self.rpn(images, features)
        return self.roi_heads(features, proposals, images.image_sizes)[0]

    def _features(self, image: torch.Tensor) -> tuple[dict[str, torch.Tensor], ImageList]:
        features = {name: maps.float() for name, maps in self.backbone(image).items()}  # anchors get their dtype
        return features, ImageList(image, [tuple(image.shape[-2:])] * len(image))

    def load(self, state: dict[str, torch.Tensor], source: str) -> None:
        """Fill the network from a whole Mask R-CNN; see `load_but_heads`."""
        named = {name.removeprefix("network."): tensor for name, tensor in state.items()}  # this project's checkpoints
        load_but_heads(self, named, source, OF_CLASSES)


class EncoderPyramid(nn.Module):
    """A feature pyramid (Lin et al. 2017) on the last four maps of one of smp's or timm's encoders."""

    def __init__(self, encoder: nn.Module, channels: int):
        super().__init__()
        self.body, self.out_channels = encoder, channels
        self.fpn = FeaturePyramidNetwork(encoder.out_channels[-4:], channels, LastLevelMaxPool())

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        """Maps (N, channels, h, w) at strides 4, 8, 16, 32 and 64, called "0" to "3" and "pool"."""
        return self.fpn(OrderedDict(zip("0123", self.body(image)[-4:], strict=True)))


def _in_float32(module: nn.Module, inputs: Any, output: Any) -> Any:
    """A forward hook: what the convolutions give in half precision goes on in float32."""
    if isinstance(output, torch.Tensor):
        return output.float()
    return type(output)(_in_float32(module, inputs, each) for each in output)


def _in_image(found: dict[str, torch.Tensor], size: Sequence[int]) -> Instances:
    """torchvision's detections with their masks, interpolated bilinearly, in an image of `size` (H, W).

    torchvision's own function rounds boxes to whole pixels, which the small bones of a small image don't bear.
    """
    boxes = found["boxes"] + HALF_PIXEL
    masks = found["masks"][:, 0].float()
    with torch.autocast(boxes.device.type, enabled=False):
        rows, columns = (_weights(boxes[:, i], boxes[:, i + 2], masks.shape[1], size[1 - i]) for i in (1, 0))
        whole = (rows @ masks @ columns.transpose(1, 2)).clamp(0, 1)
    return Instances(boxes, found["labels"] - 1, found["scores"], whole)


def _weights(start: torch.Tensor, end: torch.Tensor, cells: int, pixels: int) -> torch.Tensor:
    """How much each of `cells`, laid evenly from start to end (K,), counts at each pixel: (K, pixels, cells)."""
    middle = torch.arange(pixels, device=start.device) + HALF_PIXEL
    place = (middle - start[:, None]) / (end - start)[:, None] * cells - 0.5
    return (1 - (place[..., None] - torch.arange(cells, device=start.device)).abs()).clamp(min=0)


def _settings(
    image_size: int | None, smallest_anchor: int = 0, proposals: int = 512, detections: int = 100
) -> tuple[int, dict[str, float]]:
    """The smallest anchor's side in pixels, and the options of `build` by torchvision's names.

    Without an image size the anchor is torchvision's, which fits 1024 pixels.
    """
    anchor = smallest_anchor or (max(image_size // ANCHORS_IN_IMAGE, LEAST_ANCHOR) if image_size else 32)
    sampled = {"box_batch_size_per_image": proposals, "box_detections_per_img": detections}
    return anchor, {**sampled, "box_score_thresh": LEAST_SCORE}


@register_model("maskrcnn_resnet50_fpn", "maskrcnn_resnet50_fpn_v2", family="instances")
def build_torchvision(
    name: str, classes: int, encoder_weights: str | None, image_size: int | None = None, **options: int
) -> PaddedModel:
    """torchvision's networks on a ResNet-50 with a feature pyramid of 256 channels.

    encoder_weights: "coco" takes the whole network as torchvision trained it, but for the layers of the classes;
    "imagenet" the ResNet alone; a path either, as what the file holds. The options are those of `build` but channels.
    """
    check_options(name, options, OPTIONS)
    anchor, settings = _settings(image_size, **options)
    network = get_model(name, weights=None, weights_backbone=None, num_classes=classes + 1, **settings)
    model = PaddedModel(MaskRCNN(network, classes, anchor), 32)
    if encoder_weights == "coco":
        pretrained = get_model_weights(name).DEFAULT
        model.network.load(torchvision_state(pretrained, "coco"), pretrained.url)
    elif encoder_weights in (None, "imagenet") or not any("roi_heads." in n for n in read_state(encoder_weights)):
        load_encoder(model, encoder_weights, "resnet50")
    else:
        model.network.load(read_state(encoder_weights), encoder_weights)
    return model


@register_model("maskrcnn", family="instances")
def build(
    name: str,
    classes: int,
    encoder: str | None,
    encoder_weights: str | None,
    image_size: int | None = None,
    channels: int = 256,
    **options: int,
) -> PaddedModel:
    """Mask R-CNN on any encoder of smp or timm.

    image_size: a thirty-second of it, at least LEAST_ANCHOR, is the smallest anchor's side, unless `smallest_anchor`
    gives that in pixels.
    channels: of the feature pyramid and of the mask's layers, most of the cost. proposals: boxes per image that classes
    and masks are learnt from, a quarter of them on objects. detections: the most instances in an image.
    """
    check_options(name, options, ("channels", *OPTIONS))
    if encoder_weights == "coco":
        raise ModelError(
            f"encoder_weights='coco' is there for maskrcnn_resnet50_fpn and maskrcnn_resnet50_fpn_v2; {name} takes "
            "'imagenet', 'pip', or a path"
        )
    anchor, settings = _settings(image_size, **options)
    body, encoder, multiple = build_encoder(name, encoder, encoder_weights, image_size)
    network = TorchvisionMaskRCNN(EncoderPyramid(body, channels), classes + 1, **settings)
    network.roi_heads.mask_head = MaskRCNNHeads(channels, (channels,) * 4, 1)
    network.roi_heads.mask_predictor = MaskRCNNPredictor(channels, channels, classes + 1)
    return fill_encoder(PaddedModel(MaskRCNN(network, classes, anchor), multiple), encoder, encoder_weights)
