"""Cards of what profiles an image: the identifier (`IdentifierCard`), which names its generator, and
the describer (`DescriberCard`), which predicts its prompt.

They are YAML in configs/identifiers and configs/describers, and load without torch.
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

# Keys that decide no name and no prompt: texts, files (their digests stand for them), and sizes for
# the plan.
_NO_FACTS = {
    *("title", "weights", "tokenizer", "licence", "source", "training_data", "published", "notes"),
    *("own_pool", "gmac", "parameters"),
}


class OpenSet(Frozen):
    """The rule by which a generator is unknown: its confidence is below a threshold."""

    method: Literal["energy", "distance"] = Field(
        default="energy",
        description="`energy`: log Σ exp of the logits (Liu et al., NeurIPS 2020, arXiv 2010.03759). `distance`: minus the smallest "
        "Mahalanobis distance to the mean of a class under one covariance of all classes (Lee et al., NeurIPS 2018, arXiv 1807.03888)",
    )
    threshold: float = Field(description="the confidence below which a generator is unknown")
    abstains: float = Field(
        ge=0,
        lt=1,
        description="fraction of images of known generators that may be unknown; the threshold is that quantile",
    )
    n: int = Field(
        ge=1, description="images that the threshold is from, on which nothing was fitted"
    )


class _Card(Placed):
    """The keys of both cards."""

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
        """The files of the card, its weights first, for `ray_app.detectors.weights`."""
        return (WeightSet(self.name, self.weights, self._folder, self.name),)

    def facts(self) -> dict[str, Any]:
        """Return all that decides the answers, as plain JSON, for a run's identity. Raises
        DetectorError if a file is missing.
        """
        facts = self.model_dump(mode="json", exclude=_NO_FACTS)
        return facts | {"weights": [digest_of(part, resolve_part(part)) for part in self.parts]}


Card = TypeVar("Card", bound=_Card)


class IdentifierCard(_Card):
    """A head over generators, on the embeddings of a detector.

    The weights have `weight` (C, d) and `bias` (C,), and for distances `means` (C, d) and
    `whitening` (d, k).
    """

    detector: str = Field(description="name of that detector, a member of the ensemble")
    embedding: Mapping[str, Any] = Field(
        description="facts that decided the embeddings of the training; other embeddings are refused"
    )
    classes: tuple[str, ...] = Field(
        min_length=2, description="generators, in the order of the rows of the head"
    )
    families: Mapping[str, str] = Field(
        default={}, description="families of classes that the index of generators does not have"
    )
    head: Literal["linear", "cosine"] = Field(
        default="linear", description="linear, or cosines of unit vectors"
    )
    scale: float = Field(default=1.0, gt=0, description="factor of the cosines")
    open_set: OpenSet | None = Field(
        default=None,
        description="rule for unknown generators; null = every image gets the name of a known one",
    )

    @model_validator(mode="after")
    def _distinct(self) -> "IdentifierCard":
        if len(set(self.classes)) < len(self.classes):
            raise ValueError("a class is named twice")
        return self

    @property
    def class_families(self) -> tuple[str, ...]:
        """The family of each class; its own name if the family is not known."""
        return tuple(self.families.get(name) or family_of(name) or name for name in self.classes)

    def facts(self) -> dict[str, Any]:
        """Return the facts with the family of each class, since the index of generators may
        change.
        """
        return super().facts() | {
            "families": dict(zip(self.classes, self.class_families, strict=True))
        }


class DescriberCard(_Card):
    """A predictor of the prompt that an image was generated from.

    The weights of a retrieval have `embeddings` (n, d), all UTF-8 bytes of the prompts in one row,
    `prompts` uint8, and their `ends` (n,) int64.
    """

    tier: Literal["retrieval", "prefix", "captioner", "dialogue"] = Field(
        description="from cheap to expensive. `retrieval`: the prompt of the nearest embedding in an index. `prefix`: an embedding becomes "
        "tokens before a small language model (ClipCap: Mokady et al. 2021, arXiv 2111.09734). `captioner`: a model of transformers "
        "that reads pixels (GIT, BLIP, VisionEncoderDecoder). `dialogue`: a vision-language model that gets a question",
    )
    detector: str | None = Field(
        default=None, description="detector whose embeddings retrieval and prefix read"
    )
    embedding: Mapping[str, Any] = Field(
        default={},
        description="facts that decided the embeddings of the training; other embeddings are refused",
    )
    preprocessing: Preprocessing | None = Field(
        default=None, description="pixels that captioner and dialogue read"
    )
    architecture: Mapping[str, Any] = Field(
        default={},
        description="for prefix `width` and the `config` of GPT-2; otherwise the `model` type of transformers and its `config`. `tokens` "
        "{begin, end, pad} of a tokenizer that was not trained here. For dialogue also `template` with {image} and {question}, "
        "`image` [before, token, after], and `image_tokens`, how often the token stands for an image",
    )
    tokenizer: Weights | None = Field(
        default=None,
        description="a `tokenizer.json`; null = the header of the weights has it under `tokenizer`",
    )
    prefix: int = Field(default=10, ge=1, description="tokens that an embedding becomes")
    beams: int = Field(default=3, ge=1, description="beams of the search")
    no_repeat: int = Field(
        default=3, ge=0, description="length of n-grams that the search does not repeat; 0 = none"
    )
    most_tokens: int = Field(default=77, ge=1, description="maximum length of a prompt, in tokens")
    batch: int | None = Field(
        default=None, ge=1, description="images of a batch; null = 8, dialogue 1"
    )
    question: str = Field(
        default="Write a prompt that would recreate this image.",
        description="what a dialogue asks about every image",
    )
    own_pool: bool = Field(default=False, description="run in processes of its own")
    gmac: float | None = Field(
        default=None,
        gt=0,
        description="billions of multiply-adds per image, with the search",
    )
    parameters: int | None = Field(
        default=None,
        ge=1,
        description="numbers in its weights; large describers get processes of their own",
    )

    @property
    def parts(self) -> tuple[WeightSet, ...]:
        """The weights, and the tokenizer if it is a file of its own."""
        if self.tokenizer is None:
            return super().parts
        tokenizer = WeightSet(f"{self.name}-tokenizer", self.tokenizer, self._folder, self.name)
        return (*super().parts, tokenizer)

    def precision_on(self, device: str) -> Literal["bf16", "fp32"]:
        """Return its precision on a device: bf16 on a GPU if it is too large for fp32."""
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
    """Load a shipped identifier by name, or any by path. Raises ConfigError."""
    recipe = "configs/train/identify.yaml --out DIR makes DIR/identifier.yaml"
    return _load_card(IdentifierCard, "identifiers", name_or_path, recipe)


def load_describer(name_or_path: str | Path) -> DescriberCard:
    """Load a shipped describer by name, or any by path. Raises ConfigError."""
    recipe = "configs/train/prompt-prefix.yaml --out DIR makes DIR/describer.yaml"
    return _load_card(DescriberCard, "describers", name_or_path, recipe)


def find_profile_card(name_or_path: str | Path) -> IdentifierCard | DescriberCard | None:
    """Load the identifier or describer of a shipped name or a path; None if it is neither. Raises
    ConfigError.
    """
    if str(name_or_path) in named_configs("identifiers"):
        return load_identifier(name_or_path)
    if str(name_or_path) in named_configs("describers"):
        return load_describer(name_or_path)
    keys = read_mapping(Path(name_or_path)).keys() if Path(name_or_path).is_file() else ()
    if "tier" in keys:
        return load_describer(name_or_path)
    return load_identifier(name_or_path) if "classes" in keys else None


def _load_card(card_type: type[Card], kind: str, name_or_path: str | Path, recipe: str) -> Card:
    """Load a card with its folder. `recipe` makes one, for the hint."""
    try:
        path = find_config(kind, name_or_path)
    except ConfigError as error:
        shipped = f"; {error.hint}" if named_configs(kind) else ""
        hint = f"touchstone train {recipe}; a path in an ensemble's card is relative to that card{shipped}"
        raise ConfigError(error.message, hint=hint) from None
    return load_yaml(path, card_type)
