"""What judging a checkpoint found, kept by step in `validations/`: Ray's own list forgets the figures of checkpoints that it drops."""

import json
from collections.abc import Mapping
from typing import Any

from ray_app.metrics import FIGURES
from ray_app.storage import Store
from ray_app.training.job import Job

FOLDER = "validations"


def write_validation(out: Store, step: int, figures: Mapping[str, Any]) -> None:
    """Keep the figures of the network after `step` steps."""
    out.write(f"{FOLDER}/{step:08d}.json", json.dumps({"step": step, **figures}).encode())


def validations(out: Store) -> list[dict[str, Any]]:
    """All of them, by their steps."""
    return [json.loads(out.read(f"{FOLDER}/{name}")) for name in out.names(FOLDER)]


def is_better(metric: str, one: float, than: float) -> bool:
    """Whether a value of this metric is better than another."""
    return one > than if FIGURES[metric] == "max" else one < than


def is_out_of_patience(job: Job) -> bool:
    """Whether as many checkpoints as the recipe's patience were judged since the best one."""
    wanted = job.config.validation
    if wanted.patience is None:
        return False
    found = [one for one in validations(job.out) if one.get(wanted.metric) is not None]
    best: dict[str, Any] | None = None
    since = 0
    for one in found:
        if best is None or is_better(wanted.metric, one[wanted.metric], best[wanted.metric]):
            best, since = one, 0
        else:
            since += 1
    return since >= wanted.patience
