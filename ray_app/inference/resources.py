"""What scoring costs, by the sizes on the cards (`ResourceEstimate`): memory of processes, bytes between them, multiply-adds."""

from collections.abc import Iterable
from dataclasses import dataclass

from ray_app.detectors import Preprocessing
from ray_app.inference.spec import ScoringSpec

PROCESS_BYTES = 2**30  # Python, torch, Ray and a batch of images
ENCODED_BYTES = 2**21  # a photograph, as files go
KEPT_ENCODED_BYTES = 2**19  # the same on average, where every file of a block is kept for those that go on; more would make blocks small
EXPECTED_SHARE = 0.2  # of images that go on, where a cascade's card does not say
EXPECTED_FLAGGED = 0.2  # of images that are flagged, and so described: nobody knows before they are scored


@dataclass(frozen=True)
class ResourceEstimate:
    """What images of one `ScoringSpec` are expected to take.

    `process_bytes`: a process that holds all detectors, and the describer, takes at most: libraries, fp32 weights, the largest of them
    twice while it loads, and a batch of images in every view. `tensor_bytes`: one image between processes: its prepared tensors, and its
    encoded bytes (guessed) where sizes are kept.
    `pool_gmac`: billions of multiply-adds per image (of a megapixel where sizes are kept) in each of the spec's `all_pools`, over all
    passes; what no card states is nothing. Detectors of a cascade that look again count with `share_going_on`, the share of images that is
    expected to go on, the describer with `share_described`. `worst_gmac`: the sum for the largest image that every detector takes.
    """

    process_bytes: int
    tensor_bytes: int
    pool_gmac: tuple[float, ...]
    worst_gmac: float
    share_going_on: float
    share_described: float

    @classmethod
    def of(cls, spec: ScoringSpec) -> "ResourceEstimate":
        """By the cards of a spec."""
        going_on, described = _share_going_on(spec), _share_described(spec)
        return cls(_process_bytes(spec), _tensor_bytes(spec), _pool_gmac(spec, going_on, described), _worst_gmac(spec), going_on, described)


def _share_going_on(spec: ScoringSpec) -> float:
    cascade = spec.ensemble.cascade
    if cascade is None:
        return 1.0
    return EXPECTED_SHARE if cascade.expected_share is None else cascade.expected_share


def _share_described(spec: ScoringSpec) -> float:
    if spec.describer is None or spec.ensemble.profile is None:
        return 0.0
    return 1.0 if spec.ensemble.profile.describe == "all" else EXPECTED_FLAGGED


def _process_bytes(spec: ScoringSpec) -> int:
    weights = [4 * card.size.parameters for card in spec.cards.values() if card.size is not None]
    if spec.describer and spec.describer.parameters and not spec.describes_apart:
        weights.append(4 * spec.describer.parameters)
    views = spec.slots * len(spec.views) * _prepared_bytes(spec.scored_preprocessings)
    return PROCESS_BYTES + sum(weights) + max(weights, default=0) + views


def _tensor_bytes(spec: ScoringSpec) -> int:
    early = spec.early
    native = sum(preprocessing.shape is None for preprocessing in early.preprocessings)
    files = native * ENCODED_BYTES or KEPT_ENCODED_BYTES * spec.looks_again
    words = early.preprocessings[len(early.scored_preprocessings) :]
    return files + spec.passes * _prepared_bytes(early.scored_preprocessings) + _prepared_bytes(words)


def _prepared_bytes(preprocessings: Iterable[Preprocessing]) -> int:
    """The tensors of one image in one view."""
    return sum(3 * one.shape[0] * one.shape[1] for one in preprocessings if one.shape is not None)


def _pool_gmac(spec: ScoringSpec, going_on: float, described: float) -> tuple[float, ...]:
    shares = dict.fromkeys(spec.late, going_on)
    sizes = {name: shares.get(name, 1.0) * card.size.gmac if card.size else 0.0 for name, card in spec.cards.items()}
    words = described * (spec.describer.gmac or 0.0) if spec.describer else 0.0
    *others, last = (spec.passes * sum(sizes[name] for name in pool) for pool in spec.pools)
    return (*others, last, words) if spec.describes_apart else (*others, last + words)


def _worst_gmac(spec: ScoringSpec) -> float:
    sized = [(card.size.gmac, card) for card in spec.cards.values() if card.size is not None]
    once = sum(gmac if card.preprocessing.shape else gmac * (card.valid_range.max_megapixels or 1.0) for gmac, card in sized)
    words = (spec.describer.gmac or 0.0) if spec.describer else 0.0
    return (spec.passes + (spec.stability.count if spec.stability else 0)) * once + words
