"""What the imports from labelling tools share: options, what is left out, image files, shapes as a data folder."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple
from urllib.parse import unquote

import numpy as np

from utils.data.annotation import Polygons, read_points
from utils.data.findings import refuse
from utils.data.image_header import SUFFIXES, files_below, image_sizes, same_name
from utils.formats.write_folder import Imported, write_folder


class Options(NamedTuple):
    """What every import can be told.

    images: folder that holds the images, also in folders of it; "": that of the annotations. classes: file with the
    classes in their order; "" takes the format's own. people: see `write_folder`. boxes: take boxes as rectangles;
    otherwise they are refused, because they are no outlines. skip_bad: leave out what can't be used, and say so.
    """

    images: str = ""
    classes: str = ""
    people: str = "auto"
    boxes: bool = False
    skip_bad: bool = False


DEFAULT = Options()


class Shape(NamedTuple):
    """An annotated shape: its label, its polygons, and whether it is only a box."""

    label: str
    polygons: list[np.ndarray]
    is_box: bool = False


class LeftOut:
    """What a reader does not take, by kind: shapes that are no masks and, with `skip_bad`, what can't be used."""

    def __init__(self, skip_bad: bool = False):
        self.skip_bad = skip_bad
        self.kinds: Counter[str] = Counter()
        self.bad: list[str] = []

    def settle(self, title: str, problems: list[str]) -> None:
        """Note the problems if bad ones are skipped; else refuse the file with all of them."""
        refuse(title, [] if self.skip_bad else problems)
        self.bad += problems

    def __str__(self) -> str:
        """For the end of the line about what was written: numbers and kinds, each bad one in a line; or nothing."""
        counts = [f"{count} {kind}" for kind, count in sorted(self.kinds.items())]
        counts += [f"{len(self.bad)} that can't be used" if self.bad else ""]
        said = f"; left out: {', '.join(filter(None, counts))}" if self.kinds or self.bad else ""
        more = [f"  … and {len(self.bad) - 20} more"] if len(self.bad) > 20 else []
        return "\n".join([said, *(f"  - {problem}" for problem in self.bad[:20]), *more])


def ellipse(centre: Iterable[float], radii: Iterable[float], degrees: float = 0.0) -> np.ndarray:
    """An ellipse as a polygon of 72 points, float64 (72, 2)."""
    t = np.linspace(0, 2 * np.pi, 72, endpoint=False)
    return turned(np.column_stack([np.cos(t), np.sin(t)]) * list(radii), (0, 0), degrees) + list(centre)


def rectangle(left: float, top: float, right: float, bottom: float, degrees: float = 0.0) -> np.ndarray:
    """The corners of a box, float64 (4, 2), turned about its centre."""
    corners = np.array([[left, top], [right, top], [right, bottom], [left, bottom]], float)
    return turned(corners, ((left + right) / 2, (top + bottom) / 2), degrees) if degrees else corners


def turned(points: np.ndarray, centre: Sequence[float], degrees: float) -> np.ndarray:
    """Points (n, 2) turned about a centre, clockwise as an image is seen."""
    sine, cosine = np.sin(np.radians(degrees)), np.cos(np.radians(degrees))
    return (points - centre) @ np.array([[cosine, sine], [-sine, cosine]]) + centre


def checked(points: np.ndarray, least: int = 3) -> np.ndarray:
    """The points (n, 2). Raises ValueError if there are too few, or if one is not finite or far outside any image."""
    if points.ndim != 2 or points.shape[1] != 2 or len(points) < least or not (np.abs(points) < 1e6).all():
        raise ValueError(f"expected at least {least} finite points x, y, found {points.shape}")
    return points


def outside(polygons: Polygons, size: tuple[int, int]) -> Iterator[str]:
    """What a data check would refuse of polygons in an image of `size` (H, W); these polygons are taken out."""
    for label, parts in polygons.items():
        problems = [read_points(np.round(points, 2).tolist(), size)[2] for points in parts]
        yield from (f"{label}: a polygon {problem}" for problem in problems if problem)
        parts[:] = [points for points, problem in zip(parts, problems, strict=True) if not problem]


def write_shapes(
    found: Iterable[tuple[str, tuple[int, int] | None, list[Shape]]],
    images: str | Path,
    out: str | Path,
    classes: list[str],
    options: Options,
    source: str,
    left_out: LeftOut,
) -> str:
    """Write (image name, size, shapes) of every image as a data folder; DataError lists everything that is missing.

    An image's size is that of the image as it is shown or, for labels made by a program that does not turn
    photographs, as it is stored.
    """
    files, problems, imported = ImageFiles(images), [], []
    for name, size, shapes in found:
        boxes = [shape.label for shape in shapes if shape.is_box and not options.boxes]
        if boxes:
            problems.append(f"{name}: {len(boxes)} boxes without outline ({boxes[0]}, …); --boxes takes them as masks")
        try:
            path, plain = files.find(name)
            shown, stored = image_sizes(path)
            if size not in (None, shown, stored):
                raise ValueError(f"{name}: {size[1]} × {size[0]} pixels, but {path} has {shown[1]} × {shown[0]}")
        except (OSError, ValueError) as error:
            problems.append(str(error))
            continue
        polygons: Polygons = {label: [] for label in classes}
        for shape in shapes:
            if options.boxes or not shape.is_box:
                polygons[shape.label] += shape.polygons
        problems += [f"{name}: {problem}" for problem in outside(polygons, size or shown)]
        imported.append(Imported(path, plain, polygons, as_stored=size not in (None, shown)))
    left_out.settle(f"{source}: {len(problems)} problems", problems)
    return write_folder(out, imported, classes, options.people) + str(left_out)


class ImageFiles:
    """The image files in a folder and the folders in it, found by the names that labelling tools write."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.by_name: dict[str, list[Path]] = defaultdict(list)
        for path in files_below(self.folder, *SUFFIXES):
            self.by_name[same_name(path.name)].append(path)

    def find(self, name: str) -> tuple[Path, str]:
        """The file that `name` means, and the name without what the tool added.

        `name` may be a path with / or \\, relative to any folder, a URL, URL-encoded, or have Label Studio's prefix of
        eight hexadecimal digits; a file that is called exactly as written comes first. Names compare after Unicode
        normalisation. If several files have that name, the one whose path ends like `name` is meant. Raises ValueError
        if there is none, or more than one.
        """
        found: list[Path] = []
        for plain in (relative_name(name), plain_name(name)):
            last = PurePosixPath(plain).name
            without_prefix = re.sub(r"^[0-9a-f]{8}-", "", last)
            found = found or self.by_name.get(same_name(last)) or self.by_name.get(same_name(without_prefix)) or []
            if found:
                break
        ends = [path for path in found if same_name(path.as_posix()).endswith("/" + same_name(plain))]
        if len(ends or found) != 1:
            where = f"no image file {last!r} in {self.folder}" if not found else f"{len(found)} image files {last!r}"
            raise ValueError(f"{name}: {where}; give the folder that holds the images with --images")
        path = (ends or found)[0]
        return path, str(PurePosixPath(plain).with_name(path.name))


def plain_name(name: str) -> str:
    """A path as written by a tool on any system, decoded, as a plain relative path with /, without `.` and `..`."""
    name = unquote(name)
    local = re.search(r"[?&]d=([^&]+)", name)  # Label Studio's local files: /data/local-files/?d=folder/image.png
    return relative_name(local.group(1) if local else re.sub(r"[?#].*$", "", name))


def relative_name(name: str) -> str:
    """A path of any system as a plain relative path with /, without `.` and `..`, its characters as they are."""
    parts = [part for part in PurePosixPath(name.replace("\\", "/")).parts if part not in ("/", ".", "..")]
    return "/".join(parts[1:] if parts and parts[0].endswith(":") else parts)
