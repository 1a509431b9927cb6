"""Correct labels without changing the annotation files: a YAML list of corrections, applied when a run reads its data.

- image: ID058/image1661392103627          # <ID>/<name of the file without its ending>
  why: a left hand labelled in reverse     # for whoever reads it later
  swap: [[Radius, Ulna]]
  relabel: {Lunate: Pisiform, 7: Lunate}   # by class, or by the number of one annotation in the file, from 0
  drop_polygons: [finger-14, 12]           # the same
- image: ID325/image1664846270124
  why: the right order of the carpals is not known
  drop: true                               # leaves out the whole image

A run applies them by the parameter label_fixes. For other programs, such as utils.formats, this makes a corrected data
folder, whose other files are links: python -m utils.data.label_fixes DATA FIXES.yaml OUTDIR
"""

import argparse
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
from filelock import FileLock
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from utils.data.annotation import MOST_BYTES
from utils.data.competition import read_classes, read_index
from utils.data.findings import DataError
from utils.data.image_header import SUFFIXES
from utils.files import replacing_folder, resolve, shown, unknown, write_if_changed
from utils.params import load_yaml

FIXED = "fixed_labels"
"""Folder in a run's folder for the corrected annotations."""
LOCK = ".lock"
"""File beside them: only one process at a time writes there."""

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

    def path_in(self, data_dir: str | Path) -> str:
        """The image's file of any usual suffix, relative to the data folder; that of a PNG where there is none."""
        plain = Path(data_dir, "train", "DCM", self.image)
        same = (p.suffix for p in plain.parent.glob("*") if p.stem == plain.name and p.suffix.lower() in SUFFIXES)
        return f"train/DCM/{self.image}{next(same, '.png')}"

    @property
    def new_labels(self) -> dict[str | int, str]:
        """What to write instead of a label, or in the annotation with this number."""
        return self.relabel | {name: other for a, b in self.swap for name, other in ((a, b), (b, a))}

    def __str__(self) -> str:
        """What is done and why, in one line."""
        done = ["left out"] if self.drop else []
        done += [f"{old} becomes {new}" for old, new in self.new_labels.items()]
        done += [f"{name} dropped" for name in self.drop_polygons]
        return f"{self.image}: {', '.join(done)} ({self.why})"

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


def find_fixes(path: str | Path, data_dir: str | Path) -> tuple[Fix, ...]:
    """Those corrections in a file (relative to the repository; "" for none) whose image the data folder has.

    Says it in a line where the data has other images of a person, but not this one: the name may be misspelt.
    """
    if not path:
        return ()
    data_dir, fixes = Path(data_dir), read_label_fixes(resolve(path))
    images = {fix.image: data_dir / fix.path_in(data_dir) for fix in fixes}
    for name, image in images.items():
        if not image.exists() and image.parent.is_dir():
            print(f"{shown(resolve(path))}: {name} is not in this data, only other images of that person")
    return tuple(fix for fix in fixes if images[fix.image].exists())


def same_effect(fixes: Iterable[Fix], recorded: list[dict[str, Any]]) -> bool:
    """Whether these corrections do what a run's data.json records: the order and the reasons do not matter."""
    wanted = json.loads(json.dumps([fix.effect() for fix in fixes]))  # JSON writes numbers of annotations as text
    return sorted(wanted, key=lambda fix: fix["image"]) == sorted(recorded, key=lambda fix: fix["image"])


def apply_label_fixes(
    table: pd.DataFrame, fixes: Sequence[Fix], classes: Sequence[str], folder: str | Path
) -> pd.DataFrame:
    """The index with corrected labels: without the images that are dropped, with other files in the column annotation.

    Args:
        table: the rows of `read_index` or `find_images`.
        fixes: the corrections; those of images that are not in the training split of `table` are passed over.
        classes: what a new label may be.
        folder: where the corrected annotations are written, `<ID>/<name>.json`. A file that is right is not touched,
            so that its time tells the cache whether the labels changed.

    Raises:
        DataError: with all corrections that do not fit the annotations: a label or number that the file does not have,
            a new label that is no class.
    """
    by_image = {fix.image: fix for fix in fixes}
    keys = table["ID"] + "/" + table["image_name"].map(lambda name: Path(name).stem)
    found = keys[keys.isin(by_image) & (table["split"] == "train")].map(by_image)
    texts, problems = {}, []
    for index, fix in found.items():
        if not fix.drop:
            texts[index], wrong = corrected(Path(table.loc[index, "annotation"]), fix, classes)
            problems += [f"{fix.image}: {problem}" for problem in wrong]
    if problems:
        raise DataError("these label fixes do not fit the annotations", problems)
    table, folder = table.copy(), Path(folder)
    if any(texts.values()):
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / LOCK, mode=0o666):  # steps of a run start together
            for index, text in texts.items():
                if text:
                    table.loc[index, "annotation"] = str(path := folder / f"{found[index].image}.json")
                    write_if_changed(path, text)
    return table.drop(index=[index for index, fix in found.items() if fix.drop]).reset_index(drop=True)


def read_fixed_index(
    data_dir: str | Path, fixes: Sequence[Fix], classes: Sequence[str], folder: str | Path, skip: Iterable[str] = ()
) -> pd.DataFrame:
    """`read_index` with corrected labels; see there and `apply_label_fixes`. Dropped images may be damaged ones."""
    table = read_index(data_dir, skip=[*skip, *(fix.path_in(data_dir) for fix in fixes if fix.drop)])
    return apply_label_fixes(table, fixes, classes, folder)


def corrected(path: Path, fix: Fix, classes: Iterable[str]) -> tuple[str, list[str]]:
    """The content of an annotation file after the corrections, and what is wrong with these.

    The content is "" for a file whose annotations can't be read; whoever reads them next says why.
    """
    try:
        content = json.loads(path.read_bytes().decode("utf-8-sig")) if path.stat().st_size <= MOST_BYTES else None
        annotations = content["annotations"]
        labels = [str(annotation["label"]) for annotation in annotations]
    except (OSError, ValueError, RecursionError, LookupError, TypeError):
        return "", []
    new, known, problems = fix.new_labels, [*range(len(labels)), *labels], []
    for name in [*new, *fix.drop_polygons]:
        if name not in known:
            what = f"there is no annotation {name}; it has {len(labels)}, from 0" if isinstance(name, int) else ""
            problems.append(what or unknown("label", name, dict.fromkeys(map(str, labels))))
    problems += [unknown("class", name, classes) for name in new.values() if name not in classes]
    kept = []
    for number, (annotation, label) in enumerate(zip(annotations, labels, strict=True)):
        if number in fix.drop_polygons or label in fix.drop_polygons:
            continue
        changed = new.get(number, new.get(label))
        kept.append(annotation | {"label": changed} if changed else annotation)
    return json.dumps(content | {"annotations": kept}, ensure_ascii=False), problems


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


def write_fixed_data(data_dir: str | Path, fixes: Sequence[Fix], out: str | Path, skipped: Sequence[str] = ()) -> None:
    """Make the data folder `out` with corrected labels; its other files are symbolic links. DataError if it exists.

    skipped: images that are left out, such as "test/DCM/ID003/image5.png".
    """
    data_dir, out = Path(data_dir).resolve(), Path(out).resolve()
    if out.exists():
        raise DataError(f"{out} exists already", ["name a new folder"])
    with replacing_folder(out) as new:
        labels = new / "train" / "outputs_json"
        table = read_fixed_index(data_dir, fixes, read_classes(data_dir), labels, skipped)
        (labels / LOCK).unlink(missing_ok=True)
        annotations = [path for path in table["annotation"] if path and not Path(path).is_relative_to(labels)]
        others = [
            path for name in ("meta_data.xlsx", "classes.txt", "solution.csv") if (path := data_dir / name).exists()
        ]
        for path in map(Path, [*table["image"], *annotations, *others]):
            link = new / path.relative_to(data_dir)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(path)


def main() -> None:
    """The command line: make a corrected data folder."""
    parser = argparse.ArgumentParser(prog="python -m utils.data.label_fixes", description=__doc__.split("\n")[0])
    parser.add_argument("data", metavar="DATA", type=Path, help="data folder, which stays as it is")
    parser.add_argument("fixes", metavar="FIXES", type=Path, help="YAML file of corrections")
    parser.add_argument("out", metavar="OUTDIR", type=Path, help="the new data folder")
    given = parser.parse_args()
    try:
        fixes = find_fixes(given.fixes.resolve(), given.data)
        write_fixed_data(given.data, fixes, given.out)
    except (DataError, OSError) as error:
        parser.exit(2, f"{error}\n")
    print(*fixes, given.out, sep="\n")


if __name__ == "__main__":
    main()
