"""Cards of generating pipelines, from YAML in configs/generate: `load_pipeline_card`; `require_accepted` checks their terms."""

from collections.abc import Collection
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, PrivateAttr, model_validator

from ray_app.attribution.generators import known
from ray_app.config import Frozen, find_config, load_yaml, named_configs
from ray_app.detectors.licences import TERMS_IN_WORDS, Acceptance, accept_licence, is_accepted, remember_licence
from ray_app.errors import ConfigError, DetectorError

Size = tuple[int, int]
Terms = Literal["permissive", "restricted", "non-commercial", "research-only", "none-stated"]


class PipelineLora(Frozen):
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


def require_accepted(card: PipelineCard, accepted: Collection[str] = ()) -> None:
    """Refuse a card whose terms are not permissive and were not accepted. Raises DetectorError that says how to accept them."""
    if is_accepted(card, accepted):
        return
    raise DetectorError(
        f"{card.name}: its licence is not accepted yet: {card.licence} ({TERMS_IN_WORDS[card.terms]}); model {card.model}",
        hint=f"read {card.source}, then: touchstone generate … --accept-licence {card.name}",
    )


def accept(name: str) -> Acceptance:
    """Remember that the licence of a pipeline (by name, or path of its card), or a licence by its id, is accepted. Raises ConfigError."""
    cards = [load_pipeline_card(path) for path in named_configs("generate").values()]
    for licence in {card.licence for card in cards if card.terms not in ("permissive", "none-stated")}:
        if name.casefold() == licence.casefold():
            return remember_licence(licence, licence)
    try:
        card = load_pipeline_card(name)
    except ConfigError:
        return accept_licence(name)
    return remember_licence(card.name, card.licence)
