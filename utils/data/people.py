"""People: sex, age, height and weight from meta_data.xlsx, and as numbers that a network takes beside the image."""

import re
from pathlib import Path

import numpy as np
import pandas as pd

from utils.data.findings import DataError
from utils.data.image_header import same_name

COLUMNS = {
    "나이": "age",
    "성별": "sex",
    "체중(몸무게)": "weight_kg",
    "키(신장)": "height_cm",
    "Unnamed: 5": "nail_art",
}
FIELDS = ("sex", "age", "height_cm", "weight_kg")
LIKELY = {"age": (1, 120), "height_cm": (50, 250), "weight_kg": (3, 300)}
"""Lowest and highest value that is believed; everything else counts as missing."""
SEXES = {"f": "F", "female": "F", "여": "F", "여성": "F", "m": "M", "male": "M", "남": "M", "남성": "M"}


def read_metadata(data_dir: str | Path) -> pd.DataFrame | None:
    """`meta_data.xlsx` cleaned: ID, the values of `cleaned`, nail_art (bool); None without the file.

    The last column has 네일있음 for nail art. IDs are text as written, "1" for the number 1. Each ID has one row, the
    first one; `attrs["nameless"]` counts rows that are left out because they have no ID. Raises DataError for a file
    that is no Excel table or lacks a column.
    """
    path = Path(data_dir) / "meta_data.xlsx"
    if not path.exists():
        return None
    try:
        raw = pd.read_excel(path, dtype=object, keep_default_na=False)
    except Exception as error:  # openpyxl raises whatever it stumbles over
        raise DataError(f"{path}: not an Excel table", [f"{type(error).__name__}: {error}"]) from error
    missing = [c for c in ("ID", *COLUMNS) if c not in raw.columns and c != "Unnamed: 5"]
    if missing:
        raise DataError(f"{path}: unexpected columns {list(raw.columns)}", [f"missing column {c}" for c in missing])
    table = raw.reindex(columns=["ID", *COLUMNS], fill_value="").rename(columns=COLUMNS)
    texts = table["ID"].map(lambda value: f"{value:g}" if isinstance(value, float) else str(value).strip())
    table["ID"] = texts.map(same_name)
    table["nail_art"] = table["nail_art"].astype(str).str.strip().ne("")
    named = cleaned(table[table["ID"] != ""]).drop_duplicates("ID").reset_index(drop=True)
    named.attrs["nameless"] = int((table["ID"] == "").sum())
    return named


def cleaned(table: pd.DataFrame) -> pd.DataFrame:
    """The table with sex "F" or "M", and age, height_cm and weight_kg as numbers; None and NaN where unknown.

    Numbers may be text with a unit; a height in metres becomes centimetres. What is missing, unreadable or not LIKELY,
    and a column that is not there, is unknown.
    """
    columns = {name: table[name] if name in table else pd.Series(np.nan, table.index) for name in FIELDS}
    values = {name: columns[name].map(_number).astype(float) for name in LIKELY}
    values["height_cm"] *= np.where(values["height_cm"] < 3, 100, 1)
    values = {name: column.where(column.between(*LIKELY[name])) for name, column in values.items()}
    sex = columns["sex"].astype(str).str.replace("_x0008_|\b", "", regex=True).str.strip().str.lower().map(SEXES)
    return table.assign(sex=sex.astype(object).where(sex.notna(), None), **values)


def person_values(table: pd.DataFrame) -> np.ndarray:
    """Float32 (rows, 8) for rows of the index: the `cleaned` values of FIELDS, 0 where unknown, then 1 for each known.

    Sex is -1 (F) or 1 (M).
    """
    known_values = cleaned(table)
    values = known_values.assign(sex=known_values["sex"].map({"F": -1.0, "M": 1.0}))[list(FIELDS)].to_numpy(float)
    known = np.isfinite(values)
    return np.concatenate([np.where(known, values, 0), known], axis=1).astype(np.float32)


def _number(value: object) -> float:
    text = re.search(r"-?\d+(?:[.,]\d+)?", str(value))
    return float(text[0].replace(",", ".")) if text else np.nan
