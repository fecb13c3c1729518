"""Scoring an archive on Ray: manifest → blocks → run. Importing this package imports no Ray; running something does."""

from ray_app.scoring.config import ScoreConfig

__all__ = [
    "ScoreConfig",
]
