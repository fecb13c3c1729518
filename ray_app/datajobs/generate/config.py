"""The settings of a generating job.

Cards of generating pipelines, from YAML in configs/generate: `load_pipeline_card`;
`require_accepted` checks their terms.
"""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from ray_app.cluster.config import ClusterConfig
from ray_app.config import Frozen, Placed, find_config, load_yaml, named_configs
from ray_app.detectors.licences import (
    TERMS_IN_WORDS,
    Acceptance,
    accept_licence,
    is_accepted,
    remember_licence,
)
from ray_app.errors import ConfigError, DetectorError
from ray_app.identification.generators import find_generator
from ray_app.images import ImageLimits
from ray_app.storage import UNGUARDED, RetryPolicy, S3Config

Size = tuple[int, int]
Terms = Literal["permissive", "restricted", "non-commercial", "research-only", "none-stated"]


class PipelineLora(Frozen):
    """A low-rank change of the pipeline's weights, fused into them. `model`: a hub id, or a local
    folder or file.
    """

    model: str
    weight_name: str | None = Field(
        default=None, description="the file, where the repository has several"
    )
    revision: str | None = None
    scale: float = Field(
        default=0.8, description="OpenFake's scripts fuse at 0.8 (specs/detectors.md §12)"
    )


class PipelineCard(Placed):
    """One pipeline of diffusers and the settings it is used with.

    `model`: a hub id, or a folder (relative ones lie beside the card). `revision` null: the commit
    that `main` names when a directory is begun. `sizes`: (width, height) pairs, one drawn for every
    image; a pair that stands twice is drawn twice as often. `generator` is the name in labels, by
    default the card's own. `strength` (inpainting): the share of the noise that the covered part
    starts from.
    """

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")
    title: str
    diffusers_class: str = Field(
        pattern=r"^[A-Za-z0-9]+Pipeline$", description="the class that diffusers loads it as"
    )
    task: Literal["text", "inpainting"] = "text"
    model: str
    revision: str | None = None
    variant: str | None = Field(
        default=None, description="diffusers' name of a set of weight files, such as fp16"
    )
    lora: PipelineLora | None = None
    generator: str | None = None
    licence: str
    terms: Terms
    source: str
    precision: Literal["bf16", "fp16", "fp32"] = "bf16"
    steps: int = Field(ge=1)
    guidance: float = Field(ge=0)
    negative: bool = Field(default=True, description="whether the pipeline takes negative prompts")
    strength: float = Field(default=1.0, gt=0, le=1)
    batch: int = Field(default=4, ge=1, description="images at once, halved when memory is short")
    sizes: tuple[Size, ...] = Field(min_length=1)
    arguments: dict[str, Any] = Field(
        default={}, description="further arguments of the pipeline's call"
    )
    notes: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _fits(self) -> "PipelineCard":
        if any(side < 16 or side % 16 for size in self.sizes for side in size):
            raise ValueError("sizes are multiples of 16")
        return self

    @property
    def label(self) -> str:
        """The generator's name in labels: the one that the index of generators uses, where it knows
        it.
        """
        named = self.generator or self.name
        found = find_generator(named)
        return found.name if found is not None and found.name else named

    @property
    def local_folder(self) -> Path | None:
        """The model's folder on this machine, absolute or relative to the card; None if `model` is
        a hub id.
        """
        place = self._folder / self.model
        return (
            place.resolve()
            if place.is_absolute() and (place / "model_index.json").is_file()
            else None
        )

    def facts(self) -> dict[str, Any]:
        """What decides the images, as plain JSON: part of a directory's identity."""
        return self.model_dump(
            mode="json",
            exclude={"title", "licence", "terms", "source", "batch", "notes", "revision"},
        )


def load_pipeline_card(name_or_path: str | Path) -> PipelineCard:
    """A shipped card by name, or one from a file. Raises ConfigError."""
    return load_yaml(find_config("generate", name_or_path), PipelineCard)


def require_accepted(card: PipelineCard, accepted: Collection[str] = ()) -> None:
    """Refuse a card whose terms are not permissive and were not accepted. Raises DetectorError that
    says how to accept them.
    """
    if is_accepted(card.name, card.licence, card.terms, accepted):
        return
    raise DetectorError(
        f"{card.name}: its licence is not accepted yet: {card.licence} ({TERMS_IN_WORDS[card.terms]}); model {card.model}",
        hint=f"read {card.source}, then: touchstone data generate … --accept-licence {card.name}",
    )


def accept(name: str) -> Acceptance:
    """Remember that the licence of a pipeline (by name, or path of its card), or a licence by its
    id, is accepted. Raises ConfigError.
    """
    cards = [load_pipeline_card(path) for path in named_configs("generate").values()]
    for licence in {
        card.licence for card in cards if card.terms not in ("permissive", "none-stated")
    }:
        if name.casefold() == licence.casefold():
            return remember_licence(licence, licence)
    try:
        card = load_pipeline_card(name)
    except ConfigError:
        return accept_licence(name)
    return remember_licence(card.name, card.licence)


Format = Literal["JPEG", "PNG", "WEBP"]
Subsampling = Literal["4:4:4", "4:2:2", "4:2:0"]
Quality = Annotated[int, Field(ge=1, le=100)]


class FileEncoding(Frozen):
    """How files are stored: the format and the quality of each image are drawn from these, so that
    the file does not give it away.
    """

    format: tuple[Format, ...] = Field(
        default=("PNG",),
        min_length=1,
        description="a format or a list of them; one that stands twice is drawn twice as often",
    )
    quality: tuple[Quality, Quality] | None = Field(
        default=None,
        description="of JPEG and lossy WebP, one or [lowest, highest]; null = 90 for JPEG, and lossless WebP",
    )
    subsampling: Subsampling = Field(default="4:2:0", description="of JPEG")

    @field_validator("format", mode="before")
    @classmethod
    def _read_one_format(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @field_validator("quality", mode="before")
    @classmethod
    def _read_one_quality(cls, value: Any) -> Any:
        return (value, value) if isinstance(value, int) else value

    @field_validator("quality")
    @classmethod
    def _check_range(cls, value: tuple[int, int] | None) -> tuple[int, int] | None:
        if value is not None and value[0] > value[1]:
            raise ValueError("the lowest quality comes first")
        return value


class PromptColumns(Frozen):
    """Columns of a table of prompts, by usual names; those that a table has not are empty."""

    prompt: str = "prompt"
    negative: str = "negative_prompt"
    id: str = "id"
    group: str = "group"
    split: str = "split"
    mask: str = "mask_uri"


class Drawn(Frozen):
    """Masks for images that come without one: a blob of ellipses, covering this share of the
    picture.
    """

    least: float = Field(default=0.05, gt=0, lt=1)
    most: float = Field(default=0.4, gt=0, lt=1)


class GenerateConfig(Frozen):
    """One job: which pipeline, from which words, into what files, where to."""

    retired_keys: ClassVar[Mapping[str, str]] = {
        "like": "set encode.format to a list of formats and encode.quality to a range"
    }

    pipeline: str = Field(description="a card: flux.1-dev, sd-3.5, … or the path of one")
    prompts: str | None = Field(
        default=None,
        description="text (one prompt a line), CSV, JSONL, Parquet, an index, or what a run predicted; for inpainting a table of images",
    )
    out: str | None = Field(
        default=None,
        description="directory of the images; any fsspec URL; the same command resumes there",
    )
    columns: PromptColumns = PromptColumns()
    negative_prompt: str | None = Field(
        default=None, description="for all prompts without one of their own"
    )
    per_prompt: int = Field(
        default=1, ge=1, description="images per prompt, each with its own seed"
    )
    limit: int | None = Field(
        default=None, ge=1, description="maximum number of prompts, the first ones of the table"
    )
    seed: int = Field(
        default=0,
        ge=0,
        description="base seed, from which the seed of each image follows",
    )
    steps: int | None = Field(default=None, ge=1, description="null = the card's")
    guidance: float | None = Field(default=None, ge=0, description="null = the card's")
    sizes: tuple[Size, ...] | None = Field(
        default=None, min_length=1, description="[width, height] pairs; null = the card's"
    )
    generator: str | None = Field(
        default=None,
        description="the name in labels; null = the card's. FAMILY/NAME for a tuned model",
    )
    model: str | None = Field(
        default=None,
        description="another place of the card's model: a local folder, a mirror on the hub",
    )
    revision: str | None = Field(
        default=None, description="a commit or tag on the hub; null = the card's"
    )
    encode: FileEncoding = FileEncoding()
    masks: Drawn = Drawn()
    paste: bool = Field(
        default=True,
        description="inpainting: put the untouched pixels of the real image back outside the mask",
    )
    mark: bool = Field(default=True, description="write IPTC's DigitalSourceType into every file")
    accept_licences: tuple[str, ...] = Field(
        default=(), description="pipelines, or licences, whose terms you accept for this job"
    )
    batch: int | None = Field(
        default=None,
        ge=1,
        description="images at once, halved when memory is short; null = the card's",
    )
    block_images: int = Field(default=32, ge=1, description="the unit of commit and resume")
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "bf16", "fp16", "fp32"] = Field(
        default="auto", description="auto = the card's, fp32 on a CPU"
    )
    allow_private: bool = Field(
        default=False,
        description="read what prompts name also from web servers that are not on the public Internet",
    )
    limits: ImageLimits = ImageLimits()
    retry: RetryPolicy = RetryPolicy()
    s3: S3Config = S3Config()
    unguarded: bool = Field(default=False, description=UNGUARDED)
    cluster: ClusterConfig = ClusterConfig()
