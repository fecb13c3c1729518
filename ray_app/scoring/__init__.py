"""Scoring an archive on Ray: manifest → blocks → run. Importing this package imports no Ray; running something does."""

from typing import TYPE_CHECKING

from ray_app import on_first_use

# What every process of a run loads; Ray only by the last.
WARM = ("ray_app.inference.device_batches", "ray_app.inference.second_pass", "pandas", "ray_app.scoring.engine")

if TYPE_CHECKING:
    from ray_app.scoring.config import ScoreConfig
else:
    __getattr__ = on_first_use(__name__)
