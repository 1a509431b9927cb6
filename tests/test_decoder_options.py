"""What smp's decoders get beside their own options: logits of coarser scales in training."""

import pytest
import torch
from torch.nn import functional as F

from utils.models import ModelError, build_model
from utils.models.base import start_from_prior
from utils.models.checkpoint import Config, load_checkpoint, save_checkpoint
from utils.models.supervised import SUPERVISED

THIN = "tu-mobilenetv3_small_050"


def build(name="unet", size=64, **options):
    torch.manual_seed(0)
    return build_model(name, 3, THIN, image_size=size, **options)


@pytest.mark.parametrize("name", SUPERVISED)
def test_every_scale_is_trained_and_prediction_stays_the_same(name):
    torch.manual_seed(1)
    image, label = torch.randn(2, 3, 70, 64), (torch.rand(2, 3, 70, 64) > 0.9).float()
    plain, model = build(name), build(name, deep_supervision=True)
    found = model.load_state_dict(
        {k.replace("network.", "network.network.", 1): v for k, v in plain.state_dict().items()}, False
    )
    assert not found.unexpected_keys and all(".heads." in key for key in found.missing_keys)
    assert torch.equal(plain.eval()(image), model.eval()(image))
    seen = []

    def loss(logits, labels):
        seen.append((tuple(logits.shape), labels.mean().item()))
        return F.binary_cross_entropy_with_logits(logits, labels)

    value = model.train().training_loss(image, label, loss)
    value.backward()
    sides = [(96, 64), (48, 32), (24, 16), (12, 8)]  # 70 rows are padded to 96
    assert [shape for shape, _ in seen] == [(2, 3, *side) for side in sides]
    assert all(mean == pytest.approx(seen[0][1], rel=1e-4) for _, mean in seen), "labels are averaged, not picked"
    assert all(head.weight.grad.abs().sum() > 0 for head in model.network.heads)
    model.eval()
    with torch.no_grad():
        losses = [loss(model.network(image[..., :64, :]), label[..., :64, :])]
        both = model.network.training_loss(
            image[..., :64, :], label[..., :64, :], lambda a, b: loss(a, b) * (a.shape[-1] == 64)
        )
    assert both.item() == pytest.approx(losses[0].item() / (1 + 0.5 + 0.25 + 0.125), rel=1e-5), "weights are halved"
    assert not any(module._forward_hooks for module in model.modules())


def test_a_supervised_network_starts_from_the_prior_and_is_loaded_from_its_checkpoint(tmp_path):
    model, prior = build(deep_supervision=True), torch.tensor([0.001, 0.01, 0.2])
    start_from_prior(model, prior)
    assert torch.allclose(model.network.network.segmentation_head[0].bias.sigmoid(), prior, rtol=1e-4)
    options = model.made_from["options"]
    save_checkpoint(tmp_path / "best", model, Config("unet", THIN, ["a", "b", "c"], 64, options=options))
    loaded, config = load_checkpoint(tmp_path / "best")
    image = torch.randn(1, 3, 64, 64)
    assert config.options == {"deep_supervision": True} and torch.equal(loaded(image), model.eval()(image))
    with pytest.raises(ModelError, match="FPNDecoder has no blocks of several scales"):
        build("fpn", deep_supervision=True)
    with pytest.raises(ModelError, match="did you mean deep_supervision"):
        build(deep_supervison=True)
