"""Benchmarks of masks, scores and submissions; `tests/bench.py` runs them."""

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd

from tests import reference
from tests.bench_tools import seconds, side_by_side
from utils import submission
from utils.data.competition import HAND_BONES
from utils.files import ROOT
from utils.masks import rle, upsampling
from utils.masks.dice import dice_of_masks
from utils.masks.masks import Masks

SIZE = (2048, 2048)
AREAS = np.geomspace(3_900, 75_000, len(HAND_BONES))
"""Pixels of the bones at full size, from the smallest finger tip to the radius."""


def bone_shapes(rng: np.random.Generator, areas: np.ndarray = AREAS) -> np.ndarray:
    """One ellipse for each area: centre y and x, half axes, angle; float (bones, 5) in pixels of SIZE and radians."""
    long = np.sqrt(areas / np.pi * rng.uniform(1, 3, len(areas)))
    centres = rng.uniform(0.2, 0.8, (len(areas), 2)) * SIZE
    return np.column_stack([centres, long, areas / np.pi / long, rng.uniform(0, np.pi, len(areas))])


def bone_logits(rng: np.random.Generator, shapes: np.ndarray, grid: int = 512) -> np.ndarray:
    """Logits float32 (bones, grid, grid) as a trained model gives them: -8 … 8, steep at the outline, noisy."""
    y, x = (np.mgrid[:grid, :grid] + 0.5) * SIZE[0] / grid - 0.5
    logits = np.empty((len(shapes), grid, grid), np.float32)
    for plane, (cy, cx, a, b, angle) in zip(logits, shapes, strict=True):
        u = ((x - cx) * np.cos(angle) + (y - cy) * np.sin(angle)) / a
        v = ((y - cy) * np.cos(angle) - (x - cx) * np.sin(angle)) / b
        plane[:] = np.clip((1 - np.hypot(u, v)) * np.sqrt(a * b) / 4, -8, 8)
    return logits + rng.normal(0, 0.2, logits.shape).astype(np.float32)


def ellipse_rle(shape: np.ndarray) -> str:
    """The RLE string of an upright ellipse, row by row, without its pixels."""
    cy, cx, a, b, _ = shape
    y = np.arange(int(np.ceil(cy - a)), int(np.floor(cy + a)) + 1)
    half = b * np.sqrt(np.clip(1 - ((y - cy) / a) ** 2, 0, None))
    starts, ends = (y * SIZE[1] + np.rint(cx + side).astype(int) for side in (-half, half))
    return rle.write_column(starts, ends + 1, [0, len(starts)])[0]


def bone_submission(path: Path, seed: int, images: int = 288) -> Path:
    """A submission of `images` × 29 masks, similar but not equal for different seeds."""
    rng, jitter = np.random.default_rng(0), np.random.default_rng(seed)
    rows = []
    for number in range(images):
        for label, shape in zip(HAND_BONES, bone_shapes(rng), strict=True):
            rows.append(
                (f"image{number:04}.png", label, ellipse_rle(shape + np.append(jitter.normal(0, 3, 2), [0, 0, 0])))
            )
    submission.write(pd.DataFrame(rows, columns=submission.COLUMNS), path)
    return path


def full_size() -> list[dict]:
    """From a network's logits to masks and to Dice, at full size."""
    rng = np.random.default_rng(0)
    shapes = bone_shapes(rng)
    logits = bone_logits(rng, shapes)
    truth = reference.upsample(bone_logits(rng, shapes), SIZE) > 0
    true_masks = Masks.from_dense(truth)
    same = sum(
        a == b
        for a, b in zip(
            upsampling.upsample_masks(logits, SIZE, 0).texts(), reference.logits_to_rle(logits, SIZE), strict=True
        )
    )
    noise = rng.normal(size=logits.shape).astype(np.float32)
    return [
        side_by_side(
            "29 × 512² logits to RLE at 2048²",
            lambda: upsampling.upsample_masks(logits, SIZE, 0).texts(),
            lambda: reference.logits_to_rle(logits, SIZE),
            repeats=9,
            note=f"{same} of {len(logits)} strings identical",
        ),
        side_by_side(
            "full-size validation of an image",
            lambda: dice_of_masks(upsampling.upsample_masks(logits, SIZE, 0), true_masks),
            lambda: reference.validate(logits, truth),
            repeats=9,
            note="logits to Dice of 29 classes, truth in memory on both sides",
        ),
        side_by_side(
            "the same logits to RLE, pure noise",
            lambda: upsampling.upsample_masks(noise, SIZE, 0).texts(),
            lambda: reference.logits_to_rle(noise, SIZE),
            repeats=1,
            note="worst case: every pixel near the threshold",
        ),
    ]


def submission_files() -> list[dict]:
    """Vote, score and diff of 8,352 rows as commands, start-up included; the references do 58 of the rows."""
    sample, times = 2 * len(HAND_BONES), 288 / 2

    def command(*arguments: str | Path) -> None:
        subprocess.run(
            [sys.executable, "-m", "utils.submission", *arguments], cwd=ROOT, check=True, capture_output=True
        )

    with tempfile.TemporaryDirectory() as folder:
        paths = [bone_submission(Path(folder, f"{seed}.csv"), seed) for seed in range(6)]
        columns = [submission.read(path)["rle"].tolist()[:sample] for path in paths]

        def decode_and_compare() -> None:
            for a, b in zip(*columns[:2], strict=True):
                reference.dice(reference.decode(a, SIZE), reference.decode(b, SIZE))

        def decode_and_add() -> None:
            for rles in zip(*columns, strict=True):
                reference.vote(rles, SIZE, 4)

        out = Path(folder, "vote.csv")
        timed = f"reference timed on {sample} of 8,352 rows, without reading and writing files"
        note = f"command with start-up; {timed}"
        alone = seconds(lambda: command("vote", *paths, "--out", out))
        voting = f"files read, voted, written; as a command with start-up {alone:.2f} s; {timed}"
        return [
            side_by_side(
                "vote of six CSVs",
                lambda: submission.write(submission.vote(paths), out),
                decode_and_add,
                3,
                times,
                voting,
            ),
            side_by_side(
                "score of 8,352 rows", lambda: command("score", *paths[:2]), decode_and_compare, 3, times, note
            ),
            side_by_side("diff of 8,352 rows", lambda: command("diff", *paths[:2]), decode_and_compare, 3, times, note),
        ]
