"""Read and check the competition's data folder: classes, table of images, annotations, metadata.

<data>/train/DCM/<ID>/<name>.png          <data>/train/outputs_json/<ID>/<name>.json
<data>/test/DCM/<ID>/<name>.png           <data>/meta_data.xlsx   (optional)
<data>/classes.txt   (optional)           <data>/solution.csv     (optional)
"""

from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from utils.data.annotation import read_annotation as read_annotation
from utils.data.findings import DataError, Finding
from utils.data.image_header import SUFFIXES, DamagedImage, files_below, is_hidden, read_header, same_name
from utils.data.people import read_metadata
from utils.hand.bones import HAND_BONES


def read_classes(data_dir: str | Path) -> list[str]:
    """The class names of a data folder: those of `classes.txt`, one per line, or the 29 hand bones without that file.

    Raises DataError if the file is empty or repeats a name.
    """
    path = Path(data_dir) / "classes.txt"
    if not path.exists():
        return list(HAND_BONES)
    title = f"{path}: expected one class per line, each only once"
    try:
        classes = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(title, [f"not UTF-8 text ({error})"]) from error
    repeated = sorted({c for c in classes if classes.count(c) > 1})
    if repeated or not classes:
        raise DataError(title, [f"repeated: {c}" for c in repeated] or ["empty"])
    return classes


def image_files(folder: Path) -> list[Path]:
    """The image files <ID>/<name>.png, or of any other usual suffix, of a folder, sorted; hidden files are no data."""
    paths = (path for path in folder.glob("*/*") if path.suffix.lower() in SUFFIXES and not _hidden(path))
    return sorted(paths, key=str)


def _hidden(path: Path) -> bool:
    """Whether a file <ID>/<name> is a system's own."""
    return any(map(is_hidden, path.parts[-2:]))


def _place(path: Path) -> str:
    """What an image and its annotation have in common: person and name without suffix, see `same_name`."""
    return same_name("/".join(path.parts[-2:]).rpartition(".")[0])


def find_images(
    data_dir: str | Path, splits: tuple[str, ...] = ("train", "test"), checksums: bool = False
) -> tuple[pd.DataFrame, list[Finding]]:
    """List the images of a data folder, the unusable ones too, and everything that is wrong with the files.

    Annotations are not read. `checksums`: compare those of the images, see `read_header`.

    Returns:
        The table of `read_index` without metadata, with the column path (`train/DCM/<ID>/<name>.png`); height, width
        and bits are 0 for an unusable image. And the findings. Raises DataError if there is no such folder.
    """
    data_dir = Path(data_dir).resolve()
    if not data_dir.is_dir():
        raise DataError(f"{data_dir}: no such data folder", [f"expected {data_dir}/train/DCM/<ID>/<name>.png"])
    rows, findings = [], []
    for split in splits:
        images, annotations = data_dir / split / "DCM", data_dir / split / "outputs_json"
        paths = image_files(images)
        if not paths:
            kind = "no test images" if split == "test" and "train" in splits else "no images"
            findings.append(Finding(kind, f"no image in {images}; expected {images}/<ID>/<name>.png"))
        labels = {_place(path): str(path) for path in sorted(annotations.glob("*/*.json")) if not _hidden(path)}
        used: dict[str, str] = {}
        for path in paths:
            ID, annotation = path.parent.name, ""
            place = f"{split}/DCM/{ID}/{path.name}"
            if split == "train":
                annotation = str(annotations / ID / f"{path.stem}.json")
                if (key := _place(path)) in used:
                    text = f"its annotation is that of {used[key]}, too"
                    findings.append(Finding("same name", text, place, place))
                elif key not in labels:
                    findings.append(Finding("no annotation", f"no annotation; expected {annotation}", place, place))
                used[key], annotation = place, labels.get(key, annotation)
            if not f"{ID}{path.name}".isprintable():
                text = f"{path.name!r} has characters that are not printable"
                findings.append(Finding("unusable name", text, place, place))
            try:
                header = read_header(path, checksums)
            except DamagedImage as error:
                kind = "PNG" if path.suffix.lower() == ".png" else "image"
                findings.append(Finding(error.kind, f"not a readable {kind}: {error}", place, place))
                header = (0, 0, 0)
            if header[2] == 16:
                findings.append(Finding("16 bits", "its grey values have 16 bits", place, place))
            rows.append((split, same_name(ID), path.name, str(path), annotation, *header, place))
        if split == "train":
            for path in (Path(path) for key, path in labels.items() if key not in used):
                image = images / path.parent.name / f"{path.stem}.png"
                place, missing = (p.relative_to(data_dir).as_posix() for p in (path, image))
                findings.append(Finding("no image", f"no image; expected {image}", place, missing))
        read = set(map(str, paths))
        others = [path for path in files_below(images, *SUFFIXES, ".dcm") if str(path) not in read]
        findings += [Finding("not read", "not read", p.relative_to(data_dir).as_posix()) for p in others]
    columns = ["split", "ID", "image_name", "image", "annotation", "height", "width", "bits", "path"]
    table = pd.DataFrame(rows, columns=columns)
    for name, group in table[table["image_name"].duplicated(keep=False)].groupby("image_name"):
        first, *others = sorted(group["path"])  # in the order test, train: a test image must keep its rows
        text = f"image name {name} appears {len(group)} times, also in {first}"
        findings += [Finding("same name", text, other, other) for other in others]
    return table, findings


def read_index(
    data_dir: str | Path, splits: tuple[str, ...] = ("train", "test"), skip: Iterable[str] = ()
) -> pd.DataFrame:
    """List the images of a data folder.

    Args:
        data_dir: the data folder, in the layout shown at the top of this module.
        splits: which of "train" and "test" to list, in this order.
        skip: images to leave out, whatever is wrong with them, such as "train/DCM/ID001/image1.png".

    Returns:
        One row per image, ordered by split, then by `<ID>/<name>.png` as text, as the baseline orders a submission.
        Columns: split; ID (the person); image_name (file name, unique); image and annotation (absolute paths as str;
        annotation is "" in the test split); height and width (pixels, from the PNG header). Where meta_data.xlsx
        exists, also age (years), sex, weight_kg, height_cm and nail_art; missing values for a person not listed there.

    Raises:
        DataError: with all problems of the folder at once: no such folder, no images in a split, an image that is no
            complete PNG, a training image without annotation, an annotation without image, a file name that two images
            have. Also, by itself, for a meta_data.xlsx that can't be used.
    """
    table, findings = find_images(data_dir, splits)
    skip = set(skip)
    problems = [str(f) for f in findings if f.is_error and f.image not in skip]
    if problems:
        title = f"{Path(data_dir).resolve()}: these files can't be used (run_all.sh --skip-bad leaves bad images out)"
        raise DataError(title, problems)
    table = table[~table["path"].isin(skip)].drop(columns=["bits", "path"]).reset_index(drop=True)
    metadata = read_metadata(data_dir)
    return table if metadata is None else table.merge(metadata, on="ID", how="left", validate="many_to_one")
