"""A head over generators, from labelled images to OUT/identifier.yaml."""

from collections.abc import Mapping
from typing import Any

from ray_app.datasets.splitting import Splits
from ray_app.detectors import DetectorCard
from ray_app.training.config import TrainConfig
from ray_app.training.job import Job


def identify(job: Job, findings: Mapping[str, Any], told: Mapping[str, Any]) -> dict[str, Any]:
    """Compute what embeddings are missing, fit, measure and write; returns the content of `metrics.json`."""
    raise NotImplementedError


def planned(config: TrainConfig, card: DetectorCard, splits: Splits) -> dict[str, Any]:
    """The dry run."""
    raise NotImplementedError
