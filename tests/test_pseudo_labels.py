"""Pseudo-labels of the test images: exact polygons, one folder for each fold, and no leak into validation."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.small import thin_config
from utils.data.cache import Cache
from utils.data.competition import DataError, read_annotation, read_classes, read_index
from utils.data.fold_data import FoldData
from utils.inference.ensemble import FoldModel, soft_vote
from utils.inference.probabilities import LEVELS, ProbabilityStore
from utils.inference.pseudo_labels import confidence, write_pseudo_labels
from utils.masks.labels import draw
from utils.models.checkpoint import hash_people
from utils.pipeline.run import Run


def test_confidence_is_the_dice_to_expect(tmp_path):
    store = ProbabilityStore(tmp_path)

    def sure(*values):
        maps = np.zeros((2, 20, 20), np.float32)
        for plane, value in zip(maps, values, strict=True):
            plane[4:14, 4:14] = value
        store.write("a.png", maps, (40, 40))
        return confidence(store.read("a.png"), 0.5)

    assert sure(1, 1) == sure(1, 0) == 1
    p = round(0.6 * LEVELS) / LEVELS
    assert sure(0.6, 0.6) == pytest.approx((200 * p + 1) / (100 * p + 101))
    assert sure(0.4, 0.4) < 0.05


@pytest.fixture(scope="module")
def made(sample, tmp_path_factory):
    """A run whose two folds' models predict the test images; fold 1's are less sure of the second one."""
    folder = tmp_path_factory.mktemp("run")
    table, classes = read_index(sample), read_classes(sample)
    run = Run(sample, folder, "05_ensemble", table, classes, 2, 0)
    cache = Cache(folder / "cache", table, classes, 64)
    cache.build()
    labels = [cache.read(name).label.dense() / np.float32(255) for name in table["image_name"][:4]]
    fold_models = []
    for fold in (0, 1):
        store = ProbabilityStore(folder / f"test{fold}")
        for number, name in enumerate(run.test):
            store.write(name, labels[number] * (0.55 if fold == number == 1 else 1.0), (256, 256))
        config = thin_config(FoldData(cache, table, table))
        seen = run.folds.loc[run.folds["fold"] != fold, "ID"]
        config.people, config.fold = hash_people(seen), fold
        fold_models.append(FoldModel("a", fold, store, store, config))
    found = write_pseudo_labels(fold_models, table, classes, {"a": 1.0}, 0.5, 0.8, folder / "pseudo")
    return run, fold_models, found


def test_confident_images_become_a_data_folder_of_their_fold(made):
    run, fold_models, found = made
    assert found.groupby("fold")["kept"].sum().tolist() == [4, 3]
    assert not found.loc[(found["fold"] == 1) & (found["image_name"] == run.test[1]), "kept"].item()
    for fold, fold_model in enumerate(fold_models):
        folder = run.output_dir / "pseudo" / f"fold{fold}"
        assert read_classes(folder) == run.classes
        for row in read_index(folder, ("train",)).itertuples():
            name = row.image_name.replace(f"-pseudo{fold}", "")
            shapes = read_annotation(row.annotation, run.classes, (256, 256))
            masks = soft_vote([fold_model.test.read(name)], [1.0], 0.5)
            for number, label in enumerate(run.classes):
                assert np.array_equal(draw(shapes[label], (256, 256)), masks.dense(number))


def test_pseudo_labels_are_trained_on_and_never_validated_on(made):
    run, fold_models, _ = made
    extra = str(run.output_dir / "pseudo" / "fold{fold}")
    plain, data = run.fold_data(1, 64), run.fold_data(1, 64, extra_data=extra)
    added = data.train.iloc[len(plain.train) :]
    assert data.validation.equals(plain.validation) and len(added) == 3
    assert added["image_name"].str.contains("-pseudo1").all() and list(data.known) == fold_models[1].config.people
    label = data.cache.read(added["image_name"].iloc[0]).label
    assert label.dense().max() == 255 and len(label.boxes) == 29


def test_the_labels_of_a_fold_are_made_with_what_other_folds_chose(made, tmp_path):
    run, fold_models, _ = made
    given = fold_models, run.table, run.classes, {"a": 1.0}, 0.5, 0.0, tmp_path
    limits = {0: [0.5] * 29, 1: [0.995] * 29}
    others = {0: (fold_models, {"a": 1.0}), 1: ([replace(m, model="b") for m in fold_models], {"b": 0.5})}
    found = write_pseudo_labels(*given, others, limits).set_index(["fold", "image_name"])
    assert json.loads((tmp_path / "fold1" / "pseudo.json").read_text())["models"] == {"b": 0.5}
    store = fold_models[1].test
    for name in run.test:
        assert found.loc[(1, name), "confidence"] == confidence(store.read(name), limits[1])


def test_pseudo_labels_of_two_rounds_share_no_cache_entry(made):
    run, *_ = made
    first = run.output_dir / "pseudo"
    second = shutil.copytree(first, run.output_dir / "round2", symlinks=True)
    datas = [run.fold_data(1, 64, extra_data=f"{first}/fold{{fold}}")]
    name = datas[0].train["image_name"].iloc[-1]
    (path,) = second.rglob(f"fold1/**/{Path(name).stem}.json")
    found = json.loads(path.read_text())
    for annotation in found["annotations"]:
        annotation["points"] = [[0, 0], [99, 0], [99, 99]]
    path.write_text(json.dumps(found))
    before = datas[0].cache.read(name).label.dense()
    datas.append(run.fold_data(1, 64, extra_data=f"{second}/fold{{fold}}"))
    assert np.array_equal(datas[0].cache.read(name).label.dense(), before), "it is trained on meanwhile"
    assert not np.array_equal(datas[1].cache.read(name).label.dense(), before)
    found["annotations"] = found["annotations"][:1]
    path.write_text(json.dumps(found))
    run.fold_data(1, 64, extra_data=f"{second}/fold{{fold}}")
    with pytest.raises(DataError, match="has changed since this step began: start the step again"):
        datas[1].cache.read(name)
    shutil.rmtree(second)


def test_pseudo_labels_that_leak_or_do_not_fit_are_refused(made, sample):
    run, *_ = made
    with pytest.raises(DataError, match=r"(?s)people of the validation images of fold 0.*the score would leak"):
        run.fold_data(0, 64, extra_data=str(run.output_dir / "pseudo" / "fold1"))
    with pytest.raises(DataError, match=r"(?s)images have names that the run has too.*the score would leak"):
        run.fold_data(0, 64, extra_data=str(sample))
    with pytest.raises(DataError, match="no such data folder"):
        run.fold_data(0, 64, extra_data=str(run.output_dir / "nowhere"))
