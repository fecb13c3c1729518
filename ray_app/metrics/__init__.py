"""Compute the metrics of an evaluation from scores and masks, with 95 % intervals.

`registry` defines the metrics. Other modules measure detection, masks of altered pixels, and named
generators, and fit calibrations. scikit-learn and scipy are imported when a function needs them.
"""

from typing import TYPE_CHECKING

from ray_app import on_first_use

if TYPE_CHECKING:
    from ray_app.metrics.calibration import fit_platt
    from ray_app.metrics.detection import FIGURES, detection_figures
    from ray_app.metrics.localization import pixel_figures
else:
    __getattr__ = on_first_use(__name__)
