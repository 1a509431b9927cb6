"""Correct labels without changing the annotation files: a YAML list of corrections, applied when a run reads its data.

    - image: ID058/image1661392103627          # <ID>/<name of the file without its ending>
      why: a left hand labelled in reverse     # for whoever reads it later
      swap: [[Radius, Ulna]]
      relabel: {Lunate: Pisiform, 7: Lunate}   # by class, or by the number of one annotation in the file, from 0
      drop_polygons: [finger-14, 12]           # the same
    - image: ID325/image1664846270124
      why: the right order of the carpals is not known
      drop: true                               # leaves out the whole image
"""

import copy
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
from filelock import FileLock
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from utils.data.competition import MOST_BYTES
from utils.data.findings import DataError
from utils.errors import unknown
from utils.files import shown, write_text
from utils.params import load_yaml

Number = Annotated[int, Field(ge=0)]
Label = Annotated[str, Field(min_length=1)]


class Fix(BaseModel):
    """The corrections of one image. Labels are those in the file: all of an image's corrections happen at once."""

    model_config = ConfigDict(extra="forbid", strict=True)

    image: Annotated[str, Field(pattern=r"^[^/\\]+/[^/\\]+$")]
    why: Label
    relabel: dict[Label | Number, Label] = {}
    swap: list[Annotated[list[Label], Field(min_length=2, max_length=2)]] = []
    drop_polygons: list[Label | Number] = []
    drop: bool = False

    @model_validator(mode="after")
    def _one_thing_each(self) -> "Fix":
        polygons = [*self.relabel, *(name for pair in self.swap for name in pair), *self.drop_polygons]
        if self.drop == bool(polygons):
            raise ValueError("expected either drop: true, or some of relabel, swap and drop_polygons")
        if repeated := sorted({str(name) for name in polygons if polygons.count(name) > 1}):
            raise ValueError(f"{', '.join(repeated)}: named twice")
        return self

    @property
    def new_labels(self) -> dict[str | int, str]:
        """What to write instead of a label, or in the annotation with this number."""
        return self.relabel | {name: other for a, b in self.swap for name, other in ((a, b), (b, a))}

    def effect(self) -> dict[str, Any]:
        """The corrections without the reason."""
        return self.model_dump(exclude={"why"}, exclude_defaults=True)


def read_label_fixes(path: str | Path) -> list[Fix]:
    """Read a file of corrections; DataError lists everything that is wrong with it."""
    title = f"{shown(path)}: these label fixes can't be used"
    try:
        found = load_yaml(Path(path).read_text(encoding="utf-8"))
        fixes = TypeAdapter(list[Fix]).validate_python(found or [])
    except ValidationError as error:
        raise DataError(title, [_problem(e, found) for e in error.errors(include_url=False)]) from None
    except (OSError, ValueError) as error:  # a UnicodeDecodeError is a ValueError
        raise DataError(title, [str(error)]) from None
    images = [fix.image for fix in fixes]
    if repeated := sorted({image for image in images if images.count(image) > 1}):
        raise DataError(title, [f"{image}: two entries; write one" for image in repeated])
    return fixes


def apply_label_fixes(
    table: pd.DataFrame, fixes: Sequence[Fix], classes: Sequence[str], folder: str | Path
) -> tuple[pd.DataFrame, list[str]]:
    """The index with corrected labels.

    Args:
        table: the rows of `read_index` or `find_images`.
        fixes: the corrections; those of images that are not in the training split of `table` are passed over.
        classes: what a new label may be.
        folder: where the corrected annotations are written, `<ID>/<name>.json`. A file that is right is not touched,
            so that its time tells the cache whether the labels changed.

    Returns:
        The table without the images that are dropped, and with the corrected files in the column annotation; and one
        line of text that says what was done, by image, the data's images only.

    Raises:
        DataError: with all corrections that do not fit the annotations: a label or number that the file does not have,
            a new label that is no class.
    """
    by_image = {fix.image: fix for fix in fixes}
    keys = table["ID"] + "/" + table["image_name"].map(lambda name: Path(name).stem)
    here = keys.isin(by_image) & (table["split"] == "train")
    table, lines, problems, dropped = table.copy(), [], [], []
    for index, key in keys[here].items():
        fix = by_image[key]
        lines.append(f"{key}: {', '.join(_words(fix))} ({fix.why})")
        if fix.drop:
            dropped.append(index)
            continue
        text, wrong = corrected(Path(table.at[index, "annotation"]), fix, classes)
        problems += [f"{key}: {problem}" for problem in wrong]
        if text and not problems:
            path = Path(folder) / f"{key}.json"
            _write_if_changed(path, text)
            table.at[index, "annotation"] = str(path)
    if problems:
        raise DataError("these label fixes do not fit the annotations", problems)
    return table.drop(index=dropped).reset_index(drop=True), lines


def corrected(path: Path, fix: Fix, classes: Iterable[str]) -> tuple[str, list[str]]:
    """The content of an annotation file after the corrections, and what is wrong with these.

    The content is "" for a file whose annotations can't be read; whoever reads them next says why.
    """
    try:
        content = json.loads(path.read_bytes().decode("utf-8-sig")) if path.stat().st_size <= MOST_BYTES else None
        annotations = content["annotations"]
        labels = [annotation["label"] for annotation in annotations]
    except (OSError, ValueError, RecursionError, LookupError, TypeError):
        return "", []
    new, known, problems = fix.new_labels, [*range(len(labels)), *labels], []
    for name in [*new, *fix.drop_polygons]:
        if name not in known:
            what = f"there is no annotation {name}; it has {len(labels)}, from 0" if isinstance(name, int) else ""
            problems.append(what or unknown("label", name, dict.fromkeys(map(str, labels))))
    problems += [unknown("class", name, classes) for name in new.values() if name not in classes]
    kept = []
    for number, (annotation, label) in enumerate(zip(copy.deepcopy(annotations), labels, strict=True)):
        if number in fix.drop_polygons or label in fix.drop_polygons:
            continue
        annotation["label"] = new.get(number, new.get(label, label))
        kept.append(annotation)
    return json.dumps(content | {"annotations": kept}, ensure_ascii=False), problems


def _words(fix: Fix) -> Iterable[str]:
    if fix.drop:
        yield "left out"
    if fix.new_labels:
        yield f"{len(fix.new_labels)} labels changed"
    if fix.drop_polygons:
        yield f"{len(fix.drop_polygons)} polygons or classes dropped"


def _write_if_changed(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock"), mode=0o666):  # steps of a run start together
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            write_text(path, text)


def _problem(error: dict[str, Any], found: Any) -> str:
    """One line for an error of pydantic: the entry, the place in it, what is wrong."""
    if not error["loc"]:
        return f"expected a list of entries, each with image: and why:, found {type(found).__name__}"
    number, *place = error["loc"]
    entry = found[number] if isinstance(found, list) else {}
    name = entry.get("image", "") if isinstance(entry, dict) else ""
    where = ".".join(str(part) for part in place if isinstance(part, int) or part in Fix.model_fields)
    if error["type"] == "extra_forbidden":
        return f"entry {number} ({name}): {unknown('key', str(place[-1]), Fix.model_fields)}"
    message = error["msg"].removeprefix("Value error, ")
    return f"entry {number} ({name}){f', {where}' if where else ''}: {message}"
