"""COCO results of the instances that a network finds."""

from typing import Any

import numpy as np

from utils.formats.coco import of_mask
from utils.masks import upsampling
from utils.models.instances import Instances


def results_of_instances(found: Instances, image_id: int | str, size: tuple[int, int]) -> list[dict[str, Any]]:
    """The instances of one image as COCO results, highest score first, for `utils.formats.coco.write_results`.

    found: boxes and masks of the network's input, which shows the whole image. image_id: the image's, such as from
    `utils.formats.coco.image_ids`, or its name; category ids count from 1 in the order of the classes. size: the
    image's (H, W), to which masks are upsampled and cut at 0.5, as the competition's are. Instances without such a
    pixel are left out.
    """
    if not len(found):
        return []
    scale = np.tile(np.array(size[::-1]) / found.masks.shape[:0:-1], 2)
    boxes = (found.boxes.cpu().double().numpy() * scale).round(2)
    boxes[:, 2:] -= boxes[:, :2]
    masks = upsampling.upsample_masks(found.masks.float(), size, 0.5)
    regions = [masks.region(number) for number in range(len(masks))]
    results = [
        {"image_id": image_id, "category_id": label + 1, "score": score} | of_mask(*region, size) | {"bbox": box}
        for label, score, region, box in zip(
            found.labels.tolist(), found.scores.tolist(), regions, boxes.tolist(), strict=True
        )
        if region[0].size
    ]
    return sorted(results, key=lambda result: -result["score"])
