"""All figures in one namespace: `from utils import figures`, then `figures.overlays(…)`."""
# ruff: noqa: F401

from utils.figures.charts import LiveCurves, class_dice, curves, formats, leaderboard, thresholds
from utils.figures.colours import class_colours
from utils.figures.comparisons import (
    ablation,
    class_scores,
    dice_against_cost,
    dice_over_minutes,
    differences,
    instance_scores,
)
from utils.figures.detections import activations, instance_overlays
from utils.figures.eda import argmax_losses, bends, body, class_areas, exposure, fold_sizes, overlap_matrix
from utils.figures.overlays import batch, density_maps, errors, overlay, overlays, picture_items
from utils.figures.style import DPI, save
