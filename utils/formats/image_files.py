"""Find the image files that an exported annotation file names."""

import re
from collections import defaultdict
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"}


class ImageFiles:
    """The image files in a folder and the folders in it, found by the names that labelling tools write."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.by_name: dict[str, list[Path]] = defaultdict(list)
        for path in sorted(self.folder.rglob("*")):
            if path.suffix.lower() in SUFFIXES:
                self.by_name[path.name].append(path)

    def find(self, name: str) -> tuple[Path, str]:
        """The file that `name` means, and the name without what the tool added.

        `name` may be a path with / or \\, relative to any folder, a URL, URL-encoded, or have Label Studio's prefix of
        eight hexadecimal digits. If several files have that name, the one whose path ends like `name` is meant. Raises
        ValueError if there is none, or more than one.
        """
        plain = plain_name(name)
        last = PurePosixPath(plain).name
        found = self.by_name.get(last) or self.by_name.get(re.sub(r"^[0-9a-f]{8}-", "", last)) or []
        ends = [path for path in found if path.as_posix().endswith("/" + plain)]
        if len(ends or found) != 1:
            where = f"no image file {last!r} in {self.folder}" if not found else f"{len(found)} image files {last!r}"
            raise ValueError(f"{name}: {where}; give the folder that holds the images with --images")
        path = (ends or found)[0]
        return path, str(PurePosixPath(plain).with_name(path.name))


def plain_name(name: str) -> str:
    """A path as written by a tool on any system, as a plain relative path with /, without `.` and `..`."""
    name = unquote(name)
    local = re.search(r"[?&]d=([^&]+)", name)  # Label Studio's local files: /data/local-files/?d=folder/image.png
    name = (local.group(1) if local else re.sub(r"[?#].*$", "", name)).replace("\\", "/")
    parts = [part for part in PurePosixPath(name).parts if part not in ("/", ".", "..")]
    return "/".join(parts[1:] if parts and parts[0].endswith(":") else parts)


def image_size(path: Path) -> tuple[int, int]:
    """Height and width in pixels from an image's header. Raises OSError if it is no image."""
    from PIL import Image

    with Image.open(path) as image:
        return image.height, image.width
