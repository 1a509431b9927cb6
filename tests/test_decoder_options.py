"""What smp's decoders get beside their own options: logits of coarser scales in training, and the person's metadata."""

import numpy as np
import pandas as pd
import pytest
import torch
from torch.nn import functional as F

from tests.small import CPU, fit, same, small_data, weights
from utils.data.people import person_values
from utils.inference.predict import Predictor, predict_masks
from utils.masks.dice import dice_of_masks
from utils.models import ModelError, build_model
from utils.models.additions import SUPERVISED, VALUES
from utils.models.base import start_from_prior
from utils.models.checkpoint import Config, load_checkpoint, save_checkpoint

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


@pytest.fixture(scope="module")
def data(sample, tmp_path_factory):
    return small_data(sample, tmp_path_factory.mktemp("cache"))


def informed(classes=29, **options):
    return build_model("unet", classes, THIN, image_size=64, metadata=True, decoder_channels=[8] * 5, **options)


def test_the_junk_of_the_metadata_is_unknown():
    table = pd.DataFrame(
        {
            "sex": ["F", " m ", "_x", None, "여"],
            "age": [34, "41 years", 0, "?", 300],
            "height_cm": [171.5, "1,68 m", None, 17, "180cm"],
            "weight_kg": ["62.5", "70kg", -4, float("nan"), 1000],
        }
    )
    found = person_values(table)
    nothing = [0.0, 0.0, 0.0, 0.0]
    assert found[0].tolist() == [-1, 34, 171.5, 62.5, 1, 1, 1, 1]
    assert found[1].tolist() == [1, 41, 168, 70, 1, 1, 1, 1]
    assert found[2:4].tolist() == [nothing * 2, nothing * 2]
    assert found[4].tolist() == [-1, 0, 180, 0, 1, 0, 1, 0] and found.dtype == np.float32
    assert person_values(pd.DataFrame(index=range(3))).tolist() == [nothing * 2] * 3, "no meta_data.xlsx"


def test_a_network_learns_what_only_the_person_tells():
    torch.manual_seed(0)
    model = informed(1).train()
    image = torch.randn(1, 3, 64, 64).expand(4, -1, -1, -1)
    person = torch.zeros(4, 2 * VALUES)
    person[:, VALUES] = 1
    person[:, 0] = torch.tensor([-1.0, 1, -1, 1])
    label = (person[:, 0] > 0).float().view(4, 1, 1, 1).expand(-1, -1, 64, 64)
    given = torch.cat([image, person[..., None, None].expand(-1, -1, 64, 64)], 1)
    with torch.no_grad():
        model.eval()
        assert torch.equal(model(given), model(image)), "it starts as the plain network"
    optimizer = torch.optim.Adam(model.train().parameters(), 1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        F.binary_cross_entropy_with_logits(model(given), label).backward()
        optimizer.step()
    told = model.eval()(given).mean((1, 2, 3)).sigmoid()
    assert told[::2].max() < 0.2 and told[1::2].min() > 0.8
    assert model(image).shape == (4, 1, 64, 64) and model(image).std(0).max() < 1e-4, "unknown people are all the same"


def test_a_training_with_metadata_resumes_and_predicts_as_it_was_validated(data, tmp_path):
    parts = {"model": lambda: informed(deep_supervision=True)}
    result = fit(data, tmp_path / "whole", parts=parts, precision="32-true")
    with pytest.raises(InterruptedError):
        fit(data, tmp_path / "cut", stop_after=1, parts=parts, precision="32-true")
    fit(data, tmp_path / "cut", parts=parts, precision="32-true")
    assert same(weights(tmp_path / "whole" / "last"), weights(tmp_path / "cut" / "last"))

    model, config = load_checkpoint(result.checkpoint)
    known = np.stack([data.cache.people[name] for name in data.train["image_name"]])
    assert known[:, VALUES:].all() and config.options["metadata"] is True
    film = model.network.network
    assert film.mean.tolist() == pytest.approx(known[:, :VALUES].mean(0).tolist(), rel=1e-5)
    deviation = known[:, :VALUES].std(0)
    assert film.deviation.tolist() == pytest.approx(np.where(deviation > 0, deviation, 1).tolist(), rel=1e-4)

    names = data.validation["image_name"].tolist()
    masks = dict(predict_masks(model, data.cache, names, 0.5))
    dice = [dice_of_masks(masks[name], data.cache.read(name).truth).mean() for name in names]
    assert np.mean(dice) == pytest.approx(result.score, abs=1e-6)
    torch.nn.init.normal_(model.network.network.film[-1].weight, std=0.5)
    save_checkpoint(tmp_path / "stirred", model, config)
    predictor = Predictor(tmp_path / "stirred", CPU, "hflip+scale")
    (_, maps), *_ = predictor.predict(data.cache, names[:1], 1)
    image = torch.from_numpy(data.cache.read(names[0]).image)[None, None]
    person = torch.from_numpy(data.cache.people[names[0]])[None]
    assert np.allclose(predictor(image, person)[0], maps, atol=1e-5)
    assert abs(predictor(image, -person)[0] - maps).max() > 0.01 and np.isfinite(predictor(image)).all()


def test_other_metadata_is_another_training(data, tmp_path, capsys):
    parts = {"model": informed}
    fit(data, tmp_path, parts=parts, epochs=1)
    fit(data, tmp_path, parts=parts, epochs=1)
    assert "nothing is trained again" in capsys.readouterr().out
    before = dict(data.cache.people)
    data.cache.people |= {data.train["image_name"].iloc[0]: np.zeros(2 * VALUES, np.float32)}
    try:
        fit(data, tmp_path, parts=parts, epochs=1)
    finally:
        data.cache.people = before
    assert "holds another training" in capsys.readouterr().out
