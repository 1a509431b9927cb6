"""Mask2Former: a set of queries, each a mask with a class, turned into one probability map per class."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import nn

from utils.models.base import Loss, ModelError, PaddedModel
from utils.models.blocks import upsample_to
from utils.models.weights import check_hub, read_state
from utils.registry import register_model

NETWORKS = {
    "mask2former_resnet50": ("microsoft/resnet-50", {}),
    "mask2former_swin_t": ("microsoft/swin-tiny-patch4-window7-224", {"depths": [2, 2, 6, 2]}),
    "mask2former_swin_s": ("microsoft/swin-small-patch4-window7-224", {"depths": [2, 2, 18, 2]}),
    "mask2former_swin_b": (
        "microsoft/swin-base-patch4-window12-384-in22k",
        {"embed_dim": 128, "depths": [2, 2, 18, 2], "num_heads": [4, 8, 16, 32], "window_size": 12},
    ),
}
"""The backbone's repository on the hub, and settings, where they differ from transformers' ResNet-50 and Swin-T."""
WHOLE = "model.pixel_level_module.encoder."
"""Where the backbone is in a file of a whole Mask2Former."""


class Mask2Former(nn.Module):
    """Mask2Former (Cheng et al. 2022, "Masked-attention Mask Transformer for …"), from transformers.

    Parameters for ADE20K's 150 classes: ResNet-50 44 M, Swin-T 47, Swin-S 69, Swin-B 107 (as the paper prints). 100
    queries, six deformable layers in the pixel decoder, nine in the transformer decoder, as in the paper.

    Each query q has P(class | q), a softmax that includes "no object", and a mask m_q. A class's probability at a pixel
    is the maximum over queries of P(class | q) · σ(m_q). The paper's semantic inference sums instead and takes the
    arg-max; with a threshold per class a sum would do harm, as a hundred nearly empty queries add up to a tenth here
    and there, and doubles exceed 1. With the maximum the one matched query decides, as it was trained to.
    """

    def __init__(self, name: str, classes: int, queries: int):
        super().__init__()
        from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, ResNetConfig, SwinConfig

        make = partial(SwinConfig, drop_path_rate=0.3) if "swin" in name else ResNetConfig
        backbone = make(out_features=["stage1", "stage2", "stage3", "stage4"], **NETWORKS[name][1])
        with quiet():
            config = Mask2FormerConfig(backbone_config=backbone, num_labels=classes, num_queries=queries)
            self.model = Mask2FormerForUniversalSegmentation(config)
        if "swin" in name:  # it ends with a norm of which nothing is read
            self.model.model.pixel_level_module.encoder.swin.layernorm = nn.Identity()

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Float (N, 3, H, W), H and W multiples of 32, to logits (N, classes, H, W)."""
        queries = self.model(pixel_values=image)
        return upsample_to(class_logits(queries.class_queries_logits, queries.masks_queries_logits), image)

    def training_loss(self, image: torch.Tensor, label: torch.Tensor, loss: Loss) -> torch.Tensor:
        """The paper's set loss (section 3.3) in place of `loss`, which would not tell queries apart.

        Every class with a pixel of more than half is one instance. Instances are matched to queries by the Hungarian
        algorithm; a matched query learns its class, and its mask by cross-entropy and Dice on sampled points; the
        others learn "no object"; after each of the decoder's layers. Soft labels are used as they are.
        """
        present = [(maps.amax((1, 2)) > 0.5).nonzero()[:, 0] for maps in label]
        masks = [maps[classes] for maps, classes in zip(label, present, strict=True)]
        queries = self.model(pixel_values=image, output_auxiliary_logits=True)
        names = ("masks_queries_logits", "class_queries_logits")
        layers = [{n: layer[n].float() for n in names} for layer in (queries, *queries.auxiliary_logits)]
        with torch.autocast(image.device.type, enabled=False):  # matching needs float32
            terms = self.model.get_loss_dict(
                **layers[0], mask_labels=masks, class_labels=present, auxiliary_predictions=layers[1:]
            )
        return self.model.get_loss(terms)

    def load_backbone(self, state: dict[str, torch.Tensor], source: str) -> None:
        """Fill the backbone but for the norms of its outputs, which only this network has.

        transformers reads the tensors, as it renames those of older files. Raises ModelError if some are missing or of
        another shape.
        """
        backbone = self.model.model.pixel_level_module.encoder
        state = {name.removeprefix(WHOLE): tensor for name, tensor in state.items()}
        with quiet():
            filled, report = type(backbone).from_pretrained(
                None, config=backbone.config, state_dict=state, output_loading_info=True, ignore_mismatched_sizes=True
            )
        misshapen = {name for name, *_ in report["mismatched_keys"]}
        wrong = sorted(n for n in {*report["missing_keys"], *misshapen} if "hidden_states_norms" not in n)
        if wrong:
            raise ModelError(
                f"{source} does not fit this backbone: {len(wrong)} tensors missing or of another shape, such as "
                f"{', '.join(wrong[:3])}. Choose a file that transformers saved for it."
            )
        backbone.load_state_dict(filled.state_dict(), strict=False)


@contextmanager
def quiet() -> Iterator[None]:
    """Silence transformers, which warns of ResNet backbones and of every unused tensor; both are expected here."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def class_logits(classes: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Logits of (N, Q, classes + 1) and (N, Q, h, w) to logits (N, classes, h, w) of the maximum over queries."""
    probability, inside = classes.float().softmax(2)[..., :-1], masks.float().sigmoid()
    best = [(p[..., None, None] * inside).amax(1) for p in probability.unbind(2)]  # one class at a time, for the memory
    return torch.stack(best, 1).logit(eps=1e-6)


@register_model(*NETWORKS, family="transformer, modern")
def build(name: str, classes: int, encoder_weights: str | None, queries: int = 100) -> PaddedModel:
    """Mask2Former on the backbone in its name. queries: the most masks per image, at least one per class.

    encoder_weights: "imagenet" takes Microsoft's from the hub, ImageNet-22k at 384 pixels for Swin-B, as the authors
    did; a path is a file of transformers' backbone, or of a whole Mask2Former, of which the backbone is used.
    """
    if queries < classes:
        raise ModelError(f"{name} needs a query for each of the {classes} classes; found queries={queries}")
    network = Mask2Former(name, classes, queries)
    if encoder_weights == "imagenet":
        from huggingface_hub import hf_hub_download

        source = NETWORKS[name][0]
        check_hub(source)
        network.load_backbone(read_state(hf_hub_download(source, "model.safetensors")), source)
    elif encoder_weights:
        network.load_backbone(read_state(encoder_weights), encoder_weights)
    return PaddedModel(network, 32)
