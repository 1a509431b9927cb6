"""Compare two results by a paired test on the images that both scored, with a plain verdict."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from utils.analysis.results import ENSEMBLE, Scores, check_same_data, members, open_scores
from utils.analysis.scores import ALL, grouped
from utils.data.records import Ensemble, read_record
from utils.data.significance import LEVEL, Estimate, sign_flip_p
from utils.files import Problems


@dataclass(frozen=True)
class Comparison:
    """Result `b` against result `a`, on the images that both scored.

    p: of the sign-flip test by person on the mean Dice. rows: as in `utils.analysis.scores.summary`, with the columns
    images, people, a, b (mean Dice), difference (b - a), low, high. classes: a, b and difference of each class, the
    largest gain of b first. notes: what a reader must know, such as images that only one of the two scored.
    """

    a: str
    b: str
    p: float
    rows: pd.DataFrame
    classes: pd.DataFrame
    notes: list[str]

    @property
    def estimate(self) -> Estimate:
        """The difference of the mean Dice, b - a, on all shared images, with its interval."""
        return Estimate(*self.rows.loc[ALL, ["difference", "low", "high"]].astype(float))

    @property
    def winner(self) -> str:
        """The name of the better one if test and interval agree that there is a difference; else ""."""
        found = self.estimate
        if self.p >= 1 - LEVEL or not (found.low > 0 or found.high < 0):
            return ""
        return self.b if found.low > 0 else self.a

    @property
    def verdict(self) -> str:
        """One sentence, with difference, 95 % interval and p."""
        gain, low, high = self.estimate
        if np.isnan(low):
            people = int(self.rows.loc[ALL, "people"])
            whom = "one person" if people == 1 else f"{people} people"
            return f"no difference can be shown: {self.b} − {self.a} = {gain:+.4f} on {whom}"
        if self.winner:
            loser = self.a if self.winner == self.b else self.b
            gain, low, high = (gain, low, high) if self.winner == self.b else (-gain, -high, -low)
            return f"{self.winner} beats {loser} by {gain:.4f} [{low:.4f}, {high:.4f}], p = {self.p:.2g}"
        if not self.classes["difference"].any() and not gain:
            return f"no difference can be shown: {self.b} and {self.a} have the same scores"
        found = f"{self.b} − {self.a} = {gain:+.4f} [{low:+.4f}, {high:+.4f}], p = {self.p:.2g}"
        return f"no difference can be shown: {found}"


def compare_with(scores: Scores, against: Sequence[str], bent_share: float, others: bool = True) -> list[Comparison]:
    """Each result named in `against`, or with `others` each other one of its run, compared with `scores`.

    bent_share: see `compare_scores`, which says what is refused.
    """
    own = scores.name.rpartition("/")[2]
    of_run = [scores.run / name for name in members(scores.run) if name != own] if others else []
    return [compare_scores(open_scores(name), scores, bent_share) for name in against or of_run]


def compare_scores(a: Scores, b: Scores, bent_share: float = float("nan")) -> Comparison:
    """Compare two results of the same data on the images that both scored; `bent_share`: see `summary`.

    A winner is named if both the sign-flip test and the bootstrap interval, each by person, exclude a difference of 0
    at the 5 % level, so between two equally good results it is named at most about once in 20 comparisons. Raises
    Problems if the results are of different data or share no image.
    """
    check_same_data(a, b)
    shared = a.dice.index.intersection(b.dice.index).sort_values()
    if shared.empty:
        folds = " and ".join(", ".join(map(str, sorted(s.images["fold"].unique()))) for s in (a, b))
        raise Problems(
            f"{a.name} and {b.name} scored no image both", [f"their folds are {folds}; train the same folds"]
        )
    images = a.images.loc[shared]
    one, other = a.dice.loc[shared], b.dice.loc[shared]
    difference = other - one
    means = pd.DataFrame({"a": one.mean(axis=1), "b": other.mean(axis=1), "difference": difference.mean(axis=1)})
    rows = grouped(means, images, bent_share)
    classes = pd.DataFrame({"a": one.mean(), "b": other.mean(), "difference": difference.mean()})
    return Comparison(
        a.name,
        b.name,
        sign_flip_p(means["difference"].to_numpy(), images["ID"].to_numpy()),
        rows,
        classes.sort_values("difference", ascending=False, kind="stable").rename_axis("class"),
        _notes(a, b, shared),
    )


def _notes(a: Scores, b: Scores, shared: pd.Index) -> list[str]:
    notes = []
    for scores in (a, b):
        if left := len(scores.dice) - len(shared):
            notes.append(f"{left} of the {len(scores.dice)} images of {scores.name} are not in the other and not used")
        crossed = read_record(scores.run / Ensemble.notebook, Ensemble, empty=True).oof_dice_cross_fitted
        if scores.name.endswith(f"/{ENSEMBLE}") and crossed is not None:
            found = f"Dice {scores.dice.to_numpy().mean():.4f}; chosen on the other folds, {crossed:.4f}"
            notes.append(f"the weights of {scores.name} were chosen by these scores, {found}")
    moved = int((a.images.loc[shared, "fold"] != b.images.loc[shared, "fold"]).sum())
    if moved:
        notes.append(f"{moved} of the {len(shared)} shared images were in another fold, so training sets differ too")
    if a.tta != b.tta:
        plain = a.name if b.tta else b.name
        notes.append(f"{plain} was scored without test-time augmentation, the other with it")
    people = a.images.loc[shared, "ID"].nunique()
    if people < 6:
        notes.append(f"{people} people are too few to show any difference: it takes at least 6")
    return notes
