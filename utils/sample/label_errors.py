"""Plant the label errors that are known in the competition's data, so that a check of the labels can be measured."""

from itertools import permutations

import numpy as np
import shapely

from utils.sample.bones import PROXIMAL_ROW

REVERSED = {
    **{"finger-1": "finger-3", "finger-3": "finger-1", "Radius": "Ulna", "Ulna": "Radius"},
    **{"Trapezium": "Hamate", "Hamate": "Trapezium", "Trapezoid": "Capitate", "Capitate": "Trapezoid"},
    **{"Scaphoid": "Pisiform", "Triquetrum": "Scaphoid", "Lunate": "Triquetrum", "Pisiform": "Lunate"},
}
"""The label that each bone gets in a hand labelled in reverse, as in ID058/image1661392103627."""
RINGED = "finger-14"
REVERSED_HAND, CARPALS, RING, PISIFORM = "reversed hand", "exchanged carpals", "ring in finger-14", "Pisiform on Ulna"
KINDS = (REVERSED_HAND, CARPALS, RING, PISIFORM)

Polygons = dict[str, np.ndarray]


def plant(kind: str, polygons: Polygons, ring: np.ndarray, rng: np.random.Generator) -> tuple[Polygons, dict[str, str]]:
    """The polygons of one image, int32 (n, 2) by class, with one error of `kind`, one of KINDS.

    ring: outline (n, 2) of the ring in the image, in pixels.

    Returns:
        The wrong polygons, and what is wrong: the class that a bone really is, by its label; a class is its own value
        where only its outline is wrong.
    """
    if kind == RING:
        joined = shapely.union(shapely.make_valid(shapely.polygons(polygons[RINGED])), shapely.polygons(ring))
        largest = max(shapely.get_parts(joined), key=shapely.area)
        outline = np.rint(shapely.get_coordinates(largest.exterior)[:-1]).astype(np.int32)
        return polygons | {RINGED: outline}, {RINGED: RINGED}
    if kind == PISIFORM:
        ulna, pisiform = polygons["Ulna"], polygons["Pisiform"]
        if rng.random() < 0.5:
            return polygons | {"Pisiform": ulna.copy()}, {"Pisiform": "Pisiform"}
        head = ulna[ulna[:, 1] < np.quantile(ulna[:, 1], rng.uniform(0.2, 0.6))].mean(axis=0)
        moved = np.rint(pisiform - pisiform.mean(axis=0) + head).astype(np.int32)
        # the forearm reaches the lower border: the Ulna's largest coordinate is the square image's last pixel
        return polygons | {"Pisiform": np.clip(moved, 0, ulna.max())}, {"Pisiform": "Pisiform"}
    label = REVERSED
    if kind == CARPALS:  # which ones were exchanged in ID325/image1664846270124 is not known
        others = [order for order in permutations(PROXIMAL_ROW) if order != PROXIMAL_ROW]
        label = dict(zip(PROXIMAL_ROW, others[rng.integers(len(others))], strict=True))
        label = {bone: name for bone, name in label.items() if bone != name}
    renamed = {label.get(bone, bone): points for bone, points in polygons.items()}
    return {name: renamed[name] for name in polygons}, {name: bone for bone, name in label.items()}
