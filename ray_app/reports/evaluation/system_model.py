"""One system of an evaluation's document, a detector or the ensemble (`SystemFacts`).

Fields stand in the order of the file. `evaluation` fills them: figures (system_section).
"""

import math
from collections.abc import Iterable, Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator

from ray_app.config import OptionalKey, Section
from ray_app.metrics.uncertainty import MIN_GROUPS
from ray_app.metrics.values import NOT_MEASURED, MetricValue

NO_COUNTS: Mapping[str, int] = {}


class IntervalFacts(Section):
    """What 95 % intervals are of: further generators of `fakes`, and sources of `reals`, or further
    images of the same ones.

    `generators`, `sources`: how many labels name; 0 where intervals are of images by choice. Empty:
    the document does not say.
    """

    fakes: str = ""
    reals: str = ""
    generators: int = 0
    sources: int = 0

    @classmethod
    def of_names(cls, generators: Iterable[str], sources: Iterable[str]) -> "IntervalFacts":
        """Whose the fakes are, and the real images, one name an image: intervals are of further
        ones where enough are named.
        """
        counts = {"generators": len(set(generators)), "sources": len(set(sources))}
        fakes, reals = (word if n >= MIN_GROUPS else "images" for word, n in counts.items())
        return cls(fakes=fakes, reals=reals, **counts)

    @property
    def of_images(self) -> bool:
        """Whether they are of further images of the same generators and sources alone."""
        return self.fakes != "generators" and self.reals != "sources"

    @property
    def words(self) -> str:
        """A sentence for the head of a table; empty where the document does not say."""
        if not self.fakes:
            return ""
        if self.of_images:
            return f"95 % intervals are for further images of the same generators and sources.{self._few}"
        fakes = (
            f"generators like these {self.generators:,}"
            if self.fakes == "generators"
            else "fakes of the same generators"
        )
        same = "the same sources" if self.sources > 1 else "the same source"
        reals = (
            f"sources of real images like these {self.sources:,}"
            if self.reals == "sources"
            else f"real images of {same}"
        )
        return f"95 % intervals are for further {fakes} and further {reals}.{self._few}"

    @property
    def _few(self) -> str:
        """A sentence where too few names are known."""
        few = [words for number, drawn, words in ((self.generators, self.fakes == "generators", "generators"),
               (self.sources, self.reals == "sources", "sources")) if number > 1 and not drawn]  # fmt: skip
        return f" Fewer than eight {' and '.join(few)} say nothing of further ones." if few else ""


class GeneratorFacts(Section):
    """One generator's images, or one source of real ones. `rate`: the share of them classified
    correctly. `seen`: by the detector, in training.
    """

    name: str = ""
    label: str = ""
    kind: str = ""
    seen: str = "unknown"
    released: str | None = None
    architecture: OptionalKey[str] = None
    n: int = 0
    unscored: int = 0
    rate: MetricValue = NOT_MEASURED
    auc: MetricValue = NOT_MEASURED
    average_precision: OptionalKey[MetricValue] = None
    oracle_accuracy: OptionalKey[MetricValue] = None

    @property
    def figures(self) -> dict[str, MetricValue]:
        """All its figures, by name."""
        return {
            name: value for name, value in self.given().items() if isinstance(value, MetricValue)
        }


class ReliabilityBin(Section):
    """Images whose probability lies from `low` to `high`: the mean of what was stated, and the
    share that is fake.
    """

    low: float = 0.0
    high: float = 0.0
    n: int = 0
    probability: float | None = None
    fake_share: float | None = None
    interval: tuple[float, ...] = ()

    @property
    def ends(self) -> tuple[float, float] | None:
        """The ends of the share's interval, where it has one."""
        return (self.interval[0], self.interval[1]) if len(self.interval) == 2 else None


class ClassHistogram(Section):
    """Counts of scores (log-odds) by class: n + 1 edges for n counts."""

    edges: tuple[float, ...] = ()
    real: tuple[int, ...] = ()
    fake: tuple[int, ...] = ()

    @property
    def drawable(self) -> bool:
        """Whether there is anything to draw, and it fits together."""
        bins = len(self.edges) - 1
        sound = (
            bins > 0 and self.edges[-1] > self.edges[0] and len(self.real) == len(self.fake) == bins
        )
        return sound and any(self.real + self.fake)


def rows(value: Any) -> Any:
    """A list without its nulls; of anything else none."""
    return [row for row in value if row is not None] if isinstance(value, list | tuple) else []


Points = Annotated[tuple[tuple[float | None, ...], ...], BeforeValidator(rows)]


class RiskCoverage(Section):
    """Pairs of coverage and risk, and the area under them."""

    points: Points = ()
    aurc: MetricValue = NOT_MEASURED


class FormatStratum(Section):
    """Images of one format and one size band."""

    format: str = ""
    size: str = ""
    n_real: int = 0
    n_fake: int = 0
    auc: MetricValue = NOT_MEASURED
    balanced_accuracy: MetricValue = NOT_MEASURED


def figures_among(value: Any) -> Any:
    """By name what is a figure; the rest is left out."""
    if not isinstance(value, Mapping):
        return {}
    return {
        key: item
        for key, item in value.items()
        if isinstance(item, MetricValue) or (isinstance(item, Mapping) and "value" in item)
    }


# Of a mapping, what is a figure: so that a section may hold other things beside its figures.
Figures = Annotated[Mapping[str, MetricValue], BeforeValidator(figures_among)]
NO_FIGURES: Mapping[str, MetricValue] = {}


class ViewFacts(Section):
    """The same images, perturbed. `kind`: `degradation`, `chain` (several, one after another), or
    `attack` (made to mislead). `why`: it was asked for and is not there, for this reason.
    """

    name: str = ""
    kind: str = "degradation"
    why: str = ""
    n_real: int = 0
    n_fake: int = 0
    figures: Figures = NO_FIGURES


OptionalFigures = Annotated[
    Mapping[str, MetricValue] | None, BeforeValidator(lambda value: value and figures_among(value))
]


class SystemFacts(Section):
    """One detector or the ensemble. `decided`: the ensemble's figures with its abstentions;
    `kinds`: whole fakes and local edits apart.

    `late`: in a cascade it scores only the images that go on, and its figures are of these.
    """

    name: str = ""
    kind: str = ""
    title: str = ""
    output: str = "continuous"
    calibrated: bool = False
    threshold: float | None = None
    strict: bool = True
    late: bool = False
    n_real: int = 0
    n_fake: int = 0
    unscored: int = 0
    figures: Figures = NO_FIGURES
    decided: OptionalFigures = None
    averages: Figures = NO_FIGURES
    kinds: Mapping[str, Figures] = {}
    kinds_intervals: IntervalFacts = IntervalFacts()
    generators: tuple[GeneratorFacts, ...] = ()
    roc: Points = ()
    precision_recall: Points = ()
    reliability: tuple[ReliabilityBin, ...] = ()
    histogram: ClassHistogram = ClassHistogram()
    risk_coverage: RiskCoverage = RiskCoverage()
    report: Mapping[str, Any] = {}
    strata: tuple[FormatStratum, ...] = ()
    views: tuple[ViewFacts, ...] = ()

    @property
    def n(self) -> int:
        """Images that it scored."""
        return self.n_real + self.n_fake

    @property
    def called(self) -> str:
        """Its title, else its name."""
        return self.title or self.name

    def figure(self, key: str) -> MetricValue:
        """A figure by its name; one without a value where it was not measured."""
        return self.figures.get(key, NOT_MEASURED)

    @property
    def flagged(self) -> MetricValue:
        """The share of real images that are called fake."""
        return self.figure("tnr").complement

    @property
    def kinds_apart(self) -> list[tuple[str, Mapping[str, MetricValue]]]:
        """Figures of whole fakes and of local edits, where there are local edits."""
        known = [
            (kind, found)
            for kind, found in self.kinds.items()
            if any(figure.value is not None for figure in found.values())
        ]
        return known if any(kind == "local" for kind, _ in known) else []

    @property
    def fullest_strata(self) -> list[FormatStratum]:
        """Combinations of format and size, those of the most images first."""
        return sorted(self.strata, key=lambda one: -(one.n_real + one.n_fake))

    def hardest(self, label: str = "fake") -> list[GeneratorFacts]:
        """Generators of one label, the least share classified correctly first; those without a
        share last.
        """
        mine = [generator for generator in self.generators if generator.label == label]
        return sorted(
            mine,
            key=lambda one: (math.inf if one.rate.value is None else one.rate.value, one.name),
        )


def numbers(value: Any) -> Any:
    """By name what is a number; the rest is left out."""
    return (
        {key: item for key, item in value.items() if isinstance(item, int | float)}
        if isinstance(value, Mapping)
        else {}
    )


Counts = Annotated[Mapping[str, int], BeforeValidator(numbers)]
