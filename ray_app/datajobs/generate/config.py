"""Settings of `touchstone data generate` (`GenerateConfig`), and cards of pipelines.

`load_pipeline_card` reads a card, and `require_accepted` checks that its licence is accepted. The
shipped cards are in `configs/generate`.
"""

import shlex
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from ray_app.cluster.config import ClusterConfig
from ray_app.config import FileConfig, Frozen, find_config, load_yaml, named_configs
from ray_app.detectors.licences import (
    TERMS_IN_WORDS,
    Acceptance,
    Terms,
    accept_licence,
    is_accepted,
    remember_licence,
)
from ray_app.errors import ConfigError, DetectorError
from ray_app.identification.generators import find_generator
from ray_app.images import ImageLimits
from ray_app.storage import UNGUARDED, RetryPolicy, S3Config

Size = tuple[int, int]


class PipelineLora(Frozen):
    """A low-rank adaptation (LoRA) that is fused into the weights of a pipeline."""

    model: str = Field(description="id on the Hugging Face hub, or a local folder or file")
    weight_name: str | None = Field(
        default=None, description="name of the weight file, if the repository has several"
    )
    revision: str | None = Field(default=None, description="commit or tag on the hub; null = main")
    scale: float = Field(
        default=0.8, description="scale of the LoRA; OpenFake's scripts use 0.8 (arXiv 2509.09495)"
    )


class PipelineCard(FileConfig):
    """Card of an image generator, a pipeline of diffusers: its model, licence, and defaults."""

    name: str = Field(
        pattern=r"^[a-z0-9][a-z0-9._-]*$", description="name of the card, also in commands"
    )
    title: str = Field(description="title of the card for people")
    diffusers_class: str = Field(
        pattern=r"^[A-Za-z0-9]+Pipeline$", description="class of diffusers that loads the pipeline"
    )
    task: Literal["text", "inpainting"] = Field(
        default="text",
        description="text = images from prompts alone, inpainting = alter a part of real images",
    )
    model: str = Field(
        description="id on the Hugging Face hub, or a folder, which may be relative to the card"
    )
    revision: str | None = Field(
        default=None,
        description="commit or tag on the hub; null = the commit of main when a directory is started",
    )
    variant: str | None = Field(
        default=None,
        description="variant of the weight files in the terms of diffusers, such as fp16",
    )
    lora: PipelineLora | None = Field(
        default=None, description="low-rank adaptation (LoRA) that is fused into the weights"
    )
    generator: str | None = Field(
        default=None, description="name of the generator in labels; null = the name of the card"
    )
    licence: str = Field(description="id of the licence of the model")
    terms: Terms = Field(
        description="kind of the licence; licences that are not permissive have to be accepted"
    )
    source: str = Field(description="URL of the model and its licence")
    precision: Literal["bf16", "fp16", "fp32"] = Field(
        default="bf16", description="number format of the weights on a GPU"
    )
    steps: int = Field(ge=1, description="number of denoising steps")
    guidance: float = Field(ge=0, description="guidance scale")
    negative: bool = Field(
        default=True, description="whether the pipeline accepts negative prompts"
    )
    strength: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="inpainting: fraction of the noise from which the masked part starts",
    )
    batch: int = Field(
        default=4,
        ge=1,
        description="images per batch; halved when a batch does not fit into memory",
    )
    sizes: tuple[Size, ...] = Field(
        min_length=1,
        description="[width, height] pairs in pixels, multiples of 16; one is drawn for each image, and a repeated pair is drawn more often",
    )
    arguments: dict[str, Any] = Field(
        default={}, description="further arguments of the call of the pipeline"
    )
    notes: tuple[str, ...] = Field(default=(), description="remarks for people")

    @model_validator(mode="after")
    def _fits(self) -> "PipelineCard":
        if any(side < 16 or side % 16 for size in self.sizes for side in size):
            raise ValueError(
                f"sides in sizes must be multiples of 16, and at least 16, got {self.sizes}"
            )
        return self

    @property
    def label(self) -> str:
        """Name of the generator in the labels of the images that it generates.

        It is the name in the shipped index of generators. If the generator is not in the index, it
        is the name that the card gives.
        """
        name = self.generator or self.name
        generator = find_generator(name)
        return generator.name if generator is not None and generator.name else name

    @property
    def local_folder(self) -> Path | None:
        """Absolute path of the model's folder. None if `model` is not a folder with a pipeline.

        A folder with a pipeline has the file model_index.json. Other values of `model` are ids on
        the hub.
        """
        path = self._folder / self.model
        return (
            path.resolve() if path.is_absolute() and (path / "model_index.json").is_file() else None
        )

    def facts(self) -> dict[str, Any]:
        """Return the settings that determine the images, as JSON-compatible values.

        These settings must stay equal when a job is resumed in its output directory. The title, the
        licence, and the batch size may change.
        """
        return self.model_dump(
            mode="json",
            exclude={"title", "licence", "terms", "source", "batch", "notes", "revision"},
        )


def load_pipeline_card(name_or_path: str | Path) -> PipelineCard:
    """Load a shipped pipeline card by name, such as "flux.1-dev", or a card from a YAML file.

    Raises ConfigError if there is no such card, or it is invalid.
    """
    card = load_yaml(find_config("generate", name_or_path), PipelineCard)
    card._loaded_as = str(name_or_path)
    return card


def require_accepted(card: PipelineCard, accepted: Collection[str] = ()) -> None:
    """Check that the licence of a pipeline may be used, before images are generated.

    The licence must be permissive, or a person must have accepted it. `accepted` has names of
    pipelines and licences for this call only. Raises DetectorError otherwise.
    """
    if is_accepted(card.name, card.licence, card.terms, accepted):
        return
    raise DetectorError(
        f"{card.name}: its licence is not accepted yet: {card.licence} ({TERMS_IN_WORDS[card.terms]}); model {card.model}",
        hint=f"read {card.source}, then run touchstone data generate … --accept-licence {shlex.quote(card.loaded_as or card.name)}",
    )


def accept(name: str) -> Acceptance:
    """Record in the user's config file that the licence of a pipeline is accepted.

    `name` may be that of a pipeline or a detector, the path of a card, or the id of a licence.
    Raises ConfigError if there is none, or if the config file is damaged.
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
    """File formats and qualities, from which those of each generated image are drawn at random.

    Use the formats and qualities of your real images. Otherwise, a detector that is trained on the
    images may recognise fakes by their file format instead of their content.
    """

    format: tuple[Format, ...] = Field(
        default=("PNG",),
        min_length=1,
        description="a format or a list of formats; a repeated format is drawn more often",
    )
    quality: tuple[Quality, Quality] | None = Field(
        default=None,
        description="quality of JPEG and lossy WebP: a number or [lowest, highest]; null = 90 for JPEG, and lossless WebP",
    )
    subsampling: Subsampling = Field(default="4:2:0", description="chroma subsampling of JPEG")

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
            raise ValueError(f"quality must be [lowest, highest], got {list(value)}")
        return value


class PromptColumns(Frozen):
    """Names of the columns of a table of prompts. Only the column of prompts is required."""

    prompt: str = Field(default="prompt", description="column of prompts")
    negative: str = Field(default="negative_prompt", description="column of negative prompts")
    id: str = Field(default="id", description="column of unique ids of prompts")
    group: str = Field(
        default="group", description="column of groups, which `data split` keeps in one split"
    )
    split: str = Field(default="split", description="column of splits")
    mask: str = Field(default="mask_uri", description="column of the paths or URLs of masks")


class RandomMaskConfig(Frozen):
    """Size of the masks that are drawn at random for images without a mask, in an inpainting job.

    A mask is a blob of ellipses that marks the part of an image to alter.
    """

    least: float = Field(
        default=0.05, gt=0, lt=1, description="lowest fraction of the image that a mask covers"
    )
    most: float = Field(
        default=0.4, gt=0, lt=1, description="highest fraction of the image that a mask covers"
    )


class GenerateConfig(Frozen):
    """Settings of `touchstone data generate`, a job that generates images from prompts."""

    retired_keys: ClassVar[Mapping[str, str]] = {
        "like": "set encode.format to a list of formats and encode.quality to a range"
    }

    pipeline: str = Field(
        description="name of a shipped pipeline, such as flux.1-dev or sd-3.5, or the path of a card"
    )
    prompts: str | None = Field(
        default=None,
        description="text with a prompt per line, CSV, JSONL, Parquet, an index, or a run with predicted prompts; for inpainting, a table of images",
    )
    out: str | None = Field(
        default=None,
        description="directory of the images; any fsspec URL; run the same command again to resume",
    )
    columns: PromptColumns = Field(
        default=PromptColumns(), description="names of the columns of a table of prompts"
    )
    negative_prompt: str | None = Field(
        default=None, description="negative prompt for prompts without their own"
    )
    per_prompt: int = Field(
        default=1, ge=1, description="images per prompt, each with its own seed"
    )
    limit: int | None = Field(
        default=None, ge=1, description="use only the first prompts, up to this number"
    )
    seed: int = Field(
        default=0,
        ge=0,
        description="base seed, which determines the seed of each image",
    )
    steps: int | None = Field(
        default=None, ge=1, description="number of denoising steps; null = the card's"
    )
    guidance: float | None = Field(
        default=None, ge=0, description="guidance scale; null = the card's"
    )
    sizes: tuple[Size, ...] | None = Field(
        default=None, min_length=1, description="[width, height] pairs in pixels; null = the card's"
    )
    generator: str | None = Field(
        default=None,
        description="name of the generator in labels, FAMILY/NAME for a fine-tuned model; null = the card's",
    )
    model: str | None = Field(
        default=None,
        description="read the card's model from this local folder or mirror on the hub instead",
    )
    revision: str | None = Field(
        default=None, description="commit or tag on the hub; null = the card's"
    )
    encode: FileEncoding = Field(
        default=FileEncoding(), description="formats and qualities of the files"
    )
    masks: RandomMaskConfig = Field(
        default=RandomMaskConfig(), description="inpainting: masks for images without one"
    )
    paste: bool = Field(
        default=True,
        description="inpainting: restore the pixels of the real image outside the mask",
    )
    mark: bool = Field(default=True, description="write IPTC's DigitalSourceType into every file")
    accept_licences: tuple[str, ...] = Field(
        default=(), description="pipelines or licences whose terms you accept for this job"
    )
    batch: int | None = Field(
        default=None,
        ge=1,
        description="images per batch, which is halved when a batch does not fit into memory; null = the card's",
    )
    block_images: int = Field(
        default=32, ge=1, description="images per block, the unit of commit and resume"
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto", description="device of the pipeline; auto = a GPU if one is available"
    )
    precision: Literal["auto", "bf16", "fp16", "fp32"] = Field(
        default="auto",
        description="number format of the weights; auto = the card's on a GPU, fp32 on a CPU",
    )
    allow_private: bool = Field(
        default=False,
        description="also read URLs in the prompts from web servers that are not on the public Internet",
    )
    limits: ImageLimits = Field(
        default=ImageLimits(), description="limits on real images and their masks"
    )
    retry: RetryPolicy = Field(default=RetryPolicy(), description="retries of reads from storage")
    s3: S3Config = Field(default=S3Config(), description="settings of S3 clients")
    unguarded: bool = Field(default=False, description=UNGUARDED)
    cluster: ClusterConfig = Field(
        default=ClusterConfig(), description="the Ray cluster that the job uses"
    )
