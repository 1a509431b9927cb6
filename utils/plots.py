"""All figures under one name: `from utils import plots`."""

from utils.charts import LiveCurves, class_dice, curves, leaderboard, thresholds
from utils.pictures import batch, errors, overlay, overlays, show_image
from utils.style import DPI, class_colours, save
from utils.zoo_figures import activations, dice_against_cost

__all__ = [
    "DPI",
    "LiveCurves",
    "activations",
    "batch",
    "class_colours",
    "class_dice",
    "curves",
    "dice_against_cost",
    "errors",
    "leaderboard",
    "overlay",
    "overlays",
    "save",
    "show_image",
    "thresholds",
]
