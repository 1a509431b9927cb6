"""Tell a gain from noise: bootstrap intervals and sign-flip tests in which people, not images, are drawn.

Both hands of a person resemble each other, so two images of one person are less than two pieces of evidence.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import norm, permutation_test, t

LEVEL = 0.95
"""Share of experiments in which an interval contains the true value."""
RESAMPLES = 10_000
FEW = 8
"""With fewer people, percentiles of bootstrap means would end at the largest value found: Student's t is used."""


ENOUGH = 6
"""No interval is given for fewer people: of five, even if all agree, the sign-flip test can show nothing at LEVEL (its
p-value is at least 2 / 2⁵ = 0.06), and an interval must not claim more than the test."""


class Estimate(NamedTuple):
    """A mean with the ends of its interval; floats, or arrays with one element per column of the values."""

    mean: float | np.ndarray
    low: float | np.ndarray
    high: float | np.ndarray


def bootstrap(
    values: np.ndarray,
    people: np.ndarray,
    strata: np.ndarray | None = None,
    shares: Mapping | None = None,
    seed: int = 0,
    enough: int = ENOUGH,
) -> Estimate:
    """The mean of `values` over images, with its interval from resampling people.

    Percentiles of RESAMPLES bootstrap means, expanded for small samples as in Hesterberg, "What Teachers Should Know
    About the Bootstrap" (2015), because they are too narrow otherwise; with fewer than FEW people in a group, Student's
    t times the spread of the bootstrap means.

    Args:
        values: float (images,) or (images, columns); all columns are resampled together.
        people: the person of each image.
        strata: a group of each image, such as bent or straight; a person's images must be in one group.
        shares: the weight of each group, with sum 1. The result is the mean of the groups' means with these weights,
            and people are drawn within their group. None: no groups.
        seed: of the draws.
        enough: fewest people in each group for an interval; at least 2, as nothing varies about one.

    Returns:
        Mean, low and high. All are NaN if a group with a weight has no image; low and high are NaN if it has fewer
        people than `enough`.
    """
    values, people = np.asarray(values, float), np.asarray(people)
    columns = values.reshape(len(values), -1)
    groups = [(np.ones(len(values), bool), 1.0)]
    if shares is not None:
        groups = [(np.asarray(strata) == name, share) for name, share in shares.items() if share > 0]
    rng, mean, draws, fewest = np.random.default_rng(seed), 0.0, 0.0, len(values)
    for rows, share in groups:
        if not rows.any():
            nothing = np.full(columns.shape[1], np.nan)
            return _shaped(values, nothing, nothing, nothing)
        sums, sizes = by_person(columns[rows], people[rows])
        number = len(sizes)
        counts = rng.multinomial(number, np.full(number, 1 / number), RESAMPLES).astype(float)
        mean = mean + share * columns[rows].mean(axis=0)
        draws = draws + share * (counts @ sums) / (counts @ sizes)[:, None]
        fewest = min(fewest, number)
    return _shaped(values, mean, *_interval(mean, draws, fewest if fewest >= enough else 0))


def _interval(mean: np.ndarray, draws: np.ndarray, people: int) -> np.ndarray:
    """The ends (2, columns) from bootstrap means (resamples, columns) of this many people; see `bootstrap`."""
    if people < 2:
        return np.full((2, len(mean)), np.nan)
    reach = t.ppf((1 + LEVEL) / 2, people - 1) * np.sqrt(people / (people - 1))
    if people < FEW:
        return mean + np.outer([-reach, reach], draws.std(axis=0))
    tail = norm.cdf(-reach)
    return np.quantile(draws, [tail, 1 - tail], axis=0)


def sign_flip_p(differences: np.ndarray, people: np.ndarray, seed: int = 0) -> float:
    """Two-sided p-value of the mean of paired `differences` (images,) under the hypothesis that there is none.

    If two models are equally good, each person's differences might as well have the other sign: p is the share of sign
    patterns, one sign per person, that give a mean at least as far from 0. All patterns are tried if there are at most
    RESAMPLES of them, else RESAMPLES random ones.
    """
    sums, _ = by_person(np.asarray(differences, float)[:, None], np.asarray(people))
    if len(sums) < 2 or not sums.any():
        return 1.0
    tested = permutation_test(
        (sums[:, 0],), np.sum, permutation_type="samples", vectorized=True, n_resamples=RESAMPLES, rng=seed
    )
    return float(tested.pvalue)


def by_person(values: np.ndarray, people: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each person's sum of the rows of `values` (images, columns), float (people, columns), and number of images."""
    codes, found = pd.factorize(people)
    sums = np.zeros((len(found), values.shape[1]))
    np.add.at(sums, codes, values)
    return sums, np.bincount(codes, minlength=len(found)).astype(float)


def _shaped(values: np.ndarray, *arrays: np.ndarray) -> Estimate:
    """The arrays (columns,) as floats if there is only the one column of a 1-D `values`."""
    return Estimate(*(array if values.ndim > 1 else float(array[0]) for array in arrays))
