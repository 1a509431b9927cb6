"""Intervals and p-values by person against scipy and exhaustive enumeration; distances against their definition."""

import itertools
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage, stats

from tests import reference
from tests.strategies import floats
from utils.data import significance
from utils.data.significance import ENOUGH, FEW, LEVEL, RESAMPLES, bootstrap, sign_flip_p
from utils.files import ROOT
from utils.masks.masks import Masks
from utils.masks.surface import surface_distances

PEOPLE = np.repeat(np.arange(10), 2)


def draws(images=20, columns=0, seed=0):
    return np.random.default_rng(seed).normal(0.9, 0.05, (images, columns) if columns else images)


def reach(people):
    """How many standard errors Student's interval reaches, with the factor by which bootstrap means vary too little."""
    return stats.t.ppf(0.975, people - 1) * np.sqrt(people / (people - 1))


def test_the_interval_is_that_of_scipy_for_people_with_two_images():
    values = draws()
    ours = bootstrap(values, PEOPLE)
    of_person = values.reshape(-1, 2).mean(axis=1)
    theirs = stats.bootstrap(
        (of_person,),
        np.mean,
        confidence_level=1 - 2 * stats.norm.cdf(-reach(10)),
        n_resamples=RESAMPLES,
        method="percentile",
        rng=1,
    ).confidence_interval
    width = theirs.high - theirs.low
    assert ours.mean == pytest.approx(values.mean())
    assert ours.low == pytest.approx(theirs.low, abs=0.04 * width)
    assert ours.high == pytest.approx(theirs.high, abs=0.04 * width)


def test_the_interval_is_that_of_all_resamples_for_groups_of_few_people_with_different_numbers_of_images():
    people, values = np.array([0, 0, 0, 1, 2, 2, 3, 4]), draws(8, seed=3)
    bent = people >= 3
    means = []
    for straight in itertools.product(range(3), repeat=3):
        for other in itertools.product((3, 4), repeat=2):
            groups = [np.concatenate([values[people == p] for p in drawn]).mean() for drawn in (straight, other)]
            means.append(np.dot(groups, [0.4, 0.6]))
    ours = bootstrap(values, people, bent, {False: 0.4, True: 0.6}, enough=2)
    mean, half = 0.4 * values[~bent].mean() + 0.6 * values[bent].mean(), reach(2) * np.std(means)
    assert ours.mean == pytest.approx(mean)
    assert (ours.low, ours.high) == pytest.approx((mean - half, mean + half), rel=0.03)


@pytest.mark.parametrize("people", [2, 4, FEW, 12, 40])
def test_95_of_100_intervals_contain_the_true_mean(people, monkeypatch):
    monkeypatch.setattr(significance, "RESAMPLES", 1000)
    rng = np.random.default_rng(people)
    of_image = np.repeat(np.arange(people), 2)
    found = [
        bootstrap(
            np.repeat(rng.normal(0, 1, people), 2) + rng.normal(0, 0.5, 2 * people), of_image, seed=seed, enough=2
        )
        for seed in range(400)
    ]
    inside = np.mean([one.low < 0 < one.high for one in found])
    assert 0.92 < inside < 0.99


def test_two_images_of_a_person_are_no_more_than_one_if_they_are_equal():
    values = np.repeat(draws(10), 2)
    twice, once = bootstrap(values, PEOPLE), bootstrap(values[::2], PEOPLE[::2])
    as_if_independent = bootstrap(values, np.arange(20))
    assert twice == pytest.approx(once)
    assert twice.high - twice.low > 1.2 * (as_if_independent.high - as_if_independent.low)


def test_columns_are_resampled_together_and_each_as_if_alone():
    values = draws(columns=3)
    together = bootstrap(values, PEOPLE)
    assert together.mean.shape == (3,)
    for column in range(3):
        assert [array[column] for array in together] == pytest.approx(list(bootstrap(values[:, column], PEOPLE)))


def test_what_can_not_be_estimated_is_nan():
    assert np.isnan(bootstrap(draws(), PEOPLE, np.zeros(20, bool), {False: 0.5, True: 0.5})).all()
    alone = bootstrap(draws(2), np.zeros(2))
    assert alone.mean == pytest.approx(draws(2).mean()) and np.isnan([alone.low, alone.high]).all()
    assert not np.isnan(bootstrap(draws(), PEOPLE, np.zeros(20, bool), {False: 1.0, True: 0.0})).any()


@settings(max_examples=20)
@given(st.integers(0, 10**6), floats(-1, 1), floats(0.1, 3))
def test_intervals_shift_scale_and_change_sign_with_the_values(seed, shift, scale):
    values = draws(seed=seed)
    here = np.array(bootstrap(values, PEOPLE))
    assert np.array(bootstrap(values * scale + shift, PEOPLE)) == pytest.approx(here * scale + shift)
    mirrored = bootstrap(-values, PEOPLE)
    assert [-mirrored.mean, -mirrored.high, -mirrored.low] == pytest.approx(list(here))


@settings(max_examples=25)
@given(st.lists(floats(-0.1, 0.1).map(lambda x: round(x, 3)), min_size=1, max_size=9), st.integers(1, 3))
def test_p_values_are_those_of_all_sign_patterns(differences, images):
    per_image = np.repeat(differences, images)
    people = np.repeat(np.arange(len(differences)), images)
    patterns = itertools.product((1, -1), repeat=len(differences))
    sums = np.array([np.dot(signs, differences) for signs in patterns])
    expected = (np.abs(sums) >= abs(sum(differences)) - 1e-12).mean()
    assert sign_flip_p(per_image, people) == pytest.approx(expected)
    assert sign_flip_p(-per_image, people) == pytest.approx(expected)


def test_p_values_of_many_people_are_close_to_those_of_the_t_test():
    rng = np.random.default_rng(1)
    differences = rng.normal(0.002, 0.01, 100)
    expected = stats.ttest_1samp(differences, 0).pvalue
    assert 0.005 < expected < 0.2
    assert sign_flip_p(differences, np.arange(100)) == pytest.approx(expected, rel=0.2)


def blobs(rng, size):
    """A random mask: blurred noise, sometimes touching the border, sometimes with holes or empty."""
    field = ndimage.gaussian_filter(rng.normal(size=size), rng.uniform(1, 6))
    return field > rng.uniform(-0.5, 3) * field.std()


def test_distances_are_those_of_erosion_and_distance_transform():
    rng, size = np.random.default_rng(0), (61, 47)
    pairs = [(blobs(rng, size), blobs(rng, size)) for _ in range(60)]
    empty, full = np.zeros(size, bool), np.ones(size, bool)
    pairs += [(empty, empty), (empty, full), (full, full), (pairs[0][0], empty)]
    found = surface_distances(Masks.from_dense([a for a, _ in pairs]), Masks.from_dense([b for _, b in pairs]))
    expected = np.array([reference.surface_distances(a, b) for a, b in pairs])
    assert found.hd95 == pytest.approx(expected[:, 0], abs=1e-9)
    assert found.msd == pytest.approx(expected[:, 1], abs=1e-9)
    for values in found:
        assert values[-4:].tolist() == [0, np.hypot(*size), 0, np.hypot(*size)]
    assert surface_distances(Masks.empty(0, size), Masks.empty(0, size)).msd.shape == (0,)


def test_distances_at_the_border_survive_a_tuned_process():
    """Where more than half of the outline has row 0, SciPy's tree would be split for ever, until the stack is full."""
    script = (
        "import numpy as np\nfrom utils.device import tune_process\nfrom utils.masks.masks import Masks\n"
        "from utils.masks.surface import surface_distances\ntune_process()\n"
        "mask = np.zeros((61, 47), bool)\nmask[0, :20] = mask[40, 3] = True\nmoved = np.roll(mask, 4, axis=1)\n"
        "print(*surface_distances(Masks.from_dense([mask]), Masks.from_dense([moved])))"
    )
    found = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert (found.returncode, found.stdout.strip()) == (0, "[4.] [0.66666667]"), found.stderr


def test_hd95_of_a_shifted_square_is_the_shift():
    mask = np.zeros((100, 100), bool)
    mask[20:60, 30:70] = True
    masks = Masks.from_dense([np.roll(mask, n, axis=1) for n in range(4)])
    assert surface_distances(masks.select([0] * 4), masks).hd95.tolist() == [0, 1, 2, 3]


def test_the_mean_distance_is_that_over_the_pixels_of_both_outlines():
    found = surface_distances(*(Masks.from_texts(texts, (3, 10)) for texts in (["1 1", "1 1"], ["6 1", "1 1 5 1"])))
    assert found.msd.tolist() == [5, pytest.approx(4 / 3)] and found.hd95.tolist() == [5, pytest.approx(3.8)]


def test_fewer_people_than_can_show_anything_get_no_interval():
    agree = np.full(10, 0.02)
    five, six = np.repeat(np.arange(5), 2), np.repeat(np.arange(6), 2)
    assert sign_flip_p(agree, five) > 1 - LEVEL > sign_flip_p(np.full(12, 0.02), six), "so it takes six"
    mean, low, high = bootstrap(draws(10), five)
    assert mean == pytest.approx(draws(10).mean()) and np.isnan([low, high]).all()
    assert np.isfinite(bootstrap(draws(12), six)).all() and ENOUGH == 6
    bent = np.arange(16) < 4  # two bent people, six straight ones
    weighted = bootstrap(draws(16), np.repeat(np.arange(8), 2), bent, {True: 0.6, False: 0.4})
    assert np.isfinite(weighted.mean) and np.isnan(weighted.low), "the smallest group decides"
