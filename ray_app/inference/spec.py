"""Everything a worker needs to score encoded images, as one small picklable value. No torch."""

from collections.abc import Mapping
from dataclasses import dataclass

from ray_app.detectors import Calibration, DetectorCard, Preprocessing, load_card, resolve_precision
from ray_app.ensembles import EnsembleCard
from ray_app.errors import ConfigError
from ray_app.images import ImageLimits

CPU_SLOTS = 4  # beyond it a core scores no faster, and a single photo would pay for the empty slots
GPU_SLOTS = 64


@dataclass(frozen=True)
class ScoringSpec:
    """Cards, limits and resolved settings. Equal specs give equal scores; nothing operational stands here.

    `cards` are keyed by detector name in the ensemble's order; `slots` is the static number of images per batch.
    """

    ensemble: EnsembleCard
    cards: Mapping[str, DetectorCard]
    limits: ImageLimits
    precision: str
    resize: str
    slots: int
    device: str

    @property
    def preprocessings(self) -> tuple[Preprocessing, ...]:
        """The distinct preprocessings, in order of first use: one tensor each, however many detectors share it."""
        return tuple(dict.fromkeys(card.preprocessing for card in self.cards.values()))

    @property
    def tensor_bytes(self) -> int:
        """What one image's prepared tensors take."""
        return sum(3 * height * width for height, width in (preprocessing.shape for preprocessing in self.preprocessings))

    @property
    def calibrations(self) -> dict[str, Calibration | None]:
        """Per detector, what its card says; None = not calibrated."""
        return {name: card.calibration for name, card in self.cards.items()}


def make_spec(
    ensemble: EnsembleCard,
    *,
    limits: ImageLimits,
    device: str = "cpu",
    precision: str = "auto",
    resize: str = "exact",
    slots: int | None = None,
) -> ScoringSpec:
    """Resolve an ensemble's cards, the precision for `device` and the batch slots. Raises ConfigError."""
    cards = [load_card(member.detector) for member in ensemble.members]
    named = {card.name: card for card in cards}
    if len(named) < len(cards):
        raise ConfigError(f"{ensemble.name}: two of its cards have the same name: {', '.join(card.name for card in cards)}")
    return ScoringSpec(ensemble, named, limits, resolve_precision(precision, device), resize,
                       slots or (CPU_SLOTS if device == "cpu" else GPU_SLOTS), device)  # fmt: skip
