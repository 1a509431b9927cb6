"""Find image files, read their size and find damage from their structure, without decoding or trusting them."""

import os
import struct
import unicodedata
import zlib
from pathlib import Path

SIGNATURE = b"\x89PNG\r\n\x1a\n"
OTHERS = {
    b"\xff\xd8\xff": "JPEG",
    b"GIF8": "GIF",
    b"BM": "BMP",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"RIFF": "WebP",
    b"%PDF": "PDF",
    b"<": "HTML, XML or SVG",
    b"PK": "ZIP",
}
"""How files of other formats begin."""
MOST_PIXELS = 100_000_000
"""A file of some kilobytes can claim any size; radiographs have less than 20 million pixels."""


SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")
"""Files with one of these suffixes, in any case, are images."""
ORIENTATION = 0x0112
"""EXIF's tag for how a photograph is turned; from 5 on, width and height are exchanged."""


class DamagedImage(Exception):
    """A file that is no complete image. kind: a key of `findings.KINDS`; the message says what was found."""

    def __init__(self, kind: str, problem: str):
        super().__init__(problem)
        self.kind = kind


def same_name(name: str) -> str:
    """A file name in the form (Unicode NFC) in which names compare: archives from a Mac hold them decomposed."""
    return unicodedata.normalize("NFC", name)


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is a system's own, such as `._image.png` or `__MACOSX`, and no data."""
    return name.startswith(".") or name in ("__MACOSX", "Thumbs.db", "desktop.ini")


def files_below(folder: str | Path, *suffixes: str) -> list[Path]:
    """The files with these suffixes, in any case, in a folder and all folders in it, sorted; hidden ones are no data.

    Links to folders are followed, each folder once.
    """
    found, seen = [], set()
    for place, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not is_hidden(name)]
        if (real := os.path.realpath(place)) in seen:
            folders[:] = []
            continue
        seen.add(real)
        found += [Path(place, n) for n in names if not is_hidden(n) and Path(n).suffix.lower() in suffixes]
    return sorted(found)


def image_sizes(path: str | Path) -> tuple[tuple[int, int], tuple[int, int]]:
    """Height and width in pixels as an image is shown, turned as EXIF says, and as it is stored.

    Raises OSError if it is no image.
    """
    from PIL import Image

    with Image.open(path) as image:
        stored = image.height, image.width
        turned = image.format != "PNG" and image.getexif().get(ORIENTATION, 1) >= 5
    return stored[::-1] if turned else stored, stored


def read_header(path: str | Path, checksums: bool = False) -> tuple[int, int, int]:
    """Height and width in pixels, as the image is shown, and bits per sample of an image file. Raises DamagedImage.

    checksums: also look for damage inside the pixels, see `_read_png`; other formats have no checksums.
    """
    if str(path).lower().endswith(".png"):
        return _read_png(path, checksums)
    from PIL import Image, UnidentifiedImageError

    try:
        (height, width), _ = image_sizes(path)
        with Image.open(path) as image:
            deep = image.mode.startswith(("I;16", "I"))
    except UnidentifiedImageError as error:
        raise DamagedImage("damaged", "the file is no image that can be read") from error
    except OSError as error:
        raise DamagedImage("unreadable", f"can't be read ({error.strerror or error})") from error
    if width * height > MOST_PIXELS:
        raise DamagedImage("too many pixels", f"it has {width} × {height} pixels; at most {MOST_PIXELS:,} are read")
    return height, width, 16 if deep else 8


def _read_png(path: str | Path, checksums: bool) -> tuple[int, int, int]:
    """`read_header` of a PNG file, whose chunks lie one after the other to its end.

    checksums: also read the whole file and compare each chunk's checksum, which finds damage inside the pixels, in
    about 1 ms per 2 MB. Raises DamagedImage.
    """
    try:
        with open(path, "rb", buffering=0) as file:
            size, head = os.fstat(file.fileno()).st_size, file.read(33)
            height, width, bits = _header(head, size)
            _walk(file.fileno(), size, checksums)
    except OSError as error:
        raise DamagedImage("unreadable", f"can't be read ({error.strerror})") from error
    return height, width, bits


def _header(head: bytes, size: int) -> tuple[int, int, int]:
    if not head:
        raise DamagedImage("empty image", "the file is empty (0 bytes)")
    if not head.startswith(SIGNATURE):
        if SIGNATURE.startswith(head):
            raise DamagedImage("truncated", f"the file ends after {size} bytes")
        name = next((name for start, name in OTHERS.items() if head.startswith(start)), "")
        raise DamagedImage("wrong format", f"not a PNG but {name}" if name else f"not a PNG; it begins with {head[:8]}")
    if len(head) < 33:
        raise DamagedImage("truncated", f"the file ends after {size} bytes, within the header")
    length, name, width, height, bits = struct.unpack_from(">I4sIIB", head, 8)
    if (length, name) != (13, b"IHDR") or zlib.crc32(head[12:29]) != int.from_bytes(head[29:33], "big"):
        raise DamagedImage("damaged", "the PNG's header is damaged")
    if not width or not height:
        raise DamagedImage("no pixels", f"the PNG says that it has {width} × {height} pixels")
    if width * height > MOST_PIXELS:
        found = f"the PNG says that it has {width} × {height} pixels; at most {MOST_PIXELS:,} are read"
        raise DamagedImage("too many pixels", found)
    return height, width, bits


def _walk(descriptor: int, size: int, checksums: bool) -> None:
    """Follow the lengths of the chunks to the last one."""
    at, name, pixels = 33, b"", False
    while name != b"IEND":
        start = os.pread(descriptor, 8, at)
        name, end = start[4:], at + 12 + int.from_bytes(start[:4], "big")
        if len(start) < 8 or end > size:
            raise DamagedImage("truncated", f"the file ends after {size:,} bytes, before the PNG's end")
        if checksums:
            chunk = os.pread(descriptor, end - at - 4, at + 4)
            if zlib.crc32(chunk[:-4]) != int.from_bytes(chunk[-4:], "big"):
                raise DamagedImage("damaged", f"the bytes from {at:,} to {end:,} are not those that were written")
        elif not name.isalpha():
            raise DamagedImage("damaged", f"no PNG chunk begins at byte {at:,} of {size:,}")
        pixels, at = pixels or name == b"IDAT", end
    if not pixels:
        raise DamagedImage("damaged", "the PNG holds no pixels")
