"""`DetectorCard`: everything that Touchstone knows about one detector, from YAML, a bucket or a
server (`load_card`, `list_cards`, `variants_of`).

Loads without torch: a card is read in milliseconds.
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
    Frozen,
    OptionalKey,
    Placed,
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
# A name that stays in its folder, whoever wrote the card.
FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
_VARIANT = re.compile(r"[a-z0-9][a-z0-9.-]*")
_SCHEMES = ("", "file", "s3", "gs", "https", "hf")


class Architecture(Frozen):
    """Which network of the family, by the family's own name for it, and the arguments that it is
    built with.
    """

    name: str = ""
    arguments: Mapping[str, Any] = {}


class Weights(Frozen):
    """Where the weights lie and how their keys become the network's.

    `uri`: a file beside the card, or file, s3, gs, https, or
    `hf://organisation/repository@revision/file` with a 40-digit revision. `format`:
    `safetensors-index` means that `uri` names the index of a checkpoint in several files. `beside`:
    those and further files that must lie in the same folder, each with its sha256 or null.
    `unwrap`: names under which a checkpoint may hold its state dict; `keep`: of tensors beside that
    which belong to it. `select`: only keys that begin so are read, where a file holds more than
    this network. `strip_prefixes`: dropped while every key carries one. `prefix`: then put before
    every key. `config`: the checkpoint's own configuration beside it; it must not contradict the
    card. `obtain`: for weights that no program can fetch, what a person has to do. `fitted`: nobody
    publishes them; `touchstone detectors fit` makes them of labelled images.
    """

    uri: str
    sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    unverified: str | None = Field(default=None, description="why there is no sha256")
    format: Literal["safetensors", "safetensors-index", "torch"] = "safetensors"
    beside: Mapping[FileName, Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None] = {}
    unwrap: tuple[str, ...] = ()
    keep: tuple[str, ...] = Field(default=(), exclude_if=not_)
    select: str = ""
    strip_prefixes: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    prefix: str = ""
    config: FileName | None = None
    obtain: str | None = None
    # as identities of trainings by 0.11 and before
    fitted: bool = Field(default=False, exclude_if=not_)

    @field_validator("uri")
    @classmethod
    def _known_scheme(cls, uri: str) -> str:
        scheme = urlsplit(uri).scheme
        if scheme not in _SCHEMES:
            raise ValueError(
                f"unknown scheme {scheme}://; use a file, s3://, gs://, https:// or hf://"
            )
        if scheme == "hf" and not HUB_URI.fullmatch(uri):
            raise ValueError(
                "write hf://organisation/repository@revision/file with the revision's 40 hexadecimal digits: a branch or tag can move"
            )
        return uri

    @model_validator(mode="after")
    def _verified_or_said(self) -> "Weights":
        if (self.sha256 is None) == (self.unverified is None):
            raise ValueError("give sha256, or say under `unverified` why it is not known")
        return self


class Backbone(Placed):
    """A network whose features several detectors use: configs/backbones/NAME.yaml. Equal names with
    equal pixels run once.
    """

    name: FileName
    title: str
    architecture: Architecture
    weights: Weights
    licence: str
    licence_note: str | None = None
    source: str


class Output(Frozen):
    """Which end of the output is fake: a label's name, an index among two logits, or the sign of a
    single logit.
    """

    labels: tuple[str, ...] = ()
    fake_label: str | None = None
    fake_index: Literal[0, 1] | None = None
    sign: Literal[1, -1] | None = None

    @model_validator(mode="after")
    def _one_way(self) -> "Output":
        given = [
            name for name in ("fake_label", "fake_index", "sign") if getattr(self, name) is not None
        ]
        if len(given) != 1:
            raise ValueError(
                f"give exactly one of fake_label, fake_index, sign (given: {', '.join(given) or 'none'})"
            )
        if self.labels and self.sign is None and len(self.labels) != 2:
            raise ValueError("two logits need two labels")
        if self.fake_label is not None and self.labels:
            self.index_among(self.labels)
        return self

    @property
    def logits(self) -> int:
        """How many numbers the network gives per image."""
        return 2 if self.sign is None else 1

    def index_among(self, labels: tuple[str, ...]) -> int:
        """The index of fake, by name and case-insensitively where the card names a label. Raises
        ValueError.
        """
        if self.fake_index is not None:
            return self.fake_index
        folded = [label.casefold() for label in labels]
        if self.fake_label is None or folded.count(self.fake_label.casefold()) != 1:
            raise ValueError(
                f"fake_label {self.fake_label!r} is not one of the labels {', '.join(labels) or '(none given)'}"
            )
        return folded.index(self.fake_label.casefold())


class Platt(Frozen):
    """Calibrated log-odds = slope × score + intercept: Platt scaling (1999)."""

    slope: float = Field(gt=0)
    intercept: float

    @model_validator(mode="before")
    @classmethod
    def _refuse_isotonic(cls, given: Any) -> Any:
        if isinstance(given, Mapping) and "knots" in given:
            raise ConfigError(
                "calibration: isotonic calibration (knots) was removed in 0.24",
                hint="fit Platt scaling: touchstone detectors calibrate RUN --labels FILE --out CARD.yaml",
            )
        return given

    def __call__(self, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        """Calibrated log-odds of scores (n,)."""
        return self.slope * scores + self.intercept

    def __str__(self) -> str:
        sign = "−" if self.intercept < 0 else "+"
        return f"log-odds = {self.slope:g} × score {sign} {abs(self.intercept):g}"


class PublishedFigure(Frozen):
    """One published figure. `verified`: recomputed by us; otherwise it is what its source says."""

    set: str
    metric: str
    value: float
    n: int | None = None
    verified: bool = False
    source: str
    note: str | None = None


class Size(Frozen):
    """What the network weighs: parameters, entries of its state dict, and billions of multiply-adds
    per image at the card's own input, or per megapixel where images keep their size.
    """

    parameters: int = Field(ge=1)
    tensors: int = Field(ge=1)
    gmac: float = Field(gt=0)


class ValidRange(Frozen):
    """Images on which a score means something; outside, the verdict is abstain, and there is no
    score at all where sizes are kept.
    """

    min_side_px: int = Field(default=1, ge=1)
    max_side_px: int | None = Field(default=None, ge=1)
    max_megapixels: float | None = Field(default=None, gt=0)
    note: str | None = None

    def doubt(self, width: int, height: int) -> str | None:
        """Why an image of this size lies outside, in words; None if it lies inside."""
        if min(width, height) < self.min_side_px:
            return f"{width} × {height}, below the valid range ({self.min_side_px} px)"
        if self.max_side_px is not None and max(width, height) > self.max_side_px:
            return f"{width} × {height}, above the valid range ({self.max_side_px} px)"
        if self.max_megapixels is not None and width * height > self.max_megapixels * 1e6:
            return f"{width} × {height}, above the valid range ({self.max_megapixels:g} megapixels)"
        return None


class DetectorCard(Placed):
    """One detector: its network, its pixels, its weights, what its output means, and what is known
    about it.

    `backbone`: the part of the network that comes from a file of its own and may be shared; in YAML
    a name or the whole description. `masks`: the network also says where. `replies`: it answers in
    words. `own_pool`: too large to share a process with other detectors. `process`: of a callable,
    which runs in a process of its own. `batch`: images that go through it at once where that is
    fewer than a whole batch. `precision` is what `auto` means for this network where the device has
    bf16; `calibration` null means uncalibrated. `fragility`: under what it breaks, and where its
    verdicts abstain for that. `blind_to`: what it cannot see, in plain sentences that stand beside
    its verdicts. `terms`: all but `permissive` have to be accepted by the user. `variants`: keys
    that differ under the name NAME:VARIANT.
    """

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9.-]*(:[a-z0-9][a-z0-9.-]*)?$")
    title: str
    family: str
    architecture: Architecture = Architecture()
    backbone: Backbone | None = None
    preprocessing: Preprocessing
    weights: Weights
    output: Output
    calibration: Platt | None = None
    masks: bool = False
    replies: bool = False
    own_pool: bool = False
    process: OptionalKey[CallableSettings] = None
    batch: int | None = Field(default=None, ge=1)
    precision: Literal["auto", "fp32"] = "auto"
    precision_note: str | None = None
    size: Size | None = None
    valid_range: ValidRange = ValidRange()
    fragility: Fragility = Field(default=Fragility(), exclude_if=lambda said: said == Fragility())
    blind_to: tuple[Annotated[str, Field(min_length=1)], ...] = Field(default=(), exclude_if=not_)
    demonstration: bool = False
    licence: str
    terms: Literal["permissive", "restricted", "non-commercial", "research-only", "none-stated"] = (
        "permissive"
    )
    licence_note: str | None = None
    citation: str
    source: str
    training_data: TrainingData
    published: tuple[PublishedFigure, ...] = ()
    golden: tuple[Golden, ...] = ()
    notes: tuple[str, ...] = ()
    variants: Mapping[str, Mapping[str, Any]] = {}

    @field_validator("family")
    @classmethod
    def _known_family(cls, family: str) -> str:
        outside = (
            ()
            if family in FAMILIES
            else tuple(point.name for point in entry_points(group=ENTRY_POINTS))
        )
        if family not in FAMILIES and family not in outside:
            raise ValueError(
                f"no family of that name; there are {', '.join([*FAMILIES, *outside])}"
            )
        return family

    @property
    def gmac(self) -> float:
        """Billions of multiply-adds per image, or per megapixel where sizes are kept, stated or by
        the time that was measured; else 0.
        """
        return self.size.gmac if self.size else self.process.gmac if self.process else 0.0

    @property
    def architecture_facts(self) -> dict[str, Any]:
        """All that decides which network is built, as plain JSON: part of a run's identity."""
        facts = {"family": self.family, **self.architecture.model_dump(mode="json")}
        return (
            facts
            if self.backbone is None
            else facts | {"backbone": self.backbone.architecture.model_dump(mode="json")}
        )

    @property
    def scoring_facts(self) -> dict[str, Any]:
        """All that decides what the network's weights make of an image, as plain JSON: what a run's
        identity notes of a detector.
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
    """What these detectors cannot see: the sentences of their cards, each once."""
    return tuple(dict.fromkeys(said for card in cards for said in card.blind_to))


def with_run_facts(card: DetectorCard, facts: Mapping[str, Any]) -> DetectorCard:
    """A card with what a run noted of it (`scoring_facts`) in the place of what it says by now;
    weights and words stay its own.
    """
    now = {"abstains": {}, **card.scoring_facts}
    then = {**now, "abstains": {}, **facts} if facts else now
    if all(then[key] == value for key, value in now.items()):
        return card
    described = card.model_dump()
    architecture = dict(facts.get("architecture", now["architecture"]))
    described["family"] = architecture.pop("family")
    if (backbone := architecture.pop("backbone", None)) is not None and described[
        "backbone"
    ] is not None:
        described["backbone"]["architecture"] = backbone
    described |= {key: facts[key] for key in now.keys() - {"abstains"} if key in facts} | {
        "architecture": architecture
    }
    described["fragility"] = card.fragility.bounded_as(then["abstains"])
    described["valid_range"] = {"note": card.valid_range.note, **described["valid_range"]}
    return placed_like(
        validate(described, DetectorCard, where=f"{card.name}, as a run has it"), card
    )


def placed_like(card: DetectorCard, other: DetectorCard) -> DetectorCard:
    """The card, its files now looked for where those of another lie."""
    card._folder = other._folder
    if card.backbone is not None and other.backbone is not None:
        card.backbone._folder = other.backbone._folder
    return card


def default_slots(device: str) -> int:
    """Images per batch: beyond 4 a core scores no faster, and a single photo would pay for the
    empty slots; a GPU wants 64.
    """
    return 4 if device == "cpu" else 64


def load_card(name_or_path: str | Path, changes: Mapping[str, Any] | None = None) -> DetectorCard:
    """Read a shipped card by name, or any by path or fsspec URL; `:VARIANT` behind it takes one of
    its variants. Raises ConfigError.

    `changes`: keys that differ from what is written there, section by section; a null removes one.
    A URL out of reach is a StorageError.
    """
    refuse_retired_family(str(name_or_path))
    base, variant = split_variant(name_or_path)
    data, where, folder = _read(base)
    refuse_retired_family(str(data.get("family")))
    if variant is not None:
        data = _varied(data, variant, where)
    data = _merged(data, changes or {})
    backbone, backbone_folder = _backbone(data.get("backbone"), folder)
    card = validate(
        data | {"backbone": backbone},
        DetectorCard,
        where=f"{where}, with changes" if changes else where,
    )
    card._folder = folder
    if card.backbone is not None:
        card.backbone._folder = backbone_folder
    return card


def list_cards() -> list[DetectorCard]:
    """Every shipped card, by name; without variants."""
    return [load_card(path) for path in named_configs("detectors").values()]


def list_added_cards() -> list[DetectorCard]:
    """Return the cards that the user added, by name, but those with the name of a shipped card."""
    shipped = named_configs("detectors")
    return [
        load_card(path) for name, path in added_configs("detectors").items() if name not in shipped
    ]


def variants_of(card: DetectorCard) -> Iterator[DetectorCard]:
    """The variants of a shipped card, as cards of their own."""
    for variant in card.variants:
        yield load_card(f"{card.name}:{variant}")


def base_name(name: str) -> str:
    """A detector's name without its variant: weights and licence are those of all variants."""
    return name.partition(":")[0]


def split_variant(name_or_path: str | Path) -> tuple[str | Path, str | None]:
    """Return what precedes `:VARIANT`, and the variant or None. A name has a variant even if a file
    has the whole text as its name.
    """
    base, _, variant = str(name_or_path).rpartition(":")
    is_variant = bool(base and _VARIANT.fullmatch(variant)) and (
        is_named("detectors", base) or not Path(name_or_path).is_file()
    )
    return (base, variant) if is_variant else (name_or_path, None)


def _read(name_or_path: str | Path) -> tuple[dict[str, Any], str, Path]:
    """What a card says, what it is called in messages, and the folder that its files are relative
    to.
    """
    if "://" in str(name_or_path):
        return *read_remote_card(str(name_or_path)), Path()
    path = find_config("detectors", name_or_path)
    return read_mapping(path), str(path), path.resolve().parent


def _varied(data: dict[str, Any], variant: str, where: str) -> dict[str, Any]:
    variants = data.get("variants") or {}
    if variant not in variants:
        raise ConfigError(
            f"{where}: no variant {variant!r}", hint=f"variants: {', '.join(variants) or 'none'}"
        )
    return _merged(data, variants[variant]) | {
        "name": f"{data.get('name')}:{variant}",
        "variants": {},
    }


def _merged(base: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    """`change` over `base`, section by section; a null removes what the base says."""
    both = {
        key: _merged(base[key], value) if _sections(base.get(key), value) else value
        for key, value in change.items()
    }
    return {
        key: value
        for key, value in {**base, **both}.items()
        if value is not None or key not in change
    }


def _sections(base: Any, change: Any) -> bool:
    return isinstance(base, Mapping) and isinstance(change, Mapping)


def _backbone(described: Any, folder: Path) -> tuple[Any, Path]:
    """Return a backbone's mapping and the folder that its weights are relative to. A remote card
    has no folder.
    """
    if not isinstance(described, str):
        return described, folder
    beside = folder / described
    path = (
        beside if folder.is_absolute() and beside.is_file() else find_config("backbones", described)
    )
    return read_mapping(path), path.resolve().parent


def read_remote_card(url: str) -> tuple[dict[str, Any], str]:
    """What the card at a URL says, and the URL without secrets. Weights beside it are named by
    their own URLs, which every machine finds.

    Raises ConfigError where no card is there, StorageError where the place is out of reach.
    """
    folder, _, name = url.rpartition("/")
    where = strip_secrets(url)
    try:
        data = parse_mapping(Store.open(folder).read(name), where)
    except FileNotFoundError:
        raise ConfigError(f"{where}: there is no such card") from None
    described = data.get("backbone")
    beside = {"backbone": _reachable(described, folder)} if isinstance(described, Mapping) else {}
    return _reachable(data, folder) | beside, where


def _reachable(part: Mapping[str, Any], folder: str) -> dict[str, Any]:
    """A part of a card whose weights are named by URL; what is no card is left for the check of its
    keys to say so.
    """
    weights = part.get("weights")
    if not isinstance(weights, Mapping) or urlsplit(str(weights.get("uri"))).scheme:
        return dict(part)
    return {**part, "weights": {**weights, "uri": f"{folder}/{weights.get('uri')}"}}
