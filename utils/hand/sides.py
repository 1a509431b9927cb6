"""Right or left: the side of a hand by the places of its bones."""

import numpy as np
import pandas as pd

SIDES = [
    *(("finger-1", "finger-16"), ("finger-3", "finger-19"), ("finger-4", "finger-12"), ("finger-7", "finger-15")),
    *(("Trapezium", "Hamate"), ("Scaphoid", "Triquetrum"), ("Radius", "Ulna")),
]
"""Pairs of bones, the first on the thumb's side. In a right hand with its fingers upwards, the thumb is on the left."""
FINGERS, FOREARM = [f"finger-{i}" for i in range(4, 20)], ["Radius", "Ulna"]
CLEARLY = 0.3
"""A pair shows the side of a hand if the sine of the angle between it and the hand's direction is larger than this."""


def hand_sides(shapes: pd.DataFrame) -> tuple[pd.Series, pd.DataFrame]:
    """The side of each hand, and what each pair of SIDES shows: 1 for right, -1 for left, 0 if it is not to be told.

    The side of a pair is the sign of the angle between the line from its first to its second bone and the hand's
    direction, from the forearm to the fingers (upwards if one is missing), so that bent and turned hands are judged
    like others. The side of the hand is that of most pairs. `shapes`: image_name, class, x and y of the centroids.
    """
    names = list(dict.fromkeys(["finger-1", *FINGERS, *FOREARM, *(name for pair in SIDES for name in pair)]))
    places = shapes.set_index(["image_name", "class"])
    x, y = (places[axis].unstack().reindex(columns=names) for axis in "xy")  # noqa: PD010
    up_x, up_y = ((values[FINGERS].mean(axis=1) - values[FOREARM].mean(axis=1)) for values in (x, y))
    up_x, up_y = up_x.fillna(0.0), up_y.fillna(-1.0)
    votes = {}
    for thumb, little in SIDES:
        across_x, across_y = x[little] - x[thumb], y[little] - y[thumb]
        sine = (up_x * across_y - up_y * across_x) / np.hypot(up_x, up_y) / np.hypot(across_x, across_y)
        votes[thumb, little] = np.sign(sine.where(sine.abs() > CLEARLY, 0.0)).fillna(0.0)
    votes = pd.DataFrame(votes)
    return np.sign(votes.sum(axis=1)), votes
