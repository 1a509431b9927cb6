"""Check a whole data folder before hours are spent on it: every image's structure, every annotation, what fits what.

The kinds of problems, which of them stop a run, and what to do about each are in `utils.data.findings`.
"""

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import shapely

from utils.data.annotation import Outline, find_outlines
from utils.data.competition import find_images, read_classes
from utils.data.findings import KINDS, DataError, Finding
from utils.data.label_fixes import Fix, apply_label_fixes
from utils.data.people import read_metadata
from utils.files import cores, write_table

COLUMNS = ["severity", "kind", "file", "image", "class", "problem", "advice"]


@dataclass(frozen=True)
class DataReport:
    """What was found in a data folder. images: number of images, the unusable ones included. seconds: of the check.

    skipped: the images that are left out, relative to the data folder.
    """

    findings: list[Finding]
    images: int
    seconds: float
    skipped: tuple[str, ...] = ()

    @property
    def errors(self) -> list[Finding]:
        """What stops a run."""
        return [f for f in self.findings if f.is_error and f.image not in self.skipped]

    def table(self) -> pd.DataFrame:
        """One row per finding, errors first: severity ("error", "skipped" or "warning") and the other COLUMNS."""
        rows = []
        for f in self.findings:
            severity, advice = KINDS[f.kind]
            severity = "skipped" if severity == "error" and f.image in self.skipped else severity
            rows.append((severity, f.kind, f.file, f.image, f.label, f.problem, advice))
        table = pd.DataFrame(rows, columns=COLUMNS)
        order = {"error": 0, "skipped": 1, "warning": 2}
        return table.sort_values("severity", key=lambda s: s.map(order), kind="stable", ignore_index=True)

    def summary(self) -> pd.DataFrame:
        """One row per kind of problem: severity, kind, number, the first file, advice."""
        groups = self.table().groupby(["severity", "kind"], sort=False)
        return groups.agg(number=("kind", "size"), first=("file", "first"), advice=("advice", "first")).reset_index()

    def __str__(self) -> str:
        """The summary as text."""
        counts = self.table()["severity"].value_counts()
        found = ", ".join(f"{counts.get(name, 0)} {name}s" for name in ("error", "warning"))
        lines = [f"{self.images} images checked in {self.seconds:.1f} s: {found}"]
        if self.skipped:
            lines[0] += f"; {len(self.skipped)} images left out by --skip-bad, test images with empty masks"
        for row in self.summary().itertuples():
            lines.append(f"  {row.severity:<8}{row.kind:<24}{row.number:>6}   {row.first}")
        return "\n".join(lines)

    def write(self, path: str | Path) -> None:
        """Write the table as CSV, whole or not at all; characters that are not Unicode become escapes."""
        write_table(path, self.table(), index=False, errors="backslashreplace")


def check_data(
    data_dir: str | Path,
    n_folds: int = 0,
    skip_bad: bool = False,
    fixes: Sequence[Fix] = (),
    fixed: str | Path = "",
) -> DataReport:
    """Read every file of a data folder and list everything that is wrong with it.

    Pixels are not decoded, but the checksums over them are compared. One core checks about a thousand images with
    29 polygons a second, as far as the disk can follow.

    Args:
        data_dir: the data folder.
        n_folds: number of folds, of which there must not be more than people; 0 checks nothing.
        skip_bad: leave out images with errors: they are `skipped`, and their errors no longer count as such.
        fixes: corrections of labels, which are checked as corrected; `fixed` is the folder for corrected annotations.

    Returns:
        The report; nothing is raised for bad data, except DataError for a folder that is not there.
    """
    began = time.monotonic()
    table, findings = find_images(data_dir, checksums=True)
    try:
        classes = read_classes(data_dir)
    except DataError as error:
        classes, findings = [], [*findings, *(Finding("classes", p, "classes.txt") for p in error.problems)]
    if fixes:
        dropped = {fix.path_in(data_dir) for fix in fixes if fix.drop}
        findings = [f for f in findings if f.image not in dropped]
        try:
            table = apply_label_fixes(table, fixes, classes, fixed)
        except DataError as error:
            findings += [Finding("label fixes", problem, "label fixes") for problem in error.problems]
    if classes:
        found = table[table["annotation"].map(lambda path: bool(path) and Path(path).exists())]
        with ThreadPoolExecutor(cores()) as pool:  # reading and shapely leave Python's global lock to the others
            for several in pool.map(lambda row: list(_check_annotation(row, classes)), found.itertuples()):
                findings += several
    findings += _check_people(data_dir, table)
    errors = [f for f in findings if f.is_error]
    skipped = tuple(dict.fromkeys(f.image for f in errors if f.image)) if skip_bad else ()
    people = table.loc[(table["split"] == "train") & ~table["path"].isin(skipped), "ID"].nunique()
    if people < n_folds:
        findings.append(Finding("people", f"n_folds is {n_folds}, but there are {people} people in the training split"))
    return DataReport(findings, len(table), time.monotonic() - began, skipped)


def _check_annotation(row: tuple, classes: list[str]) -> Iterator[Finding]:
    """Everything that is wrong with the annotation of one image, a row of `find_images`."""
    place = f"{row.split}/outputs_json/{row.ID}/{Path(row.annotation).name}"
    size = (row.height, row.width) if row.height else None
    outlines, findings = find_outlines(row.annotation, classes, size)
    if not outlines and not findings:
        findings = [Finding("no polygons", "the list of annotations is empty")]
    for finding in [*findings, *_doubtful(outlines, size)]:
        yield finding._replace(file=place, image=row.path)


def _doubtful(outlines: list[Outline], size: tuple[int, int] | None) -> Iterator[Finding]:
    """Warnings about polygons that can be drawn."""
    if not outlines:
        return
    points = np.concatenate([outline.points for outline in outlines])
    of = np.repeat(np.arange(len(outlines)), [len(outline.points) for outline in outlines])
    polygons = shapely.polygons(shapely.linearrings(points, indices=of))
    valid = shapely.is_valid(polygons)
    before: dict[bytes, Outline] = {}
    for number, outline in enumerate(outlines):
        kinds = {}
        if size is not None and ((outline.points < 0) | (outline.points > size[::-1])).any():
            kinds["partly outside"] = f"lies partly outside the {size[1]} × {size[0]} image"
        if not valid[number]:
            reason, flat = shapely.is_valid_reason(polygons[number]), _on_a_line(outline.points)
            kind, problem = ("no area", "has no area") if flat else ("crosses itself", f"meets itself ({reason})")
            kinds[kind] = problem
        other = before.setdefault(outline.points.tobytes(), outline)
        if other is not outline:
            kinds["drawn twice"] = f"has the same points as {other}"
        for kind, problem in kinds.items():
            yield Finding(kind, f"{outline}: {problem}", label=outline.label)


def _on_a_line(points: np.ndarray) -> bool:
    """Whether int32 points (n, 2) enclose nothing, because all lie on one line."""
    x, y = (points - points[0]).astype(np.float64).T
    farthest = np.argmax(np.abs(x) + np.abs(y))
    return bool((x * y[farthest] == y * x[farthest]).all())


def _check_people(data_dir: str | Path, table: pd.DataFrame) -> Iterator[Finding]:
    """Whether the IDs of both splits and of the metadata fit together."""
    by_split = {split: set(part["ID"]) for split, part in table.groupby("split")}
    for person in sorted(by_split.get("train", set()) & by_split.get("test", set())):
        yield Finding("ID in both splits", f"{person} is in the training and in the test split", f"test/DCM/{person}")
    try:
        metadata = read_metadata(data_dir)
    except DataError as error:
        yield from (Finding("metadata", problem, "meta_data.xlsx") for problem in error.problems)
        return
    if metadata is None:
        return
    if nameless := metadata.attrs["nameless"]:
        yield Finding("metadata only", f"{nameless} rows of the table have no ID", "meta_data.xlsx")
    pictured, listed = set(table["ID"]), set(metadata["ID"])
    for person in sorted(listed - pictured):
        yield Finding("metadata only", f"{person} is in the table, but has no images", "meta_data.xlsx")
    for person in sorted(pictured - listed):
        yield Finding("no metadata", f"{person} is not in the table", "meta_data.xlsx")
