"""Draw what X-rays show beside healthy bones: metal plates, rings, bandages and fractures; labels stay as they are."""

import cv2
import numpy as np

from utils.sample.bones import FOREARM, Hand
from utils.sample.radiograph import Raster, add_metal, fill, ring_outline

KINDS = ("plate", "ring", "bandage", "fracture")
METACARPALS = ("finger-7", "finger-11", "finger-15", "finger-19")
FINGERS = ("finger-6", "finger-10", "finger-14", "finger-18")
LINEN = 0.16
"""Attenuation of a bandage where it lies double."""


def add_artefact(kind: str, attenuation: np.ndarray, grid: Raster, hand: Hand, rng: np.random.Generator) -> None:
    """Add one artefact of `kind`, one of KINDS, at a random place to the attenuation, float32 (size, size)."""
    if kind == "plate":
        add_metal(attenuation, _plate(hand, rng), grid)
    elif kind == "ring":
        add_metal(attenuation, [ring_outline(hand, rng.choice(FINGERS), rng)], grid)
    elif kind == "bandage":
        _bandage(attenuation, hand, grid, rng)
    else:
        _fracture(attenuation, hand, grid, rng)


def _plate(hand: Hand, rng: np.random.Generator) -> list[np.ndarray]:
    """Outlines of a plate with screws along a metacarpal or the end of the radius."""
    base, along, across, length = _frame(hand, rng.choice((*METACARPALS, "Radius")))
    if length > 90 * hand.mm:  # of the forearm, only the end
        base, length = base + along * (length - 60 * hand.mm), 55 * hand.mm
    start, end = base + along * length * 0.2, base + along * length * 0.8
    outlines = [_bar(start, end, across * rng.uniform(2.0, 2.8) * hand.mm)]
    for share in np.linspace(0.1, 0.9, 5):
        head = start + (end - start) * share
        outlines.append(_bar(head, head + across * rng.uniform(5, 8) * hand.mm, along * 0.8 * hand.mm))
    return outlines


def _bar(start: np.ndarray, end: np.ndarray, half: np.ndarray) -> np.ndarray:
    """Corners (4, 2) of a bar from `start` to `end`; `half` points from its middle to its side."""
    return np.array([start - half, end - half, end + half, start + half])


def _bandage(attenuation: np.ndarray, hand: Hand, grid: Raster, rng: np.random.Generator) -> None:
    """Oblique turns of a bandage around the forearm or a finger."""
    arm = rng.random() < 0.5
    base, along, across, length = _frame(hand, "Radius" if arm else rng.choice(FINGERS))
    half, width = (34 if arm else 11) * hand.mm, (14 if arm else 7) * hand.mm
    middle = base + along * (length - 20 * hand.mm if arm else length * 0.5)
    for turn in range(-2, 3):
        centre = middle + along * turn * width * 0.6
        side = across * half + along * width * rng.uniform(0.3, 0.5) * (1 if turn % 2 else -1)
        band = np.zeros(attenuation.shape, np.uint8)
        fill(band, grid.pixels(_bar(centre - side, centre + side, along * width / 2)))
        attenuation += band.astype(np.float32) * (LINEN / 2 / 255)


def _fracture(attenuation: np.ndarray, hand: Hand, grid: Raster, rng: np.random.Generator) -> None:
    """A dark, oblique, jagged line across a long bone."""
    name = rng.choice((*METACARPALS, *FINGERS, *FOREARM))
    base, along, across, length = _frame(hand, name)
    place = base + along * (length - 25 * hand.mm if name in FOREARM else length * rng.uniform(0.3, 0.7))
    half = 16 * hand.mm if name in FOREARM else 10 * hand.mm
    steps = np.linspace(-1, 1, 12)[:, None]
    lean = rng.uniform(-0.6, 0.6)
    line = place + across * half * steps + along * (half * lean * steps + rng.normal(0, 0.5, steps.shape) * hand.mm)
    gap = along * rng.uniform(0.35, 0.7) * hand.mm
    crack, bone = np.zeros((2, *attenuation.shape), np.uint8)
    fill(crack, grid.pixels(np.vstack([line - gap, (line + gap)[::-1]])))
    fill(bone, grid.pixels(hand.outlines[name]))
    attenuation *= 1 - 0.45 * cv2.min(crack, bone).astype(np.float32) / 255


def _frame(hand: Hand, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """A bone's base, unit vectors along and across it, and its length, in image widths."""
    base, tip = hand.axes[name]
    length = float(np.hypot(*(tip - base)))
    along = (tip - base) / length
    return base, along, np.array([-along[1], along[0]]), length
