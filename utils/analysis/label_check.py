"""List annotations that look wrong, by the kinds of label error that are known in hand X-ray data.

Known from the competition's data: exchanged labels, an outline that includes a ring, one bone drawn over another. Every
rule compares an image with the others, so no model is needed. A row is a hint, not a proof: look at the image.
"""

import numpy as np
import pandas as pd
from scipy.optimize import linear_sum_assignment

from utils.analysis.survey import WIDTHS, Survey
from utils.hand.plausibility import KEY, find_unlikely, what_is_usual

COLUMNS = ["image_name", "ID", "class", "reason", "score", "expected"]
RARE, RARE_SHARE = 0.1, 0.25
"""An overlap is unusual if the pair overlaps in at most this share of the images, and here in more than this share of
the smaller bone."""
LOOP = 0.01
"""A loop of a self-crossing polygon counts if it has more than this share of the polygon's area."""
PLACE_SPREADS, PLACE_FLOOR = 3.9, 0.1
"""A bone is out of place if its distance from the expected place is more than this many times the 75th percentile over
the images, and more than this (in units of the hand's radius). A fifth of wrong labels hardly moves that percentile."""
WIDTH_SPREADS, WIDTH_RATIO = 5.0, 1.35
"""A width along a bone is unusual by the rule for areas."""


def suspicious(found: Survey) -> pd.DataFrame:
    """Everything that looks wrong, the most unusual first, with the COLUMNS.

    class: "" for the whole image. score: a value divided by the limit of the rule; 1 for rules without numbers.
    expected: the class that is usual where this one lies, "" if that is not the matter. The rules of
    `hand.plausibility` compare the images with each other; those about areas, widths and places need at least ten
    annotated images; those about places and sides need the classes of the fingers.
    """
    annotated = found.images[found.images["annotation"] != ""]
    odd = find_unlikely(found.bones, annotated, what_is_usual(found.bones, annotated))
    rows = [*odd[[*KEY, "reason", "score"]].itertuples(index=False, name=None), *_loops(found), *_overlaps(found)]
    if found.bones["image_name"].nunique() >= 10:
        rows += [*_widths(found), *_places(found)]
    people = found.images.set_index("image_name")["ID"]
    table = pd.DataFrame([(name, people[name], *rest, "")[:6] for name, *rest in rows], columns=COLUMNS)
    return table.sort_values(["score", "image_name"], ascending=[False, True], ignore_index=True)


def _loops(found: Survey) -> list[tuple]:
    """Masks from polygons that cross themselves."""
    odd = found.bones.loc[found.bones["crossing"] > LOOP, [*KEY, "crossing"]]
    reason = "its outline crosses itself, cutting off a loop of {:.0%}"
    return [(image, name, reason.format(n), n / LOOP) for image, name, n in odd.to_numpy()]


def _overlaps(found: Survey) -> list[tuple]:
    """Pairs of classes that overlap in few images, and there strongly."""
    annotated, pairs = int((found.images["annotation"] != "").sum()), found.pairs
    areas = found.bones.set_index(KEY)["area"]
    ends = [pd.MultiIndex.from_frame(pairs[["image_name", end]]) for end in "ab"]
    smaller = np.minimum(*(areas.reindex(end).to_numpy() for end in ends))
    shown = pairs.groupby(["a", "b"])["iou"].transform("size")
    pairs = pairs.assign(share=pairs["intersection"] / smaller, shown=shown)
    rows, rare = [], pairs["shown"] <= max(RARE * annotated, 1)
    for row in pairs[rare & (pairs["share"] > RARE_SHARE)].itertuples():
        wrong, other = _more_unusual_first(found, row.image_name, row.a, row.b)
        reason = f"overlaps {other} by {row.share:.0%}, a pair that overlaps in only {row.shown} of {annotated} images"
        rows.append((row.image_name, wrong, reason, row.share / RARE_SHARE))
    return rows


def _widths(found: Survey) -> list[tuple]:
    """Bones that are much wider or narrower at some place along their long axis than those of the other images."""
    rows, reason = [], "{:.2f} times the usual width at {:.0%} of its length"
    bones = found.bones.merge(found.images[["image_name", "height", "width"]])
    cut = (bones[["top", "left"]] == 0).any(axis=1) | (bones["bottom"] == bones["height"])
    for name, whole in bones[~(cut | (bones["right"] == bones["width"]))].groupby("class"):
        if len(whole) < max(10, 0.5 * (bones["class"] == name).sum()):  # others of the class end where the image ends
            continue
        relative = np.log(np.maximum(whole[WIDTHS[1:-1]].to_numpy(float), 0.05))  # both tips vary too much
        relative = relative - np.median(relative, axis=0)
        limit = np.maximum(WIDTH_SPREADS * 1.4826 * np.median(abs(relative), axis=0), np.log(WIDTH_RATIO))
        score = abs(relative) / limit
        for i in np.flatnonzero(score.max(axis=1) > 1):
            k = int(score[i].argmax())
            text = reason.format(np.exp(relative[i, k]), (k + 1) / (len(WIDTHS) - 1))
            rows.append((whole["image_name"].iloc[i], name, text, float(score[i, k])))
    return rows


def _places(found: Survey) -> list[tuple]:
    """Bones that are far from the place that their neighbours suggest, and the bone that is expected where they are."""
    names, classes, points = _aligned(found)
    if len(classes) < 5 or len(names) < 10:
        return []
    usual = middle_of(points, axis=0)
    off = points - usual
    near = np.argsort(abs(usual[:, None] - usual), axis=1)[:, 1:6]
    off = off - middle_of(off[:, near], axis=2)
    limit = np.maximum(PLACE_SPREADS * np.nanpercentile(abs(off), 75, axis=0), PLACE_FLOOR)
    rows = []
    for image in np.flatnonzero((abs(off) > limit).any(axis=1)):
        present = np.flatnonzero(~np.isnan(points[image]))
        # squared distances: the best assignment stays the same if bones are moved together, as in a bent hand
        _, taken = linear_sum_assignment(abs(points[image, present][:, None] - usual[present]) ** 2)
        for k in np.flatnonzero(abs(off[image]) > limit):
            place = classes[present[taken[np.searchsorted(present, k)]]]
            own = place == classes[k]
            reason = "far from its place beside its neighbours" if own else f"lies where {place} is expected"
            score = float(abs(off[image, k]) / limit[k])
            rows.append((names[image], classes[k], reason, score, "" if own else place))
    return rows


def _aligned(found: Survey) -> tuple[list[str], list[str], np.ndarray]:
    """Image names, classes, and centroids (complex x + iy, images × classes, NaN where absent), aligned to each other.

    Left hands are mirrored; each hand is shifted, rotated and scaled to fit the median hand, whose bones lie about 1
    from its centre. Wrong labels hardly move a hand, because distant points have small weights (1 / distance).
    """
    hands = found.bones[found.bones["image_name"].isin(found.images.loc[found.images["side"] != "", "image_name"])]
    x, y = (
        hands.pivot_table(index="image_name", columns="class", values=v).reindex(columns=found.classes) for v in "xy"
    )
    points = x.to_numpy(float) + 1j * y.to_numpy(float)
    points = points[:, ~np.isnan(points).all(axis=0)]
    classes = [name for name in found.classes if x[name].notna().any()]
    side = found.images.set_index("image_name")["side"].reindex(x.index).to_numpy()
    points = np.where((side == "L")[:, None], -points.conj(), points)
    points = points - np.nanmean(points, axis=1, keepdims=True)
    points = points / np.sqrt(np.nanmean(abs(points) ** 2, axis=1, keepdims=True))
    known = ~np.isnan(points)
    for _ in range(4):
        usual = middle_of(points, axis=0)
        weight = np.where(known, 1 / (0.02 + np.nan_to_num(abs(points - usual))), 0)
        weight /= weight.sum(axis=1, keepdims=True)
        filled = np.where(known, points, 0)
        here, there = (weight * filled).sum(axis=1, keepdims=True), (weight * usual).sum(axis=1, keepdims=True)
        turn = (weight * (filled - here).conj() * (usual - there)).sum(axis=1, keepdims=True)
        turn = turn / (weight * abs(filled - here) ** 2).sum(axis=1, keepdims=True)
        points = (points - here) * turn + there
    return list(x.index), classes, points


def middle_of(points: np.ndarray, axis: int) -> np.ndarray:
    """The median of x and of y of complex points x + iy along an axis, without those that are NaN.

    NumPy's median of complex numbers is that of x alone: it sorts by the real part.
    """
    return np.nanmedian(points.real, axis=axis) + 1j * np.nanmedian(points.imag, axis=axis)


def _more_unusual_first(found: Survey, image: str, a: str, b: str) -> tuple[str, str]:
    """The two classes; first the one whose area is farther from its median, which is probably the wrong one."""
    bones = found.bones[found.bones["class"].isin([a, b])]
    usual = bones.groupby("class")["area"].median()
    here = bones[bones["image_name"] == image].set_index("class")["area"]
    unusual = np.log(here / usual).abs()
    return (a, b) if unusual[a] >= unusual[b] else (b, a)
