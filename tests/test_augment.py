"""The built-in augmentation: its amounts, and each change against a plain computation on whole maps."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.strategies import floats
from utils.data.augment import Augmenter
from utils.data.augmentation import NO_AUGMENTATION, Augmentation, read_augmentation
from utils.data.cache import Cache
from utils.data.competition import read_classes, read_index
from utils.data.mixing import _align, cut_mix, paste_bones
from utils.data.warping import LIMIT, Bend, affine, cut, draw_bend, draw_field, flip, transform_matrix, warp
from utils.files import Problems
from utils.hand.bend import Joint, find_joint
from utils.masks.sparse import SparseMaps
from utils.pipeline.profile import ProfileError, steps


@pytest.fixture(scope="module")
def cache(sample, tmp_path_factory):
    table = read_index(sample, ("train",))
    cache = Cache(tmp_path_factory.mktemp("cache"), table, read_classes(sample), 64)
    cache.build()
    return cache


@pytest.fixture(scope="module")
def large(sample, tmp_path_factory):
    """The same at 256 × 256, where a bone is wide enough to be pasted."""
    large = Cache(tmp_path_factory.mktemp("large"), read_index(sample, ("train",)), read_classes(sample), 256)
    large.build()
    return large


@pytest.fixture(scope="module")
def names(cache):
    return list(cache.sources)


def dense(patches, grid=(64, 64)):
    return SparseMaps.from_patches(grid, patches).dense()


def test_flip_is_exact(cache, names):
    entry = cache.read(names[0])
    image, patches = flip(entry.image, entry.label.patches())
    assert np.array_equal(image, entry.image[:, ::-1])
    assert np.array_equal(dense(patches), entry.label.dense()[:, :, ::-1])


@pytest.mark.parametrize(("angle", "scale", "shift"), [(0, 1, (3, -2)), (17, 0.9, (2, 5)), (-30, 1.3, (20, 0))])
def test_regions_move_like_the_whole_map(cache, names, angle, scale, shift):
    entry = cache.read(names[1])
    matrix = transform_matrix(entry.label.grid, angle, scale, shift)
    image, patches = affine(entry.image, entry.label.patches(), matrix)
    whole = [cv2.warpAffine(plane, matrix, (64, 64), flags=cv2.INTER_LINEAR) for plane in entry.label.dense()]
    difference = np.abs(dense(patches).astype(int) - np.stack(whole))
    assert difference.max() <= 8 and difference.mean() < 0.01  # OpenCV rounds positions to 1/32 pixel
    assert np.array_equal(image, cv2.warpAffine(entry.image, matrix, (64, 64), flags=cv2.INTER_LINEAR))


@pytest.mark.parametrize("degrees", [0, 40])
def test_regions_bend_like_the_whole_map(cache, names, degrees):
    entry = cache.read(names[1])
    field = draw_field((64, 64), 0.03, np.random.default_rng(1))
    matrix = transform_matrix((64, 64), 10, 1.1, (1, 1))
    patches = entry.label.patches()
    bend = draw_bend(find_joint(patches, cache.classes), degrees, np.random.default_rng(2)) if degrees else None
    image, moved = warp(entry.image, patches, matrix, field, bend)
    inverse = cv2.invertAffineTransform(matrix)
    y, x = np.mgrid[:64, :64]
    sources = np.einsum("ij,jhw->ihw", inverse, np.stack([x, y, np.ones_like(x)])) + field.transpose(2, 0, 1)
    maps = sources.astype(np.float32)
    if bend:
        maps = bend.sources(*maps)
        assert abs(bend.angle) > 0.1
    whole = [cv2.remap(plane, maps[0], maps[1], cv2.INTER_LINEAR) for plane in entry.label.dense()]
    assert np.abs(dense(moved).astype(int) - np.stack(whole)).max() <= 8
    same = cv2.remap(entry.image, maps[0], maps[1], cv2.INTER_LINEAR).astype(int)
    assert np.abs(same - image).max() <= 8


@given(angle=floats(-LIMIT, LIMIT), share=floats(0, 1), tilt=floats(-3.1, 3.1), reach=floats(4, 40))
def test_a_bend_tears_and_folds_nothing(angle, share, tilt, reach):
    wrist = Joint(np.array([60.0, 70.0]), np.array([np.sin(tilt), -np.cos(tilt)]), reach, 0.0)
    y, x = np.mgrid[0:140:2, 0:120:2].astype(np.float32)
    source_x, source_y = Bend(wrist, angle, share).sources(x, y)
    (xy, xx), (yy, yx) = np.gradient(source_x.astype(float), 2), np.gradient(source_y.astype(float), 2)
    area = xx * yy - xy * yx  # of the old image in a pixel of the new one
    assert area[1:-1, 1:-1].min() > 0.3 and area[1:-1, 1:-1].max() < 1.7


@pytest.mark.parametrize("angle", [-0.5, 0.35])
def test_a_bend_turns_the_hand_against_the_forearm(cache, names, angle):
    entry = cache.read(names[0])
    patches = entry.label.patches()
    wrist = find_joint(patches, cache.classes)
    _, bent = warp(entry.image, patches, np.eye(2, 3), None, Bend(wrist, angle, 0.0))
    after = find_joint(bent, cache.classes)
    assert after.bend - wrist.bend == pytest.approx(angle, abs=0.12)
    assert np.linalg.norm(after.pivot - wrist.pivot) < 1.5
    forearm = [cache.classes.index(name) for name in ("Radius", "Ulna")]
    rows = slice(int(wrist.pivot[1] + 3 * wrist.reach), 64)
    assert np.abs(dense(bent)[forearm, rows].astype(int) - entry.label.dense()[forearm, rows]).max() <= 8


def test_no_wrist_is_found_without_its_bones(cache, names):
    patches = cache.read(names[0]).label.patches()
    assert find_joint(patches, ["nucleus"]) is None
    gone = [(p[:0, :0], (0, 0)) if n == 20 else (p, c) for n, (p, c) in enumerate(patches)]
    assert find_joint(gone, cache.classes) is None
    entry = cache.read(names[0])
    augmenter = Augmenter(replace(NO_AUGMENTATION, wrist_bend=30))  # of unknown classes
    image, _ = augmenter(entry.image, entry.label, np.random.default_rng(0))
    assert np.array_equal(image, entry.image)


def test_bends_stay_as_far_as_wrists_go():
    wrist = Joint(np.zeros(2), np.array([0.0, -1.0]), 5.0, np.radians(40))
    angles = [draw_bend(wrist, 45, np.random.default_rng(n)).angle for n in range(50)]
    assert max(angles) == pytest.approx(np.radians(5)) and np.radians(-45) <= min(angles) < np.radians(-30)


@given(top=st.integers(0, 40), left=st.integers(0, 40))
def test_a_cut_is_a_part_of_the_whole_map(cache, names, top, left):
    entry = cache.read(names[2])
    image, patches = cut(entry.image, entry.label.patches(), (top, left), 24)
    assert np.array_equal(image, entry.image[top : top + 24, left : left + 24])
    assert np.array_equal(dense(patches, (24, 24)), entry.label.dense()[:, top : top + 24, left : left + 24])


@given(seed=st.integers(0, 1000))
def test_cutmix_takes_pixels_and_labels_of_one_rectangle(cache, names, seed):
    a, b = (cache.read(name) for name in names[:2])
    a = replace(a, image=a.image // 2)  # even and odd grey values tell the images apart
    mine, other = a.image * 2, b.image | 1
    image, patches = cut_mix(mine, a.label.patches(), other, b.label.patches(), np.random.default_rng(seed))
    taken = image % 2 == 1
    assert np.array_equal(image, np.where(taken, other, mine))
    rows, columns = taken.any(1), taken.any(0)
    assert np.array_equal(taken, rows[:, None] & columns)
    assert np.array_equal(dense(patches), np.where(taken, b.label.dense(), a.label.dense()))


def test_pasted_bones_change_pixels_and_labels_of_their_class_only(large, names):
    a, b = (large.read(names[i]) for i in (0, 5))
    image, patches = paste_bones(a.image, a.label.patches(), b.image, b.label.patches(), np.random.default_rng(0))
    before, after = a.label.dense().astype(int), dense(patches, (256, 256)).astype(int)
    changed = [n for n in range(29) if not np.array_equal(before[n], after[n])]
    assert 2 <= len(changed) < 20
    moved = np.abs(before - after).max(0) > 0
    others = np.array([np.delete(before, n, axis=0).max(0) > 128 for n in changed])
    for n, busy in zip(changed, others, strict=True):
        assert np.array_equal(before[n][busy], after[n][busy]), "where another bone lies, nothing is pasted"
        iou = np.minimum(before[n], after[n]).sum() / np.maximum(before[n], after[n]).sum()
        assert 0.7 < iou < 1, "the new bone fits into the place of the old one"
    far = cv2.dilate(np.max(before[changed], axis=0).astype(np.uint8), np.ones((17, 17))) == 0
    assert np.array_equal(image[far], a.image[far]) and not np.array_equal(image[moved], a.image[moved])


def test_a_bone_pasted_on_itself_stays_and_a_mirrored_hand_gives_mirrored_bones(large, names):
    entry = large.read(names[0])
    image, patches = paste_bones(
        entry.image, entry.label.patches(), entry.image, entry.label.patches(), np.random.default_rng(1)
    )
    assert np.abs(image.astype(int) - entry.image).max() <= 4
    assert np.abs(dense(patches, (256, 256)).astype(int) - entry.label.dense()).max() <= 4
    mirrored, of_mirrored = flip(entry.image, entry.label.patches())
    image, patches = paste_bones(entry.image, entry.label.patches(), mirrored, of_mirrored, np.random.default_rng(1))
    assert np.abs(image.astype(int) - entry.image).mean() < 0.5
    assert np.abs(dense(patches, (256, 256)).astype(int) - entry.label.dense()).mean() < 0.1


def test_no_bone_is_laid_upside_down():
    wedge = np.zeros((40, 20), np.uint8)
    cv2.fillPoly(wedge, [np.int32([[1, 38], [18, 38], [11, 1], [8, 1]])], 255)
    target, donor = (wedge, (10, 10)), (wedge[::-1].copy(), (10, 10))
    middles = np.array([20.0, 90.0]), np.array([20.0, 90.0])  # the hand lies below both
    before = np.pad(wedge, 10)
    assert _align(donor, target, middles, before, (0, 0)) is None
    matrix, after = _align(target, target, middles, before, (0, 0))
    assert np.abs(after.astype(int) - before).max() <= 2 and matrix == pytest.approx(np.eye(2, 3), abs=1e-6)


@pytest.mark.parametrize(
    ("part", "amount"),
    [
        *[("hflip", 1.0), ("rotate", 20.0), ("scale", 0.2), ("shift", 0.1), ("brightness", 0.3), ("contrast", 0.3)],
        *[("clahe", 1.0), ("autocontrast", 1.0), ("elastic", 1.0), ("gamma", 0.3), ("wrist_bend", 30.0)],
        *[("copy_paste", 1.0), ("cutmix", 1.0)],
    ],
)
def test_every_part_can_be_switched_on_alone(large, names, part, amount):
    entry, donor = large.read(names[0]), large.read(names[3])
    entry = replace(entry, image=entry.image // 2 + 30)  # room for contrast
    augmenter = Augmenter(replace(NO_AUGMENTATION, **{part: amount}), classes=large.classes)

    def augment(augmenter):
        return augmenter(entry.image, entry.label, np.random.default_rng(3), lambda: (donor.image, donor.label))

    image, label = augment(augmenter)
    assert not np.array_equal(image, entry.image) and np.array_equal(image, augment(augmenter)[0])
    grey = part in ("brightness", "contrast", "clahe", "autocontrast", "gamma")
    assert np.array_equal(label.dense(), entry.label.dense()) == grey
    untouched, same = augment(Augmenter(NO_AUGMENTATION))
    assert np.array_equal(untouched, entry.image) and np.array_equal(same.dense(), entry.label.dense())


def test_amounts_replace_defaults():
    assert read_augmentation({}) == Augmentation()
    made = read_augmentation({"rotate": 25, "elastic": "0.3"})
    assert made == Augmentation(rotate=25.0, elastic=0.3) and isinstance(made.rotate, float)


def test_wrong_amounts_are_named_all_at_once():
    with pytest.raises(Problems) as caught:
        read_augmentation({"rotatoin": 3, "hflip": 2, "scale": -0.1, "shift": "far", "clahe": True})
    found = "\n".join(caught.value.problems)
    assert len(caught.value.problems) == 5
    assert "did you mean rotate" in found and "augment.hflip = 2: expected less than or equal to 1" in found
    assert "augment.scale = -0.1" in found and "augment.shift = 'far': expected a valid number" in found
    assert "augment.clahe = True: expected a number" in found


def test_a_profile_is_refused_for_wrong_amounts(tmp_path):
    path = tmp_path / "mine.yaml"
    models = "models: {a: {augment: {elastic: 5}}, b: {augment: {rotate: 30}}}\n"
    path.write_text("train: {augment: {rotat: 3}}\n" + models + "ensemble: {postprocess: [largst]}\n")
    with pytest.raises(ProfileError) as caught:
        steps(path, "mine", "data/sample")
    assert len(caught.value.problems) == 3
    assert "ensemble: unknown step of postprocess 'largst': did you mean largest?" in caught.value.problems[2]
    assert "train: unknown name in augment 'rotat': did you mean rotate?" in caught.value.problems[0]
    assert caught.value.problems[1].startswith("models.a: augment.elastic = 5: expected less than or equal to 1")
