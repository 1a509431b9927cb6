"""An instance model in a run: trained and resumed, stored, voting beside a semantic one, written as COCO results."""

import numpy as np
import pandas as pd
import pytest
import torch

from tests.execute import execute_all
from tests.notebooks import outputs, pictures
from tests.small import CPU, fit, same, small_data, weights
from utils.data.competition import read_classes, read_index
from utils.data.loader import normalise
from utils.files import read_json
from utils.formats import coco, coco_rle
from utils.formats.coco_read import read_dataset, read_results
from utils.formats.predicted import results_of_instances
from utils.formats.score_tables import score_coco
from utils.inference.ensemble import soft_vote
from utils.inference.predict import Predictor
from utils.inference.probabilities import ProbabilityStore
from utils.masks import upsampling
from utils.masks.dice import dice_of_masks
from utils.masks.labels import coverage, draw_region
from utils.models import build_model
from utils.models.instances import Instances, targets

OPTIONS = {"channels": 16, "proposals": 16}
TINY = {"encoder": "tu-mobilenetv3_small_050", "encoder_weights": "", "model_options": OPTIONS}


def tiny():
    return build_model("maskrcnn", 29, TINY["encoder"], image_size=64, **OPTIONS)


@pytest.fixture(scope="module")
def data(sample, tmp_path_factory):
    return small_data(sample, tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    return fit(data, tmp_path_factory.mktemp("whole"), parts={"model": tiny})


def test_an_interrupted_training_ends_with_the_same_weights(trained, data, tmp_path):
    with pytest.raises(InterruptedError):
        fit(data, tmp_path, stop_after=1, parts={"model": tiny})
    resumed = fit(data, tmp_path, parts={"model": tiny})
    assert len(resumed.history) == 2 and same(weights(tmp_path / "last"), weights(trained.checkpoint.with_name("last")))


def test_it_votes_beside_a_semantic_model(trained, data, tmp_path):
    """The store holds the union of its instances; the vote is the mean with the other model's probabilities."""
    name = data.validation["image_name"].iloc[0]
    size, stored, maps = data.cache.read(name).size, [], []
    for number, each in enumerate((trained, fit(data, tmp_path / "semantic", epochs=1))):
        predictor, store = Predictor(each.checkpoint, CPU), ProbabilityStore(tmp_path / str(number))
        predictor.fill(store, data.cache, [name], 1)
        stored.append(store.read(name))
        maps += [found for _, found in predictor.predict(data.cache, [name], 1)]
    predictor = Predictor(trained.checkpoint, CPU)
    ((_, found),) = predictor.instances(data.cache, [name], 1)
    union = np.zeros_like(maps[0])
    for label, score, mask in zip(found.labels, found.scores, found.masks, strict=True):
        union[label] = np.maximum(union[label], (mask * score).numpy())
    assert np.abs(union - maps[0]).max() < 1e-5
    expected = upsampling.upsample_masks(np.mean(maps, axis=0), size, 0.1)
    assert dice_of_masks(soft_vote(stored, [1, 1], 0.1), expected).mean() > 0.99  # stored probabilities have 8 bits


@pytest.mark.parametrize("size", [(256, 256), (300, 200), (40, 50)])
def test_true_instances_as_results_are_the_truth(size):
    """Masks and boxes at full size, whatever the network's; a class may have several."""
    polygons = {
        0: [[[10, 12], [30, 12], [30, 34], [10, 34]]],
        2: [[[5, 5], [15, 5], [10, 9]], [[20, 5], [35, 5], [35, 9]]],
    }
    label, drawn = torch.zeros(1, 3, 64, 64), {}
    for number, shapes in polygons.items():
        for shape in shapes:
            points = (np.array(shape) * [size[1] / 50, size[0] / 40]).astype(np.int32)
            region = draw_region([points], size)
            soft, (top, left) = coverage(*region, size, (64, 64))
            part = label[0, number, top : top + soft.shape[0], left : left + soft.shape[1]]
            part.copy_(torch.maximum(part, torch.from_numpy(soft / 255.0)))
            drawn.setdefault(number, []).append(region)
    (found,) = targets(label)
    scored = Instances(found.boxes, found.labels, torch.tensor([0.2, 0.9, 0.5]), found.masks)
    results = results_of_instances(scored, 7, size)
    assert [r["score"] for r in results] == pytest.approx([0.9, 0.5, 0.2])
    assert [r["category_id"] for r in results] == [3, 3, 1] and {r["image_id"] for r in results} == {7}
    for result in results:
        mask, corner = coco_rle.decode_coco(result["segmentation"])
        left, top, width, height = result["bbox"]
        margin = 1.01 * np.array(size[::-1]) / 64
        assert abs(left - corner[1]) <= margin[0] and abs(left + width - corner[1] - mask.shape[1]) <= margin[0]
        assert abs(top - corner[0]) <= margin[1] and abs(top + height - corner[0] - mask.shape[0]) <= margin[1]
        assert result["area"] == mask.sum()
        near = [abs(mask.sum() - true.sum()) for true, _ in drawn[result["category_id"] - 1]]
        assert min(near) <= 0.2 * mask.sum() + 12
    assert results_of_instances(scored.take(scored.scores > 1), 7, size) == []


def test_the_labels_of_the_sample_as_instances_score_almost_one(sample, data, tmp_path):
    """From polygons to soft labels of 64 pixels, to instances, to full-size results: what that costs is little."""
    table, classes = read_index(sample, ("train",)), read_classes(sample)
    coco.write_truth(tmp_path / "truth.json", table.iloc[:4], table, classes, "rle")
    assert read_dataset(tmp_path / "truth.json").images.keys() == {1, 2, 3, 4}
    results = []
    for name in data.validation["image_name"]:
        entry = data.cache.read(name)
        (found,) = targets(torch.from_numpy(entry.label.dense()[None] / np.float32(255)))
        results += results_of_instances(found, coco.image_ids(table)[name], entry.size)
    coco.write_results(results, tmp_path / "results.json")
    scores = score_coco(tmp_path / "truth.json", tmp_path / "results.json").iloc[0]
    assert scores["mask mAP50"] > 0.95 and scores["box mAP50"] > 0.85 and scores["Dice"] > 0.85
    assert len(read_results(tmp_path / "results.json", read_dataset(tmp_path / "truth.json"))) == len(results)


def test_the_predictor_finds_what_the_network_finds(trained, data):
    names = data.validation["image_name"].tolist()
    predictor = Predictor(trained.checkpoint, CPU)
    pairs = list(predictor.instances(data.cache, names, batch_size=3))
    assert [name for name, _ in pairs] == names
    image = torch.from_numpy(data.cache.read(names[3]).image)[None, None]
    with torch.inference_mode():
        (expected,) = predictor.model.instances(normalise(image, predictor.config.mean, predictor.config.std))
    found = pairs[3][1]
    assert len(found) == len(expected) and torch.allclose(found.boxes, expected.boxes, atol=1e-2)


@pytest.fixture(scope="module")
def shown(sample, tmp_path_factory):
    """Notebook 08, which trains the smallest Mask R-CNN by itself, executed in an empty run folder."""
    folder = tmp_path_factory.mktemp("run")
    training = {"image_size": 64, "epochs": 2, "validate_every": 2, "batch_size": 4, **TINY}
    common = {"data_dir": sample, "output_dir": folder, "n_folds": 3, "precision": "32-true"}
    step = ("08_instances", folder / "08.ipynb", common | {"train": training, "least_score": 0.0})
    assert execute_all([step], folder / "steps") == [""]
    return folder


def test_notebook_08_trains_finds_and_scores(sample, shown):
    trained = read_json(shown / "03_train/maskrcnn-tu-mobilenetv3_small_050/fold0/metrics.json")
    assert trained["parameters"]["architecture"] == "maskrcnn" and trained["epochs"] == 2
    folder = shown / "08_instances/maskrcnn-tu-mobilenetv3_small_050/fold0"
    metrics, truth = read_json(folder / "metrics.json"), read_dataset(folder / "truth.json")
    folds = pd.read_csv(shown / "folds.csv")
    held_out = set(folds.loc[folds["fold"] == 0, "image_name"])
    assert {picture.file_name.partition("/")[2] for picture in truth.images.values()} == held_out
    results = read_results(folder / "validation.json", truth)
    assert len(results) == metrics["instances"]["validation"] > 0
    as_dictionary = read_json(folder / "validation_annotations.json")
    assert as_dictionary == {"annotations": read_json(folder / "validation.json")}
    table = score_coco(folder / "truth.json", folder / "validation.json")
    assert metrics["scores"] == pytest.approx(table.iloc[0][list(metrics["scores"])].to_dict(), nan_ok=True)
    assert len(pd.read_csv(folder / "scores.csv")) == 30
    coco.to_coco(sample, folder / "test_truth.json", split="test")
    found = read_results(folder / "test.json", read_dataset(folder / "test_truth.json"))
    assert len(found) == metrics["instances"]["test"]
    assert pictures(shown / "08.ipynb") == 2 and "hardest masks" in outputs(shown / "08.ipynb")
