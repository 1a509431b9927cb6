"""Images a second of the data check on dense outlines: `python -m tests.dense_outlines`."""

import tempfile
from pathlib import Path

import cv2
import numpy as np

from utils.data.annotation import annotation_text
from utils.data.check import check_data

IMAGES, SIDE, POINTS = 60, 2048, 3200
CLASSES = ("left lung", "right lung", "heart", "spine", "clavicle")


def main() -> None:
    """Make the images, check them twice and print the better speed."""
    noise = np.random.default_rng(0).integers(0, 255, (SIDE, SIDE), np.uint8)
    angle = np.linspace(0, 2 * np.pi, POINTS, endpoint=False)
    radius = 250 + 20 * np.sin(9 * angle) + 5 * np.sin(31 * angle)
    shape = np.stack([radius * np.cos(angle), 1000 + 1.6 * radius * np.sin(angle)], 1)
    shapes = [(label, shape + np.array([400 + 300 * number, 0])) for number, label in enumerate(CLASSES)]
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder)
        (data / "classes.txt").write_text("\n".join(CLASSES) + "\n")
        for number in range(IMAGES):
            name, person = f"{number}.png", f"ID{number:03}"
            for kind in ("DCM", "outputs_json"):
                (data / "train" / kind / person).mkdir(parents=True)
            cv2.imwrite(str(data / "train/DCM" / person / name), cv2.GaussianBlur(np.roll(noise, number), (0, 0), 9))
            (data / "train/outputs_json" / person / f"{number}.json").write_bytes(annotation_text(shapes, name, person))
        seconds = min(check_data(data).seconds for _ in range(2))
    print(
        f"{IMAGES / seconds:.0f} images a second ({SIDE} × {SIDE} pixels, {len(CLASSES)} outlines of {POINTS} points)"
    )


if __name__ == "__main__":
    main()
