"""Benchmarks of the other formats; `tests/bench.py` runs them."""

import io
import json
import shutil
import tempfile
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from tests.bench_tools import side_by_side
from utils.data.competition import HAND_BONES
from utils.formats.coco import to_coco
from utils.formats.yolo_dataset import to_yolo

IMAGES, POINTS, SIDE = 800, 101, 2048
"""As many training images as the competition has, and about as many points in a polygon as the sample's."""


def hand_folder(folder: Path) -> Path:
    """A data folder with black images, all one file, and 29 polygons each."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    png = io.BytesIO()
    Image.new("L", (SIDE, SIDE)).save(png, "PNG")
    (folder / "image.png").write_bytes(png.getvalue())
    for number in range(IMAGES):
        ID, stem = f"ID{number // 2:03}", f"image{number:06}"
        image, annotation = (folder / f"train/{kind}/{ID}" for kind in ("DCM", "outputs_json"))
        image.mkdir(parents=True, exist_ok=True)
        annotation.mkdir(parents=True, exist_ok=True)
        (image / f"{stem}.png").hardlink_to(folder / "image.png")
        shapes = []
        for name in HAND_BONES:
            angle = np.sort(rng.uniform(0, 2 * np.pi, POINTS))
            circle = np.column_stack([np.cos(angle), np.sin(angle)]) * rng.uniform(30, 150)
            points = np.rint(circle + rng.uniform(200, SIDE - 200, 2)).astype(int)
            shapes.append({"type": "poly_seg", "attributes": {}, "points": points.tolist(), "label": name})
        (annotation / f"{stem}.json").write_text(json.dumps({"annotations": shapes, "filename": f"{stem}.png"}))
    return folder


def plain_coco(data: Path, images: int) -> dict:
    """COCO as most converters make it: image by image, the size from the decoded image."""
    content = {
        "images": [],
        "annotations": [],
        "categories": [{"id": i, "name": n} for i, n in enumerate(HAND_BONES, 1)],
    }
    for number, path in enumerate(sorted(data.glob("train/outputs_json/*/*.json"))[:images], 1):
        image = cv2.imread(str(data / "train/DCM" / path.parent.name / f"{path.stem}.png"))
        height, width = image.shape[:2]
        content["images"].append({"id": number, "file_name": f"{path.stem}.png", "height": height, "width": width})
        for shape in json.loads(path.read_text())["annotations"]:
            points = np.array(shape["points"])
            (x, y), (right, bottom) = points.min(0).tolist(), points.max(0).tolist()
            content["annotations"].append(
                {
                    "id": len(content["annotations"]) + 1,
                    "image_id": number,
                    "category_id": HAND_BONES.index(shape["label"]) + 1,
                    "segmentation": [points.ravel().tolist()],
                    "area": cv2.contourArea(points.astype(np.float32)),
                    "bbox": [x, y, right - x, bottom - y],
                    "iscrowd": 0,
                }
            )
    return content


def plain_yolo(data: Path, out: Path, images: int) -> None:
    """YOLO from COCO, number by number; images are copied."""
    content = plain_coco(data, images)
    for image in content["images"]:
        lines = []
        for annotation in content["annotations"]:
            if annotation["image_id"] == image["id"]:
                numbers = annotation["segmentation"][0]
                parts = [f"{n / image['height' if i % 2 else 'width']:.6f}" for i, n in enumerate(numbers)]
                lines.append(f"{annotation['category_id'] - 1} {' '.join(parts)}")
        (out / f"{Path(image['file_name']).stem}.txt").write_text("\n".join(lines))
        shutil.copy(next(data.glob(f"train/DCM/*/{image['file_name']}")), out)


def conversions() -> list[dict]:
    """800 images of 29 polygons to COCO and to YOLO, files read and written; the references do 20 of the images."""
    with tempfile.TemporaryDirectory() as folder:
        data, out, few = hand_folder(Path(folder, "data")), Path(folder, "out"), 20
        out.mkdir()

        def our_yolo() -> None:
            shutil.rmtree(out / "yolo", ignore_errors=True)
            to_yolo(data, out / "yolo")

        steps = (
            (
                "COCO",
                lambda: to_coco(data, out / "a.json"),
                lambda: (out / "b.json").write_text(json.dumps(plain_coco(data, few))),
            ),
            ("YOLO", our_yolo, lambda: plain_yolo(data, out, few)),
        )
        rows = []
        for title, ours, plain in steps:
            row = side_by_side(f"{IMAGES} images of 29 polygons to {title}", ours, plain, 5, IMAGES / few)
            speeds = [f"{IMAGES / row[key]:,.0f} images a second" for key in ("ours_s", "reference_s")]
            rows.append({**row, "note": f"{speeds[0]}, plain {speeds[1]}; start-up not counted"})
        return rows
