"""Masks as run-length strings, and their algebra on intervals instead of pixels.

The competition's RLE walks the mask row by row and writes "start length start length …", the first pixel being 1.
An empty mask is "", an empty field in a CSV, which pandas reads back as NaN; NaN and None are accepted as empty too.
Inside, a mask is two int64 arrays (starts, ends): 0-based, half-open, sorted, disjoint intervals of the flat image.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, pairwise

import numpy as np

Runs = tuple[np.ndarray, np.ndarray]
"""(starts, ends) of a mask's intervals."""

LARGEST = 2**40
"""No pixel number is larger, so that a whole submission fits on one int64 axis, image after image."""

ROWS_AT_A_TIME = 256
"""Masks of each column that are voted on together; bounds the memory."""

THREADS = 2
"""Threads that vote side by side."""


def parse(rle: str | float | None) -> Runs:
    """The intervals (starts, ends), int64, of one RLE string; runs that touch are merged.

    Raises ValueError saying what is wrong: text that is no whole number, an odd count of numbers, a start or length
    below 1, runs that are unsorted or overlap.
    """
    if _is_empty(rle):
        return np.empty(0, np.int64), np.empty(0, np.int64)
    if not isinstance(rle, str):
        raise ValueError(f"an RLE is text such as '12 3 40 5', found {type(rle).__name__} {rle!r}")
    if rle.encode().translate(None, b"0123456789 "):
        word = next(w for w in rle.split(" ") if w and not (w.isascii() and w.isdigit()))
        raise ValueError(f"{word[:40]!r} is not a positive whole number; an RLE reads 'start length start length …'")
    numbers, _ = _numbers(rle.encode())
    if len(numbers) % 2:
        raise ValueError(f"{len(numbers)} numbers; an RLE holds pairs of start and length, so their count is even")
    starts, lengths = numbers[::2] - 1, numbers[1::2]
    for name, values in (("start", numbers[::2]), ("length", lengths)):
        wrong = np.flatnonzero((values < 1) | (values > LARGEST))
        if wrong.size:
            raise ValueError(f"run {wrong[0] + 1} has {name} {values[wrong[0]]}; starts and lengths are 1 … 2⁴⁰")
    ends = starts + lengths
    wrong = np.flatnonzero(starts[1:] < ends[:-1])
    if wrong.size:
        i = wrong[0]
        how = "overlaps" if starts[i + 1] >= starts[i] else "comes before"
        raise ValueError(f"run {i + 2} (start {starts[i + 1] + 1}) {how} run {i + 1} (start {starts[i] + 1})")
    return merge(starts, ends)


def parse_column(rles: Sequence[str | float | None]) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[int]]:
    """The intervals of many masks at once: (starts, ends, row, wrong).

    `row` (int64) says to which of the masks each interval belongs and rises; `wrong` lists the masks that `parse`
    would refuse, whose intervals are left out. A column of 8,352 masks takes about a tenth of a second.
    """
    texts = [rle if isinstance(rle, str) else "" if _is_empty(rle) else "x" for rle in rles]
    joined = " ".join(texts).encode()
    wrong: list[int] = []
    characters = np.frombuffer(joined, np.uint8)
    if ((characters - np.uint8(ord("0")) > 9) & (characters != ord(" "))).any():  # below "0" it wraps around
        wrong = [i for i, text in enumerate(texts) if text.encode().translate(None, b"0123456789 ")]
        for i in wrong:
            texts[i] = ""
        joined = " ".join(texts).encode()
    numbers, ends = _numbers(joined)
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
    touching = (starts[1:] == ends[:-1]) & (row[1:] == row[:-1])
    if touching.any():
        first, last = np.append(True, ~touching), np.append(~touching, True)
        starts, ends, row = starts[first], ends[last], row[first]
    return starts, ends, row, sorted(wrong)


def to_string(starts: np.ndarray, ends: np.ndarray) -> str:
    """The RLE string of sorted, disjoint intervals; "" where there are none."""
    return to_strings([(starts, ends)])[0]


def _quads(form: str, count: int) -> np.ndarray:
    return np.frombuffer("".join(form.format(i) for i in range(count)).encode(), np.uint32)


FOUR_DIGITS, LAST_DIGITS = _quads("{:04}", 10_000), _quads("{:03} ", 1_000)
"""Four characters each: the numbers 0 to 9999, and the last three digits of a number with a blank behind."""


def to_strings(masks: Sequence[Runs]) -> list[str]:
    """`to_string` of many masks at once, several times faster than joining str() of the numbers.

    Every number is written with leading zeros, four digits at a time from a table; then the zeros are dropped.
    """
    counts = [0, *(2 * len(starts) for starts, _ in masks)]
    numbers = np.empty(sum(counts), np.int64)
    if not numbers.size:
        return [""] * len(masks)
    if numbers.size > 2**20 and len(masks) > 1:  # beyond the processor's caches, one by one is faster
        return [to_string(*mask) for mask in masks]
    numbers[::2] = np.concatenate([starts for starts, _ in masks])
    numbers[1::2] = np.concatenate([ends for _, ends in masks])
    numbers[1::2] -= numbers[::2]
    numbers[::2] += 1
    width = -(-(len(str(numbers.max())) + 1) // 4)
    digits = np.ones(len(numbers), np.uint8)
    for power in range(1, 4 * width):
        digits += numbers >= 10**power
    padded = np.empty((len(numbers), width), np.uint32)
    rest, padded[:, -1] = numbers // 1000, LAST_DIGITS[numbers % 1000]
    for column in range(width - 2, -1, -1):
        rest, padded[:, column] = rest // 10_000, FOUR_DIGITS[rest % 10_000]
    significant = np.arange(4 * width - 1, -1, -1, dtype=np.uint8) <= digits[:, None]
    text = padded.view(np.uint8)[significant].tobytes().decode("ascii")
    places = np.concatenate([[0], np.cumsum(digits + np.int64(1))])[np.cumsum(counts)].tolist()
    return [text[i : max(i, j - 1)] for i, j in pairwise(places)]


def encode(mask: np.ndarray) -> str:
    """The RLE string of a bool (H, W) mask. Raises ValueError for another dtype or shape."""
    check_mask(mask)
    rows = np.flatnonzero(mask.any(axis=1))
    if not rows.size:
        return ""
    top, bottom = rows[0], rows[-1] + 1
    flat = mask[top:bottom].ravel()
    edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    edges = np.concatenate([[0] if flat[0] else [], edges, [flat.size] if flat[-1] else []]).astype(np.int64)
    edges += top * mask.shape[1]
    return to_string(edges[::2], edges[1::2])


def decode(rle: str | float | None, size: tuple[int, int]) -> np.ndarray:
    """The bool (H, W) mask of an RLE string. Raises ValueError where `parse` does, or for runs past the image's end."""
    height, width = size
    starts, ends = parse(rle)
    if ends.size and ends[-1] > height * width:
        raise ValueError(
            f"the last run ends at pixel {ends[-1]}, past the end of an image of {height} rows × {width} columns "
            f"({height * width} pixels); was the mask made for another image size?"
        )
    mask = np.zeros(height * width, dtype=bool)
    for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
        mask[start:end] = True
    return mask.reshape(height, width)


def area(rle: str | float | None) -> int:
    """Number of pixels set."""
    starts, ends = parse(rle)
    return int((ends - starts).sum())


def intersection_area(rle_a: str | float | None, rle_b: str | float | None) -> int:
    """Number of pixels set in both masks."""
    return int(overlap(parse(rle_a), parse(rle_b)).sum())


def dice(rle_a: str | float | None, rle_b: str | float | None) -> float:
    """The competition's Dice of two masks, (2·|A∩B| + 1e-4) / (|A| + |B| + 1e-4): 0 to 1; 1 where both are empty."""
    a, b = parse(rle_a), parse(rle_b)
    return float(dice_of_areas(overlap(a, b).sum(), (a[1] - a[0]).sum(), (b[1] - b[0]).sum()))


def dice_of_areas(intersection: np.ndarray, area_a: np.ndarray, area_b: np.ndarray) -> np.ndarray:
    """The competition's Dice from areas in pixels (any shape)."""
    return (2 * intersection + 1e-4) / (area_a + area_b + 1e-4)


def vote(rles: Sequence[str | float | None], min_votes: int) -> str:
    """The RLE string of the pixels that are set in at least `min_votes` (1 … number of masks) of the masks."""
    if not 1 <= min_votes <= len(rles):
        raise ValueError(f"min_votes is {min_votes}; expected 1 to {len(rles)}, the number of masks")
    parsed = [parse(rle) for rle in rles]
    return to_string(*majority([p[0] for p in parsed], [p[1] for p in parsed], min_votes))


def dice_column(rles_a: Sequence[str | float | None], rles_b: Sequence[str | float | None]) -> np.ndarray:
    """`dice` of many pairs at once, float64 (pairs,). Raises ValueError as `parse` does, with the mask's number."""
    a, b = _parse_rows(rles_a), _parse_rows(rles_b)
    stride = 1 + max((int(ends.max()) for _, ends, _ in (a, b) if ends.size), default=0)
    (starts_a, ends_a, row_a), (starts_b, ends_b, row_b) = a, b
    shift_a, shift_b = row_a * stride, row_b * stride  # all pairs on one axis, one after the other
    shared = overlap((starts_a + shift_a, ends_a + shift_a), (starts_b + shift_b, ends_b + shift_b))
    n = len(rles_a)
    areas = [np.bincount(row, weights=ends - starts, minlength=n) for starts, ends, row in (a, b)]
    return dice_of_areas(np.bincount(row_a, weights=shared, minlength=n), *areas)


def vote_column(columns: Sequence[Sequence[str | float | None]], min_votes: int) -> list[str]:
    """`vote` of many masks at once: several columns of masks, one RLE string for each position in them."""

    def chunk(first: int) -> list[str]:
        parsed = [_parse_rows(column[first : first + ROWS_AT_A_TIME], first) for column in columns]
        stride = 1 + max((int(ends.max()) for _, ends, _ in parsed if ends.size), default=0)
        starts = [starts + row * stride for starts, _, row in parsed]
        ends = [ends + row * stride for _, ends, row in parsed]
        starts, ends = majority(starts, ends, min_votes)
        offsets = np.arange(min(ROWS_AT_A_TIME, len(columns[0]) - first)) * stride
        cuts = [*np.searchsorted(starts, offsets).tolist(), len(starts)]
        parts = zip(offsets, pairwise(cuts), strict=True)
        return to_strings([(starts[i:j] - offset, ends[i:j] - offset) for offset, (i, j) in parts])

    with ThreadPoolExecutor(THREADS) as pool:  # NumPy parses and sorts outside Python's lock
        return list(chain.from_iterable(pool.map(chunk, range(0, len(columns[0]), ROWS_AT_A_TIME))))


def overlap(a: Runs, b: Runs) -> np.ndarray:
    """For each interval of `a`, how many of its pixels lie in `b` (int64)."""
    starts, ends = b
    before = np.concatenate([[0], np.cumsum(ends - starts)])  # pixels of b before its i-th interval
    starts = np.append(starts, 2**62)  # past every query

    def covered(x: np.ndarray) -> np.ndarray:
        i = np.searchsorted(ends, x)
        return before[i] + np.maximum(x - starts[i], 0)

    return covered(a[1]) - covered(a[0])


def majority(starts: Sequence[np.ndarray], ends: Sequence[np.ndarray], min_votes: int) -> Runs:
    """The intervals covered by at least `min_votes` masks, given each mask's starts and ends."""
    # one key an edge: twice its position, plus 1 where a run begins; at one position, ends sort before beginnings
    edges = np.concatenate([*(2 * s + 1 for s in starts), *(2 * e for e in ends)])
    edges.sort(kind="stable")  # merges what is sorted already, ten times faster than the default
    inside = np.cumsum((edges & 1) * 2 - 1) >= min_votes
    change = np.flatnonzero(np.diff(inside, prepend=False))
    position = edges[change] >> 1
    return merge(position[::2], position[1::2])


def merge(starts: np.ndarray, ends: np.ndarray) -> Runs:
    """Join intervals that touch; the intervals are sorted and disjoint."""
    apart = starts[1:] != ends[:-1]
    if apart.all():
        return starts, ends
    return starts[np.append(True, apart)], ends[np.append(apart, True)]


def check_mask(mask: np.ndarray) -> None:
    """Raise ValueError unless `mask` is a bool array of two dimensions."""
    if not isinstance(mask, np.ndarray) or mask.dtype != bool or mask.ndim != 2:
        found = f"{mask.dtype} {mask.shape}" if isinstance(mask, np.ndarray) else type(mask).__name__
        raise ValueError(f"expected a bool (H, W) array, found {found}; threshold scores first (scores > 0.5)")


def _parse_rows(rles: Sequence[str | float | None], first: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    starts, ends, row, wrong = parse_column(rles)
    if wrong:
        try:
            parse(rles[wrong[0]])
        except ValueError as error:
            raise ValueError(f"mask {first + wrong[0]}: {error}") from None
    return starts, ends, row


def _is_empty(rle: object) -> bool:
    return rle is None or (isinstance(rle, float) and np.isnan(rle)) or (isinstance(rle, str) and not rle.strip(" "))


def _numbers(text: bytes) -> tuple[np.ndarray, np.ndarray]:
    """The whole numbers, int64, in a text of digits and blanks, and the position behind the last digit of each.

    Up to eight digits are read as one little-endian word: what stands before the number is shifted out, then
    neighbours are joined to pairs, fours and the number, each time first · 10ᵏ + second (the first is in the lower
    bits). Twice as fast as NumPy's reader, which is left for longer numbers.
    """
    padded = b" " * 8 + text + b" "
    blanks = np.flatnonzero(np.frombuffer(padded, np.uint8) == ord(" "))[7:]
    lengths = np.diff(blanks) - 1
    ends = blanks[1:]
    if not lengths.all():  # doubled blanks
        ends, lengths = ends[lengths > 0], lengths[lengths > 0]
    if lengths.max(initial=0) > 8:
        return np.fromstring(text, dtype=np.int64, sep=" "), ends - 8
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
