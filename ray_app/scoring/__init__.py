"""Scoring an archive on Ray: manifest → blocks → run. Importing this package imports no Ray;
running something does.
"""

from typing import TYPE_CHECKING

from ray_app import on_first_use

if TYPE_CHECKING:
    from ray_app.scoring.config import ScoreConfig
else:
    __getattr__ = on_first_use(__name__)
