"""Mix two training images: bones of one in the place of the other's, or a rectangle of one in the other."""

import cv2
import numpy as np

from utils.masks.sparse import Patch, Patches, moments

Middles = tuple[np.ndarray, np.ndarray]
"""Centre of mass (x, y) of all labels, of the donor and of the image that gets its bones."""

COPIED = 0.3
"""Share of the bones that are replaced in an image in which bones are replaced."""
SIMILAR = 0.7
"""A bone is replaced only by one that, laid over it, has at least this IoU with it: then it fits into its place."""
SAME_WAY = 0.7
"""And only if the middle of the hand lies in the same direction, with at least this cosine: no bone is upside down."""
STRETCH = 1.5
"""And only if it is stretched by no more than this along any direction."""


def paste_bones(
    image: np.ndarray, patches: Patches, donor: np.ndarray, donor_patches: Patches, rng: np.random.Generator
) -> tuple[np.ndarray, Patches]:
    """Replace random bones of an image by the same bones of another one, each laid over the old one by its axes.

    Pixels and label of the class are blended with the same weights, which are 1 on both bones, fall to 0 in a rim
    around them, and are 0 where other classes are labelled in either image. So each pixel shows what its label says.
    """
    image, donor = _same_channels(np.ascontiguousarray(image).copy(), donor)
    patches = list(patches)
    middles = moments(donor_patches)[0], moments(patches)[0]
    for number in range(len(patches)):
        pair = (donor, donor_patches[number]), (image, patches[number])
        if rng.random() < COPIED and all(_is_whole(patch, pixels.shape[:2]) for pixels, patch in pair):
            patches[number] = _paste(image, patches, donor, donor_patches, number, middles)
    return image, patches


def _is_whole(patch: Patch, grid: tuple[int, int]) -> bool:
    """Whether a class is there and does not touch the border of the image, where a bone may be cut off."""
    values, (top, left) = patch
    inside = top > 0 and left > 0 and top + values.shape[0] < grid[0] and left + values.shape[1] < grid[1]
    return bool(inside and values.any())


def _paste(
    image: np.ndarray, patches: Patches, donor: np.ndarray, donor_patches: Patches, number: int, middles: Middles
) -> Patch:
    """Write one bone into `image`; its new patch."""
    old, corner = patches[number]
    rim = max(2, min(image.shape[:2]) // 128)
    margin = 2 * rim
    (top, left), (height, width) = corner, old.shape
    y, x = max(top - margin, 0), max(left - margin, 0)
    y_end, x_end = min(top + height + margin, image.shape[0]), min(left + width + margin, image.shape[1])
    size = (y_end - y, x_end - x)
    before = window(patches[number], (y, x), size)
    found = _align(donor_patches[number], patches[number], middles, before, (y, x))
    if found is None:
        return old, corner
    matrix, after = found
    others = [p for n, p in enumerate(patches) if n != number]
    busy = np.max([window(p, (y, x), size) for p in _near(others, (y, x), size)] or [np.zeros(size, np.uint8)], axis=0)
    bone, (top, left) = donor_patches[number]
    reach = (top - 2 * margin, left - 2 * margin), (bone.shape[0] + 4 * margin, bone.shape[1] + 4 * margin)
    for patch, (py, px) in _near([p for n, p in enumerate(donor_patches) if n != number], *reach):
        busy = np.maximum(busy, cv2.warpAffine(np.ascontiguousarray(patch), _from(matrix, py, px), size[::-1]))
    blur = 2 * rim + 1
    both = cv2.dilate(np.maximum(before, after), np.ones((blur, blur), np.uint8))
    alpha = cv2.GaussianBlur(both, (blur, blur), 0).astype(np.float32) / 255
    alpha *= 1 - np.minimum(1, 2 * cv2.GaussianBlur(busy, (3, 3), 0).astype(np.float32) / 255)
    view = image[y:y_end, x:x_end]
    new = cv2.warpAffine(donor, matrix, size[::-1], flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    weight = alpha if image.ndim == 2 else alpha[..., None]
    view[:] = np.rint(view + weight * (_like(new, view, alpha) - view)).astype(np.uint8)
    label = before + alpha * (after.astype(np.float32) - before)
    return np.rint(label).astype(np.uint8), (y, x)


def _align(
    donor: Patch, target: Patch, middles: Middles, before: np.ndarray, corner: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray] | None:
    """The matrix that lays a donor's bone over the old one (onto the window at `corner`), and its label there.

    Centres of mass and both axes of the bones are made equal. There are four ways to do this, because either axis may
    point to either side; of those that keep the direction to the middle of all labels (`middles`: donor's, target's),
    the one with the largest IoU is taken. None where no way is good enough.
    """
    (mean_d, cov_d), (mean_t, cov_t) = moments([donor]), moments([target])
    (values_d, axes_d), (values_t, axes_t) = np.linalg.eigh(cov_d), np.linalg.eigh(cov_t)
    if min(values_d[0], values_t[0]) < 1:  # thinner than some four pixels
        return None
    stretch = np.sqrt(values_t / values_d)
    if stretch.max() > STRETCH or stretch.min() < 1 / STRETCH:
        return None
    patch, (top, left) = donor
    best, found = SIMILAR, None
    for signs in ((1, 1), (1, -1), (-1, 1), (-1, -1)):
        linear = axes_t @ np.diag(stretch * signs) @ axes_d.T
        if _cosine(linear @ (middles[0] - mean_d), middles[1] - mean_t) < SAME_WAY:
            continue
        matrix = np.column_stack([linear, mean_t - linear @ mean_d - corner[::-1]])
        after = cv2.warpAffine(np.ascontiguousarray(patch), _from(matrix, top, left), before.shape[::-1])
        iou = np.minimum(before, after).sum(dtype=float) / np.maximum(before, after).sum(dtype=float)
        if iou > best:
            best, found = iou, (matrix, after)
    return found


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / max(np.linalg.norm(a) * np.linalg.norm(b), 1e-6))


def cut_mix(
    image: np.ndarray, patches: Patches, other: np.ndarray, other_patches: Patches, rng: np.random.Generator
) -> tuple[np.ndarray, Patches]:
    """Replace a random rectangle, with its labels, by that of another image of the same size (Yun et al. 2019).

    The rectangle has the image's proportions, a uniformly drawn share of its area and a uniformly drawn centre; what
    would lie outside the image is cut off.
    """
    image, other = _same_channels(np.ascontiguousarray(image).copy(), other)
    height, width = image.shape[:2]
    half = np.sqrt(rng.uniform()) / 2
    cy, cx = rng.uniform(0, height), rng.uniform(0, width)
    top, bottom = (int(np.clip(round(cy + s * half * height), 0, height)) for s in (-1, 1))
    left, right = (int(np.clip(round(cx + s * half * width), 0, width)) for s in (-1, 1))
    image[top:bottom, left:right] = other[top:bottom, left:right]
    box, size = (top, left), (bottom - top, right - left)
    return image, [_replaced(*pair, box, size) for pair in zip(patches, other_patches, strict=True)]


def _replaced(old: Patch, new: Patch, corner: tuple[int, int], size: tuple[int, int]) -> Patch:
    boxes = [(y, x, y + p.shape[0], x + p.shape[1]) for p, (y, x) in (old, new) if p.size]
    if not boxes:
        return old
    y, x = (min(b[i] for b in boxes) for i in (0, 1))
    y_end, x_end = (max(b[i] for b in boxes) for i in (2, 3))
    made = window(old, (y, x), (y_end - y, x_end - x)).copy()
    rows = slice(max(corner[0] - y, 0), max(corner[0] + size[0] - y, 0))
    columns = slice(max(corner[1] - x, 0), max(corner[1] + size[1] - x, 0))
    made[rows, columns] = window(new, (y, x), made.shape)[rows, columns]
    return made, (y, x)


def window(patch: Patch, corner: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
    """The values of one class in the window of `size` (h, w) at `corner` (top, left), zero outside its patch."""
    values, (top, left) = patch
    made = np.zeros(size, values.dtype)
    y, x = top - corner[0], left - corner[1]
    rows, columns = slice(max(y, 0), max(y + values.shape[0], 0)), slice(max(x, 0), max(x + values.shape[1], 0))
    part = values[max(-y, 0) :, max(-x, 0) :]
    target = made[rows, columns]
    target[:] = part[: target.shape[0], : target.shape[1]]
    return made


def _near(patches: Patches, corner: tuple[int, int], size: tuple[int, int]) -> Patches:
    def touches(start: int, length: int, begin: int, extent: int) -> bool:
        return start < begin + extent and begin < start + length

    return [
        (patch, (y, x))
        for patch, (y, x) in patches
        if touches(y, patch.shape[0], corner[0], size[0]) and touches(x, patch.shape[1], corner[1], size[1])
    ]


def _from(matrix: np.ndarray, top: int, left: int) -> np.ndarray:
    """The matrix for a patch at (top, left), whose own coordinates begin at 0."""
    moved = matrix.copy()
    moved[:, 2] += matrix[:, :2] @ (left, top)
    return moved


def _like(new: np.ndarray, old: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """`new` with the mean of `old`, and with its contrast as far as a factor of 1.5, both under `weight`; float32."""
    total = max(float(weight.sum()), 1e-6)
    grey = [values if values.ndim == 2 else values.mean(2) for values in (new, old)]
    means = [float((weight * g).sum()) / total for g in grey]
    deviations = [np.sqrt(float((weight * (g - m) ** 2).sum()) / total) for g, m in zip(grey, means, strict=True)]
    gain = np.clip(deviations[1] / max(deviations[0], 1e-6), 1 / 1.5, 1.5)
    return np.clip((new.astype(np.float32) - means[0]) * np.float32(gain) + np.float32(means[1]), 0, 255)


def _same_channels(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if a.ndim == b.ndim:
        return a, b
    return tuple(i if i.ndim == 3 else np.repeat(i[..., None], 3, axis=2) for i in (a, b))
