"""The detector card: everything that Touchstone knows about one detector, from YAML.

Knows names, files and facts. Knows nothing about torch: a card is read in milliseconds.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, PrivateAttr, field_validator, model_validator

from ray_app.config import Frozen, find_config, load_yaml, named_configs
from ray_app.detectors.preprocessing import Preprocessing

Family = Literal["timm-classifier", "transformers-classifier", "residual"]

HUB_URI = re.compile(r"hf://(?P<repo>[^/@]+/[^/@]+)@(?P<revision>[0-9a-f]{40})/(?P<file>.+)")
_SCHEMES = ("", "file", "s3", "gs", "https", "hf")


class Architecture(Frozen):
    """Which network of the family, by the family's own name for it, and the arguments that it is built with."""

    name: str = ""
    arguments: Mapping[str, Any] = {}


class Weights(Frozen):
    """Where the weights lie and how their keys become the network's.

    `uri`: a file beside the card, or file, s3, gs, https, or `hf://organisation/repository@revision/file` with a 40-digit revision.
    `unwrap`: names under which a checkpoint may hold its state dict. `strip_prefixes`: dropped while every key carries one.
    `config`: the checkpoint's own configuration beside it; it must not contradict the card.
    `obtain`: for weights that no program can fetch, what a person has to do.
    """

    uri: str
    sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    unverified: str | None = Field(default=None, description="why there is no sha256")
    format: Literal["safetensors", "torch"] = "safetensors"
    unwrap: tuple[str, ...] = ()
    strip_prefixes: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    config: str | None = None
    obtain: str | None = None

    @field_validator("uri")
    @classmethod
    def _known_scheme(cls, uri: str) -> str:
        scheme = urlsplit(uri).scheme
        if scheme not in _SCHEMES:
            raise ValueError(f"unknown scheme {scheme}://; use a file, s3://, gs://, https:// or hf://")
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


class Output(Frozen):
    """Which end of the output is fake: a label's name, an index among two logits, or the sign of a single logit."""

    labels: tuple[str, ...] = ()
    fake_label: str | None = None
    fake_index: Literal[0, 1] | None = None
    sign: Literal[1, -1] | None = None

    @model_validator(mode="after")
    def _one_way(self) -> "Output":
        given = [name for name in ("fake_label", "fake_index", "sign") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of fake_label, fake_index, sign (given: {', '.join(given) or 'none'})")
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
        """The index of fake, by name and case-insensitively where the card names a label. Raises ValueError."""
        if self.fake_index is not None:
            return self.fake_index
        folded = [label.casefold() for label in labels]
        if self.fake_label is None or folded.count(self.fake_label.casefold()) != 1:
            raise ValueError(f"fake_label {self.fake_label!r} is not one of the labels {', '.join(labels) or '(none given)'}")
        return folded.index(self.fake_label.casefold())


class Calibration(Frozen):
    """Platt scaling: calibrated log-odds = slope × score + intercept."""

    slope: float = Field(gt=0)
    intercept: float


class TrainingData(Frozen):
    """What the weights were trained on, and under which licence that is published."""

    name: str
    images: str | None = None
    licence: str
    source: str | None = None


class Figure(Frozen):
    """One published figure. `verified`: recomputed by us; otherwise it is what its source says."""

    set: str
    metric: str
    value: float
    n: int | None = None
    verified: bool = False
    source: str
    note: str | None = None


class ValidRange(Frozen):
    """Images on which a score means something; outside, the verdict is abstain."""

    min_side_px: int = Field(default=1, ge=1)
    max_side_px: int | None = Field(default=None, ge=1)
    note: str | None = None

    def doubt(self, width: int, height: int) -> str | None:
        """Why an image of this size lies outside, in words; None if it lies inside."""
        if min(width, height) < self.min_side_px:
            return f"{width} × {height}, below the valid range ({self.min_side_px} px)"
        if self.max_side_px is not None and max(width, height) > self.max_side_px:
            return f"{width} × {height}, above the valid range ({self.max_side_px} px)"
        return None


class DetectorCard(Frozen):
    """One detector: its network, its pixels, its weights, what its output means, and what is known about it.

    `precision` is what `auto` means for this network where the device has bf16; `calibration` null means uncalibrated.
    """

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9.-]*$")
    title: str
    family: Family
    architecture: Architecture = Architecture()
    preprocessing: Preprocessing
    weights: Weights
    output: Output
    calibration: Calibration | None = None
    precision: Literal["auto", "fp32"] = "auto"
    precision_note: str | None = None
    valid_range: ValidRange = ValidRange()
    demonstration: bool = False
    licence: str
    licence_note: str | None = None
    citation: str
    source: str
    training_data: TrainingData
    published: tuple[Figure, ...] = ()
    notes: tuple[str, ...] = ()

    _folder: Path = PrivateAttr(default=Path())

    @property
    def folder(self) -> Path:
        """Where the card was read from; relative weights lie there."""
        return self._folder


def default_slots(device: str) -> int:
    """Images per batch: beyond 4 a core scores no faster, and a single photo would pay for the empty slots; a GPU wants 64."""
    return 4 if device == "cpu" else 64


def load_card(name_or_path: str | Path) -> DetectorCard:
    """Read a shipped card by name, or any by path. Raises ConfigError."""
    path = find_config("detectors", name_or_path)
    card = load_yaml(path, DetectorCard)
    card._folder = path.resolve().parent
    return card


def list_cards() -> list[DetectorCard]:
    """Every shipped card, by name."""
    return [load_card(path) for path in named_configs("detectors").values()]
