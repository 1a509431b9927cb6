"""Render the X-ray image of a synthetic hand: the attenuation of every ray, then exposure, noise and display.

The attenuation follows Beer-Lambert's law: Σ coefficient × path length over soft tissue, cortical and trabecular bone
and metal, so bones that overlap are brighter. Soft tissue is smooth, so at most 512 × 512 pixels are computed for it.
"""

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

from utils.sample.bones import DISTAL_ROW, FOREARM, PROXIMAL_ROW, Hand, turn
from utils.sample.hand import Person

TISSUE, MARROW, CORTEX = 0.024, 0.036, 0.09
"""Attenuation per mm at about 50 kVp: soft tissue, and what trabecular and cortical bone add to it."""
METAL = 2.2
"""Attenuation of a ring or plate, as a whole."""


@dataclass
class Raster:
    """A grid of `size` × `size` pixels on the image; `mm` is the number of pixels per millimetre of the hand."""

    size: int
    mm: float

    def pixels(self, points: np.ndarray) -> np.ndarray:
        """Image coordinates (image widths) as pixel coordinates, whole numbers at pixel centres."""
        return points * self.size - 0.5


def render(
    hand: Hand,
    person: Person,
    rng: np.random.Generator,
    size: int,
    add: Callable[[np.ndarray, Raster], None] | None = None,
) -> np.ndarray:
    """The radiograph of `hand`: uint8 (size, size), bones bright on a dark background.

    `add` may change the attenuation, float32 (size, size), before it is exposed.
    """
    full, low = Raster(size, hand.mm * size), Raster(min(size, 512), hand.mm * min(size, 512))
    tissue = soft_tissue(hand, low)
    smooth = TISSUE * (0.92 + 0.004 * (person.weight_kg - 62)) * tissue
    if person.nail_art:
        _add_nails(smooth, hand, low, rng)
    bones = _bones(hand, full, rng)
    both = smooth + cv2.resize(bones, smooth.shape, interpolation=cv2.INTER_AREA)
    smooth -= 0.3 * cv2.GaussianBlur(both, (0, 0), 9 * low.mm)  # as detectors do: weaken slow changes
    attenuation = cv2.resize(smooth, (size, size), interpolation=cv2.INTER_CUBIC) + bones
    _add_ring(attenuation, hand, person, full, rng)
    if add:
        add(attenuation, full)
    return _expose(attenuation, hand, full, rng)


def soft_tissue(hand: Hand, grid: Raster) -> np.ndarray:
    """Thickness of the soft tissue in mm, float32 (size, size): round towards all sides, 0 outside the hand."""
    mask = np.zeros((grid.size, grid.size), np.uint8)
    for line, radii in hand.flesh:
        points, radii = grid.pixels(line), radii * grid.size
        for a, b, ra, rb in zip(points, points[1:], radii, radii[1:], strict=False):
            _capsule(mask, a, b, ra, rb)
    palm = [hand.axes[f"finger-{i}"] for i in (3, 7, 11, 15, 19)]
    heads = [palm[0][0] + 0.75 * (palm[0][1] - palm[0][0]), *(axis[1] for axis in palm[1:])]
    base = [hand.outlines["Triquetrum"].mean(axis=0), hand.outlines["Scaphoid"].mean(axis=0)]
    web = heads[0] * 0.3 + (palm[1][0] * 0.35 + palm[1][1] * 0.65) * 0.7
    fill(mask, grid.pixels(np.array([heads[0], web, *heads[1:], palm[4][0], *base])))
    for a, b in ((base[0], palm[4][0]), (base[1], palm[0][0]), (base[0], base[1])):
        _capsule(mask, grid.pixels(a), grid.pixels(b), 11.5 * grid.mm, 11.5 * grid.mm)
    edge = cv2.GaussianBlur(mask.astype(np.float32), (0, 0), 2.0 * grid.mm)
    depth = cv2.distanceTransform((edge > 122).astype(np.uint8), cv2.DIST_L2, 5) / grid.mm
    depth = cv2.GaussianBlur(depth, (0, 0), 0.9 * grid.mm)
    return cv2.GaussianBlur(_chord(depth, 13.5), (0, 0), 0.6 * grid.mm)


def _capsule(mask: np.ndarray, a: np.ndarray, b: np.ndarray, ra: float, rb: float) -> None:
    angles = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    circle = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    points = np.vstack([a + circle * ra, b + circle * rb]).astype(np.float32)
    fill(mask, cv2.convexHull(points)[:, 0])


def fill(mask: np.ndarray, points: np.ndarray) -> None:
    """Draw a polygon, float (n, 2) in pixels, with smooth edges: 255 in `mask`, uint8."""
    cv2.fillPoly(mask, [np.rint(points * 16).astype(np.int32)], 255, cv2.LINE_AA, 4)


def _bones(hand: Hand, grid: Raster, rng: np.random.Generator) -> np.ndarray:
    """Attenuation of the bones, float32 (size, size)."""
    total = np.zeros((grid.size, grid.size), np.float32)
    half = max(grid.size // 2, 64)
    grain = rng.standard_normal((half, half), dtype=np.float32)
    texture = cv2.GaussianBlur(grain, (0, 0), max(0.16 * grid.mm / 2, 0.5))
    texture += 1.2 * cv2.GaussianBlur(grain, (0, 0), max(0.4 * grid.mm / 2, 0.6))
    texture = cv2.resize(texture / texture.std(), (grid.size, grid.size), interpolation=cv2.INTER_LINEAR)
    density = np.clip(rng.normal(1.0, 0.08), 0.8, 1.2)
    for name, points in hand.outlines.items():
        kind = "forearm" if name in FOREARM else "short" if name in DISTAL_ROW + PROXIMAL_ROW else "finger"
        _add_bone(total, texture, grid, points, hand.axes[name], kind, density)
    hamate = hand.outlines["Hamate"]
    hook = 0.3 * hamate + 0.64 * hamate.mean(axis=0) + 0.06 * hand.outlines["finger-19"].mean(axis=0)
    for points, share in [(hook, 0.4), *((points, 1.0) for points in hand.sesamoids)]:
        _add_bone(total, texture, grid, points, np.zeros((2, 2)), "short", share * density)
    return total


def _add_bone(
    total: np.ndarray, texture: np.ndarray, grid: Raster, points: np.ndarray, axis: np.ndarray, kind: str, share: float
) -> None:
    """Add one bone: a round body of trabecular bone in a shell of cortex, thick along a shaft, thin at its ends."""
    points = grid.pixels(points)
    margin = int(2 * grid.mm) + 3
    x0, y0 = np.maximum(np.floor(points.min(axis=0)).astype(int) - margin, 0)
    x1, y1 = np.minimum(np.ceil(points.max(axis=0)).astype(int) + margin, grid.size)
    mask = np.zeros((y1 - y0 + 2 * margin, x1 - x0), np.uint8)  # room below: no edge where the image ends
    points = points - (x0, y0)
    if kind == "forearm":
        points = points + (points[:, 1:] > points[:, 1].max() - 1) * (0, 4 * margin)
    fill(mask, points)
    depth = cv2.distanceTransform((mask > 127).astype(np.uint8), cv2.DIST_L2, 5)[: y1 - y0]
    cover = cv2.GaussianBlur(mask, (0, 0), max(0.1 * grid.mm, 0.4))[: y1 - y0].astype(np.float32) / 255
    depth = cv2.GaussianBlur(depth, (0, 0), max(0.12 * grid.mm, 0.4)) / grid.mm
    shaft = np.zeros((1, 1), np.float32) if kind == "short" else _shaft(axis, kind, grid, (x0, y0, x1, y1))
    body = max(min(float(depth.max()), 7.5) * 0.92, 0.5)
    shell = np.minimum(0.55 + (2.0 if kind == "forearm" else 1.25) * shaft, 0.45 * body)
    outer, inner = _chord(depth, body), _chord(np.maximum(depth - shell, 0), body)
    inner *= np.maximum(body - shell, 0) / body
    trabeculae = 1 + (0.11 - 0.06 * shaft) * texture[y0:y1, x0:x1]
    marrow = MARROW * (1 - 0.6 * shaft) * inner * trabeculae * (0.85 if kind == "short" else 1)
    plate = 0.05 * np.exp(-np.square((depth - 0.5) / 0.45)) * (1 - shaft)
    total[y0:y1, x0:x1] += share * cover * (CORTEX * (outer - inner) + marrow + plate)


def _chord(depth: np.ndarray, radius: float) -> np.ndarray:
    return 2 * np.sqrt(np.maximum(radius**2 - np.square(radius - np.minimum(depth, radius)), 0))


def _shaft(axis: np.ndarray, kind: str, grid: Raster, box: tuple[int, int, int, int]) -> np.ndarray:
    """1 along a long bone's shaft, 0 at its ends: float32, one value per pixel of the box (x0, y0, x1, y1)."""
    x0, y0, x1, y1 = box
    base, tip = grid.pixels(axis)
    along = (tip - base) / np.square(tip - base).sum()
    x = (np.arange(x0, x1, dtype=np.float32) - np.float32(base[0])) * np.float32(along[0])
    y = (np.arange(y0, y1, dtype=np.float32) - np.float32(base[1])) * np.float32(along[1])
    t = x[None] + y[:, None]
    start, end = (-1.0, 0.8) if kind == "forearm" else (0.2, 0.8)
    ramp = np.clip(np.minimum(t - start, end - t) / np.float32(0.22) + 0.5, 0, 1)
    return ramp * ramp * (3 - 2 * ramp)


def _add_nails(smooth: np.ndarray, hand: Hand, grid: Raster, rng: np.random.Generator) -> None:
    """Add decorated nails: plates over the finger tips that absorb a little."""
    for tip in (1, 4, 8, 12, 16):
        base, end = hand.axes[f"finger-{tip}"]
        centre, along = grid.pixels(base * 0.18 + end * 0.82), (end - base)
        angle = float(np.rad2deg(np.arctan2(along[1], along[0])))
        plate = np.zeros(smooth.shape, np.uint8)
        axes = (rng.uniform(6.2, 8.5) * grid.mm, rng.uniform(3.8, 4.8) * grid.mm)
        oval = cv2.ellipse2Poly((0, 0), (1000, 1000), 0, 0, 360, 10) / 1000 * axes
        fill(plate, turn(oval, -angle) + centre)
        smooth += plate.astype(np.float32) * (rng.uniform(0.05, 0.2) / 255)


def _add_ring(attenuation: np.ndarray, hand: Hand, person: Person, grid: Raster, rng: np.random.Generator) -> None:
    """Add a ring around a finger's proximal phalanx, if the person wears one."""
    if not person.ring or rng.random() < 0.4:
        return
    add_metal(attenuation, [ring_outline(hand, f"finger-{rng.choice((6, 10, 14, 14, 14, 18))}", rng)], grid)


def ring_outline(hand: Hand, name: str, rng: np.random.Generator) -> np.ndarray:
    """The outline (50, 2) of a ring around the finger bone `name`, in image widths."""
    base, tip = hand.axes[name]
    along = (tip - base) / np.hypot(*(tip - base))
    across = np.array([-along[1], along[0]])
    centre = base + (tip - base) * rng.uniform(0.35, 0.5)
    half, height, arch = rng.uniform(9.0, 10.2) * hand.mm, rng.uniform(1.2, 2.6) * hand.mm, rng.uniform(-2, 2) * hand.mm
    x = np.linspace(-1, 1, 25)[:, None]
    upper = centre + across * half * x + along * (height + arch * x**2)
    lower = centre + across * half * x + along * (-height + arch * x**2)
    return np.vstack([upper, lower[::-1]])


def add_metal(attenuation: np.ndarray, outlines: list[np.ndarray], grid: Raster) -> None:
    """Add flat metal with these outlines (n, 2), in image widths, to the attenuation; where they overlap, once."""
    metal = np.zeros(attenuation.shape, np.uint8)
    for outline in outlines:
        fill(metal, grid.pixels(outline))
    attenuation += metal.astype(np.float32) * (METAL / 255)


def _expose(attenuation: np.ndarray, hand: Hand, grid: Raster, rng: np.random.Generator) -> np.ndarray:
    """The grey image, uint8 (size, size), that a detector makes of the attenuation, with its noise."""
    size = grid.size
    attenuation = cv2.GaussianBlur(attenuation, (0, 0), max(0.11 * grid.mm, 0.35))
    noise = cv2.GaussianBlur(rng.standard_normal((size, size), dtype=np.float32), (0, 0), 0.6) * np.float32(2.2)
    grain = rng.uniform(0.006, 0.014) * np.sqrt(size / 2048)
    attenuation += noise * np.float32(grain) * cv2.exp(np.minimum(attenuation, 4) * 0.5)
    heel = np.linspace(-1, 1, size, dtype=np.float32) * np.float32(rng.normal(0, 0.02))
    attenuation += heel[:, None]
    black, white = rng.uniform(0.04, 0.14), rng.uniform(1.25, 1.75)
    grey = np.clip((attenuation - np.float32(black)) / np.float32(white - black), 0, 1)
    grey = cv2.pow(grey, float(rng.uniform(0.75, 1.05)))
    grey *= np.float32(1.45) - np.float32(0.45) * grey  # the film's shoulder
    grey = grey * np.float32(rng.uniform(215, 250)) + np.float32(rng.uniform(1, 7) + rng.exponential(3))
    _add_marker(grey, hand, grid, rng)
    window = np.zeros((size, size), np.uint8)
    fill(window, grid.pixels(hand.collimation))
    window = cv2.GaussianBlur(window, (0, 0), max(0.25 * grid.mm, 0.5)).astype(np.float32) / 255
    return np.clip(np.rint(grey * window), 0, 255).astype(np.uint8)


def _add_marker(grey: np.ndarray, hand: Hand, grid: Raster, rng: np.random.Generator) -> None:
    """Add the letter of the side to about half of the images."""
    if rng.random() < 0.5:
        return
    thumb, little = (hand.outlines[f"finger-{i}"][:, 0].mean() for i in (1, 16))
    left, right = hand.collimation[:, 0].min(), hand.collimation[:, 0].max()
    letter, x = ("R", min(right, 1) - 0.06) if thumb < little else ("L", max(left, 0) + 0.03)
    y = max(hand.collimation[:2, 1].max(), 0) + rng.uniform(0.05, 0.10)
    scale, weight = grid.size / 2048 * 2.6, max(1, round(grid.size / 2048 * 9))
    place = (int(x * grid.size), int(y * grid.size))
    cv2.putText(grey, letter, place, cv2.FONT_HERSHEY_SIMPLEX, scale, 225, weight, cv2.LINE_AA)
