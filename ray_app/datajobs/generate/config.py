"""The settings of a generating job."""

from typing import Literal

from pydantic import Field

from ray_app.cluster.config import ClusterConfig
from ray_app.config import Frozen
from ray_app.datajobs.generate.cards import Size
from ray_app.images import ImageLimits
from ray_app.storage import UNGUARDED, RetryPolicy

Format = Literal["JPEG", "PNG", "WEBP"]
Subsampling = Literal["4:4:4", "4:2:2", "4:2:0"]


class Like(Frozen):
    """A real set whose files the made ones are to look like."""

    source: str = Field(description="a run of `touchstone score`, an index, or anything that `score` takes as a source")
    sample: int = Field(default=2000, ge=1, description="real files that are measured")
    size: bool = Field(default=False, description="also shrink and crop each image to the size of the real file that it is to be like")


class FileEncoding(Frozen):
    """How files are written where no real set is given. `quality` of JPEG and lossy WebP; null with WEBP: lossless."""

    format: Format = "PNG"
    quality: int | None = Field(default=None, ge=1, le=100)
    subsampling: Subsampling = "4:2:0"


class PromptColumns(Frozen):
    """Columns of a table of prompts, by usual names; those that a table has not are empty."""

    prompt: str = "prompt"
    negative: str = "negative_prompt"
    id: str = "id"
    group: str = "group"
    split: str = "split"
    mask: str = "mask_uri"


class Drawn(Frozen):
    """Masks for images that come without one: a blob of ellipses, covering this share of the picture."""

    least: float = Field(default=0.05, gt=0, lt=1)
    most: float = Field(default=0.4, gt=0, lt=1)


class GenerateConfig(Frozen):
    """One job: which pipeline, from which words, into what files, where to."""

    pipeline: str = Field(description="a card: flux.1-dev, sd-3.5, … or the path of one")
    prompts: str | None = Field(
        default=None, description="a text file (one prompt a line), CSV, JSONL or Parquet, or an index; for inpainting a table of images"
    )
    out: str | None = Field(default=None, description="the directory to write; any fsspec URL")
    columns: PromptColumns = PromptColumns()
    negative_prompt: str | None = Field(default=None, description="for all prompts without one of their own")
    per_prompt: int = Field(default=1, ge=1, description="images of each prompt, each of its own seed")
    limit: int | None = Field(default=None, ge=1, description="use only the first so many prompts")
    seed: int = Field(default=0, ge=0, description="base seed; an image's own follows from it and the image's number")
    steps: int | None = Field(default=None, ge=1, description="null = the card's")
    guidance: float | None = Field(default=None, ge=0, description="null = the card's")
    sizes: tuple[Size, ...] | None = Field(default=None, min_length=1, description="[width, height] pairs; null = the card's")
    generator: str | None = Field(default=None, description="the name in labels; null = the card's. FAMILY/NAME for a tuned model")
    model: str | None = Field(default=None, description="another place of the card's model: a local folder, a mirror on the hub")
    revision: str | None = Field(default=None, description="a commit or tag on the hub; null = the card's")
    like: Like | None = None
    encode: FileEncoding = FileEncoding()
    masks: Drawn = Drawn()
    paste: bool = Field(default=True, description="inpainting: put the untouched pixels of the real image back outside the mask")
    mark: bool = Field(default=True, description="write IPTC's DigitalSourceType into every file")
    accept_licences: tuple[str, ...] = Field(default=(), description="pipelines, or licences, whose terms you accept for this job")
    batch: int | None = Field(default=None, ge=1, description="images at once; null = the card's; halved when memory is short")
    block_images: int = Field(default=32, ge=1, description="the unit of commit and resume")
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "bf16", "fp16", "fp32"] = Field(default="auto", description="auto = the card's, fp32 on a CPU")
    allow_private: bool = Field(
        default=False,
        description="read what prompts and `like` name also from web servers that are not on the public Internet",
    )
    limits: ImageLimits = ImageLimits()
    retry: RetryPolicy = RetryPolicy()
    unguarded: bool = Field(default=False, description=UNGUARDED)
    cluster: ClusterConfig = ClusterConfig()
