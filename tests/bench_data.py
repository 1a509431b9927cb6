"""Benchmarks of the data report; `tests/bench.py` runs them."""

import json
import tempfile
from pathlib import Path

import cv2
import numpy as np

from tests.bench_masks import AREAS, SIZE, bone_shapes
from tests.bench_tools import side_by_side
from utils.analysis.survey import crossing_loop
from utils.data.cache import read_image
from utils.data.check import check_data
from utils.data.competition import HAND_BONES, read_index

TRAIN, TEST = 800, 288
"""Images of the competition's data, two of each person."""


def outlines(rng: np.random.Generator, points: int = 100) -> list[dict]:
    """29 ellipses as annotations of `points` points each."""
    turn = np.linspace(0, 2 * np.pi, points, endpoint=False)
    found = []
    for label, (cy, cx, a, b, _) in zip(HAND_BONES, bone_shapes(rng, AREAS), strict=True):
        around = np.rint(np.column_stack([cx + b * np.cos(turn), cy + a * np.sin(turn)])).astype(int)
        found.append({"type": "poly_seg", "attributes": {}, "label": label, "points": around.tolist()})
    return found


def make_data(folder: Path) -> Path:
    """As many images and annotations as the competition has; the pictures are flat, so that their files are small."""
    picture = cv2.imencode(".png", np.full(SIZE, 90, np.uint8))[1].tobytes()
    annotation = json.dumps({"annotations": outlines(np.random.default_rng(0))})
    for number in range(TRAIN + TEST):
        split, person = ("train" if number < TRAIN else "test"), f"ID{number // 2:03}"
        for kind, ending, content in (("DCM", "png", picture), ("outputs_json", "json", annotation.encode())):
            if (split, kind) != ("test", "outputs_json"):
                path = folder / split / kind / person / f"image{number}.{ending}"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
    return folder


def data_report() -> list[dict]:
    """All files of a data set like the competition's; a dense outline beside the decoding of its image."""
    with tempfile.TemporaryDirectory() as name:
        folder = make_data(Path(name))
        images = TRAIN + TEST
        report = side_by_side("data report of 1,088 images", lambda: check_data(folder, 5), repeats=3)
        report["note"] = f"{images / report['ours_s']:.0f} images/s: checksums of all chunks, 800 × 29 polygons"
        index = side_by_side("index of 1,088 images", lambda: read_index(folder), repeats=3)
        index["note"] = f"{images / index['ours_s']:.0f} images/s: structure of the files only"

        rng = np.random.default_rng(0)
        dense = Path(name, "dense")
        for split in ("train", "test"):
            path = dense / split / "DCM" / f"ID{split}" / f"{split}.png"
            path.parent.mkdir(parents=True)
            noise = cv2.GaussianBlur(rng.integers(0, 256, SIZE, np.uint8), (0, 0), 2)
            cv2.imwrite(str(path), noise)
        path = dense / "train" / "outputs_json" / "IDtrain" / "train.json"
        path.parent.mkdir(parents=True)
        turn = np.linspace(0, 2 * np.pi, 10_000, endpoint=False)
        around = 1024 + (900 + 20 * np.sin(300 * turn))[:, None] * np.column_stack([np.cos(turn), np.sin(turn)])
        (dense / "classes.txt").write_text("bone\n")
        path.write_text(json.dumps({"annotations": [{"label": "bone", "points": around.tolist()}]}))
        image = dense / "train" / "DCM" / "IDtrain" / "train.png"
        checked = side_by_side(
            "report, an outline of 10,000 points", lambda: check_data(dense), lambda: read_image(image), repeats=9
        )
        checked["note"] = "both images' files included; reference: decoding one of them"
        points = np.rint(around).astype(np.int32)
        crossing = side_by_side(
            "does it cross itself? (EDA)", lambda: crossing_loop(points), lambda: read_image(image), repeats=9
        )
        crossing["note"] = "reference: decoding the image"
    return [report, index, checked, crossing]
