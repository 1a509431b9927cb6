"""List the labels to look at again: those that look wrong, and those that the out-of-fold predictions contradict.

A network that never saw a person draws their bones where the labels of everybody else taught it to. Where it disagrees
with one label much more than with the others of the image, the label may be wrong.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from utils.data.label_fixes import Fix
from utils.files import write_text

DICE_SPREADS, DICE_DROP = 6.0, 0.15
"""A Dice is an outlier if it lies below the expected one by more than this many robust standard deviations and by more
than this."""
COLUMNS = ["image_name", "ID", "class", "score", "found_by", "reason", "expected"]


def disagreement(dice: pd.DataFrame, people: Mapping[str, str]) -> pd.DataFrame:
    """The masks with a much lower out-of-fold Dice than expected for the class and the image.

    dice: images × classes, in [0, 1]. people: ID by image name. Returns the columns of `label_check.suspicious`; the
    expected Dice is the median of the class, lowered by as much as the image's other classes lie below theirs.
    """
    below = dice.median() - dice
    below = below.sub(below.median(axis=1), axis=0)
    spread = 1.4826 * (below - below.median()).abs().median()
    limit = np.maximum(DICE_SPREADS * spread, DICE_DROP)
    score = (below / limit).to_numpy()
    rows = [
        (name, people[name], label, f"out-of-fold Dice {dice.iloc[i, j]:.2f}", score[i, j], "")
        for i, j in np.argwhere(score > 1)
        for name, label in [(dice.index[i], dice.columns[j])]
    ]
    return pd.DataFrame(rows, columns=["image_name", "ID", "class", "reason", "score", "expected"])


def suspects(odd: pd.DataFrame, disagreeing: pd.DataFrame | None = None) -> pd.DataFrame:
    """One row per image and class that is suspicious, with the COLUMNS; images with the highest sum of scores first.

    odd: `label_check.suspicious`; disagreeing: `disagreement`, None where nothing is predicted. The score is the sum of
    the highest one of each, so what both found comes first; found_by is geometry, out of fold, or both.
    """
    given = {"geometry": odd, "out of fold": disagreeing}
    tables = [table.assign(by=by) for by, table in given.items() if table is not None and len(table)]
    if not tables:
        return pd.DataFrame(columns=COLUMNS)
    rows = pd.concat(tables, ignore_index=True)
    grouped = rows.groupby(["image_name", "ID", "class"], sort=False)
    found = grouped.agg(
        found_by=("by", lambda by: "both" if len(set(by)) > 1 else by.iloc[0]),
        reason=("reason", "; ".join),
        expected=("expected", "max"),
    )
    highest = rows.groupby(["image_name", "ID", "class", "by"])["score"].max()
    found["score"] = highest.groupby(level=[0, 1, 2]).sum()
    found = found.reset_index()[COLUMNS]
    total = found.groupby("image_name")["score"].transform("sum")
    order = [-found["score"], found["image_name"], -total]
    return found.iloc[np.lexsort(order)].reset_index(drop=True)


def draft_fixes(found: pd.DataFrame) -> list[Fix]:
    """A correction for each image of `suspects`, in its order, for a person to check.

    Labels that lie where others are expected are exchanged, where that explains everything suspicious in the image; the
    end of an open chain takes the label that is left over. All other images are dropped.
    """
    fixes = []
    for (ID, name), rows in found.groupby(["ID", "image_name"], sort=False):
        reasons = "; ".join(f"{row['class'] or 'image'}: {row['reason']}" for _, row in rows.head(5).iterrows())
        moved = rows[rows["expected"] != ""]
        labels = _closed(dict(zip(moved["class"], moved["expected"], strict=True)))
        exchanged = bool(labels) and set(labels) == set(rows["class"])
        change: dict[str, Any] = {"relabel": labels} if exchanged else {"drop": True}
        fixes.append(Fix(image=f"{ID}/{Path(name).stem}", why=f"to check: {reasons}", **change))
    return fixes


def write_draft(path: str | Path, fixes: list[Fix]) -> None:
    """Write corrections as YAML, which `read_label_fixes` reads once a person has checked and kept what is right."""
    head = "# A draft: look at each image, keep what is right, and name the file in the parameter label_fixes.\n\n"
    entries = [fix.model_dump(exclude_defaults=True) for fix in fixes]
    write_text(path, head + yaml.safe_dump(entries, sort_keys=False, allow_unicode=True, width=120))


def _closed(labels: dict[str, str]) -> dict[str, str]:
    """A change of labels made a permutation: the end of each open chain becomes its start."""
    start_of = {end: start for start, end in labels.items()}
    closed = dict(labels)
    for end in set(start_of) - set(labels):
        start = end
        while start in start_of:
            start = start_of[start]
        closed[end] = start
    return closed
