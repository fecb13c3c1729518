"""Cards of generating pipelines, from YAML in configs/generate: what is loaded from where, and with which settings. No torch."""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, PrivateAttr, model_validator

from ray_app.config import Frozen, find_config
from ray_app.config.loading import load_yaml
from ray_app.profiling.generators import known

Size = tuple[int, int]
Terms = Literal["permissive", "restricted", "non-commercial", "research-only", "none-stated"]


class Lora(Frozen):
    """A low-rank change of the pipeline's weights, fused into them. `model`: a hub id, or a local folder or file."""

    model: str
    weight_name: str | None = Field(default=None, description="the file, where the repository has several")
    revision: str | None = None
    scale: float = Field(default=0.8, description="OpenFake's scripts fuse at 0.8 (specs/detectors.md §12)")


class PipelineCard(Frozen):
    """One pipeline of diffusers and the settings it is used with.

    `model`: a hub id, or a folder (relative ones lie beside the card). `revision` null: the commit that `main` names when a directory is
    begun. `sizes`: (width, height) pairs, one drawn for every image; a pair that stands twice is drawn twice as often. `generator` is
    the name in labels, by default the card's own. `strength` (inpainting): the share of the noise that the covered part starts from.
    """

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")
    title: str
    diffusers_class: str = Field(pattern=r"^[A-Za-z0-9]+Pipeline$", description="the class that diffusers loads it as")
    task: Literal["text", "inpainting"] = "text"
    model: str
    revision: str | None = None
    variant: str | None = Field(default=None, description="diffusers' name of a set of weight files, such as fp16")
    lora: Lora | None = None
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
    arguments: dict[str, Any] = Field(default={}, description="further arguments of the pipeline's call")
    notes: tuple[str, ...] = ()

    _folder: Path = PrivateAttr(default=Path())

    @model_validator(mode="after")
    def _fits(self) -> "PipelineCard":
        if any(side < 16 or side % 16 for size in self.sizes for side in size):
            raise ValueError("sizes are multiples of 16")
        return self

    @property
    def folder(self) -> Path:
        """Where the card was read from; a relative model lies there."""
        return self._folder

    @property
    def label(self) -> str:
        """The generator's name in labels: the one that the index of generators uses, where it knows it."""
        named = self.generator or self.name
        found = known(named)
        return found.name if found is not None and found.name else named

    @property
    def local_folder(self) -> Path | None:
        """The model's folder on this machine; None where `model` is a hub id."""
        places = (Path(self.model), self._folder / self.model)
        return next((place.resolve() for place in places if (place / "model_index.json").is_file()), None)

    def facts(self) -> dict[str, Any]:
        """What decides the images, as plain JSON: part of a directory's identity."""
        return self.model_dump(mode="json", exclude={"title", "licence", "terms", "source", "batch", "notes", "revision"})


def load_pipeline_card(name_or_path: str | Path) -> PipelineCard:
    """A shipped card by name, or one from a file. Raises ConfigError."""
    path = find_config("generate", name_or_path)
    card = load_yaml(path, PipelineCard)
    card._folder = path.resolve().parent
    return card
