"""The order of classes: which number means which class must never be guessed."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from utils.data.competition import HAND_BONES, DataError
from utils.data.findings import refuse


def class_order(found: Iterable[str], given: str | Path | None) -> list[str]:
    """The order of classes of a format that has none: that of the file `given` (one class a line); without it, that of
    the competition for its 29 bones, otherwise by name, numbers by value.

    Raises DataError if a label is not in the given file.
    """
    found = set(found)
    if given:
        classes = read_class_file(given)
        refuse(f"{given} lacks classes", [f"label {name!r} is not in it" for name in sorted(found - set(classes))])
        return classes
    if found == set(HAND_BONES):
        return list(HAND_BONES)
    return sorted(found, key=lambda name: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)])


def read_class_file(path: str | Path) -> list[str]:
    """The classes in a text file, one a line. Raises DataError if it is missing, empty or repeats a class."""
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not a file with one class a line", [str(error)]) from error
    classes = [line.strip() for line in lines if line.strip()]
    repeated = [f"repeated: {name}" for name, count in Counter(classes).items() if count > 1]
    refuse(f"{path}: expected one class a line, each only once", repeated or ([] if classes else ["empty"]))
    return classes


def check_order(listed: Sequence[tuple[int, str]], where: str) -> list[str]:
    """The names of (id, name) pairs. Raises DataError if their order is not that of the ids."""
    if [number for number, _ in listed] != sorted(number for number, _ in listed):
        pairs = ", ".join(f"{number}: {name}" for number, name in listed)
        advice = "sort the list by id, or give the order with --classes FILE (one class a line)"
        raise DataError(f"{where} are listed in another order than that of their ids", [f"found {pairs}", advice])
    return [name for _, name in listed]
