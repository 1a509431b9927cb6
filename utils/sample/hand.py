"""Make a person, and one of their hands in the image: bent sideways, rotated, scaled, placed, collimated.

Image coordinates are in image widths: x from 0 to 1 to the right, y from 0 to 1 downwards.
"""

from dataclasses import dataclass

import numpy as np

from utils.data.competition import HAND_BONES
from utils.sample import bones
from utils.sample.bones import FOREARM, Hand, Variation, normal, turn

SCALE = 6.4 / 2048
"""Mean magnification, in image widths per millimetre: the image is about 320 mm wide."""


@dataclass(frozen=True)
class Person:
    """What both hands of a person share.

    sex: "F" or "M"; age: years. bend: degrees by which the hands are bent towards the little finger (positive) or the
    thumb (negative). shape: seed of the person's bone shapes.
    """

    sex: str
    age: int
    height_cm: int
    weight_kg: int
    nail_art: bool
    ring: bool
    bend: float
    shape: tuple[int, ...]


def make_person(seed: tuple[int, ...], bent: bool) -> Person:
    """A random person: 19 to 69 years, 42 to 118 kg, with the usual relation of sex, height and weight.

    `bent`: whether they are bent sideways by a large angle.
    """
    rng = np.random.default_rng(seed)
    male = rng.random() < 262 / 550
    height = normal(rng, 173.5 if male else 161.0, 5.6)
    mass_index = normal(rng, 24.2 if male else 22.0, 2.9)
    nail_art, ring = rng.random() < (0.02 if male else 0.16), rng.random() < 0.08
    age = int(np.clip(19 + rng.gamma(2.2, 9.0), 19, 69))
    bend = normal(rng, 0.5, 2.3)
    if bent:
        bend = normal(rng, 26, 2.8) if rng.random() < 0.75 else -normal(rng, 21, 1.8)
    weight = int(np.clip(mass_index * (height / 100) ** 2, 42, 118))
    return Person("M" if male else "F", age, round(height), weight, nail_art, ring, bend, (*seed, 1))


def make_hand(person: Person, rng: np.random.Generator, side: str) -> Hand:
    """A hand of `person` in a random pose, in image coordinates; on `side` "R" the thumb is on the image's left."""
    vary = Variation(person.shape, rng)
    bend = person.bend + normal(rng, 0, 1.6)
    hand, row, arm = Hand(), Hand(), Hand()
    bones.add_digits(hand, vary, rng)
    bones.add_carpals(hand, vary, bones.DISTAL_ROW)
    hand.move(lambda points: turn(points, bend, (0.5, 5)))
    bones.add_carpals(row, vary, bones.PROXIMAL_ROW, stretch=1 + 0.008 * bend)
    row.move(lambda points: turn(points, 0.55 * bend, (1, -5)) - np.array([0.03 * bend, 0]))
    bones.add_forearm(arm, vary)
    for part in (row, arm):
        hand.outlines |= part.outlines
        hand.axes |= part.axes
        hand.flesh += part.flesh
    hand.outlines = {name: hand.outlines[name] for name in HAND_BONES}
    tilt = float(np.clip(normal(rng, 0, 5) - rng.uniform(0, 1) * bend, -30, 30))
    size = (person.height_cm / 167) ** 0.9 * (1.01 if person.sex == "M" else 0.99) * (1 + vary(0.025))
    hand.mm = SCALE * float(np.clip(size, 0.84, 1.18))
    hand.move(lambda points: turn(points, tilt) * (hand.mm, -hand.mm))
    hand.flesh = [(points, widths * hand.mm) for points, widths in hand.flesh]
    _place(hand, rng)
    if side == "L":
        hand.move(lambda points: np.array([1, 0]) + points * (-1, 1))
    return hand


def _place(hand: Hand, rng: np.random.Generator) -> None:
    """Shift the hand into the image and set the exposed field, where the forearm ends."""
    points = np.vstack([outline for name, outline in hand.outlines.items() if name not in FOREARM])
    low, high = points.min(axis=0), points.max(axis=0)
    y = normal(rng, 0.085, 0.025) - low[1]
    bottom = 1.0 if rng.random() < 0.6 else rng.uniform(0.965, 1.0)
    arm = np.vstack([_cut(hand.outlines[name], bottom - y) for name in FOREARM])
    left, right = min(low[0], arm[:, 0].min()), max(high[0], arm[:, 0].max())
    x = np.clip(0.5 - (left + right) / 2 + normal(rng, 0, 0.035), 0.03 - left, 0.97 - right)
    hand.move(lambda points: points + np.array([x, y]))
    for name in FOREARM:
        hand.outlines[name] = _cut(hand.outlines[name], bottom)
    left, right = left + x - rng.uniform(0.02, 0.22), right + x + rng.uniform(0.02, 0.22)
    top, lower = low[1] + y - rng.uniform(0.025, 0.12), bottom if bottom < 1 else 1.05
    slope = rng.normal(0, 0.004, 3)
    corners = [(left + slope[0], top), (right + slope[1], top + slope[2]), (right, lower), (left, lower)]
    hand.collimation = np.array(corners)


def _cut(points: np.ndarray, bottom: float) -> np.ndarray:
    """The part of a closed outline (n, 2) above the line y = bottom."""
    kept = []
    for a, b in zip(points, np.roll(points, -1, axis=0), strict=True):
        if a[1] <= bottom:
            kept.append(a)
        if (a[1] <= bottom) != (b[1] <= bottom):
            kept.append(a + (b - a) * (bottom - a[1]) / (b[1] - a[1]))
    return np.array(kept)
