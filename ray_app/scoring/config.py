"""The settings of a scoring run. Defaults run on a laptop."""

from collections.abc import Mapping
from typing import Literal

from pydantic import Field

from ray_app.config import Frozen
from ray_app.images import ImageLimits
from ray_app.storage import RetryPolicy


class ClusterConfig(Frozen):
    """Where the run executes. Operational: none of it changes a score, so a resumed run may set it anew."""

    address: str | None = Field(default=None, description="Ray address; null starts a local cluster unless RAY_ADDRESS is set")
    cpus: int | None = Field(default=None, ge=1, description="cores to plan for; null = what the cluster has now")
    gpus: int | None = Field(
        default=None, ge=0, description="GPUs to plan for, also those an autoscaler has yet to start; null = what is there now"
    )
    workers: int | None = Field(default=None, ge=1, description="scoring processes; null = one per core, or one per GPU")
    labels: Mapping[str, str] = Field(
        default={}, description="Ray node labels that the workers' nodes must have; {workload: '!serving'} leaves an endpoint's nodes alone"
    )
    object_store_bytes: int | None = Field(default=None, ge=80 * 2**20, description="object store of a local cluster; null = 512 MiB")
    stall_timeout_s: float | None = Field(
        default=None,
        gt=0,
        description="a run in which no block ends for so long stops, its state kept; null = 15 minutes, or what a block "
        "of the largest images may take the slowest detectors",
    )


class ScoreConfig(Frozen):
    """One scoring run: what, with what, how, where to."""

    source: tuple[str, ...] = Field(default=(), description="folders, files, prefixes or globs; any fsspec URL")
    out: str | None = Field(default=None, description="the run directory; any fsspec URL")
    include: tuple[str, ...] = Field(default=(), description="globs on the path below the source; none = everything")
    exclude: tuple[str, ...] = ()
    limit: int | None = Field(default=None, ge=1, description="list no more than this many members")
    ensemble: str = "default"
    detectors: tuple[str, ...] = Field(default=(), description="instead of an ensemble: the mean of these detectors")
    accept_licences: tuple[str, ...] = Field(default=(), description="detectors, or licences, whose terms you accept for this run")
    limits: ImageLimits = ImageLimits()
    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="auto = cuda where GPUs are planned")
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    resize: Literal["exact", "fast"] = Field(default="exact", description="exact = as published; fast = at most one grey level away")
    batch_slots: int | None = Field(default=None, ge=1, le=1024, description="images per batch; null = 4 on CPU, 64 on GPU")
    block_members: int = Field(default=256, ge=1, description="largest block: the unit of commit and resume")
    max_bad_fraction: float | None = Field(default=None, ge=0, le=1, description="more bad members than this: exit code 3")
    max_hours: float | None = Field(default=None, gt=0, description="stop resumably after so long")
    prior: float | None = Field(default=None, gt=0, lt=1, description="share of fakes to expect, for the report")
    thumbnails: bool = Field(default=False, description="put thumbnails of the highest scores into the report")
    retry: RetryPolicy = RetryPolicy()
    cluster: ClusterConfig = ClusterConfig()
