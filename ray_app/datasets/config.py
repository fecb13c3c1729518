"""The configuration of a training's data: sources, splits, and how they are mixed (`Data`,
`DatasetSource`, `Sampling`).
"""

from collections.abc import Mapping
from operator import not_
from typing import Any, Literal

from pydantic import Field, model_validator

from ray_app.archives import ContainerLimits, TableColumns
from ray_app.config import Frozen


class DatasetSource(Frozen):
    """Some labelled images: an index that `touchstone data index` wrote, or a source of members
    with the layout that labels them.

    `split`: only rows whose own split is this, or one of several, A+B. `generators`: only fakes of
    these (reals always pass); `arguments` go to the layout.
    """

    at: tuple[str, ...] = Field(
        min_length=1,
        description="an index directory, or folders, files, globs; sample:: for the shipped sample archive",
    )
    layout: str = Field(
        default="columns",
        description="how the source states its labels; touchstone data index --help lists the layouts",
    )
    arguments: Mapping[str, Any] = {}
    split: str | None = None
    generators: tuple[str, ...] = ()
    leave_out_faults: bool = Field(
        default=False,
        exclude_if=not_,
        description="leave out images and prompts that a documented fault spoils",
    )
    include: tuple[str, ...] = Field(
        default=(), description="only files whose path below the source matches this glob"
    )
    exclude: tuple[str, ...] = Field(
        default=(),
        description="leave out files whose path matches this glob, and folders by FOLDER/**",
    )
    columns: TableColumns = TableColumns()
    allow_private: bool = Field(
        default=False,
        description="read what a list names also from web servers that are not on the public Internet",
    )
    container_limits: ContainerLimits = ContainerLimits()
    limit: int | None = Field(default=None, ge=1, description="list no more than this many files")
    hashes: tuple[Literal["sha256", "phash"], ...] = Field(
        default=(), description="made while indexing, to find leakage: reads every image"
    )

    @model_validator(mode="before")
    @classmethod
    def _one_or_many(cls, data: Any) -> Any:
        return (
            data | {"at": [data["at"]]}
            if isinstance(data, dict) and isinstance(data.get("at"), str)
            else data
        )


class HeldOut(Frozen):
    """A split taken from the training sources: by generator, by group of prompts, or both; never by
    row.

    `generators`: their fakes are in no training. `groups`: this share of all groups (images of one
    prompt, scene or pair) is held out.
    """

    generators: tuple[str, ...] = ()
    groups: float = Field(default=0.0, ge=0, lt=1)

    @model_validator(mode="after")
    def _something(self) -> "HeldOut":
        if not self.generators and not self.groups:
            raise ValueError("hold out generators, a share of groups, or both")
        return self


class Data(Frozen):
    """`validation` chooses the best checkpoint and calibrates; `test` is only measured, once, after
    everything is decided.
    """

    train: tuple[DatasetSource, ...] = ()
    validation: tuple[DatasetSource, ...] | HeldOut = ()
    test: tuple[DatasetSource, ...] | HeldOut = ()
    licence: str | None = Field(default=None, description="of the data, for the card")
    name: str | None = Field(
        default=None, description="of the data, for the card; null = the sources' names"
    )


class Sampling(Frozen):
    """How often which images are seen.

    `classes`: `natural`, or `balanced`: as many real as fake. `generators`: within a class, the
    share of a generator with n images is in proportion to n to this power: 1 natural, 0 all alike,
    between them a temperature. Where shares are natural, an epoch sees every row once; where they
    are not, it is `epoch_rows` long (null: as many as there are rows) and small strata come round
    again. `epoch_rows` therefore needs `classes: balanced` or `generators` below 1. `twins`: a real
    and a fake of one group stand side by side, in one worker's batch; shares are then natural.
    `window`: null shuffles all rows; a number shuffles runs of `run` neighbours and then the rows
    within this many, so that containers are read in runs.
    """

    classes: Literal["natural", "balanced"] = "natural"
    generators: float = Field(default=1.0, ge=0, le=1)
    epoch_rows: int | None = Field(default=None, ge=1)
    twins: bool = False
    window: int | None = Field(default=None, ge=1)
    run: int = Field(default=256, ge=1)
