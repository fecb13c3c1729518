"""Everything a worker needs to score encoded images, as one small picklable value. No torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from ray_app.detectors import DetectorCard, Preprocessing, ResizeMode, load_card
from ray_app.detectors.cards import Calibration, default_slots
from ray_app.ensembles import EnsembleCard
from ray_app.errors import ConfigError
from ray_app.images import ImageLimits

Precision = Literal["bf16", "fp32"]


@dataclass(frozen=True)
class ScoringSpec:
    """Cards, limits and resolved settings. Equal specs give equal scores; nothing operational stands here.

    `cards` are keyed by detector name in the ensemble's order, `precision` (bf16 or fp32) by the same names; `slots` is the static
    number of images per batch.
    """

    ensemble: EnsembleCard
    cards: Mapping[str, DetectorCard]
    limits: ImageLimits
    precision: Mapping[str, Precision]
    resize: ResizeMode
    slots: int
    device: str

    @property
    def preprocessings(self) -> tuple[Preprocessing, ...]:
        """The distinct preprocessings, in order of first use: one tensor each, however many detectors share it."""
        return tuple(dict.fromkeys(card.preprocessing for card in self.cards.values()))

    @property
    def tensor_bytes(self) -> int:
        """What one image's prepared tensors take."""
        shapes = (preprocessing.shape for preprocessing in self.preprocessings)
        return sum(3 * shape[0] * shape[1] for shape in shapes if shape is not None)

    @property
    def calibrations(self) -> dict[str, Calibration | None]:
        """Per detector, what its card says; None = not calibrated."""
        return {name: card.calibration for name, card in self.cards.items()}


def make_spec(
    ensemble: EnsembleCard,
    *,
    limits: ImageLimits,
    device: str = "cpu",
    precision: Literal["auto", "bf16", "fp32"] = "auto",
    resize: ResizeMode = "exact",
    slots: int | None = None,
) -> ScoringSpec:
    """Resolve an ensemble's cards, the precision for `device` and the batch slots. Raises ConfigError."""
    cards = [load_card(member.detector) for member in ensemble.members]
    named = {card.name: card for card in cards}
    if len(named) < len(cards):
        raise ConfigError(f"{ensemble.name}: two of its cards have the same name: {', '.join(card.name for card in cards)}")
    resolved = {name: _resolved(card, precision, device) for name, card in named.items()}
    return ScoringSpec(ensemble, named, limits, resolved, resize, slots or default_slots(device), device)


def _resolved(card: DetectorCard, asked: Literal["auto", "bf16", "fp32"], device: str) -> Precision:
    if asked != "auto":
        return asked
    return "bf16" if card.precision == "auto" and (device != "cpu" or cpu_has_bf16()) else "fp32"


@cache
def cpu_has_bf16() -> bool:
    """Whether this CPU multiplies bf16 matrices faster than fp32 ones; asked of the kernel, since importing torch takes seconds."""
    try:
        flags = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        return False
    return bool(flags & {"avx512_bf16", "amx_bf16", "bf16", "svebf16"})
