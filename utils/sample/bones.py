"""Make the bones of a synthetic hand: 29 outlines in millimetres, which vary from person to person.

A right hand has its thumb on the left: x grows towards the little finger, y towards the fingertips, the origin is at
the capitate. Proportions are those of adults; areas and overlaps are those of the competition's annotations.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from scipy.interpolate import CubicSpline

from utils.data.competition import HAND_BONES

DISTAL_ROW, PROXIMAL_ROW, FOREARM = HAND_BONES[19:23], HAND_BONES[23:27], HAND_BONES[27:]
DIGITS = [HAND_BONES[first:last][::-1] for first, last in ((0, 3), (3, 7), (7, 11), (11, 15), (15, 19))]
"""The class names of each digit, thumb first, from the metacarpal to the tip."""

# One side of a finger bone, from the middle of its base to the middle of its tip: (half widths, lengths).
# fmt: off
DISTAL = (
    (0, 0), (0.5, 0.035), (0.9, 0.015), (1, 0.1), (0.82, 0.22), (0.54, 0.42), (0.46, 0.6), (0.52, 0.74), (0.64, 0.83),
    (0.6, 0.92), (0.36, 0.985), (0, 1),
)
MIDDLE = (
    (0, 0.01), (0.5, 0.04), (0.9, 0.015), (1, 0.09), (0.88, 0.19), (0.63, 0.36), (0.55, 0.54), (0.56, 0.72),
    (0.69, 0.86), (0.77, 0.93), (0.68, 0.98), (0.4, 1), (0, 0.965),
)
PROXIMAL = (
    (0, 0.04), (0.55, 0.015), (0.92, 0.025), (1, 0.085), (0.89, 0.16), (0.66, 0.31), (0.57, 0.5), (0.56, 0.68),
    (0.66, 0.83), (0.79, 0.91), (0.74, 0.97), (0.42, 1), (0, 0.978),
)
METACARPAL = (
    (0, 0.025), (0.6, 0), (0.96, 0.03), (1, 0.08), (0.8, 0.18), (0.57, 0.33), (0.49, 0.5), (0.54, 0.66), (0.73, 0.8),
    (0.91, 0.88), (0.9, 0.94), (0.6, 0.988), (0, 1),
)
PROFILES = ((METACARPAL, PROXIMAL, DISTAL), *4 * [(METACARPAL, PROXIMAL, MIDDLE, DISTAL)])

LENGTHS = ((46, 32, 23), (68, 41, 24.5, 17.4), (65.5, 45.5, 29, 18.4), (58, 42.5, 27.5, 18.4), (53.5, 33.5, 19.5, 16))
WIDTHS = ((8.4, 7.8, 7.0), (8.6, 8.2, 6.8, 5.6), (7.9, 8.4, 7.1, 5.8), (6.6, 7.8, 6.7, 5.7), (7.2, 7, 5.7, 4.7))
"""Length and half width at the base of each digit's bones (mm)."""
BASES = ((-31.2, 18.6), (-14.4, 25.2), (-0.8, 24.5), (9.8, 22.9), (17.8, 19.4))
"""Where each metacarpal starts (mm)."""
DIRECTIONS = (-42, -10, -1, 7.5, 15)
"""Where each metacarpal points, in degrees clockwise from straight up."""

CARPALS = {
    "Trapezium": ((-15.2, 17.5), (-16, 22), (-20.6, 24.2), (-25.5, 21.8), (-29.8, 17.4), (-33, 14.9), (-31.8, 10.2),
        (-26.5, 7.6), (-19.6, 9.2), (-15.6, 13)),
    "Trapezoid": ((-8.6, 24), (-13.5, 26.6), (-18, 25.4), (-21.2, 20.5), (-20.4, 15), (-16, 12.2), (-10.8, 13.4),
        (-7.8, 18.5)),
    "Capitate": ((-6.6, 4), (-7.2, 9), (-6.9, 14), (-8.3, 19), (-7.9, 23.8), (-3, 25.4), (3.2, 25.1), (7, 23.6),
        (6.6, 17), (6, 11), (6.6, 6), (5.2, 1.2), (0.4, -1), (-4.6, 0.3)),
    "Hamate": ((5.8, 23.4), (13, 23.2), (18.8, 21.2), (22.4, 17), (19.2, 11.4), (13.4, 4.4), (8.8, 0), (5.8, 3.4),
        (5.2, 11), (5.4, 18)),
    "Scaphoid": ((-13.8, 13.4), (-19.6, 13.2), (-23.8, 9.6), (-22.4, 4.2), (-20, -2.2), (-16, -7.6), (-10.6, -10.4),
        (-5, -10), (-3.2, -6.2), (-6, -1), (-7.6, 5), (-9.6, 10.4)),
    "Lunate": ((-4.6, -2.8), (0.6, -2.4), (5.6, -0.2), (9.2, 1.2), (11.6, -3.2), (11.2, -10.2), (6.4, -14.8),
        (0, -14.6), (-5.4, -10.6)),
    "Triquetrum": ((10.8, 1.2), (14.2, 6), (19.4, 10.4), (23.6, 8), (24, 0.6), (20.4, -7), (14.4, -8.6), (10.6, -5)),
    "Pisiform": ((19, 6.8), (22.9, 5.6), (25.3, 1.7), (24.3, -3.1), (20.4, -5.3), (16.3, -3.6), (14.2, 0.6), (15.6, 5)),
}
ARM = {
    "Radius": ((-26, -3.4), (-22, -5.2), (-14, -9.8), (-5, -13.4), (3.5, -14.8), (9.2, -15), (10.2, -19), (8.2, -25.5),
        (3, -38), (-0.6, -58), (-1.6, -85), (-1.4, -120), (-1.4, -170), (-13.8, -170), (-13.8, -120), (-14.6, -85),
        (-16.6, -58), (-21, -36), (-25.2, -20), (-27, -10)),
    "Ulna": ((12, -20), (15.6, -18.2), (20, -18), (22.2, -15.6), (24, -12.4), (25.6, -15.2), (25.8, -21.5), (24, -30),
        (22, -45), (21.3, -75), (21.8, -120), (22.4, -170), (11.4, -170), (11.2, -120), (11.4, -75), (12.5, -45),
        (13, -32), (11.6, -25.6)),
}
"""Control points (mm). The forearm's bones reach beyond the lower border of any image."""
# fmt: on


@dataclass
class Hand:
    """Bones and soft tissue of one hand, in any length unit; points are (x, y).

    outlines: float (n, 2) by class. axes: each bone's line from base to tip, (2, 2), by class. sesamoids: outlines
    (n, 2) of small bones that have no class. flesh: lines (k, 2), each with half the width of the soft tissue (k,).
    mm: one millimetre in this unit. collimation: corners (4, 2) of the exposed field; (0, 2) until it is set.
    """

    outlines: dict[str, np.ndarray] = field(default_factory=dict)
    axes: dict[str, np.ndarray] = field(default_factory=dict)
    sesamoids: list[np.ndarray] = field(default_factory=list)
    flesh: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)
    mm: float = 1.0
    collimation: np.ndarray = field(default_factory=lambda: np.zeros((0, 2)))

    def move(self, transform: Callable[[np.ndarray], np.ndarray]) -> None:
        """Apply `transform` ((n, 2) -> (n, 2)) to every point."""
        self.outlines = {name: transform(points) for name, points in self.outlines.items()}
        self.axes = {name: transform(points) for name, points in self.axes.items()}
        self.sesamoids = [transform(points) for points in self.sesamoids]
        self.flesh = [(transform(points), widths) for points, widths in self.flesh]
        self.collimation = transform(self.collimation)


class Variation:
    """Random numbers for shapes: a large part is the same for both hands of a person, a small part is this hand's."""

    def __init__(self, shape: tuple[int, ...], rng: np.random.Generator):
        """The person's numbers come from the seed `shape`, those of this hand from `rng`."""
        self.shape, self.rng = np.random.default_rng(shape), rng

    def __call__(self, spread: float, size: int | tuple[int, ...] | None = None) -> np.ndarray:
        """Normally distributed numbers with mean 0 and standard deviation `spread`, limited to ±2.4 · spread."""
        draws = 0.92 * self.shape.normal(size=size) + 0.39 * self.rng.normal(size=size)
        return spread * np.clip(draws, -2.4, 2.4)


def normal(rng: np.random.Generator, mean: float, spread: float) -> float:
    """One normally distributed number, limited to 2.4 standard deviations from `mean`."""
    return mean + spread * float(np.clip(rng.normal(), -2.4, 2.4))


def turn(points: np.ndarray, degrees: float, centre: tuple[float, float] = (0, 0)) -> np.ndarray:
    """`points` (n, 2) rotated about `centre`, clockwise if y points up."""
    c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    return (points - np.array(centre)) @ np.array([[c, -s], [s, c]]) + centre


def bone_outline(control: np.ndarray, vary: Variation, count: int = 96) -> np.ndarray:
    """A closed smooth curve, float (count, 2), through the control points (n, 2) in mm, with small irregularities."""
    closed = np.vstack([control, control[:1]])
    steps = np.hypot(*np.diff(closed, axis=0).T) ** 0.6
    position = np.concatenate([[0], np.cumsum(steps)]) / steps.sum()
    curve = CubicSpline(position, closed, bc_type="periodic")(np.arange(4 * count + 1) / (4 * count))
    walked = np.concatenate([[0], np.cumsum(np.hypot(*np.diff(curve, axis=0).T))])
    even = np.arange(count) / count * walked[-1]
    curve = np.stack([np.interp(even, walked, c) for c in curve.T], axis=1)
    tangent = np.roll(curve, -1, axis=0) - np.roll(curve, 1, axis=0)
    outwards = np.stack([tangent[:, 1], -tangent[:, 0]], axis=1) / np.hypot(*tangent.T)[:, None]
    harmonics = np.arange(2, 9)
    wave = np.cos(2 * np.pi * np.arange(count)[:, None] / count * harmonics + vary(3, 7))
    height = 0.13 * min(1, walked[-1] / 70)
    return curve + outwards * (wave @ (vary(height, 7) / np.sqrt(harmonics / 3)))[:, None]


def add_digits(hand: Hand, vary: Variation, rng: np.random.Generator) -> None:
    """Add the 19 finger bones in a random pose: fingers more or less spread, joints slightly bent."""
    spread = normal(rng, 1.15, 0.6)
    lean = normal(rng, 0, 2.5)
    for digit, names in enumerate(DIGITS):
        fan = normal(rng, 1.5, 8) if digit == 0 else 0.6 * spread * (digit - 2)
        angle = DIRECTIONS[digit] + vary(1.2) + fan
        position = np.array(BASES[digit]) + vary(0.5, 2)
        size = 1 + vary(0.02)
        line, widths = [position], [13.0]
        for joint, name in enumerate(names):
            angle += _deviation(digit, joint, spread, lean, rng) if joint else 0
            flexion = 1 - (abs(normal(rng, 0, 0.02)) if joint else 0)
            length = LENGTHS[digit][joint] * size * (1 + vary(0.018)) * flexion
            half = WIDTHS[digit][joint] * (1 + vary(0.035))
            control = _finger_bone(digit, joint, half, length, vary)
            hand.outlines[name] = turn(bone_outline(control, vary), angle) + position
            hand.axes[name] = ends = turn(np.array([[0, 0], [0, length]]), angle) + position
            if digit == joint == 0:
                _add_sesamoids(hand, position, angle, length, rng)
            gap = (1.6 if joint == 0 else 1.2) - 12 * (1 - flexion) + vary(0.2)
            line.append(ends[1])
            widths.append(half + (5.2, 3.4, 3.0, 2.4)[joint])
            position = ends[1] + turn(np.array([[0, gap]]), angle)[0]
        line[-1] = turn(np.array([[0, length - 1.6]]), angle)[0] + ends[0]
        widths[-1] = WIDTHS[digit][-1] + 1.5
        hand.flesh.append((np.array(line), np.array(widths)))


def _deviation(digit: int, joint: int, spread: float, lean: float, rng: np.random.Generator) -> float:
    """The angle in degrees between a finger bone and the one before it."""
    noise = normal(rng, 0, 2)
    if digit == 0:
        return (12, 4)[joint - 1] + 2.5 * noise
    if joint == 1:
        return spread * (digit - 2.2) * 4 + (0, 1.5, 0, -1.5, -3)[digit] + lean + noise
    return noise + (0, 1, -0.5, -1.5, -2)[digit]


def _finger_bone(digit: int, joint: int, half: float, length: float, vary: Variation) -> np.ndarray:
    """Control points (n, 2) in mm of one finger bone whose base is at the origin; each metacarpal has its own base."""
    right = np.array(PROFILES[digit][joint], dtype=float)
    control = np.vstack([right, right[1:-1][::-1] * (-1, 1)])
    control = (control + vary(0.022, control.shape) * (1, 0.25)) * (half, length)
    if joint == 0 and digit == 0:  # a saddle
        control[:4] += np.array([(0, 1.2), (0, -1.2), (0, -1.2), (0, -1.2)])
    elif joint == 0 and digit == 1:  # a notch for the trapezoid
        control[:4] += np.array([(-1, 2.2), (0.4, 1), (0.4, 1), (0.4, 1)])
    elif joint == 0 and digit == 2:  # the styloid process
        control[-3:] += np.array([(-0.3, 2.4), (-0.3, 0.2), (-0.3, -0.8)])
    elif joint == 0 and digit == 4:  # the tubercle on the outer side
        control[1:4] += np.array([(0, -1), (1.2, -1.2), (1, 0)])
    return control


def _add_sesamoids(hand: Hand, base: np.ndarray, angle: float, length: float, rng: np.random.Generator) -> None:
    """Add no, one or two small round bones at the head of the thumb's metacarpal."""
    around = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    for x in (6.3, -2.0)[: rng.choice(3, p=(0.45, 0.3, 0.25))]:
        shape = np.stack([np.cos(around) * rng.uniform(1.9, 2.5), np.sin(around) * rng.uniform(2.3, 3.1)], axis=1)
        place = (x + normal(rng, 0, 0.6), length - 2.5 + normal(rng, 0, 0.6))
        hand.sesamoids.append(turn(shape + place, angle) + base)


def add_carpals(hand: Hand, vary: Variation, names: tuple[str, ...], stretch: float = 1.0) -> None:
    """Add the carpal bones `names`. `stretch` scales the length of the scaphoid, which looks shorter or longer in a
    bent hand; 1 leaves it as it is."""
    for name in names:
        control = np.array(CARPALS[name], dtype=float)
        centre = control.mean(axis=0)
        shape = (control - centre) * (1 + vary(0.03, 2)) + vary(0.3, control.shape)
        place = centre + (vary(0.9, 2) if name == "Pisiform" else vary(0.35, 2))
        if name == "Scaphoid":
            shape = turn(turn(shape, 40) * (1, stretch), -40)
            place = place + np.array([-3, 4]) * (stretch - 1)
        hand.outlines[name] = turn(bone_outline(shape, vary), vary(2.0)) + place
        hand.axes[name] = place + np.array([[0, -8], [0, 8.0]])


def add_forearm(hand: Hand, vary: Variation) -> None:
    """Add radius and ulna with the soft tissue of the forearm."""
    for name, points in ARM.items():
        control = np.array(points, dtype=float)
        control = (control + vary(0.3, control.shape)) * (1 + vary(0.025), 1) + vary(0.5, 2)
        hand.outlines[name] = bone_outline(control, vary, 220)
        middle = control[control[:, 1] < -60, 0].mean()
        hand.axes[name] = np.array([[middle, -175], [middle, control[:, 1].max()]])
    for x, width in ((-9, 19.5), (1, 20), (14, 17.5)):
        line = np.array([[x, -8], [x, -30], [x, -70], [x, -180.0]])
        hand.flesh.append((line, width * (1 + vary(0.03)) + np.array([0, 0, 2.5, 6])))
