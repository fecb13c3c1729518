"""How good scores are: figures of detection and of masks with their intervals, and calibration.

scikit-learn and scipy are imported when a function needs them.
"""

from typing import TYPE_CHECKING

from ray_app import on_first_use

if TYPE_CHECKING:
    from ray_app.metrics.arrays import ScoreHistogram
    from ray_app.metrics.calibration import debiased_ece, expected_calibration_error, fit_platt, fit_temperature, log_loss, reliability
    from ray_app.metrics.detection import (
        FIGURES,
        VerdictCounts,
        abstaining,
        classification_report,
        detection_figures,
        detection_of,
        risk_coverage,
    )
    from ray_app.metrics.intervals import proportion_interval
    from ray_app.metrics.localization import pixel_figures
    from ray_app.metrics.operating_points import average_precision, averages, curve_points, precision_recall_points
else:
    __getattr__ = on_first_use(__name__)
