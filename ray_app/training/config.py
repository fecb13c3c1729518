"""A training run: a recipe, and where it runs. What is here and not in the recipe changes no result, only time and place."""

from typing import Literal

from pydantic import Field

from ray_app.config import Frozen
from ray_app.images import ImageLimits
from ray_app.learning.config import Recipe
from ray_app.scoring.config import ClusterConfig
from ray_app.storage import UNGUARDED


class Workers(Frozen):
    """The processes that train: `count` of them, each with `cpus`, `gpus` and `loaders` processes that read, decode and augment for it.

    `least`: with fewer nodes than asked for, as after a loss, training goes on with at least so many (elastic); null = all of `count`.
    """

    count: int = Field(default=1, ge=1)
    least: int | None = Field(default=None, ge=1)
    cpus: float | None = Field(default=None, gt=0, description="null = 1 beside a GPU, else what the loaders leave")
    gpus: float | None = Field(default=None, ge=0, description="null = 1 where the cluster has GPUs")
    loaders: int | None = Field(default=None, ge=1, description="null = as many as the cores that are left")
    strategy: Literal["ddp", "fsdp2"] = "ddp"


class Faults(Frozen):
    """What is kept for the case that something dies."""

    checkpoint_every: int | None = Field(
        default=None, ge=1, description="steps between checkpoints beside those of validations; null = those alone"
    )
    keep: int = Field(default=2, ge=1, description="checkpoints kept: the best by the metric, and always the last")
    max_failures: int = Field(default=8, ge=-1, description="losses of workers after which training gives up; -1 = never")
    max_bad_fraction: float = Field(default=0.05, ge=0, le=1, description="more unreadable images than this end the training")
    record_samples: bool = Field(default=False, description="write which images each step saw, to samples/")


class TrainConfig(Recipe):
    """The file that `touchstone train` reads."""

    out: str | None = Field(
        default=None, description="where card, weights, metrics and report go; any fsspec URL; the same command resumes"
    )
    workers: Workers = Workers()
    faults: Faults = Faults()
    limits: ImageLimits = ImageLimits()
    unguarded: bool = Field(default=False, description=UNGUARDED)
    cluster: ClusterConfig = ClusterConfig()
    accept_licences: tuple[str, ...] = ()
