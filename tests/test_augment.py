"""The built-in augmentation: its amounts, and each change against a plain computation on whole maps."""

import pytest

from utils.data.augmentation import Augmentation, read_augmentation
from utils.errors import Problems
from utils.pipeline.profile import ProfileError, steps


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
    path.write_text(
        "train: {augment: {rotat: 3}}\nmodels:\n  a: {augment: {elastic: 5}}\n  b: {augment: {rotate: 30}}\n"
    )
    with pytest.raises(ProfileError) as caught:
        steps(path, "mine", "data/sample")
    assert len(caught.value.problems) == 2
    assert "train: unknown name in augment 'rotat': did you mean rotate?" in caught.value.problems[0]
    assert caught.value.problems[1].startswith("models.a: augment.elastic = 5: expected less than or equal to 1")
