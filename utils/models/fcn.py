"""Fully convolutional networks (Long, Shelhamer, Darrell 2015): torchvision's FCN-ResNet, which the baseline uses."""

import torch
from torch import nn
from torchvision.models import segmentation

from utils.models.base import ModelError, PaddedModel
from utils.models.weights import load_encoder

NETWORKS = {
    "fcn_resnet50": (segmentation.fcn_resnet50, segmentation.FCN_ResNet50_Weights.DEFAULT),
    "fcn_resnet101": (segmentation.fcn_resnet101, segmentation.FCN_ResNet101_Weights.DEFAULT),
}


class MainOutput(nn.Module):
    """Takes the main output out of torchvision's dictionary."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Logits (N, classes, H, W)."""
        return self.network(image)["out"]


def build(name: str, classes: int, encoder: str | None, encoder_weights: str | None) -> PaddedModel:
    """FCN on a dilated ResNet (output stride 8, logits upsampled bilinearly), its last layer with `classes` channels.

    encoder_weights: "imagenet" takes torchvision's whole pretrained network, as the baseline does; a path loads the
    ResNet alone; None starts from random weights. The encoder is part of the name.
    """
    own_encoder = name.removeprefix("fcn_")
    if encoder and encoder != own_encoder:
        raise ModelError(f"{name} has its own encoder, {own_encoder}; found encoder={encoder!r}, expected ''")
    make, pretrained = NETWORKS[name]
    network = make(weights=None, weights_backbone=None, num_classes=21)
    if encoder_weights == "imagenet":
        try:
            state = pretrained.get_state_dict(progress=False, check_hash=True)
        except OSError as error:
            raise ModelError(
                f"encoder_weights='imagenet' needs {pretrained.url}, which can't be fetched ({error}). Put that file "
                f"into {torch.hub.get_dir()}/checkpoints, or give a local path, or '' for random weights."
            ) from error
        network.load_state_dict({k: v for k, v in state.items() if not k.startswith("aux_classifier")})
    elif encoder_weights:
        load_encoder(network.backbone, encoder_weights)
    network.classifier[-1] = nn.Conv2d(network.classifier[-1].in_channels, classes, 1)
    return PaddedModel(MainOutput(network), 8)
