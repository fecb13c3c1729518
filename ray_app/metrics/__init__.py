"""How good scores are: figures of detection and of masks with their intervals, and calibration.

Knows arrays of scores and labels; knows no file, run or network. scikit-learn and scipy are imported when a function needs them.
"""

from ray_app.metrics.calibrating import expected_calibration_error, fit_platt
from ray_app.metrics.detection import FIGURES, detection_figures
from ray_app.metrics.intervals import auc_interval, proportion_interval
from ray_app.metrics.pixels import pixel_figures

__all__ = [
    "FIGURES", "detection_figures",
    "auc_interval", "proportion_interval",
    "fit_platt", "expected_calibration_error",
    "pixel_figures",
]  # fmt: skip
