"""Convert numbers to text and text to numbers, millions at once, for run-length strings."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np


def _characters(form: str, count: int) -> np.ndarray:
    """Four characters per number from 0 to `count`, each four as one uint32."""
    return np.frombuffer("".join(form.format(i) for i in range(count)).encode(), np.uint32)


FOUR_DIGITS, LAST_DIGITS = _characters("{:04}", 10_000), _characters("{:03} ", 1_000)
"""Four characters each: the numbers 0 to 9999, and the last three digits of a number followed by a blank."""

DIGITS_ONLY = bytes(code if chr(code) in "0123456789" else ord(" ") for code in range(256))
"""Replaces all that is no digit by blanks."""


def write(numbers: np.ndarray, counts: Sequence[int]) -> list[str]:
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


def read(text: bytes) -> tuple[np.ndarray, np.ndarray]:
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
