"""Cache, augmentation and batches."""

import os
import time

import cv2
import numpy as np
import pandas as pd
import pytest
import torch

from utils.data.augment import Augmenter
from utils.data.augmentation import NO_AUGMENTATION, Augmentation
from utils.data.cache import Cache, make_entry
from utils.data.competition import DataError, read_annotation, read_classes, read_index
from utils.data.fold_data import FoldData
from utils.data.loader import EpochSampler, dense_labels, plain_loader, training_loader
from utils.masks import upsampling
from utils.masks.dice import dice_of_masks
from utils.masks.labels import draw


@pytest.fixture(scope="module")
def cache(sample, tmp_path_factory):
    table = read_index(sample)
    cache = Cache(tmp_path_factory.mktemp("cache"), table, read_classes(sample), 64)
    cache.build()
    return cache


@pytest.fixture(scope="module")
def names(sample):
    table = read_index(sample)
    return table.loc[table["split"] == "train", "image_name"].tolist()


def test_entries_hold_image_label_and_truth(cache, names, sample):
    row = read_index(sample).set_index("image_name").loc[names[0]]
    entry = cache.read(names[0])
    image = cv2.imread(row["image"], cv2.IMREAD_GRAYSCALE)
    assert np.array_equal(entry.image, cv2.resize(image, (64, 64), interpolation=cv2.INTER_AREA))
    for label, shapes in read_annotation(row["annotation"], cache.classes).items():
        assert np.array_equal(entry.truth.dense(cache.classes.index(label)), draw(shapes, entry.size))
    assert entry.label.dense().shape == (29, 64, 64) and entry.size == (256, 256)


def test_build_makes_only_what_is_missing_outdated_or_damaged(sample, tmp_path, names):
    table = read_index(sample)
    cache = Cache(tmp_path, table, read_classes(sample), 32)
    assert cache.build() == len(table)
    assert cache.build() == 0
    cache.path(names[0]).write_bytes(cache.path(names[0]).read_bytes()[:1000])
    cache.path(names[1]).unlink()
    assert cache.build() == 2
    stat = os.stat(table.iloc[2]["image"])
    os.utime(table.iloc[2]["image"], ns=(stat.st_atime_ns, time.time_ns()))
    assert cache.build() == 1
    assert not list(tmp_path.rglob("*.part*"))


def test_a_bad_image_is_named_after_the_others_are_made(sample, tmp_path, names):
    table = read_index(sample)
    (tmp_path / "bad.png").write_bytes(b"broken")
    table.loc[0, "image"] = str(tmp_path / "bad.png")
    cache = Cache(tmp_path, table, read_classes(sample), 32)
    with pytest.raises(DataError, match=r"bad\.png"):
        cache.build()
    assert len(list(cache.folder.glob("*.npz"))) == len(table) - 1


def test_coloured_and_non_square_images(tmp_path):
    rng = np.random.default_rng(0)
    colour = rng.integers(0, 255, (30, 50, 3), np.uint8)
    cv2.imwrite(str(tmp_path / "c.png"), colour)
    entry = make_entry(str(tmp_path / "c.png"), "", [], (30, 50))
    assert np.array_equal(entry.image, colour[:, :, ::-1]) and entry.size == (30, 50)
    cv2.imwrite(str(tmp_path / "g.png"), np.repeat(colour[:, :, :1], 3, 2))
    assert np.array_equal(make_entry(str(tmp_path / "g.png"), "", [], (30, 50)).image, colour[:, :, 0])


def test_labels_by_coverage_come_back_to_full_size_better_than_by_nearest(sample, tmp_path, cache, names):
    shifted = Cache(tmp_path, read_index(sample), cache.classes, 64, labels="nearest")
    shifted.build()

    def kept(source, name):
        entry = source.read(name)
        return dice_of_masks(
            upsampling.upsample_masks(entry.label.dense() / np.float32(255), entry.size, 0.5), entry.truth
        )

    coverage, nearest = (np.mean([kept(source, name) for name in names]) for source in (cache, shifted))
    assert 1 - coverage < (1 - nearest) / 3  # FACTS of the field: 0.004 against 0.031 is lost via 512 pixels


@pytest.mark.parametrize("num_workers", [1, 2])
def test_batches_do_not_depend_on_the_number_of_workers(cache, names, num_workers):
    data = FoldData(cache, pd.DataFrame({"image_name": names}), pd.DataFrame())
    augmenter = Augmenter(
        Augmentation(clahe=0.5, elastic=0.5, wrist_bend=30, copy_paste=0.5, cutmix=0.5), classes=cache.classes
    )

    def epoch(workers, number):
        loader = training_loader(data, augmenter, 4, seed=5, num_workers=workers)
        loader.sampler.set_epoch(number)
        return list(loader)

    first, parallel, later = epoch(0, 0), epoch(num_workers, 0), epoch(0, 1)
    for a, b in zip(first, parallel, strict=True):
        assert torch.equal(a["image"], b["image"]) and torch.equal(dense_labels(a), dense_labels(b))
    assert not torch.equal(first[0]["image"], later[0]["image"])
    assert first[0]["image"].dtype == torch.uint8 and dense_labels(first[0]).shape == (4, 29, 64, 64)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_sparse_labels_are_pasted_as_the_dense_ones(cache, names, layout):
    data = FoldData(cache, pd.DataFrame({"image_name": names}), pd.DataFrame())
    batch = next(iter(plain_batches := training_loader(data, Augmenter(NO_AUGMENTATION), len(names), seed=5)))
    order = [index for _, index in plain_batches.sampler]
    expected = np.stack([cache.read(names[index]).label.dense() for index in order])
    labels = dense_labels(batch, layout)
    assert labels.is_contiguous(memory_format=layout) and labels.dtype == torch.float32
    assert np.array_equal(labels.numpy(), expected.astype(np.float32) / 255)


def test_an_epoch_shows_every_image_and_fills_the_last_batch():
    sampler = EpochSampler(10, 4, seed=0)
    shown = [index for _, index in sampler]
    assert len(shown) == len(sampler) == 12 and set(shown) == set(range(10))
    sampler.set_epoch(1)
    assert [index for _, index in sampler] != shown


def test_validation_images_come_in_order(cache, names):
    indices = torch.cat([batch["index"] for batch in plain_loader(cache, names, 3)])
    assert indices.tolist() == list(range(len(names)))
