"""How good scores are: figures of detection and of masks with their intervals, and calibration.

Knows arrays of scores and labels; knows no file, run or network. scikit-learn and scipy are imported when a function needs them.
"""

from ray_app.metrics.calibrating import expected_calibration_error, fit_platt
from ray_app.metrics.chances import brier_score, debiased_ece, log_loss, reliability
from ray_app.metrics.curves import average_precision, curve_points, precision_recall_points
from ray_app.metrics.detection import DETECTION, FIGURES, auc_figure, detection_figures, detection_of
from ray_app.metrics.figure import Figure, undefined
from ray_app.metrics.histograms import ScoreHistogram
from ray_app.metrics.intervals import auc_interval, auc_of, proportion, proportion_interval
from ray_app.metrics.operating import Confusion, averages, equal_error_rate, precision_at_prior, rates_at, tpr_at_fpr
from ray_app.metrics.pixels import pixel_figures
from ray_app.metrics.risk import risk_coverage
from ray_app.metrics.verdicts import VerdictCounts, abstaining, classification_report

__all__ = [
    "Figure", "undefined", "ScoreHistogram",
    "DETECTION", "detection_of", "FIGURES", "detection_figures",
    "Confusion", "rates_at", "precision_at_prior", "tpr_at_fpr", "equal_error_rate", "averages",
    "curve_points", "precision_recall_points", "average_precision", "risk_coverage",
    "log_loss", "brier_score", "debiased_ece", "reliability",
    "VerdictCounts", "abstaining", "classification_report",
    "auc_figure", "auc_of", "auc_interval", "proportion", "proportion_interval",
    "fit_platt", "expected_calibration_error",
    "pixel_figures",
]  # fmt: skip
