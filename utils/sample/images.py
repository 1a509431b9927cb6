"""Make one image of a sample: the hand and its annotation, the radiograph, and the files of both."""

import json
from pathlib import Path

import cv2
import numpy as np

from utils.masks.labels import draw_region
from utils.masks.masks import Masks
from utils.sample import label_errors as label_error
from utils.sample import radiograph
from utils.sample.artefacts import add_artefact
from utils.sample.bones import Hand
from utils.sample.hand import make_hand
from utils.sample.roster import SampleImage


def geometry(image: SampleImage, size: int) -> tuple[Hand, dict[str, np.ndarray], np.random.Generator]:
    """The hand of an image, its annotation, and the random generator that `radiograph.render` continues to use.

    The annotation has one polygon per class, int32 (n, 2) x-y pixels inside the image. Like annotations by people, it
    differs a little from the bone's true edge.
    """
    rng = np.random.default_rng(image.seed)
    hand = make_hand(image.person, rng, image.side)
    polygons = {}
    for name, points in hand.outlines.items():
        wave = np.arange(len(points))[:, None] / len(points) * 2 * np.pi * np.arange(3, 15) + rng.uniform(0, 7, 12)
        stray = (np.cos(wave) @ rng.normal(0, 0.045, (12, 2))) * hand.mm * size
        whole = np.clip(np.rint(points * size - 0.5 + stray), 0, size - 1).astype(np.int32)
        polygons[name] = whole[np.any(whole != np.roll(whole, 1, axis=0), axis=1)]
    return hand, polygons, rng


def make_image(folder: Path, size: int, flaws: dict[str, dict], image: SampleImage) -> list[tuple[str, str, str]]:
    """Write an image and its annotation; for a test image return its rows of the solution instead.

    What is planted in the image is noted in its entry of `flaws`.
    """
    hand, polygons, rng = geometry(image, size)
    wrong, others = flaws.get(image.name, {}), np.random.default_rng([*image.seed, 4])
    ring = radiograph.ring_outline(hand, label_error.RINGED, others)

    def add(attenuation: np.ndarray, grid: radiograph.Raster) -> None:
        if "artefact" in wrong:
            add_artefact(wrong["artefact"], attenuation, grid, hand, others)
        if wrong.get("label_error") == label_error.RING:
            radiograph.add_metal(attenuation, [ring], grid)

    pixels = radiograph.render(hand, image.person, rng, size, add)
    path = folder / image.split / "DCM" / image.ID / f"{image.name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    if not cv2.imwrite(str(path), pixels, [cv2.IMWRITE_PNG_COMPRESSION, 1]):
        raise OSError(f"{path} can't be written")
    if image.split == "train":
        if "label_error" in wrong:
            polygons, wrong["bone_by_label"] = label_error.plant(
                wrong["label_error"], polygons, ring * size - 0.5, others
            )
        path = folder / "train" / "outputs_json" / image.ID / f"{image.name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(_annotation(image, polygons, size)), encoding="utf-8")
        return []
    masks = Masks.from_regions([draw_region([points], (size, size)) for points in polygons.values()], (size, size))
    return [(f"{image.name}.png", name, text) for name, text in zip(polygons, masks.texts(), strict=True)]


def _annotation(image: SampleImage, polygons: dict[str, np.ndarray], size: int) -> dict:
    """The content of an annotation file, with the labelling tool's keys."""
    rng = np.random.default_rng([*image.seed, 3])
    suffix = ".jpg" if rng.random() < 0.06 else ".png"
    return {
        "annotations": [
            {"id": rng.bytes(8).hex(), "type": "poly_seg", "attributes": {}, "points": points.tolist(), "label": name}
            for name, points in polygons.items()
        ],
        "attributes": {},
        "file_id": rng.bytes(12).hex(),
        "filename": image.name + suffix,
        "parent_path": f"/{image.ID}",
        "last_modifier_id": rng.bytes(12).hex(),
        "metadata": {"height": size, "width": size},
        "last_workers": [rng.bytes(12).hex()],
    }
