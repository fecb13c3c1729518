"""Define the cards of identifiers (`IdentifierCard`) and describers (`DescriberCard`).

An identifier names the generator of an image, and a describer predicts its prompt. The cards are
YAML files in configs/identifiers and configs/describers. The module loads without torch.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import Field, model_validator

from ray_app.config import FileConfig, Frozen, find_config, load_yaml, named_configs, read_mapping
from ray_app.detectors import Preprocessing
from ray_app.detectors.card import PublishedMetric, Weights
from ray_app.detectors.card_sections import TrainingData
from ray_app.detectors.weights import WeightSet, resolve_part, verify_part
from ray_app.errors import ConfigError
from ray_app.identification.generators import find_family

# Keys that affect neither names nor prompts: texts, files (their digests count instead), and sizes
# for planning.
_NO_FACTS = {
    *("title", "weights", "tokenizer", "licence", "source", "training_data", "published", "notes"),
    *("own_pool", "gmac", "parameters"),
}


class OpenSet(Frozen):
    """Rule by which an identifier calls the generator of an image unknown.

    An identifier predicts which generator of its list (`IdentifierCard.classes`) generated an
    image. `method` computes the confidence that the generator is in the list. If the confidence is
    below `threshold`, the generator is unknown.
    """

    method: Literal["energy", "distance"] = Field(
        default="energy",
        description="`energy`: log Σ exp of the logits (Liu et al., NeurIPS 2020, arXiv 2010.03759). `distance`: minus the smallest "
        "Mahalanobis distance to the mean of a class with one covariance for all classes (Lee et al., NeurIPS 2018, arXiv 1807.03888)",
    )
    threshold: float = Field(description="confidence below which a generator is unknown")
    abstains: float = Field(
        ge=0,
        lt=1,
        description="fraction of images of known generators that may be unknown. The threshold is that "
        "quantile",
    )
    n: int = Field(
        ge=1, description="number of images for the threshold, on which nothing was fitted"
    )


class _Card(FileConfig):
    """Keys that both kinds of cards have."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9.-]*$", description="name in commands and results")
    title: str = Field(description="name for people")
    weights: Weights = Field(description="location of the weights")
    licence: str = Field(description="SPDX identifier or name of the licence")
    source: str = Field(description="where the model is published")
    training_data: TrainingData = Field(description="images that the weights were trained on")
    published: tuple[PublishedMetric, ...] = Field(
        default=(), description="published values of metrics"
    )
    notes: tuple[str, ...] = Field(default=(), description="notes for readers, one sentence each")

    @property
    def parts(self) -> tuple[WeightSet, ...]:
        """The weight files of the card as a `WeightSet`, for `ray_app.detectors.weights`."""
        return (WeightSet(self.name, self.weights, self._folder, self.name),)

    def facts(self) -> dict[str, Any]:
        """Return all settings of the card that affect its predictions, as plain JSON.

        They are part of a run's identity: the values that must stay equal when a run is resumed.
        Raises DetectorError if a weight file is missing.
        """
        facts = self.model_dump(mode="json", exclude=_NO_FACTS)
        return facts | {"weights": [verify_part(part, resolve_part(part)) for part in self.parts]}


Card = TypeVar("Card", bound=_Card)


class IdentifierCard(_Card):
    """Card of an identifier, which predicts the generator of an image from a detector's embedding.

    An embedding is the input of the detector's last layer, a vector of d numbers. The identifier
    applies a linear layer to it, or computes cosines, with one output per known generator.

    For C generators, the weights file has the tensors `weight` (C, d) and, optionally, `bias` (C,).
    If `open_set.method` is `distance`, the file also has the mean embedding of each generator,
    `means` (C, d), and the matrix `whitening` (d, k) for `mahalanobis`.
    """

    detector: str = Field(description="name of the detector, a member of the ensemble")
    embedding: Mapping[str, Any] = Field(
        description="settings of the embeddings in training. Embeddings with other settings are refused"
    )
    classes: tuple[str, ...] = Field(
        min_length=2, description="generators, in the order of the rows of the head"
    )
    families: Mapping[str, str] = Field(
        default={},
        description="families of classes that are not in the index of generators, by class",
    )
    head: Literal["linear", "cosine"] = Field(
        default="linear", description="linear layer, or cosines of unit vectors"
    )
    scale: float = Field(default=1.0, gt=0, description="factor of the cosines")
    open_set: OpenSet | None = Field(
        default=None,
        description="rule for unknown generators. null gives every image a known generator",
    )

    @model_validator(mode="after")
    def _check_distinct(self) -> "IdentifierCard":
        if len(set(self.classes)) < len(self.classes):
            raise ValueError(f"classes must be distinct, got {', '.join(self.classes)}")
        return self

    @property
    def class_families(self) -> tuple[str, ...]:
        """Family of each known generator, in the order of `classes`.

        It is the name of the generator itself if the family is unknown.
        """
        return tuple(self.families.get(name) or find_family(name) or name for name in self.classes)

    def facts(self) -> dict[str, Any]:
        """Return all settings of the card that affect its predictions, as plain JSON.

        They are recorded with a scoring run, which can only be resumed with equal settings. They
        include the family of each generator, because the index of generators may change. Raises
        DetectorError if a weight file is missing.
        """
        return super().facts() | {
            "families": dict(zip(self.classes, self.class_families, strict=True))
        }


class DescriberCard(_Card):
    """Card of a describer, which predicts the prompt that an image was generated from.

    The `tier` states the kind of describer. For the tier `retrieval`, which looks up the most
    similar image with a known prompt, the weights file has three tensors:

    - `embeddings` (n, d), of the images with known prompts.
    - `prompts`, the UTF-8 bytes of all prompts one after another (uint8).
    - `ends` (n,), the position in `prompts` at which each prompt ends (int64).
    """

    tier: Literal["retrieval", "prefix", "captioner", "dialogue"] = Field(
        description="from fast to slow. `retrieval`: the prompt of the nearest embedding in an index. `prefix`: an embedding becomes "
        "tokens before a small language model (ClipCap: Mokady et al. 2021, arXiv 2111.09734). `captioner`: a model of transformers "
        "that reads pixels (GIT, BLIP, VisionEncoderDecoder). `dialogue`: a vision-language model that gets a question",
    )
    detector: str | None = Field(
        default=None, description="detector with the embeddings for retrieval and prefix"
    )
    embedding: Mapping[str, Any] = Field(
        default={},
        description="settings of the embeddings in training. Embeddings with other settings are refused",
    )
    preprocessing: Preprocessing | None = Field(
        default=None, description="how an image becomes the pixels for captioner and dialogue"
    )
    architecture: Mapping[str, Any] = Field(
        default={},
        description="for prefix, `width` and the `config` of GPT-2. Otherwise, the `model` type of transformers and its `config`. `tokens` "
        "{begin, end, pad} of a tokenizer that Touchstone did not train. For dialogue also `template` with {image} and {question}, "
        "`image` [before, token, after], and `image_tokens`, the number of tokens per image",
    )
    tokenizer: Weights | None = Field(
        default=None,
        description="a `tokenizer.json`. null reads `tokenizer` in the header of the weights",
    )
    prefix: int = Field(default=10, ge=1, description="number of tokens per embedding")
    beams: int = Field(default=3, ge=1, description="beams of the search")
    no_repeat: int = Field(
        default=3, ge=0, description="length of n-grams that must not repeat. 0 allows all"
    )
    most_tokens: int = Field(default=77, ge=1, description="maximum length of a prompt, in tokens")
    batch: int | None = Field(
        default=None, ge=1, description="images per batch. null means 8, and 1 for a dialogue"
    )
    question: str = Field(
        default="Write a prompt that would recreate this image.",
        description="question of a dialogue about every image",
    )
    own_pool: bool = Field(default=False, description="whether it runs in separate processes")
    gmac: float | None = Field(
        default=None,
        gt=0,
        description="billions of multiply-adds per image, including the search",
    )
    parameters: int | None = Field(
        default=None,
        ge=1,
        description="number of parameters. Large describers run in separate processes",
    )

    @property
    def parts(self) -> tuple[WeightSet, ...]:
        """The weight files of the card and, if the tokenizer has its own file, the tokenizer."""
        if self.tokenizer is None:
            return super().parts
        tokenizer = WeightSet(f"{self.name}-tokenizer", self.tokenizer, self._folder, self.name)
        return (*super().parts, tokenizer)

    def precision_on(self, device: str) -> Literal["bf16", "fp32"]:
        """Return the precision in which the describer runs on a device.

        It is bf16 if the card has the tier `dialogue` and the device is a GPU, otherwise fp32.
        """
        return "bf16" if self.tier == "dialogue" and device.startswith("cuda") else "fp32"

    @model_validator(mode="after")
    def _check_inputs(self) -> "DescriberCard":
        if (self.tier in ("retrieval", "prefix")) != (self.detector is not None):
            raise ValueError(
                f"`detector` is missing, which tier {self.tier} needs"
                if self.detector is None
                else f"`detector` is set, which only tiers retrieval and prefix use, but the tier is {self.tier}: remove `detector`"
            )
        if (self.tier in ("captioner", "dialogue")) != (self.preprocessing is not None):
            raise ValueError(
                f"`preprocessing` is missing, which tier {self.tier} needs"
                if self.preprocessing is None
                else f"`preprocessing` is set, which only tiers captioner and dialogue use, but the tier is {self.tier}: remove `preprocessing`"
            )
        return self


def load_identifier(name_or_path: str | Path) -> IdentifierCard:
    """Load the card of a shipped identifier by name, or of any identifier by path.

    An identifier predicts the generator of an image. Raises ConfigError if the card does not exist
    or is invalid.
    """
    recipe = "configs/train/identify.yaml --out DIR, which writes DIR/identifier.yaml"
    return _load_card(IdentifierCard, "identifiers", name_or_path, recipe)


def load_describer(name_or_path: str | Path) -> DescriberCard:
    """Load the card of a shipped describer by name, or of any describer by path.

    A describer predicts the prompt of an image. Raises ConfigError if the card does not exist or is
    invalid.
    """
    recipe = "configs/train/prompt-prefix.yaml --out DIR, which writes DIR/describer.yaml"
    return _load_card(DescriberCard, "describers", name_or_path, recipe)


def find_profile_card(name_or_path: str | Path) -> IdentifierCard | DescriberCard | None:
    """Load the card of the identifier or describer that a name or path means.

    An identifier predicts the generator of an image, and a describer its prompt.

    Args:
        name_or_path: The name of a shipped card, or the path of a card.

    Returns:
        The card. None if the name or path is of neither kind.

    Raises:
        ConfigError: If the card is invalid.
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
    """Load a card with its folder.

    Args:
        card_type: Type of the card.
        kind: Folder of shipped cards.
        name_or_path: Shipped name or path.
        recipe: Arguments of `touchstone train` that make such a card, for the hint.
    """
    try:
        path = find_config(kind, name_or_path)
    except ConfigError as error:
        shipped = f"; {error.hint}" if named_configs(kind) else ""
        hint = f"run touchstone train {recipe}; a path in an ensemble's card is relative to that card{shipped}"
        raise ConfigError(error.message, hint=hint) from None
    return load_yaml(path, card_type)
