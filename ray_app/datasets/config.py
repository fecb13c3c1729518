"""The settings of the data of a training run: its sources, its splits, and their sampling."""

from collections.abc import Mapping
from operator import not_
from typing import Any, Literal

from pydantic import Field, model_validator

from ray_app.archives import ContainerLimits, TableColumns
from ray_app.config import Frozen


class DatasetSource(Frozen):
    """A source of labelled images.

    The source is one of two kinds. An index is a table of images and labels that `touchstone data
    index` wrote. Files, folders, or archives need a `layout`, which reads their labels.
    """

    at: tuple[str, ...] = Field(
        min_length=1,
        description="an index directory, or folders, files, globs; sample:: for the shipped sample archive",
    )
    layout: str = Field(
        default="columns",
        description="how the source states its labels; touchstone data index --help lists the layouts",
    )
    arguments: Mapping[str, Any] = Field(default={}, description="arguments of the layout, by name")
    split: str | None = Field(
        default=None,
        description="take only rows that the source itself assigns to this split, or to one of several, as in A+B; null = all",
    )
    generators: tuple[str, ...] = Field(
        default=(),
        description="take only the fakes of these generators, and all real images; all fakes if empty",
    )
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
        description="also read files that a list names from web servers that are not on the public Internet",
    )
    container_limits: ContainerLimits = ContainerLimits()
    limit: int | None = Field(default=None, ge=1, description="list no more than this many files")
    hashes: tuple[Literal["sha256", "phash"], ...] = Field(
        default=(),
        description="hashes to compute while indexing, to find leakage; this reads every image",
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
    """A validation or test split that is taken from the training sources.

    The split gets whole groups. A group is the images of one prompt, scene, or pair. `groups`
    selects a fraction of all groups. `generators` selects the groups whose fakes are all by the
    named generators. Both may be set. If `generators` is set, fakes by other generators are left
    out of the split. Fakes by the named generators whose group is in another split are in no split.
    """

    generators: tuple[str, ...] = Field(
        default=(), description="generators whose fakes are in no training split"
    )
    groups: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="fraction of all groups that is held out; a group is the images of one prompt, scene, or pair",
    )

    @model_validator(mode="after")
    def _something(self) -> "HeldOut":
        if not self.generators and not self.groups:
            raise ValueError("a held-out split needs `generators`, `groups`, or both")
        return self


class Data(Frozen):
    """The data of a training run: the sources of training, validation, and test images."""

    train: tuple[DatasetSource, ...] = Field(
        default=(), description="sources of the images that the network learns from"
    )
    validation: tuple[DatasetSource, ...] | HeldOut = Field(
        default=(),
        description="sources that choose the best checkpoint and calibrate it, or a part to hold out from `train`",
    )
    test: tuple[DatasetSource, ...] | HeldOut = Field(
        default=(),
        description="sources that are only measured, once, after everything is decided, or a part to hold out from `train`",
    )
    licence: str | None = Field(default=None, description="licence of the data, for the card")
    name: str | None = Field(
        default=None,
        description="name of the data, for the card; null = the URLs of the training sources",
    )


class Sampling(Frozen):
    """How often a training run reads each image, and in which order.

    By default, an epoch has every row once. If `classes` is `balanced`, or `generators` is below 1,
    an epoch has `epoch_rows` rows. It then repeats rows of small classes and generators, and may
    leave out rows of large ones.
    """

    classes: Literal["natural", "balanced"] = Field(
        default="natural",
        description="`natural`: as many real and fake images as there are. `balanced`: as many real as fake images",
    )
    generators: float = Field(
        default=1.0,
        ge=0,
        le=1,
        description="exponent: within a class, the fraction of a generator with n images is proportional to n to this power; 1 is natural, "
        "0 is equal fractions, values between them are a temperature",
    )
    epoch_rows: int | None = Field(
        default=None,
        ge=1,
        description="rows of an epoch, only with `classes: balanced` or `generators` below 1; null = as many as the data have",
    )
    twins: bool = Field(
        default=False,
        description="put a real image and a fake of one group next to each other, in the batch of one process; only with natural fractions",
    )
    window: int | None = Field(
        default=None,
        ge=1,
        description="null shuffles all rows; a number shuffles runs of neighbouring rows, then the rows within windows of this many, "
        "so that containers are read in runs",
    )
    run: int = Field(default=256, ge=1, description="rows of a run, if `window` is set")
