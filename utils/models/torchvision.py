"""torchvision's FCN and DeepLabV3 on dilated ResNets."""

import torch
from torch import nn
from torchvision.models import get_model, get_model_weights

from utils.models.base import PaddedModel
from utils.models.pretrained import load_state, read_state, torchvision_state
from utils.registry import register_model


class MainOutput(nn.Module):
    """Takes the main output out of torchvision's dictionary."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Float (N, 3, H, W) to logits (N, classes, H, W)."""
        return self.network(image)["out"]


@register_model("fcn_resnet50", "fcn_resnet101", family="fully convolutional")
@register_model("deeplabv3_resnet50", "deeplabv3_resnet101", family="dilated")
def build(name: str, classes: int, encoder_weights: str | None) -> PaddedModel:
    """One of torchvision's networks at output stride 8, its last layer replaced by one with `classes` channels.

    encoder_weights: "imagenet" takes the whole network, which torchvision trained on COCO, as the competition's
    baseline does; a path loads the ResNet alone; None starts from random weights. DeepLabV3 has the rates 12, 24, 36.

    torchvision states 35.3 and 54.3 M parameters for FCN, 42.0 and 61.0 M for DeepLabV3 (21 classes); 2.4 M of them
    are an auxiliary output, which is left out here.
    """
    network = get_model(name, weights=None, weights_backbone=None, num_classes=21)
    if encoder_weights == "imagenet":
        state = torchvision_state(get_model_weights(name).DEFAULT)
        network.load_state_dict({k: v for k, v in state.items() if not k.startswith("aux_classifier")})
    elif encoder_weights:
        load_state(network.backbone, read_state(encoder_weights), encoder_weights)
    network.classifier[-1] = nn.Conv2d(network.classifier[-1].in_channels, classes, 1)
    return PaddedModel(MainOutput(network), 8)
