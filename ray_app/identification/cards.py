"""Cards of what profiles an image: the identifier (`IdentifierCard`), which names its generator,
and the describer, which predicts its prompt.

YAML in configs/identifiers and configs/describers; loads without torch.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import Field, model_validator

from ray_app.config import Frozen, Placed, find_config, load_yaml, named_configs, read_mapping
from ray_app.detectors import Preprocessing
from ray_app.detectors.card import PublishedFigure, Weights
from ray_app.detectors.card_sections import TrainingData
from ray_app.detectors.weights import WeightSet, digest_of, resolve_part
from ray_app.errors import ConfigError
from ray_app.identification.generators import family_of

# Of a card, what decides no name and no word: texts, files (their hashes stand for them), and what
# the plan reckons with.
_SAYS_NOTHING = {
    *("title", "weights", "tokenizer", "licence", "source", "training_data", "published", "notes"),
    *("own_pool", "gmac", "parameters"),
}


class OpenSet(Frozen):
    """When a generator is taken for none of the known ones: where `confidence`, by `method`, lies
    below `threshold`.

    `energy`: log Σ exp of the logits (Liu et al., NeurIPS 2020, arXiv 2010.03759). `distance`:
    minus the smallest Mahalanobis distance to a class's mean under one covariance of all classes
    (Lee et al., NeurIPS 2018, arXiv 1807.03888). `abstains`: the share of images of known
    generators that may be given up; the threshold is that quantile of `n` images that nothing was
    fitted on.
    """

    method: Literal["energy", "distance"] = "energy"
    threshold: float
    abstains: float = Field(ge=0, lt=1)
    n: int = Field(ge=1)


class _Card(Placed):
    """What both kinds of cards say."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9.-]*$")
    title: str
    weights: Weights
    licence: str
    source: str
    training_data: TrainingData
    published: tuple[PublishedFigure, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def parts(self) -> tuple[WeightSet, ...]:
        """The card's files, its weights first, for `detectors.weights` to find, fetch and hash."""
        return (WeightSet(self.name, self.weights, self._folder, self.name),)

    def facts(self) -> dict[str, Any]:
        """All that decides the answers, as plain JSON: part of a run's identity. Hashes weights.
        Raises DetectorError.
        """
        facts = self.model_dump(mode="json", exclude=_SAYS_NOTHING)
        return facts | {"weights": [digest_of(part, resolve_part(part)) for part in self.parts]}


Card = TypeVar("Card", bound=_Card)


class IdentifierCard(_Card):
    """A head over generators, on the embeddings of a detector.

    `detector`: the name of that detector, a member of the ensemble. `embedding`: what decided the
    embeddings that the head was fitted on (`detectors.linear_head.embedding_facts`); others are
    refused. `classes`: generators, in the order of the head's rows; `families`: of those that the
    index of generators does not know. `head`: `linear`, or `cosine`: both unit vectors, times
    `scale`. The weights hold `weight` (C, d) and `bias` (C,), and for distances `means` (C, d) and
    `whitening` (d, k).
    """

    detector: str
    embedding: Mapping[str, Any]
    classes: tuple[str, ...] = Field(min_length=2)
    families: Mapping[str, str] = {}
    head: Literal["linear", "cosine"] = "linear"
    scale: float = Field(default=1.0, gt=0)
    open_set: OpenSet | None = None

    @model_validator(mode="after")
    def _distinct(self) -> "IdentifierCard":
        if len(set(self.classes)) < len(self.classes):
            raise ValueError("a class is named twice")
        return self

    @property
    def class_families(self) -> tuple[str, ...]:
        """The family of each class, its own name where none is known."""
        return tuple(self.families.get(name) or family_of(name) or name for name in self.classes)

    def facts(self) -> dict[str, Any]:
        """The same of every card, and each class's family: that of the likeliest is named first,
        and the index of generators may change.
        """
        return super().facts() | {
            "families": dict(zip(self.classes, self.class_families, strict=True))
        }


class DescriberCard(_Card):
    """What predicts the words that an image was made from. `tier`, from cheap to dear:

    `retrieval`: the prompt of the nearest embedding in an index; the weights hold `embeddings` (n,
    d), and of the prompts all their UTF-8 bytes in one row, `prompts` uint8, with the `ends` (n,)
    int64 of each. `prefix`: an embedding becomes `prefix` tokens before a small language model
    (ClipCap: Mokady et al. 2021, arXiv 2111.09734). `captioner`: a transformers model that reads
    pixels (GIT, BLIP, VisionEncoderDecoder). `dialogue`: a vision-language model that is asked
    `question`. The first two read the embeddings of `detector`, the others pixels prepared by
    `preprocessing`. `beams`, `no_repeat` (n-grams) and `most_tokens` are of the search.
    `tokenizer`: a `tokenizer.json`; null: the weights' own header holds one, under `tokenizer`, as
    those do that were trained here.
    """

    tier: Literal["retrieval", "prefix", "captioner", "dialogue"]
    detector: str | None = None
    embedding: Mapping[str, Any] = {}
    preprocessing: Preprocessing | None = None
    architecture: Mapping[str, Any] = {}
    tokenizer: Weights | None = None
    prefix: int = Field(default=10, ge=1)
    beams: int = Field(default=3, ge=1)
    no_repeat: int = Field(default=3, ge=0)
    most_tokens: int = Field(default=77, ge=1)
    batch: int | None = Field(
        default=None,
        ge=1,
        description="images that go through it at once, always as many; null = 8, dialogue 1",
    )
    question: str = "Write a prompt that would recreate this image."
    own_pool: bool = False
    gmac: float | None = Field(
        default=None, gt=0, description="billions of multiply-adds per image, the search included"
    )
    parameters: int | None = Field(
        default=None,
        ge=1,
        description="numbers in its weights; large ones get processes of their own",
    )

    @property
    def parts(self) -> tuple[WeightSet, ...]:
        """The weights, and the tokenizer where it is a file of its own."""
        own = super().parts
        return (
            own
            if self.tokenizer is None
            else (
                *own,
                WeightSet(f"{self.name}-tokenizer", self.tokenizer, self._folder, self.name),
            )
        )

    def precision_on(self, device: str) -> Literal["bf16", "fp32"]:
        """In which precision it computes there: those too large for fp32 in bf16 on a GPU."""
        return "bf16" if self.tier == "dialogue" and device.startswith("cuda") else "fp32"

    @model_validator(mode="after")
    def _reads_something(self) -> "DescriberCard":
        if (self.tier in ("retrieval", "prefix")) != (self.detector is not None):
            raise ValueError(
                f"`detector` names whose embeddings retrieval and prefix read (tier: {self.tier})"
            )
        if (self.tier in ("captioner", "dialogue")) != (self.preprocessing is not None):
            raise ValueError(
                f"`preprocessing` says which pixels captioner and dialogue see (tier: {self.tier})"
            )
        return self


def load_identifier(name_or_path: str | Path) -> IdentifierCard:
    """A shipped identifier by name, or any by path. Raises ConfigError."""
    return _loaded(
        IdentifierCard,
        "identifiers",
        name_or_path,
        "configs/train/identify.yaml --out DIR makes DIR/identifier.yaml",
    )


def load_describer(name_or_path: str | Path) -> DescriberCard:
    """A shipped describer by name, or any by path. Raises ConfigError."""
    return _loaded(
        DescriberCard,
        "describers",
        name_or_path,
        "configs/train/prompt-prefix.yaml --out DIR makes DIR/describer.yaml",
    )


def profile_card(name_or_path: str | Path) -> IdentifierCard | DescriberCard | None:
    """The identifier or describer that a person means by a shipped name or by a path; None where it
    is neither. Raises ConfigError.
    """
    if str(name_or_path) in named_configs("identifiers"):
        return load_identifier(name_or_path)
    if str(name_or_path) in named_configs("describers"):
        return load_describer(name_or_path)
    if not Path(name_or_path).is_file():
        return None
    keys = read_mapping(Path(name_or_path)).keys()
    return (
        load_describer(name_or_path)
        if "tier" in keys
        else load_identifier(name_or_path)
        if "classes" in keys
        else None
    )


def _loaded(card_type: type[Card], kind: str, name_or_path: str | Path, made: str) -> Card:
    """The card, which knows the folder that it lies in. `made`: what makes one, for the hint."""
    try:
        path = find_config(kind, name_or_path)
    except ConfigError as error:
        shipped = f"; {error.hint}" if named_configs(kind) else ""
        hint = f"touchstone train {made}; a path in an ensemble's card is relative to that card{shipped}"
        raise ConfigError(error.message, hint=hint) from None
    return load_yaml(path, card_type)
