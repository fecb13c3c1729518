"""The settings of an evaluation (`EvaluateConfig`): a run or a source, its labels, a protocol, and
what is computed.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from ray_app.config import Frozen
from ray_app.evaluation.accumulate import MOST
from ray_app.scoring.config import ScoreConfig
from ray_app.storage import S3Config


class EvaluateConfig(Frozen):
    """One evaluation. `score`: how a source is scored first, and on which cluster; its `source` and
    `out` are not used.
    """

    retired_keys: ClassVar[Mapping[str, str]] = {"bootstrap": "remove it; no interval is drawn"}

    at: tuple[str, ...] = Field(
        default=(),
        description="a run directory; or a source of files, as `touchstone score` takes it",
    )
    out: str | None = Field(
        default=None,
        description="where metrics.json, metrics.csv, metrics.parquet, and report.html go; any fsspec URL",
    )
    labels: str | None = Field(
        default=None,
        description="CSV, JSONL or Parquet, or an index; null = by the layout, else the run's own columns",
    )
    key: Literal["image_id", "sha256", "uri"] | None = Field(
        default=None, description="what joins labels to rows; null = the first there is"
    )
    split: str | None = Field(
        default=None, description="only labels of this split; null = the protocol's, or all"
    )
    layout: str | None = Field(
        default=None,
        description="how the source tells labels (touchstone data index --help); null = the protocol's",
    )
    arguments: Mapping[str, Any] = Field(default={}, description="of the layout")
    leave_out_faults: bool = Field(
        default=False,
        description="leave out the images and prompts that a documented fault of the data spoils",
    )
    protocol: str | None = Field(
        default=None, description="a shipped protocol by name, or a YAML file"
    )
    title: str | None = None
    score: ScoreConfig = Field(
        default=ScoreConfig(),
        description="how a source is scored: detectors, ensemble, perturb, cluster, …",
    )
    intervals: Literal["generators", "images"] = Field(
        default="generators",
        description="of what intervals and tests speak: further generators and sources, where labels name eight or more, or further images "
        "of these only",
    )
    sample: int = Field(
        default=MOST,
        ge=100,
        le=MOST,
        description="rows that intervals, paired tests and the shortcut check see",
    )
    thumbnails: bool = Field(
        default=True,
        description="small pictures of mistakes and masks in the report, read from the source again",
    )
    clip: str | None = Field(
        default=None,
        description="folder of CLIP weights, for the similarity of prompts and of what they give back",
    )
    regenerated: str | None = Field(
        default=None,
        description="images that `touchstone data generate PIPELINE --prompts RUN` made",
    )
    seed: int = 0
    tasks: bool | None = Field(
        default=None, description="gather a run's files as Ray tasks; null = where it has very many"
    )

    @property
    def s3(self) -> S3Config:
        """How S3 is requested, as the scoring says."""
        return self.score.s3
