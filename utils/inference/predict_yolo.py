"""What a trained YOLO model gives: probabilities, instances, ultralytics' table of scores, exports."""

import math
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import torch
from torch.nn import functional as F

from utils.files import Problems, replacing_folder
from utils.inference.probabilities import ProbabilityStore
from utils.models.instances import Instances, class_logits
from utils.models.yolo import device_name, open_yolo, without_bars
from utils.registry import file_sha256

CONFIDENCE, OVERLAP, MOST = 0.001, 0.7, 300
"""Score and IoU of the non-maximum suppression, and instances per image at most: those of ultralytics' validation."""
OVERALL = "all"
COLUMNS = [f"{kind} {name}" for kind in ("box", "mask") for name in ("P", "R", "mAP50", "mAP50-95")]
"""What ultralytics' validation prints for an instance model, after class, images and instances."""
STRIDE, GREY = 32, 114
"""Pixels: the sides of the network's input are multiples of STRIDE, filled up in the grey that YOLO is trained with."""


class YoloPredictor:
    """A YOLO model ready to predict.

    weights: a .pt file. image_size: the longer side of an image in the network, pixels; its proportions are kept.
    members: tells for the names of a semantic model's values which classes they stand for, bool (classes, values).
    confidence: the score from which an instance counts fully, see `validate_yolo`. YOLO's scores order its instances;
    they are no probabilities, and a whole bone may lie at 0.3.
    """

    def __init__(
        self,
        weights: str | Path,
        image_size: int,
        device: torch.device,
        members: Callable[[list[str]], np.ndarray] | None = None,
        confidence: float = 1.0,
    ):
        model = open_yolo(weights)
        names = [model.names[number] for number in sorted(model.names)]
        self.semantic, self.classes = model.task == "semantic", len(names)
        self.members = members(names) if self.semantic else None
        if not self.semantic:
            model.model.end2end = False  # as ultralytics validates: with suppression, also where a head does without
        self.network = model.model.float().fuse(verbose=False).to(device).eval()
        self.image_size, self.device, self.confidence = image_size, device, confidence
        self.digest = file_sha256(weights)

    @torch.inference_mode()
    def instances(self, path: str | Path) -> tuple[Instances, tuple[int, int]]:
        """The instances in an image file, masks (K, h, w) at network resolution, and the image's full size (H, W)."""
        from ultralytics.utils.nms import non_max_suppression

        image, (height, width), size = self._read(path)
        (rows, prototypes), *_ = self.network(image)
        found = non_max_suppression(
            rows, CONFIDENCE, OVERLAP, nc=self.classes, multi_label=True, max_det=MOST, max_time_img=math.inf
        )[0]
        boxes, scores, labels, coefficients = found.split((4, 1, 1, found.shape[1] - 6), 1)
        masks = image.new_zeros(0, *image.shape[-2:])
        if len(found):  # nothing can't be interpolated
            logits = torch.einsum("kp,phw->khw", coefficients, prototypes[0].float())
            masks = F.interpolate(logits[None], image.shape[-2:], mode="bilinear")[0].sigmoid_()
            masks *= _inside(boxes, masks)
        return Instances(boxes, labels[:, 0].long(), scores[:, 0], masks).crop(height, width), size

    @torch.inference_mode()
    def __call__(self, path: str | Path) -> tuple[np.ndarray, tuple[int, int]]:
        """Each class's probability, float32 (classes, h, w) at network resolution, and the full size (H, W).

        Of an instance model: the largest mask × score of the class's instances, with the score divided by `confidence`,
        at most 1. Of a semantic one: the sum over the values that stand for the class, pairs of overlapping bones among
        them.
        """
        if not self.semantic:
            found, size = self.instances(path)
            found = replace(found, scores=(found.scores / self.confidence).clamp(max=1))
            return class_logits([found], self.classes)[0].sigmoid().cpu().numpy(), size
        image, (height, width), size = self._read(path)
        logits = F.interpolate(self.network(image).float(), image.shape[-2:], mode="bilinear")
        values = logits[0, :, :height, :width].softmax(0)
        members = torch.from_numpy(self.members[:, : len(values)]).to(values)
        return torch.einsum("cv,vhw->chw", members, values).clamp(0, 1).cpu().numpy(), size

    def fill(
        self, store: ProbabilityStore, images: pd.Series, progress: Callable[[int, int], None] | None = None
    ) -> float:
        """Predict every image that the store lacks; the seconds taken. images: paths by image name."""
        started = time.monotonic()
        made_from = {"weights": self.digest, "image_size": self.image_size, "confidence": self.confidence}
        store.begin({**made_from, "images": _signatures(images)})
        stored = set(store.names())
        missing = [name for name in images.index if name not in stored]
        for number, name in enumerate(missing, 1):
            probabilities, size = self(images[name])
            store.write(name, probabilities, size)
            if progress:
                progress(number, len(missing))
        return time.monotonic() - started

    def each(self, images: pd.Series) -> Iterator[tuple[str, Instances, tuple[int, int]]]:
        """Name, instances and full size of each image; images: paths by image name."""
        for name, path in images.items():
            yield name, *self.instances(path)

    def _read(self, path: str | Path) -> tuple[torch.Tensor, tuple[int, int], tuple[int, int]]:
        """The network's input, float (1, 3, H, W) in [0, 1], read and shrunk as ultralytics does; the part (h, w) of it
        that the image takes, from its corner; and the full size."""
        from ultralytics.utils.patches import imread

        pixels = imread(str(path))
        size = pixels.shape[:2]
        ratio = self.image_size / max(size)
        height, width = (min(math.ceil(side * ratio), self.image_size) for side in size)
        pixels = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_LINEAR)
        below, right = -height % STRIDE, -width % STRIDE
        pixels = cv2.copyMakeBorder(pixels, 0, below, 0, right, cv2.BORDER_CONSTANT, value=(GREY,) * 3)
        image = torch.from_numpy(pixels[..., ::-1].copy()).permute(2, 0, 1)[None]
        return image.to(self.device).float().div_(255), (height, width), size


def validate_yolo(
    weights: str | Path, dataset: str | Path, image_size: int, batch_size: int, num_workers: int, device: torch.device
) -> tuple[pd.DataFrame, float]:
    """ultralytics' own validation of a model on the dataset's `val` images.

    Returns:
        The table that it prints: a row for all classes (the mean over those that are there) and one for each class.
        Columns of an instance model: class, images, instances and COLUMNS, 0 to 1, NaN for a class without instances;
        of a semantic one: class, pixels, IoU and accuracy. And the score at which P and R are given, where the mean F1
        of the masks is highest; 1 for a semantic model, and where nothing right was found.
    """
    model = open_yolo(weights)
    from ultralytics.utils.metrics import smooth

    names = [OVERALL, *(model.names[i] for i in sorted(model.names))]
    with without_bars(), tempfile.TemporaryDirectory() as scratch:
        found = model.val(
            data=str(dataset),
            split="val",
            imgsz=image_size,
            batch=batch_size,
            workers=num_workers,
            device=device_name(device),
            overlap_mask=False,
            plots=False,
            verbose=False,
            save_dir=scratch,
        )
    if model.task == "semantic":
        pixels = found.nt_per_class.tolist()
        table = pd.DataFrame({"class": names, "pixels": [sum(pixels), *pixels]})
        table["IoU"] = [found.miou, *found.per_class_iou]
        table["accuracy"] = [found.pixel_accuracy, *found.per_class_pixel_accuracy]
        return table, 1.0
    values = np.full((len(names) - 1, len(COLUMNS)), np.nan)
    for row, number in enumerate(found.ap_class_index):
        values[number] = found.class_result(row)
    total = sum(1 for _ in Path(dataset).parent.glob("images/val/*/*"))
    instances, images = found.nt_per_class.tolist(), found.nt_per_image.tolist()
    table = pd.DataFrame({"class": names, "images": [total, *images]})
    table["instances"] = [sum(instances), *instances]
    f1 = np.reshape(found.seg.f1_curve, (-1, len(found.seg.px))).mean(axis=0) if len(found.ap_class_index) else [0.0]
    confidence = max(float(found.seg.px[smooth(f1, 0.1).argmax()]), CONFIDENCE) if max(f1) > 0 else 1.0
    return table.join(pd.DataFrame(np.vstack([found.mean_results(), values]), columns=COLUMNS)), confidence


def export_yolo(weights: str | Path, export_format: str, image_size: int, folder: str | Path) -> Path:
    """Export a model by ultralytics to any `format=` that it knows; returns the file or folder in `folder`.

    Raises Problems with ultralytics' message, which names the formats and the packages that one needs.
    """
    folder = Path(folder)
    with replacing_folder(folder):
        pass
    source = shutil.copyfile(weights, folder / f"yolo{Path(weights).suffix}")  # what is made lies beside the weights
    try:
        with without_bars():
            made = open_yolo(source).export(format=export_format, imgsz=image_size)
    except Exception as error:  # whatever ultralytics and the format's own package raise
        raise Problems(f"the export to {export_format!r} failed:", [f"{type(error).__name__}: {error}"]) from error
    finally:
        source.unlink()
    return Path(made)


def _inside(boxes: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Whether each pixel lies in its instance's box, bool (K, H, W)."""
    height, width = masks.shape[-2:]
    left, top, right, bottom = (edge[:, None] for edge in boxes.unbind(1))
    x, y = (torch.arange(side, device=boxes.device)[None] for side in (width, height))
    return ((y >= top) & (y < bottom))[:, :, None] & ((x >= left) & (x < right))[:, None, :]


def _signatures(images: pd.Series) -> list[list]:
    return [[name, (status := Path(path).stat()).st_size, status.st_mtime_ns] for name, path in images.items()]
