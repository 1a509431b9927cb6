"""Masks as COCO writes them: run lengths column by column, as numbers ("uncompressed") or as text ("compressed").

{"size": [height, width], "counts": …}: the counts are the lengths of the runs in turn, the first of pixels outside.
The text holds five bits a character, as in pycocotools. Read column by column, an image is its transpose read row by
row, so `Masks` do the work.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from utils.masks.masks import Masks

MOST_PIXELS = 2**28
"""Pixels of an image at most: a text of few bytes must not fill the memory."""


def encode_coco(mask: np.ndarray, corner: tuple[int, int], size: tuple[int, int]) -> dict[str, Any]:
    """The compressed RLE of an image of `size` (H, W) that holds the bool (h, w) `mask` at `corner` (top, left)."""
    from faster_coco_eval.core.mask import frPyObjects

    starts, ends = Masks.from_regions([(mask.T, corner[::-1])], size[::-1])[0]
    edges = np.column_stack([starts, ends]).ravel()
    counts = np.diff(edges, prepend=0, append=size[0] * size[1])
    counts = counts[: len(counts) - (counts[-1] == 0)]
    packed = frPyObjects({"counts": counts.tolist(), "size": list(size)}, *size)
    return {"size": list(size), "counts": packed["counts"].decode("ascii")}


def decode_coco(segmentation: dict[str, Any]) -> tuple[np.ndarray, tuple[int, int]]:
    """The mask of a COCO RLE within its bounding box: bool (h, w), and its corner (top, left) in the image.

    An empty mask gives shape (0, 0). Raises ValueError with what is wrong with the RLE.
    """
    height, width = segmentation["size"]
    edges = np.cumsum(counts_of(segmentation))
    starts, ends = edges[: len(edges) - len(edges) % 2].reshape(-1, 2).T
    inside = starts < ends
    mask, corner = Masks.from_runs([(starts[inside], ends[inside])], (width, height)).region(0)
    return mask.T, (corner[1], corner[0])


def counts_of(segmentation: dict[str, Any]) -> np.ndarray:
    """The run lengths, int64, of a COCO RLE, compressed or not; they sum to the number of pixels.

    Raises ValueError with what is wrong. pycocotools and faster-coco-eval do not check this, and may crash.
    """
    size, counts = segmentation.get("size"), segmentation.get("counts")
    if not (isinstance(size, list) and len(size) == 2 and all(type(n) is int and 0 < n < 2**20 for n in size)):
        raise ValueError(f"RLE with size {size!r}; expected [height, width] in pixels")
    if size[0] * size[1] > MOST_PIXELS:
        raise ValueError(f"RLE of {size[0]} × {size[1]} pixels; at most {MOST_PIXELS:,} are read")
    if isinstance(counts, str):
        counts = _unpack(counts)
    elif isinstance(counts, Sequence) and all(type(n) is int and abs(n) < 2**40 for n in counts):
        counts = np.array(counts, np.int64)
    else:
        raise ValueError(f"RLE with counts of type {type(counts).__name__}; expected a text or a list of whole numbers")
    if (counts < 0).any():
        raise ValueError(f"RLE with a negative run length, {counts.min()}")
    if counts.sum() != size[0] * size[1]:
        raise ValueError(f"RLE of {counts.sum()} pixels; its size, {size[0]} × {size[1]}, has {size[0] * size[1]}")
    return counts


def _unpack(text: str) -> np.ndarray:
    """The run lengths in a compressed RLE's text.

    A character less 48 holds five bits of a number, lowest first, and in bit 5 whether more follow; bit 4 of a number's
    last character is its sign. From the fourth on, a number is the difference from the one two before.
    """
    codes = np.frombuffer(text.encode("utf-8"), np.uint8).astype(np.int64) - 48
    if not codes.size:
        return codes
    if ((codes < 0) | (codes > 63)).any() or codes[-1] & 32:
        raise ValueError("RLE text with characters that no compressed RLE has, or cut off")
    last = np.flatnonzero(codes & 32 == 0)
    first = np.append(0, last[:-1] + 1)
    lengths = last - first + 1
    if lengths.max() > 8:
        raise ValueError("RLE text with a number of more than 40 bits")
    place = 5 * (np.arange(codes.size) - np.repeat(first, lengths))
    numbers = np.add.reduceat((codes & 31) << place, first)
    numbers -= np.where(codes[last] & 16, np.int64(1) << (5 * lengths), 0)
    numbers[1::2] = np.cumsum(numbers[1::2])
    numbers[2::2] = np.cumsum(numbers[2::2])
    return numbers
