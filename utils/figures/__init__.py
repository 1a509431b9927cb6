"""All figures in one namespace: `from utils import figures`, then `figures.overlays(…)`."""
# ruff: noqa: F401

from utils.figures.analysis import ablation, class_scores, dice_over_minutes, differences
from utils.figures.charts import LiveCurves, class_dice, curves, formats, leaderboard, thresholds
from utils.figures.eda import argmax_losses, body, class_areas, exposure, fold_sizes, overlap_matrix, wrists
from utils.figures.instances import instance_overlays, instance_scores
from utils.figures.model_zoo import activations, dice_against_cost
from utils.figures.overlays import batch, density_maps, errors, overlay, overlays, picture_items
from utils.figures.style import DPI, class_colours, save
