"""All figures under one name: `from utils import plots`."""

from utils.charts import LiveCurves, class_dice, curves, leaderboard, thresholds
from utils.pictures import batch, errors, overlay, overlays, show_image
from utils.style import DPI, class_colours, save

__all__ = [
    "DPI",
    "LiveCurves",
    "batch",
    "class_colours",
    "class_dice",
    "curves",
    "errors",
    "leaderboard",
    "overlay",
    "overlays",
    "save",
    "show_image",
    "thresholds",
]
