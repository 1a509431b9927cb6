"""Mask2Former: a set of queries, each a mask with a class, turned into one probability map per class."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace

import torch
from torch import nn

from utils.models.base import Loss, ModelError, PaddedModel, check_options
from utils.models.blocks import upsample_to
from utils.models.instances import Instances, boxes_of, targets
from utils.models.pretrained import hub_state, load_but_heads, read_state
from utils.models.smp import build_encoder, fill_encoder
from utils.registry import register_model

SWIN_B = {"embed_dim": 128, "depths": [2, 2, 18, 2], "num_heads": [4, 8, 16, 32], "window_size": 12}
NETWORKS = {
    "mask2former_resnet50": ("microsoft/resnet-50", {}),
    "mask2former_swin_t": ("microsoft/swin-tiny-patch4-window7-224", {"depths": [2, 2, 6, 2]}),
    "mask2former_swin_s": ("microsoft/swin-small-patch4-window7-224", {"depths": [2, 2, 18, 2]}),
    "mask2former_swin_b": ("microsoft/swin-base-patch4-window12-384-in22k", SWIN_B),
}
"""The backbone's repository on the hub, and settings, where they differ from transformers' ResNet-50 and Swin-T."""
COCO = {f"mask2former_swin_{s[0]}": f"facebook/mask2former-swin-{s}-coco-instance" for s in ("tiny", "small", "base")}
"""Whole networks on the hub, trained on COCO's instances."""
WHOLE = "model.pixel_level_module.encoder."
"""Where the backbone is in a file of a whole Mask2Former."""
HEADS = ("class_predictor.", "criterion.", "model.transformer_module.queries_")
"""What depends on the number of classes or queries."""
OPTIONS = {"queries": 100, "width": 256, "pixel_layers": 6, "layers": 9, "points": 12544}
"""And the paper's values."""
MOST, LEAST_SCORE = 100, 0.01
"""The most instances in an image, and the score below which nothing is one."""


class Features(nn.Module):
    """One of smp's encoders in the place of a backbone of transformers: maps at strides 4 to 32."""

    def __init__(self, encoder: nn.Module):
        super().__init__()
        self.body = encoder

    def forward(self, image: torch.Tensor) -> SimpleNamespace:
        """Float (N, 3, H, W) to an object with `feature_maps`."""
        return SimpleNamespace(feature_maps=self.body(image)[-4:])


class Mask2Former(nn.Module):
    """Mask2Former (Cheng et al. 2022, "Masked-attention Mask Transformer for …"), from transformers.

    Parameters for ADE20K's 150 classes: ResNet-50 44 M, Swin-T 47, Swin-S 69, Swin-B 107 (as the paper prints). 100
    queries, six deformable layers in the pixel decoder, nine in the transformer decoder, as in the paper.

    Each query q has P(class | q), a softmax that includes "no object", and a mask m_q. A class's probability at a pixel
    is the maximum over queries of P(class | q) · σ(m_q). The paper's semantic inference sums instead and takes the
    arg-max; with a threshold per class a sum would do harm, as a hundred nearly empty queries add up to a tenth here
    and there, and doubles exceed 1. With the maximum the one matched query decides, as it was trained to.

    name: one of NETWORKS, or "" for a network on `encoder`, one of smp's. options: those of OPTIONS. queries: the most
    masks per image. width: channels of both decoders, a multiple of 32. pixel_layers, layers: of the pixel decoder and
    of the transformer decoder. points: at which a mask is compared with the truth.
    """

    def __init__(self, name: str, classes: int, encoder: nn.Module | None = None, **options: int):
        super().__init__()
        from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, ResNetConfig, SwinConfig

        queries, width, pixel_layers, layers, points = (OPTIONS | options).values()
        make = partial(SwinConfig, drop_path_rate=0.3) if "swin" in name else ResNetConfig
        settings = NETWORKS[name][1] if encoder is None else placeholder(encoder)
        with quiet():
            config = Mask2FormerConfig(
                backbone_config=make(out_features=["stage1", "stage2", "stage3", "stage4"], **settings),
                num_labels=classes,
                num_queries=queries,
                **dict.fromkeys(("feature_size", "mask_feature_size", "hidden_dim"), width),
                encoder_feedforward_dim=4 * width,
                dim_feedforward=8 * width,
                encoder_layers=pixel_layers,
                decoder_layers=layers + 1,  # transformers counts the queries' own prediction, too
                train_num_points=points,
            )
            self.model = Mask2FormerForUniversalSegmentation(config)
        if encoder is not None:
            self.model.model.pixel_level_module.encoder = Features(encoder)
        elif "swin" in name:  # it ends with a norm of which nothing is read
            self.model.model.pixel_level_module.encoder.swin.layernorm = nn.Identity()

    @property
    def encoder(self) -> nn.Module:
        """smp's encoder, where it has one."""
        return self.model.model.pixel_level_module.encoder.body

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Float (N, 3, H, W), H and W multiples of 32, to logits (N, classes, H, W)."""
        queries = self.model(pixel_values=image)
        return upsample_to(class_logits(queries.class_queries_logits, queries.masks_queries_logits), image)

    def instances(self, image: torch.Tensor) -> list[Instances]:
        """Those of each image of float (N, 3, H, W), the highest score first: the paper's instance inference.

        Each pair of a query and a class is a candidate. Its score is P(class | query) times the mean of σ(mask) over
        the pixels above 0.5, so that an uncertain mask comes after a clear one; `forward` takes P alone.
        """
        queries = self.model(pixel_values=image)
        found = []
        for classes, masks in zip(queries.class_queries_logits, queries.masks_queries_logits, strict=True):
            probability = classes.float().softmax(1)[:, :-1]
            scores, pair = probability.flatten().topk(min(MOST, probability.numel()))
            pair = pair[scores > LEAST_SCORE]
            masks = upsample_to(masks[pair // probability.shape[1]][None].float(), image)[0].sigmoid()
            inside = masks > 0.5
            area = inside.sum((1, 2))
            scores = scores[: len(pair)] * (masks * inside).sum((1, 2)) / area.clamp(min=1)
            order = scores.argsort(descending=True)
            order = order[area[order] > 0]
            labels = (pair % probability.shape[1])[order]
            found.append(Instances(boxes_of(inside[order]), labels, scores[order], masks[order]))
        return found

    def training_loss(self, image: torch.Tensor, label: torch.Tensor, loss: Loss) -> torch.Tensor:
        """The paper's set loss (section 3.3) in place of `loss`, which would not tell queries apart.

        Instances are those of `models.instances.targets`. They are matched to queries by the Hungarian algorithm; a
        matched query learns its class, and its mask by cross-entropy and Dice on sampled points; the others learn "no
        object"; after each of the decoder's layers. Soft labels are used as they are.
        """
        truth = targets(label)
        queries = self.model(pixel_values=image, output_auxiliary_logits=True)
        names = ("masks_queries_logits", "class_queries_logits")
        last, *others = ({n: layer[n].float() for n in names} for layer in (queries, *queries.auxiliary_logits))
        with torch.autocast(image.device.type, enabled=False):  # matching needs float32
            masks, labels = [each.masks for each in truth], [each.labels for each in truth]
            terms = self.model.get_loss_dict(
                **last, mask_labels=masks, class_labels=labels, auxiliary_predictions=others
            )
        return self.model.get_loss(terms)

    def load(self, state: dict[str, torch.Tensor], source: str) -> None:
        """Fill the network from a whole Mask2Former, or only the backbone where the file has no more.

        Heads for other numbers of classes or queries stay random, which a line says. Raises ModelError for a file that
        does not fit.
        """
        self.load_backbone(state, source)
        if any(n in state for n in self.model.state_dict() if not n.startswith(WHOLE)):
            load_but_heads(self.model, state, source, HEADS, elsewhere=WHOLE)

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


def placeholder(encoder: nn.Module) -> dict[str, list[int]]:
    """Settings of a small ResNet with the channels of `encoder`, by which transformers plans its decoder."""
    return {"hidden_sizes": list(encoder.out_channels[-4:]), "depths": [1, 1, 1, 1], "layer_type": "basic"}


@register_model(*NETWORKS, family="instances")
def build(name: str, classes: int, encoder_weights: str | None, **options) -> PaddedModel:
    """Mask2Former on the backbone in its name, with the `options` of the class; at least one query per class.

    encoder_weights: "imagenet" takes Microsoft's from the hub, ImageNet-22k at 384 pixels for Swin-B, as the authors
    did; "coco" the authors' whole network for COCO's instances; a path is a file of transformers' backbone, or of a
    whole Mask2Former.
    """
    check_mask2former(name, classes, options)
    network = Mask2Former(name, classes, **options)
    if encoder_weights == "coco" and name not in COCO:
        raise ModelError(f"the hub has no {name} trained on COCO; there are {', '.join(COCO)}")
    if encoder_weights in ("imagenet", "coco"):
        source = COCO[name] if encoder_weights == "coco" else NETWORKS[name][0]
        network.load(hub_state(source, encoder_weights), source)
    elif encoder_weights:
        network.load(read_state(encoder_weights), encoder_weights)
    return PaddedModel(network, 32)


@register_model("mask2former", family="instances")
def build_on_encoder(
    name: str, classes: int, encoder: str | None, encoder_weights: str | None, image_size: int | None = None, **options
) -> PaddedModel:
    """Mask2Former on one of smp's or timm's encoders. `image_size` matters to those built for one size."""
    check_mask2former(name, classes, options)
    body, encoder, multiple = build_encoder(name, encoder, encoder_weights, image_size)
    return fill_encoder(PaddedModel(Mask2Former("", classes, body, **options), multiple), encoder, encoder_weights)


def check_mask2former(name: str, classes: int, options: dict[str, int]) -> None:
    """Raise ModelError for unknown options and for sizes that do not go together."""
    check_options(name, options, OPTIONS)
    sizes = OPTIONS | options
    if sizes["queries"] < classes:
        raise ModelError(f"{name} needs a query for each of the {classes} classes; found queries={sizes['queries']}")
    if sizes["width"] % 32:
        raise ModelError(f"{name} needs a width that is a multiple of 32; found width={sizes['width']}")
