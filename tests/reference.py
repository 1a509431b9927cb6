"""Plain implementations, as the official baseline does it: the oracles of the tests, the references of the benchmarks.

Nothing here is fast or saves memory, and nothing outside the tests imports it.
"""

from collections.abc import Sequence

import albumentations as A
import cv2
import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage


def encode(mask: np.ndarray) -> str:
    """The baseline's RLE of a mask (H, W)."""
    pixels = mask.flatten()
    pixels = np.concatenate([[0], pixels, [0]])
    runs = np.where(pixels[1:] != pixels[:-1])[0] + 1
    runs[1::2] -= runs[::2]
    return " ".join(str(x) for x in runs)


def decode(rle: str, size: tuple[int, int]) -> np.ndarray:
    """The baseline's decoder, which NaN crashes: uint8 (H, W)."""
    s = rle.split()
    starts, lengths = (np.asarray(x, dtype=int) for x in (s[0:][::2], s[1:][::2]))
    starts -= 1
    ends = starts + lengths
    image = np.zeros(size[0] * size[1], dtype=np.uint8)
    for start, end in zip(starts, ends, strict=True):
        image[start:end] = 1
    return image.reshape(size)


def upsample(scores: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bilinear upsampling of (C, h, w) scores to (C, H, W)."""
    return F.interpolate(torch.from_numpy(scores)[None], size=size, mode="bilinear", align_corners=False)[0].numpy()


def encode_masks(scores: np.ndarray, size: tuple[int, int], threshold: float) -> list[str]:
    """RLE strings of `upsample(scores, size) > threshold`."""
    return [encode(mask) for mask in upsample(scores, size) > threshold]


def logits_to_rle(logits: np.ndarray, size: tuple[int, int], threshold: float = 0.5) -> list[str]:
    """The baseline's test loop for one image: upsample, sigmoid, threshold, encode."""
    outputs = F.interpolate(torch.from_numpy(logits)[None], size=size, mode="bilinear", align_corners=False)
    outputs = torch.sigmoid(outputs)
    outputs = (outputs > threshold).detach().cpu().numpy()
    return [encode(mask) for mask in outputs[0]]


def dice(mask_a: np.ndarray | torch.Tensor, mask_b: np.ndarray | torch.Tensor) -> np.ndarray:
    """The baseline's Dice coefficient of (…, H, W) masks, one per leading index."""
    a, b = (torch.as_tensor(np.asarray(m)).flatten(-2).float() for m in (mask_a, mask_b))
    intersection = torch.sum(a * b, -1)
    eps = 0.0001
    return ((2.0 * intersection + eps) / (torch.sum(a, -1) + torch.sum(b, -1) + eps)).numpy()


def validate(logits: np.ndarray, truth: np.ndarray, threshold: float = 0.5) -> np.ndarray:
    """The baseline's validation of one image: logits (C, h, w) and full-size truth (C, H, W) to Dice per class."""
    outputs = F.interpolate(torch.from_numpy(logits)[None], size=truth.shape[-2:], mode="bilinear", align_corners=False)
    outputs = (torch.sigmoid(outputs) > threshold).detach().cpu()
    return dice(outputs[0], torch.from_numpy(truth))


def vote(rles: Sequence[str], size: tuple[int, int], min_votes: int) -> str:
    """Hard voting as the public solutions do it: decode, add up, threshold, encode."""
    total = np.zeros(size, dtype=np.uint8)
    for rle in rles:
        total += decode(rle, size)
    return encode(total >= min_votes)


def training_sample(image_path: str, polygons: dict[str, list[np.ndarray]], transforms: A.Compose) -> tuple:
    """The baseline's `__getitem__`: float tensors image (3, h, w) and label (classes, h, w).

    The PNG decoded, every class drawn at full size, image and 29-channel label through albumentations, which also does
    the resizing (labels by nearest neighbour).
    """
    image = cv2.imread(image_path)
    label = np.zeros((*image.shape[:2], len(polygons)), dtype=np.uint8)
    for channel, shapes in enumerate(polygons.values()):
        class_label = np.zeros(image.shape[:2], dtype=np.uint8)
        cv2.fillPoly(class_label, shapes, 1)
        label[..., channel] = class_label
    result = transforms(image=image, mask=label)
    image, label = result["image"] / 255.0, result["mask"]
    return torch.from_numpy(image.transpose(2, 0, 1)).float(), torch.from_numpy(label.transpose(2, 0, 1)).float()


def soft_vote(fold_models: Sequence[np.ndarray], size: tuple[int, int], threshold: float) -> list[str]:
    """The plain vote: every fold model's probabilities (C, h, w) to full size in float32, averaged, cut, encoded."""
    total = upsample(fold_models[0], size)
    for maps in fold_models[1:]:
        total += upsample(maps, size)
    total /= len(fold_models)
    return [encode(mask) for mask in total > threshold]


def surface_distances(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """HD95 and mean distance of two masks' outlines by SciPy's erosion and exact distance transform, as in MONAI."""
    if not a.any() or not b.any():
        return (float(np.hypot(*a.shape)) if a.any() or b.any() else 0.0,) * 2
    edges = [mask ^ ndimage.binary_erosion(mask) for mask in (a, b)]
    there, back = (ndimage.distance_transform_edt(~other)[one] for one, other in (edges, edges[::-1]))
    mean = (there.sum() + back.sum()) / (there.size + back.size)
    return max(np.percentile(there, 95), np.percentile(back, 95)), mean
