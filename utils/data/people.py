"""The person's sex, age, height and weight as numbers that a network can take beside the image."""

import re

import numpy as np
import pandas as pd

FIELDS = ("sex", "age", "height_cm", "weight_kg")
LIKELY = {"age": (1, 120), "height_cm": (50, 250), "weight_kg": (3, 300)}
"""Lowest and highest value that is believed; everything else counts as missing."""
SEXES = {"f": -1.0, "female": -1.0, "여": -1.0, "m": 1.0, "male": 1.0, "남": 1.0}


def person_values(table: pd.DataFrame) -> np.ndarray:
    """Float32 (rows, 8) for rows of the index: the values of FIELDS, 0 where missing, then 1 for each that is known.

    Sex is -1 (F) or 1 (M). Numbers may be text with a unit; a height in metres becomes centimetres. What is missing,
    unreadable or not LIKELY, and a column that is not there, is unknown.
    """
    columns = []
    for field in FIELDS:
        found = table[field] if field in table else pd.Series(np.nan, table.index)
        columns.append(found.map(_sex) if field == "sex" else found.map(_number))
    values = np.stack([column.to_numpy(float) for column in columns], axis=1)
    height = FIELDS.index("height_cm")
    values[:, height] *= np.where(values[:, height] < 3, 100, 1)
    for field, (low, high) in LIKELY.items():
        column = values[:, FIELDS.index(field)]
        column[~((column >= low) & (column <= high))] = np.nan
    known = np.isfinite(values)
    return np.concatenate([np.where(known, values, 0), known], axis=1).astype(np.float32)


def _sex(value: object) -> float:
    return SEXES.get(str(value).strip().lower(), np.nan)


def _number(value: object) -> float:
    found = re.search(r"-?\d+(?:[.,]\d+)?", str(value))
    return float(found[0].replace(",", ".")) if found else np.nan
