"""Everything a worker needs to score encoded images, as one small picklable value. No torch."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Literal

from ray_app.detectors import DetectorCard, Preprocessing, ResizeMode, load_card
from ray_app.detectors.cards import Calibration, default_slots
from ray_app.ensembles import EnsembleCard
from ray_app.errors import ConfigError
from ray_app.images import ImageLimits
from ray_app.images.provenance import ProvenancePolicy
from ray_app.perturbations import Perturbation

Precision = Literal["bf16", "fp32"]

PROCESS_BYTES = 2**30  # Python, torch, Ray and a batch of images
ENCODED_BYTES = 2**21  # a photograph, as files go


@dataclass(frozen=True)
class ScoringSpec:
    """Cards, limits and resolved settings. Equal specs give equal scores; nothing operational stands here.

    `cards` are keyed by detector name in the ensemble's order, `precision` (bf16 or fp32) by the same names; `slots` is the static
    number of images per batch. `perceptual_hash` and `provenance` (None = not read) add columns and change no score. `views`: every
    image is also scored as these perturbations show it.
    """

    ensemble: EnsembleCard
    cards: Mapping[str, DetectorCard]
    limits: ImageLimits
    precision: Mapping[str, Precision]
    resize: ResizeMode
    slots: int
    device: str
    perceptual_hash: bool = False
    provenance: ProvenancePolicy | None = field(default=None, compare=False)
    views: tuple[Perturbation, ...] = ()

    @property
    def passes(self) -> int:
        """How often detectors look at one image: clean, and in every view."""
        return 1 + len(self.views)

    @property
    def preprocessings(self) -> tuple[Preprocessing, ...]:
        """The distinct preprocessings, in order of first use: one tensor each, however many detectors share it."""
        return tuple(dict.fromkeys(card.preprocessing for card in self.cards.values()))

    @property
    def pools(self) -> tuple[tuple[str, ...], ...]:
        """Which detectors share a process: all but those too large for it, which have a pool each. In the ensemble's order."""
        together = tuple(name for name, card in self.cards.items() if not card.own_pool)
        alone = tuple((name,) for name, card in self.cards.items() if card.own_pool)
        return (together, *alone) if together else alone

    @property
    def keeps_sizes(self) -> bool:
        """Whether some detector looks at images in their own size, which only encoded bytes can carry between processes."""
        return any(preprocessing.shape is None for preprocessing in self.preprocessings)

    @property
    def localizers(self) -> tuple[str, ...]:
        """The detectors that also give a mask."""
        return tuple(name for name, card in self.cards.items() if card.masks)

    @property
    def speakers(self) -> tuple[str, ...]:
        """The detectors that answer in words."""
        return tuple(name for name, card in self.cards.items() if card.replies)

    @property
    def process_bytes(self) -> int:
        """What a process that holds all detectors takes at most: libraries, fp32 weights, the largest of them twice while it loads, and
        a batch of images in every view.
        """
        weights = [4 * card.size.parameters for card in self.cards.values() if card.size is not None]
        return PROCESS_BYTES + sum(weights) + max(weights, default=0) + self.slots * len(self.views) * self._prepared_bytes

    @property
    def pool_gmac(self) -> tuple[float, ...]:
        """Billions of multiply-adds per image (of a megapixel where sizes are kept) in each pool, over all passes; what no card states is
        nothing.
        """
        sizes = {name: card.size.gmac if card.size else 0.0 for name, card in self.cards.items()}
        return tuple(self.passes * sum(sizes[name] for name in pool) for pool in self.pools)

    @property
    def worst_gmac(self) -> float:
        """The same for the largest image that every detector takes."""
        sized = [(card.size.gmac, card) for card in self.cards.values() if card.size is not None]
        once = sum(gmac if card.preprocessing.shape else gmac * (card.valid_range.max_megapixels or 1.0) for gmac, card in sized)
        return self.passes * once

    @property
    def tensor_bytes(self) -> int:
        """What one image takes between processes: its prepared tensors, and its encoded bytes (guessed) where sizes are kept."""
        native = sum(preprocessing.shape is None for preprocessing in self.preprocessings)
        return native * ENCODED_BYTES + self.passes * self._prepared_bytes

    @property
    def _prepared_bytes(self) -> int:
        """The tensors of one image in one view."""
        return sum(3 * one.shape[0] * one.shape[1] for one in self.preprocessings if one.shape is not None)

    def doubt(self, name: str, width: int, height: int) -> str | None:
        """Why an image of this size lies outside a detector's valid range; None if it lies inside."""
        return self.cards[name].valid_range.doubt(width, height)

    def is_scored(self, name: str, width: int, height: int) -> bool:
        """Whether a detector gives a score for an image of this size; one that keeps sizes stops at its valid range."""
        return self.cards[name].preprocessing.shape is not None or self.doubt(name, width, height) is None

    @property
    def calibrations(self) -> dict[str, Calibration | None]:
        """Per detector, what the ensemble says of its member, else the detector's own card; None = not calibrated."""
        members = zip(self.ensemble.members, self.cards.items(), strict=True)
        return {name: member.calibration or card.calibration for member, (name, card) in members}


def make_spec(
    ensemble: EnsembleCard,
    *,
    limits: ImageLimits,
    device: str = "cpu",
    precision: Literal["auto", "bf16", "fp32"] = "auto",
    resize: ResizeMode = "exact",
    slots: int | None = None,
    perceptual_hash: bool = False,
    provenance: ProvenancePolicy | None = None,
    views: tuple[Perturbation, ...] = (),
) -> ScoringSpec:
    """Resolve an ensemble's cards, the precision for `device` and the batch slots. Raises ConfigError."""
    cards = [load_card(member.detector) for member in ensemble.members]
    named = {card.name: card for card in cards}
    if len(named) < len(cards):
        raise ConfigError(f"{ensemble.name}: two of its cards have the same name: {', '.join(card.name for card in cards)}")
    resolved = {name: precision_on(device, card, precision) for name, card in named.items()}
    count = slots or default_slots(device)
    return ScoringSpec(ensemble, named, limits, resolved, resize, count, device, perceptual_hash, provenance, views)


def precision_on(device: str, card: DetectorCard, asked: Literal["auto", "bf16", "fp32"]) -> Precision:
    """What was asked for, or what `auto` means on a device that this process need not have: a GPU is taken for one with bf16."""
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
