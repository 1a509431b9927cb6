"""All figures under one name: `from utils import figures`, then `figures.overlays(…)`."""

from utils.figures.charts import LiveCurves, class_dice, curves, leaderboard, thresholds
from utils.figures.eda import (
    argmax_losses,
    body,
    class_areas,
    density_maps,
    exposure,
    fold_sizes,
    overlap_matrix,
    wrists,
)
from utils.figures.model_zoo import activations, dice_against_cost
from utils.figures.overlays import batch, errors, overlay, overlays, show_image
from utils.figures.style import DPI, class_colours, save

__all__ = [
    "DPI",
    "LiveCurves",
    "activations",
    "argmax_losses",
    "batch",
    "body",
    "class_areas",
    "class_colours",
    "class_dice",
    "curves",
    "density_maps",
    "dice_against_cost",
    "errors",
    "exposure",
    "fold_sizes",
    "leaderboard",
    "overlap_matrix",
    "overlay",
    "overlays",
    "save",
    "show_image",
    "thresholds",
    "wrists",
]
