"""A small data folder whose images are not square, and helpers, for the tests of other formats."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from utils.data.competition import read_annotation, read_classes, read_index
from utils.files import ROOT
from utils.formats import coco
from utils.masks.labels import draw

CLASSES = ["b", "a"]
SIZES = {"ID1/one.png": (60, 90), "ID1/two.png": (90, 60), "ID2/three.png": (50, 50)}
POLYGONS = {
    "one": {
        "b": [[[5, 5], [30, 8], [12, 40]], [[50, 50], [80, 50], [80, 57], [50, 57]]],
        "a": [[[8, 9], [40, 9], [9, 30]]],
    },
    "two": {"a": [[[0, 0], [59, 0], [59, 89], [0, 89]]], "b": [[[2.4, 2.6], [20.5, 3.2], [4, 33.7]]]},
    "three": {"a": [[[30, 30], [70, 30], [70, 45], [30, 45]]]},
}  # several polygons, a class that is absent, fractions, a polygon that leaves the image


def make_folder(folder):
    """A data folder with three images that are not square, of two people, with two classes."""
    for name, (height, width) in SIZES.items():
        ID, stem = Path(name).parent, Path(name).stem
        image = folder / "train/DCM" / name
        annotation = folder / "train/outputs_json" / ID / f"{stem}.json"
        for path in (image, annotation):
            path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((height, width), len(name), np.uint8)).save(image)
        shapes = [{"label": c, "points": points} for c, parts in POLYGONS[stem].items() for points in parts]
        annotation.write_text(json.dumps({"annotations": shapes}))
    (folder / "classes.txt").write_text("b\na\n")
    return folder


def polygons_of(folder):
    """The polygons of every training image by its name."""
    classes = read_classes(folder)
    table = read_index(folder, ("train",))
    return {row.image_name: read_annotation(row.annotation, classes) for row in table.itertuples()}


def masks_of(folder):
    sizes = {row.image_name: (row.height, row.width) for row in read_index(folder, ("train",)).itertuples()}
    found = polygons_of(folder)
    return {(name, c): draw(parts, sizes[name]) for name, image in found.items() for c, parts in image.items()}


def assert_same_polygons(one, other):
    one, other = polygons_of(one), polygons_of(other)
    assert one.keys() == other.keys()
    for name, image in one.items():
        for label, parts in image.items():
            assert len(parts) == len(other[name][label])
            for a, b in zip(parts, other[name][label], strict=True):
                assert np.abs(a - b).max() <= 0.5


def run(*arguments, cwd=ROOT):
    command = [sys.executable, "-m", "utils.formats", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, env={"PYTHONPATH": str(ROOT)})


def export(data, path, **changes):
    """The data folder as COCO, changed by functions of its lists."""
    coco.to_coco(data, path)
    content = json.loads(path.read_text())
    for key, change in changes.items():
        content[key] = [change(entry) for entry in content[key]]
    path.write_text(json.dumps(content))
    return path
