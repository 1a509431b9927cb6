"""Segment one PNG with an exported model: python segment_onnx.py model.onnx image.png masks. Each class gets a PNG."""

import json
import sys
from pathlib import Path

import cv2
import numpy as np
import onnxruntime

model, image, folder = map(Path, sys.argv[1:])
session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
config = json.loads(session.get_modelmeta().custom_metadata_map["config"])
side, (source,), (result,) = config["image_size"], session.get_inputs(), session.get_outputs()
pixels = cv2.imread(str(image), cv2.IMREAD_COLOR)
if pixels is None:
    sys.exit(f"{image}: not an image that OpenCV can read")
how = cv2.INTER_AREA if min(pixels.shape[:2]) >= side else cv2.INTER_LINEAR
small = cv2.resize(pixels, (side, side), interpolation=how)
small = small[None, ..., ::-1].transpose(0, 3, 1, 2)  # blue, green, red to (1, 3, side, side) red, green, blue
if source.type == "tensor(float)":  # the normalisation is not inside
    mean, std = (np.array(config[name])[:, None, None] for name in ("mean", "std"))
    small = ((small / 255 - mean) / std).astype(np.float32)
(maps,) = session.run(None, {source.name: np.ascontiguousarray(small)})
probabilities = 1 / (1 + np.exp(-maps[0])) if result.name == "logits" else maps[0]

folder.mkdir(parents=True, exist_ok=True)
for name, plane, threshold in zip(config["classes"], probabilities, config["thresholds"], strict=True):
    mask = cv2.resize(plane, pixels.shape[1::-1], interpolation=cv2.INTER_LINEAR) > threshold
    cv2.imwrite(str(folder / f"{name.replace('/', '-')}.png"), 255 * mask.astype(np.uint8))
