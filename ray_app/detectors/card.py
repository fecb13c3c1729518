"""Define `DetectorCard`: everything that Touchstone knows about a detector.

`load_card` reads a card from a YAML file on this machine, in a bucket, or on a server. `list_cards`
returns the shipped cards. `list_variants` returns the variants of a card, which differ from it in a
few keys. The module loads without torch, so a card is read in milliseconds.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import entry_points
from operator import not_
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator, model_validator

from ray_app.config import (
    FileConfig,
    Frozen,
    OptionalKey,
    added_configs,
    find_config,
    is_named,
    named_configs,
    parse_mapping,
    read_mapping,
    validate,
)
from ray_app.detectors.card_sections import CallableSettings, Fragility, Golden, TrainingData
from ray_app.detectors.preprocessing import Preprocessing
from ray_app.detectors.registry import ENTRY_POINTS, FAMILIES, refuse_retired_family
from ray_app.errors import ConfigError
from ray_app.storage import Store, strip_secrets

HUB_URI = re.compile(r"hf://(?P<repo>[^/@]+/[^/@]+)@(?P<revision>[0-9a-f]{40})/(?P<file>.+)")
# Cards may come from untrusted users, so a file name must not leave the folder of its card.
FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
_VARIANT = re.compile(r"[a-z0-9][a-z0-9.-]*")
_SCHEMES = ("", "file", "s3", "gs", "https", "hf")


class Architecture(Frozen):
    """Which network of a detector family is built, and with which arguments.

    A family is the code that builds similar networks, such as the classifiers of timm.
    """

    name: str = Field(default="", description="name of the network in its family")
    arguments: Mapping[str, Any] = Field(
        default={}, description="arguments that build the network, by name"
    )


class Weights(Frozen):
    """Where a network's weight files are, and how their keys map to the keys of the network."""

    uri: str = Field(
        description="the main file: a file next to the card, or a file://, s3://, gs://, https://, or "
        "`hf://organisation/repository@revision/file` URL with a 40-digit revision"
    )
    sha256: str | None = Field(
        default=None, pattern=r"^[0-9a-f]{64}$", description="SHA-256 of the file, in hex"
    )
    unverified: str | None = Field(default=None, description="why there is no sha256")
    format: Literal["safetensors", "safetensors-6bit", "safetensors-index", "torch"] = Field(
        default="safetensors",
        description="format of the file. With `safetensors-index`, `uri` names the index of a checkpoint in "
        "several files. With `safetensors-6bit`, matrices have 6 bits per value",
    )
    beside: Mapping[FileName, Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None] = Field(
        default={},
        description="further files that must be in the folder of the main file, such as the parts of a "
        "checkpoint, each with its sha256 or null",
    )
    unwrap: tuple[str, ...] = Field(
        default=(),
        description="keys under which a checkpoint may contain its state dict. The first key that the "
        "file has is read, such as `state_dict_ema` for averaged weights",
    )
    keep: tuple[str, ...] = Field(
        default=(),
        exclude_if=not_,
        description="keys of tensors that are next to the state dict in the checkpoint but belong to it",
    )
    select: str = Field(
        default="",
        description="prefix of the keys to read, for files that contain more than this network. The empty "
        "text reads all keys",
    )
    strip_prefixes: tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        default=(),
        description="prefixes to remove from the keys. A prefix is removed repeatedly, as long as every key "
        "has it",
    )
    prefix: str = Field(default="", description="prefix to add to every key after `strip_prefixes`")
    config: FileName | None = Field(
        default=None,
        description="name of the checkpoint's own configuration file, which is in the folder of the main "
        "file. It must not contradict the card",
    )
    obtain: str | None = Field(
        default=None,
        description="instructions for a person, for weights that no program can fetch",
    )
    # Identities of trainings by 0.11 and before lack the key, so its default is left out.
    fitted: bool = Field(
        default=False,
        exclude_if=not_,
        description="whether the weights are not published. `touchstone detectors fit` computes them from "
        "labelled images",
    )

    @field_validator("uri")
    @classmethod
    def _check_uri(cls, uri: str) -> str:
        scheme = urlsplit(uri).scheme
        if scheme not in _SCHEMES:
            raise ValueError(
                f"uri must be a file or an s3://, gs://, https://, or hf:// URL, got {scheme}://"
            )
        if scheme == "hf" and not HUB_URI.fullmatch(uri):
            raise ValueError(
                f"uri must be hf://organisation/repository@revision/file with a revision of 40 hex digits (branches and tags can move), got {uri}"
            )
        return uri

    @model_validator(mode="after")
    def _check_sha256(self) -> "Weights":
        if (self.sha256 is None) == (self.unverified is None):
            raise ValueError(
                "either `sha256` must be set, or `unverified` with the reason why the hash is not known (not both)"
            )
        return self


class Backbone(FileConfig):
    """A network whose features several detectors use, described in configs/backbones/NAME.yaml.

    If detectors in one process have the same backbone and the same input pixels, the backbone runs
    once for all of them.
    """

    name: FileName = Field(description="name of the backbone")
    title: str = Field(description="name for people")
    architecture: Architecture = Field(description="network of the backbone")
    weights: Weights = Field(description="weights of the backbone")
    licence: str = Field(description="SPDX identifier or name of the licence")
    licence_note: str | None = Field(default=None, description="notes on the licence")
    source: str = Field(description="where the backbone is published")


class Output(Frozen):
    """Which output of the network means fake.

    Exactly one of three keys is set. For a network with two logits, `fake_label` or `fake_index`
    selects one of them. For a network with one logit, `sign` is 1 if a positive logit means
    fake, and −1 if a negative logit does.
    """

    labels: tuple[str, ...] = Field(default=(), description="labels of the two logits, in order")
    fake_label: str | None = Field(default=None, description="label that means fake, in any case")
    fake_index: Literal[0, 1] | None = Field(
        default=None, description="index of the logit that means fake"
    )
    sign: Literal[1, -1] | None = Field(
        default=None,
        description="sign of a single logit: 1 if a positive logit means fake, -1 if a negative one does",
    )

    @model_validator(mode="after")
    def _check_output(self) -> "Output":
        keys = [
            name for name in ("fake_label", "fake_index", "sign") if getattr(self, name) is not None
        ]
        if len(keys) != 1:
            raise ValueError(
                f"set exactly one of fake_label, fake_index, and sign, got {', '.join(keys) or 'none'}"
            )
        if self.labels and self.sign is None and len(self.labels) != 2:
            raise ValueError(f"labels must have 2 entries for two logits, got {len(self.labels)}")
        if self.fake_label is not None and self.labels:
            self.index_among(self.labels)
        return self

    @property
    def logits(self) -> int:
        """Number of logits per image."""
        return 2 if self.sign is None else 1

    def index_among(self, labels: tuple[str, ...]) -> int:
        """Return the index of the logit that means fake, given the labels of the logits in order.

        Labels are compared without regard to case. If the card states `fake_index`, it is returned,
        and `labels` are ignored. Raises ValueError if `labels` do not contain the card's
        `fake_label` exactly once.
        """
        if self.fake_index is not None:
            return self.fake_index
        folded = [label.casefold() for label in labels]
        if self.fake_label is None or folded.count(self.fake_label.casefold()) != 1:
            raise ValueError(
                f"fake_label {self.fake_label!r} is not one of the labels {', '.join(labels) or '(none)'}"
            )
        return folded.index(self.fake_label.casefold())


class Platt(Frozen):
    """Calibration by Platt scaling (1999): calibrated log-odds = slope × score + intercept.

    The score is the detector's own log-odds. Call the object with scores to get calibrated
    log-odds.
    """

    slope: float = Field(gt=0, description="factor of the score")
    intercept: float = Field(description="constant term, in log-odds")

    @model_validator(mode="before")
    @classmethod
    def _refuse_isotonic(cls, data: Any) -> Any:
        if isinstance(data, Mapping) and "knots" in data:
            raise ConfigError(
                "calibration: isotonic calibration (knots) was removed in 0.24",
                hint="fit Platt scaling: touchstone detectors calibrate RUN --labels FILE --out CARD.yaml",
            )
        return data

    def __call__(self, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the calibrated log-odds of scores (n,)."""
        return self.slope * scores + self.intercept

    def __str__(self) -> str:
        sign = "−" if self.intercept < 0 else "+"
        return f"log-odds = {self.slope:g} × score {sign} {abs(self.intercept):g}"


class PublishedMetric(Frozen):
    """A published value of a metric, such as a detector's AUC on a named image set.

    The cards of detectors, identifiers, and describers have such values. An identifier names the
    generator of an image. A describer guesses its prompt.
    """

    set: str = Field(description="name of the image set")
    metric: str = Field(description="name of the metric")
    value: float = Field(description="published value")
    n: int | None = Field(default=None, description="number of images")
    verified: bool = Field(
        default=False, description="whether Touchstone's own evaluation reproduces the value"
    )
    source: str = Field(description="where the value is published")
    note: str | None = Field(default=None, description="notes for readers")


class Size(Frozen):
    """Size of a network: its parameters, tensors, and multiply-adds."""

    parameters: int = Field(ge=1, description="number of parameters")
    tensors: int = Field(ge=1, description="number of entries of the state dict")
    gmac: float = Field(
        gt=0,
        description="billions of multiply-adds per image at the card's own input size, or per megapixel if "
        "images keep their size",
    )


class ValidRange(Frozen):
    """Limits of the image size within which a detector's score is meaningful.

    For an image outside the limits, the verdict is abstain: neither real nor fake. If the network
    takes images at their own size, such an image is not scored at all.
    """

    min_side_px: int = Field(default=1, ge=1, description="minimum of the shorter side, in pixels")
    max_side_px: int | None = Field(
        default=None,
        ge=1,
        description="maximum of the longer side, in pixels. null means no limit",
    )
    max_megapixels: float | None = Field(
        default=None,
        gt=0,
        description="maximum number of pixels, in millions. null means no limit",
    )
    note: str | None = Field(default=None, description="reason for the limits")

    def describe_mismatch(self, width: int, height: int) -> str | None:
        """Return why an image is outside the limits, or None if it is within the limits.

        `width` and `height` are those of the image in pixels. A result is, for example, "90 × 90,
        below the valid range (224 px)".
        """
        if min(width, height) < self.min_side_px:
            return f"{width} × {height}, below the valid range ({self.min_side_px} px)"
        if self.max_side_px is not None and max(width, height) > self.max_side_px:
            return f"{width} × {height}, above the valid range ({self.max_side_px} px)"
        if self.max_megapixels is not None and width * height > self.max_megapixels * 1e6:
            return f"{width} × {height}, above the valid range ({self.max_megapixels:g} megapixels)"
        return None


class DetectorCard(FileConfig):
    """Everything that Touchstone knows about one detector.

    A card states the detector's network, preprocessing, weights, the meaning of its output, and its
    limits.
    """

    name: str = Field(
        pattern=r"^[a-z0-9][a-z0-9.-]*(:[a-z0-9][a-z0-9.-]*)?$",
        description="name in commands and results",
    )
    title: str = Field(description="name for people")
    family: str = Field(
        description="code that builds the network: a family of `ray_app/detectors/families`, or an entry "
        "point of the group `touchstone.families`"
    )
    architecture: Architecture = Field(
        default=Architecture(), description="network within the family"
    )
    backbone: Backbone | None = Field(
        default=None,
        description="part of the network that has its own file and may be shared with other detectors. In "
        "YAML, a name or the whole description",
    )
    preprocessing: Preprocessing = Field(description="how an image becomes the network's input")
    weights: Weights = Field(description="location of the weights")
    output: Output = Field(description="meaning of the network's output")
    calibration: Platt | None = Field(
        default=None, description="calibration of the score. null means not calibrated"
    )
    masks: bool = Field(
        default=False, description="whether the network also predicts which pixels are altered"
    )
    replies: bool = Field(default=False, description="whether the network replies with a text")
    own_pool: bool = Field(
        default=False,
        description="whether the network is too large to share a process with other detectors",
    )
    process: OptionalKey[CallableSettings] = Field(
        default=None,
        description="settings of the process that runs a callable. Only for family `callable`",
    )
    batch: int | None = Field(
        default=None,
        ge=1,
        description="maximum number of images per forward pass. null allows whole batches",
    )
    precision: Literal["auto", "fp32"] = Field(
        default="auto",
        description="precision that `auto` means for this network on a device with bf16",
    )
    precision_note: str | None = Field(default=None, description="reason for the precision")
    size: Size | None = Field(default=None, description="size of the network")
    valid_range: ValidRange = Field(
        default=ValidRange(), description="sizes of the images for which a score is meaningful"
    )
    fragility: Fragility = Field(
        default=Fragility(),
        exclude_if=lambda fragility: fragility == Fragility(),
        description="perturbations that break the detector, and limits beyond which its verdict is abstain",
    )
    blind_to: tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        default=(),
        exclude_if=not_,
        description="what the detector cannot detect, as plain sentences that are shown next to its "
        "verdicts",
    )
    demonstration: bool = Field(
        default=False,
        description="whether the detector is only for demonstrations. Every result states that its scores "
        "must not be used for decisions",
    )
    licence: str = Field(description="SPDX identifier or name of the licence")
    terms: Literal["permissive", "restricted", "non-commercial", "research-only", "none-stated"] = (
        Field(
            default="permissive",
            description="terms of the licence. Users must accept all terms except `permissive`",
        )
    )
    licence_note: str | None = Field(default=None, description="notes on the licence")
    citation: str = Field(description="publication to cite")
    source: str = Field(description="where the detector is published")
    training_data: TrainingData = Field(description="images that the weights were trained on")
    published: tuple[PublishedMetric, ...] = Field(
        default=(), description="published values of metrics"
    )
    golden: tuple[Golden, ...] = Field(default=(), description="expected scores of single images")
    notes: tuple[str, ...] = Field(default=(), description="notes for readers, one sentence each")
    variants: Mapping[str, Mapping[str, Any]] = Field(
        default={}, description="keys that differ in the detector NAME:VARIANT, by variant"
    )

    @field_validator("family")
    @classmethod
    def _check_family(cls, family: str) -> str:
        registered = (
            ()
            if family in FAMILIES
            else tuple(point.name for point in entry_points(group=ENTRY_POINTS))
        )
        if family not in FAMILIES and family not in registered:
            raise ValueError(
                f"family must be one of {', '.join([*FAMILIES, *registered])}, got {family!r}"
            )
        return family

    @property
    def gmac(self) -> float:
        """Cost of the network: billions of multiply-adds per image.

        For a network that takes images at their own size, the cost is per megapixel. The value is
        that of `size.gmac` on the card. A card without `size` has cost 0, unless its detector is a
        callable, whose cost is estimated from its measured time.
        """
        return self.size.gmac if self.size else self.process.gmac if self.process else 0.0

    @property
    def architecture_facts(self) -> dict[str, Any]:
        """Settings that determine which network is built, as plain JSON.

        They are part of a run's identity: the values that must stay equal when a scoring run is
        resumed.
        """
        settings = {"family": self.family, **self.architecture.model_dump(mode="json")}
        return (
            settings
            if self.backbone is None
            else settings | {"backbone": self.backbone.architecture.model_dump(mode="json")}
        )

    @property
    def scoring_facts(self) -> dict[str, Any]:
        """Settings that determine scores and verdicts for given weights, as plain JSON.

        They are part of a run's identity: the values that must stay equal when a scoring run is
        resumed.
        """
        return {
            "architecture": self.architecture_facts,
            "preprocessing": self.preprocessing.model_dump(mode="json"),
            "calibration": None
            if self.calibration is None
            else self.calibration.model_dump(mode="json"),
            "output": self.output.model_dump(mode="json"),
            "valid_range": self.valid_range.model_dump(mode="json", exclude={"note"}),
            "masks": self.masks,
            **({"abstains": self.fragility.facts} if self.fragility.abstains else {}),
        }


def blind_to(cards: Iterable[DetectorCard]) -> tuple[str, ...]:
    """Return sentences on what these detectors cannot detect, without duplicates.

    The sentences are those of the key `blind_to` of the cards.
    """
    return tuple(dict.fromkeys(sentence for card in cards for sentence in card.blind_to))


def apply_run_settings(card: DetectorCard, facts: Mapping[str, Any]) -> DetectorCard:
    """Return a card with the settings that it had when a run was started.

    A scoring run records the settings that affect scores. If the card has changed since, the
    recorded settings replace those of the card. Weights and descriptions stay those of the card.
    `facts` are the recorded `scoring_facts`, empty if there are none.
    """
    current = {"abstains": {}, **card.scoring_facts}
    recorded = {**current, "abstains": {}, **facts} if facts else current
    if all(recorded[key] == value for key, value in current.items()):
        return card
    data = card.model_dump()
    architecture = dict(facts.get("architecture", current["architecture"]))
    data["family"] = architecture.pop("family")
    if (backbone := architecture.pop("backbone", None)) is not None and data[
        "backbone"
    ] is not None:
        data["backbone"]["architecture"] = backbone
    data |= {key: facts[key] for key in current.keys() - {"abstains"} if key in facts} | {
        "architecture": architecture
    }
    data["fragility"] = card.fragility.with_recorded_limits(recorded["abstains"])
    data["valid_range"] = {"note": card.valid_range.note, **data["valid_range"]}
    return share_folder(
        validate(data, DetectorCard, where=f"{card.name}, with the settings of a run"), card
    )


def share_folder(card: DetectorCard, other: DetectorCard) -> DetectorCard:
    """Set the folder of a card to that of another card, in place, and return the first card.

    The folder of a card is the one that contains its file. Relative paths of weights are relative
    to it. Only `load_card` sets it, so call this function for a card that you built from the data
    of a loaded card.
    """
    card._folder, card._loaded_as = other._folder, other._loaded_as
    if card.backbone is not None and other.backbone is not None:
        card.backbone._folder = other.backbone._folder
    return card


def default_slots(device: str) -> int:
    """Return the default number of images per batch: 4 on a CPU, 64 on a GPU.

    A CPU core is not faster with more than 4 images. Smaller batches are padded, so a single image
    takes the time of a whole batch.
    """
    return 4 if device == "cpu" else 64


def load_card(name_or_path: str | Path, changes: Mapping[str, Any] | None = None) -> DetectorCard:
    """Read a detector card by shipped name, path, or fsspec URL.

    Args:
        name_or_path: A name, path, or URL. `:VARIANT` at the end selects a variant: a version of
            the detector that differs in a few keys of the card.
        changes: Keys that replace those of the card, section by section. A None removes a key.

    Returns:
        The validated card.

    Raises:
        ConfigError: If there is no such card or variant, if the card is invalid, or if its family
            is an adapter for another package that only earlier versions had.
        StorageError: If the URL is unreachable.
    """
    refuse_retired_family(str(name_or_path))
    base, variant = split_variant(name_or_path)
    data, where, folder = _read(base)
    refuse_retired_family(str(data.get("family")))
    if variant is not None:
        data = _apply_variant(data, variant, where)
    data = _merge(data, changes or {})
    backbone, backbone_folder = _read_backbone(data.get("backbone"), folder)
    card = validate(
        data | {"backbone": backbone},
        DetectorCard,
        where=f"{where}, with changes" if changes else where,
    )
    card._folder, card._loaded_as = folder, strip_secrets(str(base))
    if card.backbone is not None:
        card.backbone._folder = backbone_folder
    return card


def list_cards() -> list[DetectorCard]:
    """Read all shipped detector cards, without their variants, sorted by name."""
    return [load_card(path) for path in named_configs("detectors").values()]


def list_added_cards() -> list[DetectorCard]:
    """Read the detector cards that the user added, sorted by name.

    A card with the name of a shipped detector is left out, because the name means the shipped one.
    """
    shipped = named_configs("detectors")
    return [
        load_card(path) for name, path in added_configs("detectors").items() if name not in shipped
    ]


def list_variants(card: DetectorCard) -> Iterator[DetectorCard]:
    """Load each variant of a shipped detector card as a card of its own.

    A variant has the name NAME:VARIANT and differs from the card in a few keys.
    """
    for variant in card.variants:
        yield load_card(f"{card.name}:{variant}")


def strip_variant(name: str) -> str:
    """Return a detector's name without its variant: "npr" for "npr:VARIANT".

    All variants of a detector share this name for accepted licences and in the cache of weights.
    """
    return name.partition(":")[0]


def split_variant(name_or_path: str | Path) -> tuple[str | Path, str | None]:
    """Split `:VARIANT` from the name, path, or URL of a detector card, such as "npr:native".

    The variant is None if the whole text is the path of an existing file, unless the text before
    `:VARIANT` is the name of a shipped or added detector.
    """
    base, _, variant = str(name_or_path).rpartition(":")
    is_variant = bool(base and _VARIANT.fullmatch(variant)) and (
        is_named("detectors", base) or not Path(name_or_path).is_file()
    )
    return (base, variant) if is_variant else (name_or_path, None)


def _read(name_or_path: str | Path) -> tuple[dict[str, Any], str, Path]:
    """Return the data of a card, its name for messages, and the folder of its relative paths."""
    if "://" in str(name_or_path):
        return *read_remote_card(str(name_or_path)), Path()
    path = find_config("detectors", name_or_path)
    return read_mapping(path), str(path), path.resolve().parent


def _apply_variant(data: dict[str, Any], variant: str, where: str) -> dict[str, Any]:
    variants = data.get("variants") or {}
    if variant not in variants:
        raise ConfigError(
            f"{where}: unknown variant {variant!r}",
            hint=f"choose one of: {', '.join(variants) or 'none'}",
        )
    return _merge(data, variants[variant]) | {
        "name": f"{data.get('name')}:{variant}",
        "variants": {},
    }


def _merge(base: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    """Merge `change` into `base`, section by section. A null removes the key of `base`."""
    both = {
        key: _merge(base[key], value) if _are_sections(base.get(key), value) else value
        for key, value in change.items()
    }
    return {
        key: value
        for key, value in {**base, **both}.items()
        if value is not None or key not in change
    }


def _are_sections(base: Any, change: Any) -> bool:
    return isinstance(base, Mapping) and isinstance(change, Mapping)


def _read_backbone(backbone: Any, folder: Path) -> tuple[Any, Path]:
    """Return a backbone's data and the folder that its weights are relative to.

    A remote card has no folder.
    """
    if not isinstance(backbone, str):
        return backbone, folder
    local_path = folder / backbone
    path = (
        local_path
        if folder.is_absolute() and local_path.is_file()
        else find_config("backbones", backbone)
    )
    return read_mapping(path), path.resolve().parent


def read_remote_card(url: str) -> tuple[dict[str, Any], str]:
    """Download a card, and return its data and its URL without secrets, for messages.

    In the data, a relative `uri` of weights is replaced by its whole URL, which every machine can
    reach. Raises ConfigError if the card does not exist, StorageError if the URL is unreachable.
    """
    folder, _, name = url.rpartition("/")
    where = strip_secrets(url)
    try:
        data = parse_mapping(Store.open(folder).read(name), where)
    except FileNotFoundError:
        raise ConfigError(
            f"{where}: card not found",
            hint="check the URL: it must lead to the YAML file of a card",
        ) from None
    backbone = data.get("backbone")
    changes = (
        {"backbone": _resolve_weights_url(backbone, folder)}
        if isinstance(backbone, Mapping)
        else {}
    )
    return _resolve_weights_url(data, folder) | changes, where


def _resolve_weights_url(part: Mapping[str, Any], folder: str) -> dict[str, Any]:
    """Return a part of a card with the URL of its weights.

    Invalid data stays unchanged: the validation of the card reports it.
    """
    weights = part.get("weights")
    if not isinstance(weights, Mapping) or urlsplit(str(weights.get("uri"))).scheme:
        return dict(part)
    return {**part, "weights": {**weights, "uri": f"{folder}/{weights.get('uri')}"}}
