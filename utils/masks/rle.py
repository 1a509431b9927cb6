"""Read and write masks as run-length strings (RLE), as they are in submissions; `utils.masks.masks` computes on them.

The competition's RLE lists the runs of a mask, row by row, as "start length start length …", the first pixel being 1.
An empty mask is "", an empty field in a CSV, which pandas reads as NaN; NaN and None are accepted as empty, too.
Without text, a run is the interval from start to end of the flattened image, counted from 0, the end exclusive.
"""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

LARGEST = 2**40
"""Largest start or length of a run, so that all masks of a submission, one after another, fit on one int64 axis."""


def problem(rle: object) -> str:
    """What is wrong with a string that `parse_column` refuses, in words.

    That is one of: it is no text, it has other characters than digits and blanks, an odd count of numbers, a start or
    length below 1 or above 2⁴⁰, or runs that are unsorted or overlap.
    """
    if not isinstance(rle, str):
        return f"an RLE is text such as '12 3 40 5', found {type(rle).__name__} {rle!r}"
    if rle.encode().translate(None, b"0123456789 "):
        word = next(w for w in rle.split(" ") if w and not (w.isascii() and w.isdigit()))
        return f"{word[:40]!r} is not a positive whole number; an RLE reads 'start length start length …'"
    numbers, _ = read_numbers(rle.encode())
    if len(numbers) % 2:
        return f"{len(numbers)} numbers; an RLE holds pairs of start and length, so their count is even"
    starts, lengths = numbers[::2], numbers[1::2]
    for name, values in (("start", starts), ("length", lengths)):
        wrong = np.flatnonzero((values < 1) | (values > LARGEST))
        if wrong.size:
            return f"run {wrong[0] + 1} has {name} {values[wrong[0]]}; starts and lengths are 1 … 2⁴⁰"
    i = int(np.argmax(starts[1:] < (starts + lengths)[:-1]))
    how = "overlaps" if starts[i + 1] >= starts[i] else "comes before"
    return f"run {i + 2} (start {starts[i + 1]}) {how} run {i + 1} (start {starts[i]})"


def parse_column(rles: Sequence[str | float | None]) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[int]]:
    """The runs of many masks at once: (starts, ends, row, wrong), int64; those of a mask may touch.

    `row` (ascending) is the number of the mask that each run belongs to. `wrong` lists the numbers of malformed masks,
    see `problem`; their runs are left out. 8,352 masks take about a tenth of a second.
    """
    texts = [rle if isinstance(rle, str) else "" if rle is None or rle != rle else "x" for rle in rles]
    joined = " ".join(texts).encode()
    wrong: list[int] = []
    characters = np.frombuffer(joined, np.uint8)
    if ((characters - np.uint8(ord("0")) > 9) & (characters != ord(" "))).any():  # below "0" it wraps around
        wrong = [i for i, text in enumerate(texts) if text.encode().translate(None, b"0123456789 ")]
        for i in wrong:
            texts[i] = ""
        joined = " ".join(texts).encode()
    numbers, ends = read_numbers(joined)
    last = np.cumsum([0, *(len(text) + 1 for text in texts)])[1:] - 1
    counts = np.diff(np.searchsorted(ends, last, side="right"), prepend=0)
    odd = counts % 2 == 1
    if odd.any():
        numbers, wrong = numbers[~np.repeat(odd, counts)], wrong + np.flatnonzero(odd).tolist()
        counts[odd] = 0
    row = np.repeat(np.arange(len(texts)), counts // 2)
    starts, lengths = numbers[::2] - 1, numbers[1::2]
    ends = starts + lengths
    bad = (starts < 0) | (lengths < 1) | (np.maximum(starts, lengths) > LARGEST)
    bad[1:] |= (starts[1:] < ends[:-1]) & (row[1:] == row[:-1])
    if bad.any():
        found = np.unique(row[bad])
        keep = ~np.isin(row, found)
        starts, ends, row, wrong = starts[keep], ends[keep], row[keep], wrong + found.tolist()
    return starts, ends, row, sorted(wrong)


def write_column(starts: np.ndarray, ends: np.ndarray, offsets: Sequence[int]) -> list[str]:
    """The RLE strings of many masks; mask i has the runs from offsets[i] to offsets[i + 1], see `utils.masks.masks`."""
    if not len(starts):
        return [""] * (len(offsets) - 1)
    if len(starts) > 2**19 and len(offsets) > 2:  # beyond the processor's caches, one by one is faster
        return [write_column(starts[i:j], ends[i:j], [0, j - i])[0] for i, j in pairwise(offsets)]
    numbers = np.empty(2 * len(starts), np.int64)
    numbers[::2] = starts
    numbers[1::2] = ends
    numbers[1::2] -= starts
    numbers[::2] += 1
    return write_numbers(numbers, (2 * np.diff(offsets)).tolist())


def encode(mask: np.ndarray) -> str:
    """The RLE string of a mask, "" for an empty one.

    Args:
        mask: bool (H, W), True inside the mask.

    Returns:
        "start length start length …", row by row, the first pixel being 1; the same text as the official baseline's.

    Raises:
        ValueError: for another dtype or another number of dimensions.
    """
    check_mask(mask)
    edges = np.flatnonzero(np.diff(mask.ravel(), prepend=False, append=False))
    return write_column(edges[::2], edges[1::2], [0, len(edges) // 2])[0]


def decode(rle: str | float | None, size: tuple[int, int]) -> np.ndarray:
    """The mask of an RLE string.

    Args:
        rle: "start length start length …", row by row, the first pixel being 1; "", None or NaN for an empty mask.
        size: height H and width W of the image in pixels.

    Returns:
        The mask, bool (H, W), True inside.

    Raises:
        ValueError: for malformed text (see `problem`), and for a run that ends after the image's last pixel.
    """
    starts, ends, _, wrong = parse_column([rle])
    if wrong:
        raise ValueError(problem(rle))
    height, width = size
    if ends.size and ends[-1] > height * width:
        raise ValueError(past_the_end(ends[-1], size))
    return fill(starts, ends, size)


def past_the_end(pixel: int, size: tuple[int, int]) -> str:
    """What is wrong with a mask whose last run ends at `pixel`, behind those of an image of `size` (H, W)."""
    image = f"the end of an image of {size[0]} rows × {size[1]} columns ({size[0] * size[1]} pixels)"
    return f"the last run ends at pixel {pixel}, past {image}; was it made for another image size?"


def check_mask(mask: np.ndarray) -> None:
    """Raise ValueError unless `mask` is a bool array of two dimensions."""
    if not isinstance(mask, np.ndarray) or mask.dtype != bool or mask.ndim != 2:
        found = f"{mask.dtype} {mask.shape}" if isinstance(mask, np.ndarray) else type(mask).__name__
        raise ValueError(f"expected a bool (H, W) array, found {found}; threshold scores first (scores > 0.5)")


def fill(starts: np.ndarray, ends: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bool (H, W) with the intervals set."""
    mask = np.zeros(size[0] * size[1], dtype=bool)
    for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
        mask[start:end] = True
    return mask.reshape(size)


def _characters(form: str, count: int) -> np.ndarray:
    """Four characters per number from 0 to `count`, each four as one uint32."""
    return np.frombuffer("".join(form.format(i) for i in range(count)).encode(), np.uint32)


FOUR_DIGITS, LAST_DIGITS = _characters("{:04}", 10_000), _characters("{:03} ", 1_000)
"""Four characters each: the numbers 0 to 9999, and the last three digits of a number followed by a blank."""

DIGITS_ONLY = bytes(code if chr(code) in "0123456789" else ord(" ") for code in range(256))
"""Replaces all that is no digit by blanks."""


def write_numbers(numbers: np.ndarray, counts: Sequence[int]) -> list[str]:
    """The numbers, positive int64, as texts with one blank between two: the first counts[0] of them, and so on.

    Several times faster than joining str() of the numbers: every number is written with leading zeros, four digits at
    a time from a table; then the leading zeros are removed.
    """
    width = -(-(len(str(numbers.max())) + 1) // 4)
    lengths = np.ones(len(numbers), np.uint8)
    for power in range(1, 4 * width):
        lengths += numbers >= 10**power
    padded = np.empty((len(numbers), width), np.uint32)
    rest, padded[:, -1] = numbers // 1000, LAST_DIGITS[numbers % 1000]
    for column in range(width - 2, -1, -1):
        rest, padded[:, column] = rest // 10_000, FOUR_DIGITS[rest % 10_000]
    significant = np.arange(4 * width - 1, -1, -1, dtype=np.uint8) <= lengths[:, None]
    text = padded.view(np.uint8)[significant].tobytes().decode("ascii")
    places = np.concatenate([[0], np.cumsum(lengths + np.int64(1))])[np.cumsum([0, *counts])].tolist()
    return [text[i : max(i, j - 1)] for i, j in pairwise(places)]


def read_numbers(text: bytes) -> tuple[np.ndarray, np.ndarray]:
    """The whole numbers, int64, in a text, and the position after the last digit of each; all else separates them.

    The eight characters up to a number's last digit are read as one little-endian word. Shifting removes the characters
    before the number; then neighbouring digits are joined to pairs, pairs to fours, and fours to the number, each time
    first · 10ᵏ + second (the first is in the lower bits). Twice as fast as NumPy's reader, which is used only if a
    number has more than eight digits.
    """
    padded = np.frombuffer(b" " * 8 + text + b" ", np.uint8)
    is_digit = padded - np.uint8(ord("0")) < 10
    edges = np.flatnonzero(is_digit[1:] != is_digit[:-1]) + 1
    starts, ends = edges[::2], edges[1::2]
    lengths = ends - starts
    if lengths.max(initial=0) > 8:
        return np.fromstring(text.translate(DIGITS_ONLY), dtype=np.int64, sep=" "), ends - 8
    words = np.ndarray(len(padded) - 7, "<u8", padded, strides=(1,))[ends - 8]
    before = (64 - 8 * lengths).astype(np.uint64)
    words >>= before
    words <<= before
    words &= np.uint64(0x0F0F0F0F0F0F0F0F)
    for factor, bits, kept in ((10, 8, 0x00FF00FF00FF00FF), (100, 16, 0x0000FFFF0000FFFF), (10_000, 32, 0xFFFFFFFF)):
        second = words >> np.uint64(bits)
        words *= np.uint64(factor)
        words += second
        words &= np.uint64(kept)
    return words.view(np.int64), ends - 8
