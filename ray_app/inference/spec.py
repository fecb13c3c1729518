"""Build a `ScoringSpec` with `make_spec`: a picklable object with all that a worker needs to score.

A card is a YAML file that describes a detector or an ensemble, with the settings of its
calibration. `resolve_settings`, `departures`, and `list_uncalibrated_decoders` compare the settings
for scoring with those of the calibration. `ResourceEstimate` estimates from the cards what scoring
costs: the memory of processes, the bytes sent between processes, and multiply-adds. Importing this
module does not import torch.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

from ray_app.detectors import (
    DetectorCard,
    Preprocessing,
    RequestedResize,
    ResizeMode,
    choose_resize,
    load_card,
)
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
from ray_app.images import ImageLimits, get_decoder_name
from ray_app.images.provenance import ProvenancePolicy
from ray_app.transforms.perturbations import Perturbation

RequestedPrecision = Literal["auto", "bf16", "fp32"]
Precisions = Mapping[str, Literal["bf16", "fp32"]]


def resolve_settings(
    card: EnsembleCard,
    defaults: Precisions,
    precision: RequestedPrecision,
    resize: RequestedResize,
    *,
    waived: bool = False,
) -> tuple[Precisions, RequestedResize]:
    """Choose the precision of each detector and the resize mode for an ensemble.

    `auto` selects the settings with which the card was calibrated. Without a calibration, the
    resize mode `auto` follows the precision of each detector (`choose_resize`).

    Args:
        card: The card of the ensemble.
        defaults: The precision of each detector if the card does not record its precision.
        precision: The requested precision.
        resize: The requested resize mode.
        waived: Whether settings that differ from those of the calibration are allowed.

    Returns:
        The precision of each detector, and the resize mode. It is `auto` only if detectors of this
            ensemble have different modes.

    Raises:
        ConfigError: The requested settings differ from those of the calibration, and `waived` is
            False.
    """
    settings = card.settings
    if settings is None:
        return defaults, unite_resize(resize, defaults)
    precisions = (
        {name: settings.precision.get(name, default) for name, default in defaults.items()}
        if precision == "auto"
        else defaults
    )
    mode = unite_resize(settings.resize if resize == "auto" else resize, precisions)
    differences = departures(settings, precisions, mode)
    if differences and not waived:
        raise ConfigError(
            f"{card.name}: the calibration does not hold with {' and '.join(differences)}",
            hint="leave precision and resize at `auto`, or waive the guarantee of the card: --set waive_guarantee=true "
            "(in Python waive_guarantee=True)",
        )
    return precisions, mode


def unite_resize(resize: RequestedResize, precision: Precisions) -> RequestedResize:
    """Return the resize mode that all detectors have, or `auto` if their modes differ."""
    modes = {choose_resize(resize, actual) for actual in precision.values()}
    return modes.pop() if len(modes) == 1 else resize


def departures(
    settings: CalibrationSettings | None, precision: Precisions, resize: RequestedResize
) -> list[str]:
    """Describe how precision and resize mode differ from those of a calibration.

    Args:
        settings: The settings of the calibration. None if they are unknown.
        precision: The precision per detector.
        resize: The resize mode.

    Returns:
        One text per difference. Empty if the settings are equal or unknown.
    """
    if settings is None:
        return []
    differences = [
        f"{name} in {actual} (calibrated in {settings.precision[name]})"
        for name, actual in precision.items()
        if settings.precision.get(name, actual) != actual
    ]
    is_resized_otherwise = any(
        choose_resize(resize, actual) != choose_resize(settings.resize, calibrated)
        for actual, calibrated in (
            (actual, settings.precision.get(name, actual)) for name, actual in precision.items()
        )
    )
    return differences + (
        [f"resize {resize} (calibrated with {settings.resize})"] if is_resized_otherwise else []
    )


def list_decoders(card: EnsembleCard) -> set[str]:
    """Return the decoders that this process uses for the image formats of a card's calibration.

    A decoder is a text with the name and version of a library. Another version may decode slightly
    different pixels, so that the calibration no longer holds. The set is empty if the card does not
    record the formats.
    """
    population = card.population and card.population.seen
    return {get_decoder_name(format) for format in population.formats} if population else set()


def list_uncalibrated_decoders(
    settings: CalibrationSettings | None, decoders: Collection[str]
) -> list[str]:
    """Return those of the given decoders that a calibration did not use.

    The list is empty if the calibration recorded no decoders.
    """
    return (
        sorted(set(decoders) - set(settings.decoders))
        if settings is not None and settings.decoders
        else []
    )


def describe_guarantee_departures(scored: Collection[str], decoded: Collection[str]) -> list[str]:
    """Return the reasons why the guaranteed false-positive rate of an ensemble does not hold.

    The guarantee holds only with the settings and decoders of the ensemble's calibration.

    Args:
        scored: Differences in the settings, from `departures`.
        decoded: Differences in the decoders, from `list_uncalibrated_decoders`.

    Returns:
        The reasons as texts. Empty if the guarantee holds.
    """
    differences_by_step = {"scored": scored, "decoded": decoded}
    return [
        f"{step} otherwise than for the calibration: {', '.join(differences)}"
        for step, differences in differences_by_step.items()
        if differences
    ]


Precision = Literal["bf16", "fp32"]

# A describer above either limit does not share a process with detectors.
LARGE_PARAMETERS, LARGE_GMAC = 500e6, 500.0


@dataclass(frozen=True)
class StageSpec:
    """One stage of an ensemble: detectors that score the same images.

    A cascade has two stages. Its second stage scores only images that the first leaves undecided.
    Any other ensemble has one stage.

    Attributes:
        detectors: The names of the detectors, in the ensemble's order.
        pools: The names of the detectors, grouped by the process that they share.
        scored: The distinct preprocessings of the detectors, in order of first use.
        preprocessings: All preprocessings of the stage. They are those in `scored`, and in the
            first stage also that of the describer, a model that guesses the prompt of an image.
    """

    detectors: tuple[str, ...]
    pools: tuple[tuple[str, ...], ...]
    scored: tuple[Preprocessing, ...]
    preprocessings: tuple[Preprocessing, ...]


@dataclass(frozen=True)
class ScoringSpec:
    """The cards, limits, and settings that determine scores. Equal specs give equal scores.

    A card is a YAML file that describes a detector, an ensemble, or another model. Settings that do
    not change scores are not part of a spec. `ResourceEstimate` has the cost of scoring.

    Attributes:
        ensemble: The card of the ensemble.
        cards: The detector cards by name, in the order of the ensemble.
        limits: Limits on the size of an image.
        precision: The precision (bf16 or fp32) by detector.
        resize: `exact` resizes with the library of a detector's authors. `fast` replaces Pillow by
            torch. `auto` is fast for detectors in bf16, and exact for those in fp32.
        slots: The fixed number of images per batch.
        device: The PyTorch device of the detectors, such as `cuda`.
        provenance: How to read what files state about their origin. This adds a column and changes
            no score. None does not read it.
        views: Perturbations, such as JPEG compression. Each image is scored unperturbed, and after
            each perturbation.
        absent: Perturbations that the user requested, but that Touchstone does not implement. They
            are part of a published robustness suite. The keys are their names. The values are
            {"kind": …, "why": …} with the reason why each is not implemented.
        features: For each detector whose embeddings the run stores, the settings that determine the
            embeddings, such as the SHA-256 of the weights.
        identifier: The card of the model that predicts the generator of an image. None if the
            ensemble has no such model.
        describer: The card of the model that guesses the prompt of an image. None if the ensemble
            has no such model.
        reads_embeddings: Whether only the heads (last layers) of detectors run, on stored
            embeddings. Images are then not read.
        stages: One stage, or two for a cascade, whose second stage scores only undecided images.
    """

    ensemble: EnsembleCard
    cards: Mapping[str, DetectorCard]
    limits: ImageLimits
    precision: Mapping[str, Precision]
    resize: RequestedResize
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
        """The number of times that a detector scores each image: 1 + number of perturbations."""
        return 1 + len(self.views)

    @property
    def is_cascade(self) -> bool:
        """Whether the ensemble is a cascade, which has a second stage for undecided images."""
        return len(self.stages) > 1

    @property
    def first(self) -> tuple[str, ...]:
        """The names of the detectors of the first stage, which score every image."""
        return self.stages[0].detectors

    @property
    def late(self) -> tuple[str, ...]:
        """The names of the detectors of a cascade's second stage, which score undecided images.

        Empty if the ensemble is not a cascade.
        """
        return self.stages[1].detectors if self.is_cascade else ()

    def for_stage(self, stage: StageSpec) -> "ScoringSpec":
        """Return the spec with only the detectors of one stage, for decoding and scoring images.

        Use it only for scores. Verdicts require the spec of the whole ensemble.
        """
        if not self.is_cascade:
            return self
        describer = self.describer if stage is self.stages[0] else None
        return replace(self.select_detectors(stage.detectors, self.views), describer=describer)

    def select_detectors(
        self, names: Collection[str], views: tuple[Perturbation, ...] = ()
    ) -> "ScoringSpec":
        """Return the spec for some of the detectors, in one stage and without a describer.

        Use it only for scores. Verdicts require the spec of the whole ensemble.

        Args:
            names: The names of the detectors.
            views: The perturbations that replace those of this spec.
        """
        return replace(
            self,
            cards={name: card for name, card in self.cards.items() if name in names},
            views=views,
            describer=None,
        )

    def for_embeddings(
        self, precision: Mapping[str, Precision], resize: RequestedResize
    ) -> "ScoringSpec":
        """Return the spec for scoring stored embeddings with the heads of the detectors.

        Args:
            precision: The precision in which the embeddings of each detector were computed.
            resize: The resize mode of the images from which the embeddings were computed. `auto` if
                those of several detectors differ.
        """
        return replace(self, precision=precision, resize=resize, reads_embeddings=True)

    @cached_property
    def embedded(self) -> dict[str, int]:
        """The detectors that must return embeddings, with the number of values per embedding.

        Embeddings are needed if the run stores them. They are also needed if the model that
        predicts the generator or the prompt of an image reads them.
        """
        profiled = {
            card.detector: card.embedding["width"]
            for card in (self.identifier, self.describer)
            if card and card.detector
        }
        return {name: facts["width"] for name, facts in self.features.items()} | profiled

    def choose_resize(self, name: str) -> ResizeMode:
        """Return the resize mode of a detector."""
        return choose_resize(self.resize, self.precision[name])

    @cached_property
    def inputs(self) -> Mapping[str, Preprocessing]:
        """The preprocessing of each detector, with the kernel of its resize mode."""
        return {
            name: card.preprocessing.with_resize(self.choose_resize(name))
            for name, card in self.cards.items()
        }

    @cached_property
    def preprocessings(self) -> tuple[Preprocessing, ...]:
        """The distinct preprocessings of all stages, in order of first use.

        An image has one tensor per preprocessing, which detectors with that preprocessing share.
        The preprocessing of the describer, a model that guesses prompts, is last, unless a detector
        has the same one.
        """
        return _deduplicate([*self.scored_preprocessings, self.describer_preprocessing])

    @cached_property
    def scored_preprocessings(self) -> tuple[Preprocessing, ...]:
        """The distinct preprocessings whose images detectors read.

        Perturbed images are prepared only with these preprocessings. The describer, a model that
        guesses prompts, reads only unperturbed images.
        """
        return _deduplicate(stage_tensor for stage in self.stages for stage_tensor in stage.scored)

    @cached_property
    def describer_preprocessing(self) -> Preprocessing | None:
        """The preprocessing of the describer, a model that guesses the prompt of an image.

        None if the ensemble has no describer, or if the describer reads embeddings.
        """
        describer = self.describer
        if describer is None or describer.preprocessing is None:
            return None
        precision = describer.precision_on(self.device)
        return describer.preprocessing.with_resize(choose_resize(self.resize, precision))

    @cached_property
    def has_describer_pool(self) -> bool:
        """Whether the describer runs in its own processes, after those of all detectors.

        The describer is a model that guesses the prompt of an image. It has its own processes if
        its card requests this, or if it is large: over 500 million parameters, or over 500 billion
        multiply-adds per image. False if the ensemble has no describer.
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
        """The names of the detectors, grouped by the process that they share.

        A detector whose card requests its own pool is alone in its group. All other detectors share
        one group, which comes first. If a first-stage detector of a cascade is alone, each stage
        has separate groups, and those of the first stage come first.
        """
        if any(self.cards[name].own_pool for name in self.first):
            return tuple(pool for stage in self.stages for pool in stage.pools)
        return _group_into_pools(self.cards)

    @cached_property
    def all_pools(self) -> tuple[tuple[str, ...], ...]:
        """The names of the detectors, grouped by the process that they share (`pools`).

        If the describer, which guesses prompts, runs in its own processes, the last group has only
        its name.
        """
        return (
            (*self.pools, (self.describer.name,))
            if self.describer and self.has_describer_pool
            else self.pools
        )

    @cached_property
    def keeps_sizes(self) -> bool:
        """Whether some detector reads images at their original size.

        Such images are sent between processes as encoded files, never as arrays.
        """
        return any(preprocessing.shape is None for preprocessing in self.preprocessings)

    @cached_property
    def localizers(self) -> tuple[str, ...]:
        """The names of the detectors that also return a mask of altered pixels."""
        return tuple(name for name, card in self.cards.items() if card.masks)

    @property
    def speakers(self) -> tuple[str, ...]:
        """The names of the detectors that reply with text."""
        return tuple(name for name, card in self.cards.items() if card.replies)

    @cached_property
    def bounded(self) -> tuple[FactName, ...]:
        """The facts of an image for which a card sets bounds, such as `jpeg_quality` or `texture`.

        A detector abstains on an image with a fact beyond the bound on its card.
        """
        return tuple(
            dict.fromkeys(fact for card in self.cards.values() for fact in card.fragility.abstains)
        )

    @cached_property
    def measured(self) -> tuple[FactName, ...]:
        """The facts in `bounded` that are measured on the pixels of an image, such as `texture`.

        The card of a detector can set a bound on a fact. The detector abstains on an image beyond
        this bound.
        """
        return tuple(fact for fact in MEASURED if fact in self.bounded)

    def describe_range_violation(
        self, name: str, width: int, height: int, facts: Facts | None = None
    ) -> str | None:
        """Return the reason why an image is out of range for a detector, or None if it is in range.

        Args:
            name: The name of the detector.
            width: Width of the image in pixels.
            height: Height of the image in pixels.
            facts: The facts of the image, each a list with one value. None checks only the size.
        """
        card = self.cards[name]
        return card.valid_range.describe_mismatch(
            width, height
        ) or card.fragility.describe_mismatches(facts or {}).get(0)

    def is_scored(self, name: str, width: int, height: int) -> bool:
        """Return whether a detector scores an image of this size.

        A detector that reads images at their original size does not score images outside its valid
        range. Any other detector scores all images.

        Args:
            name: The name of the detector.
            width: Width of the image in pixels.
            height: Height of the image in pixels.
        """
        card = self.cards[name]
        return (
            card.preprocessing.shape is not None
            or card.valid_range.describe_mismatch(width, height) is None
        )

    @cached_property
    def calibrations(self) -> dict[str, Platt | None]:
        """The calibration of each detector's score, or None if the detector is not calibrated.

        The calibration in the ensemble's card replaces that in the detector's card.
        """
        members = zip(self.ensemble.members, self.cards.items(), strict=True)
        return {name: member.calibration or card.calibration for member, (name, card) in members}


def _build_stages(spec: ScoringSpec) -> tuple[StageSpec, ...]:
    """Return the stages of a spec. A spec with only some of the detectors has one stage."""
    names, count = tuple(spec.cards), spec.ensemble.first
    is_cascade = count < len(names) == len(spec.ensemble.members)
    stages = []
    for index, detectors in enumerate((names[:count], names[count:]) if is_cascade else (names,)):
        cards = {name: spec.cards[name] for name in detectors}
        scored = _deduplicate(spec.inputs[name] for name in cards)
        describer_input = spec.describer_preprocessing if index == 0 else None
        stages.append(
            StageSpec(
                detectors,
                _group_into_pools(cards),
                scored,
                _deduplicate([*scored, describer_input]),
            )
        )
    return tuple(stages)


def _deduplicate(preprocessings: Iterable[Preprocessing | None]) -> tuple[Preprocessing, ...]:
    return tuple(dict.fromkeys(item for item in preprocessings if item is not None))


def _group_into_pools(cards: Mapping[str, DetectorCard]) -> tuple[tuple[str, ...], ...]:
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
    """Make the spec for scoring images with an ensemble on a device.

    Args:
        ensemble: The card of the ensemble.
        cards: The cards of the detectors. None loads the cards of the ensemble's members.
        limits: Limits on the size of an image.
        device: The device of the detectors.
        precision: The requested precision. `auto` uses that of the calibration or of the device.
        resize: The requested resize mode. `auto` uses that of the calibration, or else is fast for
            detectors in bf16.
        slots: Images per batch. None chooses the default of the device.
        provenance: How to read what files state about their origin. None does not read it.
        views: Perturbations. Each image is also scored after each of these.
        waive_guarantee: Whether settings that differ from those of the calibration are allowed.

    Raises:
        ConfigError: The cards or settings do not fit together.
    """
    if ensemble.cascade is not None and views:
        raise ConfigError(
            f"{ensemble.name} is a cascade and cannot score perturbed images: the unperturbed image would decide which detectors score them",
            hint="omit --perturb, or name each detector with --detector NAME",
        )
    cards = cards or [load_card(member.detector) for member in ensemble.members]
    cards_by_name = {card.name: card for card in cards}
    if len(cards_by_name) < len(cards):
        raise ConfigError(
            f"{ensemble.name}: cards must have distinct names, got {', '.join(card.name for card in cards)}"
        )
    defaults = {
        name: choose_precision(device, card, precision) for name, card in cards_by_name.items()
    }
    resolved, mode = resolve_settings(ensemble, defaults, precision, resize, waived=waive_guarantee)
    count = slots or default_slots(device)
    identifier, describer = profile_cards(ensemble, cards_by_name)
    return ScoringSpec(
        ensemble, cards_by_name, limits, resolved, mode, count, device, provenance, views,
        identifier=identifier, describer=describer,
    )  # fmt: skip


def profile_cards(
    ensemble: EnsembleCard, cards: Mapping[str, DetectorCard]
) -> tuple[IdentifierCard | None, DescriberCard | None]:
    """Load the cards of the two optional models in the `profile` section of an ensemble's card.

    They are the identifier, which predicts the generator of an image, and the describer, which
    guesses its prompt.

    Args:
        ensemble: The card of the ensemble.
        cards: The cards of the detectors, by name.

    Returns:
        The cards of the identifier and the describer. None for a model that the ensemble lacks.

    Raises:
        ConfigError: A model reads embeddings of a detector that does not score every image of the
            ensemble. Or the describer has the name of a detector, or reads images in their own
            sizes.
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
                f"{ensemble.name}: {card.name} reads embeddings of {card.detector}, which does not score every image",
                hint=f"add {card.detector} to the detectors that score every image, or use a card that reads one of {', '.join(first)}",
            )
    if describer is not None and describer.name in cards:
        raise ConfigError(
            f"{ensemble.name}: the describer (it predicts prompts) and a detector have the same name, {describer.name}",
            hint="rename one of the two cards",
        )
    if (
        describer is not None
        and describer.preprocessing is not None
        and describer.preprocessing.shape is None
    ):
        raise ConfigError(
            f"{describer.name}: the preprocessing of a describer must bring images to one size, but it keeps their sizes",
            hint="add a resize or a crop to its preprocessing",
        )
    return identifier, describer


def choose_precision(
    device: str, card: DetectorCard, requested: Literal["auto", "bf16", "fp32"]
) -> Precision:
    """Return the requested precision, resolving `auto` for a device.

    `auto` is bf16 on a GPU, and on a CPU with fast bf16 instructions, unless the card sets fp32.
    The environment variable TOUCHSTONE_CPU_PRECISION replaces the check of the CPU's instructions.
    The device need not be available to this process. A GPU is assumed to support bf16.

    Args:
        device: The device of the detector.
        card: The card of the detector.
        requested: The requested precision.
    """
    if requested != "auto":
        return requested
    return (
        "bf16"
        if card.precision == "auto" and (device != "cpu" or cpu_precision() == "bf16")
        else "fp32"
    )


PROCESS_BYTES = 2**30  # Memory for Python, torch, Ray, and a batch of images.
ENCODED_BYTES = 2**21  # The size of a typical photograph.
# The average size of a file if every file of a block is kept for the second stage. A larger
# estimate would make blocks small.
KEPT_ENCODED_BYTES = 2**19
# The fraction of images that reach the second stage, if the card of a cascade does not state it.
EXPECTED_SHARE = 0.2
# The fraction of images that are flagged, and so described. It is unknown before they are scored.
EXPECTED_FLAGGED = 0.2


@dataclass(frozen=True)
class ResourceEstimate:
    """The estimated cost of scoring images with one `ScoringSpec`.

    Attributes:
        process_bytes: Maximum memory of a process with all detectors. The describer, which guesses
            prompts, is included unless it has its own process. The memory is that of libraries,
            fp32 weights, and a batch of images with all its perturbed copies. The largest weights
            count twice, since they are copied while they load. A detector of the family `callable`
            adds the memory of its child process.
        tensor_bytes: Bytes that are sent between processes for one image: its prepared tensors,
            and its file (estimated size) if the file is decoded again.
        pool_gmac: Expected billions of multiply-adds per image, with its perturbed copies. There is
            one number for each group in the spec's `all_pools`. Images that are not resized count
            as one megapixel. A detector of a second stage counts only for the fraction
            `second_stage_share` of images, and the describer for `share_described`. A cost that no
            card states counts as 0.
        worst_gmac: Maximum of billions of multiply-adds per image, with its perturbed copies. Each
            detector scores the image, at the largest size that it accepts, and the describer reads
            it.
        second_stage_share: The expected fraction of images that the second stage of a cascade
            scores. 1 without a second stage.
        share_described: The expected fraction of images whose prompt is guessed.
    """

    process_bytes: int
    tensor_bytes: int
    pool_gmac: tuple[float, ...]
    worst_gmac: float
    second_stage_share: float
    share_described: float

    @classmethod
    def from_spec(cls, spec: ScoringSpec) -> "ResourceEstimate":
        """Estimate the cost from the cards of a spec."""
        if spec.reads_embeddings:
            return cls(PROCESS_BYTES, 0, (0.0,), 0.0, 1.0, 0.0)
        second_stage, described_fraction = (
            _estimate_second_stage_share(spec),
            _estimate_share_described(spec),
        )
        return cls(
            _estimate_process_bytes(spec),
            _estimate_tensor_bytes(spec),
            _estimate_pool_gmac(spec, second_stage, described_fraction),
            _estimate_worst_gmac(spec),
            second_stage,
            described_fraction,
        )


def _estimate_second_stage_share(spec: ScoringSpec) -> float:
    cascade = spec.ensemble.cascade
    if cascade is None:
        return 1.0
    return EXPECTED_SHARE if cascade.expected_share is None else cascade.expected_share


def _estimate_share_described(spec: ScoringSpec) -> float:
    if spec.describer is None or spec.ensemble.profile is None:
        return 0.0
    return 1.0 if spec.ensemble.profile.describe == "all" else EXPECTED_FLAGGED


def _estimate_process_bytes(spec: ScoringSpec) -> int:
    weight_bytes = count_shared_once(
        {name: 4.0 * card.size.parameters for name, card in spec.cards.items() if card.size},
        spec,
        lambda card: (),
    )
    weights = [int(size) for size in weight_bytes.values()]
    children = sum(
        card.process.memory_bytes for card in spec.cards.values() if card.process is not None
    )
    if spec.describer and spec.describer.parameters and not spec.has_describer_pool:
        weights.append(4 * spec.describer.parameters)
    views = spec.slots * len(spec.views) * _sum_prepared_bytes(spec.scored_preprocessings)
    return PROCESS_BYTES + sum(weights) + max(weights, default=0) + views + children


def count_shared_once(
    sizes: Mapping[str, float], spec: ScoringSpec, also: Callable[[DetectorCard], tuple[Any, ...]]
) -> dict[str, float]:
    """Return the sizes of detectors, with each shared backbone counted only once.

    Detectors share a backbone if its name and precision are equal. The backbone is about as large
    as the smallest detector that shares it. The first of these detectors keeps its full size. From
    each of the others, the size of the backbone is subtracted.

    Args:
        sizes: The size or cost of each detector.
        spec: The spec of the detectors.
        also: A function that returns a tuple of properties of a detector. Detectors share a
            backbone only if these properties are equal, too.

    Returns:
        The size or cost that each detector adds.
    """
    counted, smallest = dict(sizes), dict[tuple[Any, ...], float]()
    keys = {
        name: (card.backbone.name, spec.precision[name], *also(card))
        for name, card in spec.cards.items()
        if card.backbone
    }
    for name in sizes.keys() & keys.keys():
        smallest[keys[name]] = min(sizes[name], smallest.get(keys[name], sizes[name]))
    seen_keys = set[tuple[Any, ...]]()
    for name in sizes:
        if (key := keys.get(name)) in seen_keys:
            counted[name] -= smallest[keys[name]]
        elif key is not None:
            seen_keys.add(key)
    return counted


def _estimate_tensor_bytes(spec: ScoringSpec) -> int:
    stage = spec.stages[0]
    native = sum(preprocessing.shape is None for preprocessing in stage.preprocessings)
    files = native * ENCODED_BYTES or KEPT_ENCODED_BYTES * spec.is_cascade
    describer_inputs = stage.preprocessings[len(stage.scored) :]
    return (
        files
        + spec.passes * _sum_prepared_bytes(stage.scored)
        + _sum_prepared_bytes(describer_inputs)
    )


def _sum_prepared_bytes(preprocessings: Iterable[Preprocessing]) -> int:
    """Return the size of the tensors of one image in one view, in bytes."""
    return sum(
        3 * preprocessing.shape[0] * preprocessing.shape[1]
        for preprocessing in preprocessings
        if preprocessing.shape is not None
    )


def _estimate_pool_gmac(
    spec: ScoringSpec, second_stage: float, described_fraction: float
) -> tuple[float, ...]:
    fractions = dict.fromkeys(spec.late, second_stage)
    sizes = {name: fractions.get(name, 1.0) * card.gmac for name, card in spec.cards.items()}
    sizes = count_shared_once(
        sizes, spec, lambda card: (spec.inputs[card.name], card.own_pool, card.name in fractions)
    )
    describer_gmac = described_fraction * (spec.describer.gmac or 0.0) if spec.describer else 0.0
    *others, last = (spec.passes * sum(sizes[name] for name in pool) for pool in spec.pools)
    return (
        (*others, last, describer_gmac)
        if spec.has_describer_pool
        else (*others, last + describer_gmac)
    )


def _estimate_worst_gmac(spec: ScoringSpec) -> float:
    sized = [(card.gmac, card) for card in spec.cards.values()]
    per_pass = sum(
        gmac if card.preprocessing.shape else gmac * (card.valid_range.max_megapixels or 1.0)
        for gmac, card in sized
    )
    describer_gmac = (spec.describer.gmac or 0.0) if spec.describer else 0.0
    return spec.passes * per_pass + describer_gmac
