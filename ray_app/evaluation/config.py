"""Define the settings of an evaluation (`EvaluateConfig`)."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from ray_app.config import Frozen
from ray_app.evaluation.accumulate import MAX_SAMPLE
from ray_app.scoring.config import ScoreConfig
from ray_app.storage import S3Config


class EvaluateConfig(Frozen):
    """Settings of `touchstone evaluate`, which measures the scores of a run against labels."""

    retired_keys: ClassVar[Mapping[str, str]] = {
        "bootstrap": "remove it; intervals are no longer bootstrapped"
    }

    at: tuple[str, ...] = Field(
        default=(),
        description="a run directory, or a source of files as for `touchstone score`",
    )
    out: str | None = Field(
        default=None,
        description="directory for metrics.json, metrics.csv, metrics.parquet, and report.html; a path or an fsspec URL",
    )
    labels: str | None = Field(
        default=None,
        description="CSV, JSONL, or Parquet file, or an index; null = from the layout, else the run's own columns",
    )
    key: Literal["image_id", "sha256", "uri"] | None = Field(
        default=None,
        description="column that joins labels to rows; null = the first of image_id, sha256, and uri that the labels have",
    )
    split: str | None = Field(
        default=None,
        description="use only labels of this split; null = the protocol's split, or all",
    )
    layout: str | None = Field(
        default=None,
        description="layout that derives labels from the source's paths or tables (touchstone data index --help lists them); null = the protocol's",
    )
    arguments: Mapping[str, Any] = Field(default={}, description="arguments of the layout")
    leave_out_faults: bool = Field(
        default=False,
        description="leave out images and prompts that a documented fault of the data affects",
    )
    protocol: str | None = Field(
        default=None, description="a shipped protocol by name, or a YAML file"
    )
    title: str | None = Field(
        default=None,
        description="title of the report; null = the protocol's, else made from the name of the run",
    )
    score: ScoreConfig = Field(
        default=ScoreConfig(),
        description="how a source is scored first: detectors, ensemble, perturb, cluster, …; its `source` and `out` are ignored",
    )
    intervals: Literal["generators", "images"] = Field(
        default="generators",
        description="whether intervals and tests generalise to further generators and sources, if labels name eight or more, "
        "or only to further images of these generators and sources",
    )
    sample: int = Field(
        default=MAX_SAMPLE,
        ge=100,
        le=MAX_SAMPLE,
        description="maximum number of rows for intervals, paired tests, and the shortcut check",
    )
    thumbnails: bool = Field(
        default=True,
        description="show thumbnails of mistakes and masks in the report; this reads those images from the source again",
    )
    clip: str | None = Field(
        default=None,
        description="folder of CLIP weights, for comparing prompts with images and with regenerated images",
    )
    regenerated: str | None = Field(
        default=None,
        description="folder of images that `touchstone data generate PIPELINE --prompts RUN` generated",
    )
    seed: int = Field(default=0, description="seed for random blocks and folds")
    tasks: bool | None = Field(
        default=None,
        description="read a run's files in Ray tasks; null = if it has 64 files or more",
    )

    @property
    def s3(self) -> S3Config:
        """The settings of S3 clients, from the settings of scoring (`score.s3`)."""
        return self.score.s3
