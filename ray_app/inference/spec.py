"""Everything a worker needs to score encoded images, as one small picklable value (`ScoringSpec`,
`make_spec`). No torch.

`under_settings` and `departures` hold precision, resize mode and decoders against those of a
calibration.

What scoring costs, by the sizes on the cards (`ResourceEstimate`): memory of processes, bytes
between them, multiply-adds.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

from ray_app.detectors import DetectorCard, Preprocessing, ResizeMode, load_card
from ray_app.detectors.card import Platt, default_slots
from ray_app.detectors.card_sections import MEASURED, FactName, Facts
from ray_app.detectors.cpu import cpu_precision
from ray_app.ensembles import CalibrationSettings, EnsembleCard
from ray_app.errors import ConfigError
from ray_app.identification.cards import (
    DescriberCard,
    IdentifierCard,
    load_describer,
    load_identifier,
)
from ray_app.images import ImageLimits, decoder_name
from ray_app.images.provenance import ProvenancePolicy
from ray_app.transforms.perturbations import Perturbation

RequestedPrecision = Literal["auto", "bf16", "fp32"]
RequestedResize = Literal["auto", "exact", "fast"]
Precisions = Mapping[str, Literal["bf16", "fp32"]]


def under_settings(
    card: EnsembleCard,
    usual: Precisions,
    precision: RequestedPrecision,
    resize: RequestedResize,
    *,
    waived: bool = False,
) -> tuple[Precisions, ResizeMode]:
    """Precision per detector and resize mode for an ensemble; `usual`: the precision that holds
    where its card knows nothing.

    `auto` is what the card was calibrated under. Raises ConfigError where something else is asked
    for, unless the guarantee is waived.
    """
    settings = card.settings
    if settings is None:
        return usual, "exact" if resize == "auto" else resize
    chosen = (
        {name: settings.precision.get(name, one) for name, one in usual.items()}
        if precision == "auto"
        else usual
    )
    mode = settings.resize if resize == "auto" else resize
    departing = departures(settings, chosen, mode)
    if departing and not waived:
        raise ConfigError(
            f"{card.name}: its calibration does not hold with {' and '.join(departing)}",
            hint="leave precision and resize at `auto`, or give up what the card guarantees: --set waive_guarantee=true "
            "(in Python waive_guarantee=True)",
        )
    return chosen, mode


def departures(
    settings: CalibrationSettings | None, precision: Precisions, resize: str
) -> list[str]:
    """How scores are made otherwise than those of a calibration, in words; none where they are made
    alike, or where nobody noted how.
    """
    if settings is None:
        return []
    found = [
        f"{name} in {one} (calibrated in {settings.precision[name]})"
        for name, one in precision.items()
        if settings.precision.get(name, one) != one
    ]
    return found + (
        [f"resize {resize} (calibrated with {settings.resize})"]
        if resize != settings.resize
        else []
    )


def decoders_here(card: EnsembleCard) -> set[str]:
    """What this process decodes those formats with that the card's calibration saw; none where
    nobody noted these.
    """
    seen = card.population and card.population.seen
    return {decoder_name(format) for format in seen.formats} if seen else set()


def other_decoders(settings: CalibrationSettings | None, decoders: Collection[str]) -> list[str]:
    """Those that a calibration did not have; none where nobody noted its own."""
    return (
        sorted(set(decoders) - set(settings.decoders))
        if settings is not None and settings.decoders
        else []
    )


def guarantee_departures(scored: Collection[str], decoded: Collection[str]) -> list[str]:
    """What `departures` and `other_decoders` found, as reasons why a guarantee does not hold."""
    differing = {"scored": scored, "decoded": decoded}
    return [f"{what} otherwise: {', '.join(found)}" for what, found in differing.items() if found]


Precision = Literal["bf16", "fp32"]

# a describer beyond either shares no process with detectors
LARGE_PARAMETERS, LARGE_GMAC = 500e6, 500.0


@dataclass(frozen=True)
class StageSpec:
    """Detectors of an ensemble that score the same images.

    Attributes:
        detectors: Names, in the ensemble's order.
        pools: The detectors that share a process.
        scored: The distinct preprocessings that the detectors read, in order of first use.
        preprocessings: `scored`, and in the first stage last the describer's preprocessing.
    """

    detectors: tuple[str, ...]
    pools: tuple[tuple[str, ...], ...]
    scored: tuple[Preprocessing, ...]
    preprocessings: tuple[Preprocessing, ...]


@dataclass(frozen=True)
class ScoringSpec:
    """Cards, limits and resolved settings. Equal specs give equal scores; nothing operational
    stands here, and what scoring costs is `ResourceEstimate`.

    `cards` are keyed by detector name in the ensemble's order, `precision` (bf16 or fp32) by the
    same names; `slots` is the static number of images per batch. `provenance` (None = not read)
    adds a column and changes no score. `views`: every image is also scored as these perturbations
    show it; `absent`: by the name of a view that was asked for and is not there its kind and why.
    `features`: what decides the embeddings of the detectors that keep them. `identifier` and
    `describer` are of the ensemble's profile. `reads_embeddings`: heads score stored embeddings, and
    no image is read. `stages`: one, or two for a cascade.
    """

    ensemble: EnsembleCard
    cards: Mapping[str, DetectorCard]
    limits: ImageLimits
    precision: Mapping[str, Precision]
    resize: ResizeMode
    slots: int
    device: str
    provenance: ProvenancePolicy | None = field(default=None, compare=False)
    views: tuple[Perturbation, ...] = ()
    absent: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    features: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    identifier: IdentifierCard | None = None
    describer: DescriberCard | None = None
    reads_embeddings: bool = False
    stages: tuple[StageSpec, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "stages", _build_stages(self))

    @property
    def passes(self) -> int:
        """How often detectors look at one image: clean, and in every view."""
        return 1 + len(self.views)

    @property
    def is_cascade(self) -> bool:
        """Whether undecided images are decoded a second time, for detectors of a second stage."""
        return len(self.stages) > 1

    @property
    def first(self) -> tuple[str, ...]:
        """The detectors of the first stage, which score every image."""
        return self.stages[0].detectors

    @property
    def late(self) -> tuple[str, ...]:
        """The detectors of a cascade's second stage, which score undecided images."""
        return self.stages[1].detectors if self.is_cascade else ()

    def for_stage(self, stage: StageSpec) -> "ScoringSpec":
        """Return the spec by which images of one of the stages are decoded and scored.

        Only the whole spec decides on verdicts.
        """
        if not self.is_cascade:
            return self
        describer = self.describer if stage is self.stages[0] else None
        return replace(self.limited_to(stage.detectors, self.views), describer=describer)

    def limited_to(
        self, names: Collection[str], views: tuple[Perturbation, ...] = ()
    ) -> "ScoringSpec":
        """Return the spec for some of the detectors, in other views, without a describer.

        Its detectors form one stage. Only the whole spec decides on verdicts.
        """
        return replace(
            self,
            cards={name: card for name, card in self.cards.items() if name in names},
            views=views,
            describer=None,
        )

    def for_embeddings(
        self, precision: Mapping[str, Precision], resize: ResizeMode
    ) -> "ScoringSpec":
        """Return the spec by which heads score stored embeddings.

        Args:
            precision: The precision in which the embeddings of each detector were made.
            resize: How images were resized for them.
        """
        return replace(self, precision=precision, resize=resize, reads_embeddings=True)

    @cached_property
    def embedded(self) -> dict[str, int]:
        """The detectors whose embeddings are wanted, to be kept or to make a profile of, with the
        numbers of each.
        """
        profiled = {
            card.detector: card.embedding["width"]
            for card in (self.identifier, self.describer)
            if card and card.detector
        }
        return {name: facts["width"] for name, facts in self.features.items()} | profiled

    @cached_property
    def preprocessings(self) -> tuple[Preprocessing, ...]:
        """The distinct preprocessings of all stages, in order of first use: one tensor each,
        whatever number of detectors reads it. The describer's is last, unless detectors share it.
        """
        return _distinct([*self.scored_preprocessings, self.words_seen])

    @cached_property
    def scored_preprocessings(self) -> tuple[Preprocessing, ...]:
        """The preprocessings that detectors read; perturbed views are prepared in no other."""
        return _distinct(stage_tensor for stage in self.stages for stage_tensor in stage.scored)

    @cached_property
    def words_seen(self) -> Preprocessing | None:
        """How images are prepared for the describer; None where it reads embeddings, or where there
        is none.
        """
        return self.describer.preprocessing if self.describer else None

    @cached_property
    def describes_apart(self) -> bool:
        """Whether the describer has processes of its own, after those of all detectors: by its
        card's word or for its size.
        """
        card = self.describer
        if card is None:
            return False
        return (
            card.own_pool
            or (card.parameters or 0) > LARGE_PARAMETERS
            or (card.gmac or 0) > LARGE_GMAC
        )

    @cached_property
    def pools(self) -> tuple[tuple[str, ...], ...]:
        """The detectors that share a process: all except those with a pool of their own.

        The order is that of the ensemble. No detector of a second stage is in a pool before one of
        the first stage.
        """
        if any(self.cards[name].own_pool for name in self.first):
            return tuple(pool for stage in self.stages for pool in stage.pools)
        return _pools_among(self.cards)

    @cached_property
    def all_pools(self) -> tuple[tuple[str, ...], ...]:
        """The detectors' pools, and after them that of a describer with processes of its own, under
        its card's name.
        """
        return (
            (*self.pools, (self.describer.name,))
            if self.describer and self.describes_apart
            else self.pools
        )

    @cached_property
    def keeps_sizes(self) -> bool:
        """Whether some detector looks at images in their own size, which only encoded bytes can
        carry between processes.
        """
        return any(preprocessing.shape is None for preprocessing in self.preprocessings)

    @cached_property
    def localizers(self) -> tuple[str, ...]:
        """The detectors that also give a mask."""
        return tuple(name for name, card in self.cards.items() if card.masks)

    @property
    def speakers(self) -> tuple[str, ...]:
        """The detectors that answer in words."""
        return tuple(name for name, card in self.cards.items() if card.replies)

    @cached_property
    def bounded(self) -> tuple[FactName, ...]:
        """The facts of an image beyond whose bounds some detector's verdict abstains."""
        return tuple(
            dict.fromkeys(fact for card in self.cards.values() for fact in card.fragility.abstains)
        )

    @cached_property
    def measured(self) -> tuple[FactName, ...]:
        """Those of them that are measured on pixels; nothing is measured that no card asks for."""
        return tuple(fact for fact in MEASURED if fact in self.bounded)

    def doubt(self, name: str, width: int, height: int, facts: Facts | None = None) -> str | None:
        """Why one image of this size, with these facts (one value each), lies outside of what a
        detector judges; None if inside.
        """
        card = self.cards[name]
        return card.valid_range.doubt(width, height) or card.fragility.doubts(facts or {}).get(0)

    def is_scored(self, name: str, width: int, height: int) -> bool:
        """Whether a detector gives a score for an image of this size; one that keeps sizes stops at
        its valid range.
        """
        card = self.cards[name]
        return card.preprocessing.shape is not None or card.valid_range.doubt(width, height) is None

    @cached_property
    def calibrations(self) -> dict[str, Platt | None]:
        """Per detector, what the ensemble says of its member, else the detector's own card; None =
        not calibrated.
        """
        members = zip(self.ensemble.members, self.cards.items(), strict=True)
        return {name: member.calibration or card.calibration for member, (name, card) in members}


def _build_stages(spec: ScoringSpec) -> tuple[StageSpec, ...]:
    """Return the stages of a spec; the detectors of a spec that has only some form one stage."""
    names, count = tuple(spec.cards), spec.ensemble.first
    is_cascade = count < len(names) == len(spec.ensemble.members)
    stages = []
    for number, detectors in enumerate((names[:count], names[count:]) if is_cascade else (names,)):
        cards = {name: spec.cards[name] for name in detectors}
        scored = _distinct(card.preprocessing for card in cards.values())
        described = spec.words_seen if number == 0 else None
        stages.append(
            StageSpec(detectors, _pools_among(cards), scored, _distinct([*scored, described]))
        )
    return tuple(stages)


def _distinct(preprocessings: Iterable[Preprocessing | None]) -> tuple[Preprocessing, ...]:
    return tuple(dict.fromkeys(item for item in preprocessings if item is not None))


def _pools_among(cards: Mapping[str, DetectorCard]) -> tuple[tuple[str, ...], ...]:
    """Return the pools of some detectors: the shared one first, if there is one."""
    together = tuple(name for name, card in cards.items() if not card.own_pool)
    alone = tuple((name,) for name, card in cards.items() if card.own_pool)
    return (together, *alone) if together else alone


def make_spec(
    ensemble: EnsembleCard,
    *,
    cards: Sequence[DetectorCard] | None = None,
    limits: ImageLimits,
    device: str = "cpu",
    precision: RequestedPrecision = "auto",
    resize: RequestedResize = "auto",
    slots: int | None = None,
    provenance: ProvenancePolicy | None = None,
    views: tuple[Perturbation, ...] = (),
    waive_guarantee: bool = False,
) -> ScoringSpec:
    """Resolve an ensemble's cards (its members', unless `cards` are given), the precision for
    `device` and the batch slots.

    Raises ConfigError.
    """
    if ensemble.cascade is not None and views:
        raise ConfigError(
            f"{ensemble.name} is a cascade: which of its detectors look at a perturbed image would depend on the image as it is",
            hint="leave --perturb out, or name the detectors: --detector NAME, for each of them",
        )
    cards = cards or [load_card(member.detector) for member in ensemble.members]
    named = {card.name: card for card in cards}
    if len(named) < len(cards):
        raise ConfigError(
            f"{ensemble.name}: two of its cards have the same name: {', '.join(card.name for card in cards)}"
        )
    usual = {name: precision_on(device, card, precision) for name, card in named.items()}
    resolved, mode = under_settings(ensemble, usual, precision, resize, waived=waive_guarantee)
    count = slots or default_slots(device)
    identifier, describer = profile_cards(ensemble, named)
    return ScoringSpec(
        ensemble, named, limits, resolved, mode, count, device, provenance, views,
        identifier=identifier, describer=describer,
    )  # fmt: skip


def profile_cards(
    ensemble: EnsembleCard, cards: Mapping[str, DetectorCard]
) -> tuple[IdentifierCard | None, DescriberCard | None]:
    """The identifier and the describer of an ensemble's profile, which name the detector of the
    ensemble whose embeddings they read.

    Raises ConfigError where there is none such, or where it looks only at images that go on in a
    cascade; for a describer that is called like a detector, or that sees images in their own sizes.
    """
    profile = ensemble.profile
    if profile is None:
        return None, None
    identifier = load_identifier(profile.identifier) if profile.identifier else None
    describer = load_describer(profile.describer) if profile.describer else None
    first = list(cards)[: ensemble.first]
    for card in (identifier, describer):
        if card is not None and card.detector is not None and card.detector not in first:
            raise ConfigError(
                f"{ensemble.name}: {card.name} reads embeddings of {card.detector}, which does not look at every image here",
                hint=f"make it one of the ensemble's detectors, or use a profile that reads one of {', '.join(first)}",
            )
    if describer is not None and describer.name in cards:
        raise ConfigError(
            f"{ensemble.name}: its describer and one of its detectors are both called {describer.name}"
        )
    if (
        describer is not None
        and describer.preprocessing is not None
        and describer.preprocessing.shape is None
    ):
        raise ConfigError(
            f"{describer.name}: a describer sees images of one size",
            hint="give its preprocessing a resize or a crop to one",
        )
    return identifier, describer


def precision_on(
    device: str, card: DetectorCard, asked: Literal["auto", "bf16", "fp32"]
) -> Precision:
    """What was asked for, or what `auto` means on a device that this process need not have: a GPU
    is taken for one with bf16.
    """
    if asked != "auto":
        return asked
    return (
        "bf16"
        if card.precision == "auto" and (device != "cpu" or cpu_precision() == "bf16")
        else "fp32"
    )


PROCESS_BYTES = 2**30  # Python, torch, Ray and a batch of images
ENCODED_BYTES = 2**21  # a photograph, as files go
# the same on average, where every file of a block is kept for those that go on; more would make
# blocks small
KEPT_ENCODED_BYTES = 2**19
EXPECTED_SHARE = 0.2  # of images that go on, where a cascade's card does not say
# of images that are flagged, and so described: nobody knows before they are scored
EXPECTED_FLAGGED = 0.2


@dataclass(frozen=True)
class ResourceEstimate:
    """What images of one `ScoringSpec` are expected to take.

    `process_bytes`: a process that holds all detectors, and the describer, takes at most:
    libraries, fp32 weights, the largest of them twice while it loads, a batch of images in every
    view, and the process of its own that each detector of another package has besides.
    `tensor_bytes`: one image between processes: its prepared tensors, and its encoded bytes
    (guessed) where sizes are kept. `pool_gmac`: billions of multiply-adds per image (of a megapixel
    where sizes are kept) in each of the spec's `all_pools`, over all passes; what no card states is
    nothing. Detectors of a cascade's second stage count with `second_stage_share`, the share of
    images that is expected there, the describer with `share_described`. `worst_gmac`: the sum for
    the largest image that every detector takes.
    """

    process_bytes: int
    tensor_bytes: int
    pool_gmac: tuple[float, ...]
    worst_gmac: float
    second_stage_share: float
    share_described: float

    @classmethod
    def of(cls, spec: ScoringSpec) -> "ResourceEstimate":
        """By the cards of a spec."""
        if spec.reads_embeddings:
            return cls(PROCESS_BYTES, 0, (0.0,), 0.0, 1.0, 0.0)
        second_stage, described = _second_stage_share(spec), _share_described(spec)
        return cls(
            _process_bytes(spec),
            _tensor_bytes(spec),
            _pool_gmac(spec, second_stage, described),
            _worst_gmac(spec),
            second_stage,
            described,
        )


def _second_stage_share(spec: ScoringSpec) -> float:
    cascade = spec.ensemble.cascade
    if cascade is None:
        return 1.0
    return EXPECTED_SHARE if cascade.expected_share is None else cascade.expected_share


def _share_described(spec: ScoringSpec) -> float:
    if spec.describer is None or spec.ensemble.profile is None:
        return 0.0
    return 1.0 if spec.ensemble.profile.describe == "all" else EXPECTED_FLAGGED


def _process_bytes(spec: ScoringSpec) -> int:
    held = counted_once(
        {name: 4.0 * card.size.parameters for name, card in spec.cards.items() if card.size},
        spec,
        lambda card: (),
    )
    weights = [int(size) for size in held.values()]
    children = sum(
        card.process.memory_bytes for card in spec.cards.values() if card.process is not None
    )
    if spec.describer and spec.describer.parameters and not spec.describes_apart:
        weights.append(4 * spec.describer.parameters)
    views = spec.slots * len(spec.views) * _prepared_bytes(spec.scored_preprocessings)
    return PROCESS_BYTES + sum(weights) + max(weights, default=0) + views + children


def counted_once(
    sizes: Mapping[str, float], spec: ScoringSpec, also: Callable[[DetectorCard], tuple[Any, ...]]
) -> dict[str, float]:
    """Sizes by detector, of those that share a backbone in one precision only the first with it:
    the others count what they have more than the smallest of them. `also`: what must be equal
    besides.
    """
    counted, smallest = dict(sizes), dict[tuple[Any, ...], float]()
    keys = {
        name: (card.backbone.name, spec.precision[name], *also(card))
        for name, card in spec.cards.items()
        if card.backbone
    }
    for name in sizes.keys() & keys.keys():
        smallest[keys[name]] = min(sizes[name], smallest.get(keys[name], sizes[name]))
    met = set[tuple[Any, ...]]()
    for name in sizes:
        if (key := keys.get(name)) in met:
            counted[name] -= smallest[keys[name]]
        elif key is not None:
            met.add(key)
    return counted


def _tensor_bytes(spec: ScoringSpec) -> int:
    stage = spec.stages[0]
    native = sum(preprocessing.shape is None for preprocessing in stage.preprocessings)
    files = native * ENCODED_BYTES or KEPT_ENCODED_BYTES * spec.is_cascade
    described = stage.preprocessings[len(stage.scored) :]
    return files + spec.passes * _prepared_bytes(stage.scored) + _prepared_bytes(described)


def _prepared_bytes(preprocessings: Iterable[Preprocessing]) -> int:
    """The tensors of one image in one view."""
    return sum(3 * one.shape[0] * one.shape[1] for one in preprocessings if one.shape is not None)


def _pool_gmac(spec: ScoringSpec, second_stage: float, described: float) -> tuple[float, ...]:
    shares = dict.fromkeys(spec.late, second_stage)
    sizes = {name: shares.get(name, 1.0) * card.gmac for name, card in spec.cards.items()}
    sizes = counted_once(
        sizes, spec, lambda card: (card.preprocessing, card.own_pool, card.name in shares)
    )
    words = described * (spec.describer.gmac or 0.0) if spec.describer else 0.0
    *others, last = (spec.passes * sum(sizes[name] for name in pool) for pool in spec.pools)
    return (*others, last, words) if spec.describes_apart else (*others, last + words)


def _worst_gmac(spec: ScoringSpec) -> float:
    sized = [(card.gmac, card) for card in spec.cards.values()]
    once = sum(
        gmac if card.preprocessing.shape else gmac * (card.valid_range.max_megapixels or 1.0)
        for gmac, card in sized
    )
    words = (spec.describer.gmac or 0.0) if spec.describer else 0.0
    return spec.passes * once + words
