"""How good scores are: figures of detection and of masks with their intervals, and calibration.

scikit-learn and scipy are imported when a function needs them.
"""

from ray_app.metrics.arrays import MetricEstimate, ScoreHistogram, undefined
from ray_app.metrics.calibration import brier_score, debiased_ece, expected_calibration_error, fit_platt, log_loss, reliability
from ray_app.metrics.detection import DETECTION, FIGURES, auc_figure, detection_figures, detection_of
from ray_app.metrics.intervals import auc_interval, auc_of, proportion, proportion_interval
from ray_app.metrics.localization import pixel_figures
from ray_app.metrics.operating_points import (
    Confusion,
    average_precision,
    averages,
    curve_points,
    equal_error_rate,
    precision_at_prior,
    precision_recall_points,
    rates_at,
    tpr_at_fpr,
)
from ray_app.metrics.selective import VerdictCounts, abstaining, classification_report, risk_coverage

__all__ = [
    "MetricEstimate", "undefined", "ScoreHistogram",
    "DETECTION", "detection_of", "FIGURES", "detection_figures",
    "Confusion", "rates_at", "precision_at_prior", "tpr_at_fpr", "equal_error_rate", "averages",
    "curve_points", "precision_recall_points", "average_precision", "risk_coverage",
    "log_loss", "brier_score", "debiased_ece", "reliability",
    "VerdictCounts", "abstaining", "classification_report",
    "auc_figure", "auc_of", "auc_interval", "proportion", "proportion_interval",
    "fit_platt", "expected_calibration_error",
    "pixel_figures",
]  # fmt: skip
