"""What an evaluation's intervals are of (`Intervals`): further generators and sources where labels
name them, or further images.

They are worked out from a sample of the labelled rows, each with whose it is: the generator of a
fake, the source of a real image.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ray_app.evaluation.labels import FAKE_KINDS
from ray_app.evaluation.systems import System
from ray_app.metrics import clusters, detection, detection_intervals
from ray_app.metrics.arrays import FigureFacts, ScoreHistogram
from ray_app.reports.evaluation.system_model import IntervalFacts

MOST = 20_000  # rows that they are worked out from; of more, so many stand for all
# images of a view above which only shares and AUCs have intervals: there are many views
MOST_OF_VIEW = 5_000
Meaning = Literal["generators", "images"]
Figures = Mapping[str, FigureFacts]
Names = npt.NDArray[np.object_]
_SHARES = {
    "coverage": (("fake", "real"), None),
    "accuracy_of_decided": (("right",), ("fake", "real")),
    "accuracy_strict": (("right",), None),
    "balanced_accuracy_strict": (("right",), None),
}


class Intervals:
    """Gives figures intervals of one meaning. `sample`: that of `accumulate.Cells`; `wanted`: no
    others than of shares and AUCs.
    """

    def __init__(
        self, meaning: Meaning, sample: pa.Table | None, *, wanted: bool = True, seed: int = 0
    ) -> None:
        self._wanted, self._seed = wanted and sample is not None and len(sample) > 0, seed
        self._sample = sample.slice(0, MOST) if self._wanted and sample is not None else None
        self._kinds = (
            np.asarray(self._sample["kind"].to_pylist(), object)
            if self._sample is not None
            else np.empty(0, object)
        )
        self._names = (
            names_of(self._sample) if self._sample is not None and meaning == "generators" else None
        )
        self.facts = self.facts_of(FAKE_KINDS)

    def facts_of(self, kinds: Collection[str]) -> IntervalFacts:
        """What intervals of figures of these fakes and all real images are of."""
        names = [
            () if self._names is None else self._names[np.isin(self._kinds, mine)]
            for mine in (tuple(kinds), ("real",))
        ]
        return IntervalFacts.of_names(*names)

    def alike(self, kinds: Sequence[str]) -> IntervalFacts:
        """What the intervals of figures of each of these kinds of fakes apart are of, the same for
        all: images where one kind is of few.
        """
        found = [self.facts_of((kind,)) for kind in kinds]
        few = next((one for one in found if one.fakes == "images"), None)
        if few is not None and len(found) > 1:
            return few.model_copy(update={"reals": "images"})
        return found[0] if len(found) == 1 else self.facts

    def of(
        self,
        figures: Figures,
        system: System,
        by_class: tuple[ScoreHistogram, ScoreHistogram],
        kinds: Sequence[str],
        *,
        images: bool = False,
    ) -> dict[str, FigureFacts]:
        """Figures of fakes of some kinds and of all real images, whose scores are `by_class`.
        `images`: of further images in any case.
        """
        if self._sample is None:
            return dict(figures)
        scores = np.asarray(self._sample[f"score:{system.name}"].fill_null(np.nan))
        classes = []
        for histogram, mine in zip(by_class, (tuple(kinds), ("real",)), strict=True):
            there = np.isin(self._kinds, mine)
            names = None if images or self._names is None else self._names[there]
            classes.append(
                detection_intervals.ScoredClass(
                    histogram,
                    clusters.ClassSample.of(scores[there], names, histogram.n, self._seed),
                )
            )
        return self._given(figures, system, classes)

    def of_view(
        self, figures: Figures, system: System, by_class: tuple[ScoreHistogram, ScoreHistogram]
    ) -> dict[str, FigureFacts]:
        """The same of a view, of further images, where it is of few."""
        if not self._wanted or sum(one.n for one in by_class) > MOST_OF_VIEW:
            return dict(figures)
        samples = [clusters.ClassSample.of(np.repeat(one.values, one.counts)) for one in by_class]
        return self._given(
            figures,
            system,
            [detection_intervals.ScoredClass(*one) for one in zip(by_class, samples, strict=True)],
        )

    def of_averages(
        self, figures: Figures, rates: Sequence[tuple[int, int]], tpr: FigureFacts
    ) -> dict[str, FigureFacts]:
        """Means over generators, (images found, images) of each; `tpr`: of all images together."""
        drawn = self.facts.fakes == "generators"
        ends = (
            detection_intervals.mean_rate_ends([one for one in rates if one[1]], drawn=drawn)
            if self._wanted
            else None
        )
        found = dict(figures)
        method = clusters.CLUSTER_JACKKNIFE if drawn else detection_intervals.JACKKNIFE
        if ends is not None and found["tpr_mean"].value is not None:
            found["tpr_mean"] = detection_intervals.with_ends(found["tpr_mean"], ends, method)
        if drawn and tpr.ends and found["tpr_weighted"].value is not None:
            found["tpr_weighted"] = detection_intervals.with_ends(
                found["tpr_weighted"], tpr.ends, tpr.method or method
            )
        return found

    def of_verdicts(
        self, figures: Figures, counts: detection.VerdictCounts
    ) -> dict[str, FigureFacts]:
        """Figures of verdicts with abstentions, from the verdicts of the sample."""
        if self._sample is None:
            return dict(figures)
        verdicts = np.asarray(self._sample["verdict"].fill_null("unscored").to_pylist(), object)
        parts = {label: _Verdicts(verdicts[mine], None if self._names is None else self._names[mine], label, counts, self._seed)
                 for label, mine in (("fake", self._kinds != "real"), ("real", self._kinds == "real"))}  # fmt: skip
        found = dict(figures)
        for name, figure in figures.items():
            if figure.value is None:
                continue
            if name in _SHARES:
                ends, clustered = _of_both(
                    list(parts.values()), *_SHARES[name], even=name.startswith("balanced")
                )
                method = clusters.CLUSTER_JACKKNIFE if clustered else detection_intervals.MOVER
                bare = not figure.ends or clustered
            else:
                part = parts["fake" if name.startswith("tpr") else "real"]
                ends = part.ends(
                    (part.label,), ("fake", "real") if name.endswith("decided") else None
                )
                method, bare = clusters.CLUSTER_JACKKNIFE, part.sample.clusters > 0
            found[name] = detection_intervals.with_ends(figure, ends, method) if bare else figure
        return found

    def _given(
        self, figures: Figures, system: System, classes: Sequence[detection_intervals.ScoredClass]
    ) -> dict[str, FigureFacts]:
        return detection_intervals.with_intervals(
            figures, classes[0], classes[1], seed=self._seed, **system.cut
        )


class _Verdicts:
    """Verdicts of one class: of the sample (m,), and how many there are of each among all images."""

    def __init__(
        self,
        verdicts: Names,
        names: Names | None,
        label: str,
        counts: detection.VerdictCounts,
        seed: int,
    ) -> None:
        self.label = label
        self._verdicts = verdicts
        self._counts = {
            verdict: getattr(counts, f"{label}_{verdict}")
            for verdict in ("fake", "real", "abstain", "unscored")
        }
        self.sample = clusters.ClassSample.of(np.zeros(len(verdicts)), names, seed=seed)

    def n(self, of: Collection[str] | None) -> int:
        """How many images have one of these verdicts; None = all."""
        return sum(count for verdict, count in self._counts.items() if of is None or verdict in of)

    def ends(self, verdicts: Collection[str], of: Collection[str] | None) -> tuple[float, float]:
        """The interval of the share that has one of some verdicts, of those that have one of
        others.
        """
        among = (
            np.ones(len(self._verdicts), np.bool_)
            if of is None
            else np.isin(self._verdicts, list(of))
        )
        some = self.sample._replace(
            scores=self.sample.scores[among],
            codes=self.sample.codes[among],
            n=max(1, int(among.sum())),
        )
        if some.clusters:
            distinct, codes = np.unique(some.codes, return_inverse=True)
            some = some._replace(
                codes=codes,
                clusters=len(distinct) if len(distinct) >= clusters.FEWEST_CLUSTERS else 0,
            )
        return detection_intervals.rate_ends(
            self.n(verdicts), self.n(of), some, np.isin(self._verdicts[among], list(verdicts))
        )


def _of_both(
    parts: Sequence[_Verdicts], verdicts: Sequence[str], of: Sequence[str] | None, *, even: bool
) -> tuple[tuple[float, float], bool]:
    """The interval of a share of both classes together, or of the mean of its two shares; and
    whether any is in clusters.
    """
    shares = []
    there = [part for part in parts if part.n(of)]
    total = sum(part.n(of) for part in there)
    for part in there:
        words = (part.label,) if verdicts == ("right",) else verdicts
        weight = 1 / len(there) if even else part.n(of) / total
        shares.append((weight, part.n(words) / part.n(of), part.ends(words, of)))
    return detection_intervals.mixed_rate_ends(shares), any(part.sample.clusters for part in there)


def names_of(sample: pa.Table) -> Names:
    """Whose each row is (m,): the generator of a fake; of a real image its source where the labels
    have one, else its group.
    """
    makers = np.asarray(sample["generator"].to_pylist(), object)
    if "source" not in sample.column_names:
        return makers
    sources = np.asarray(sample["source"].to_pylist(), object)
    named = np.array([one is not None and bool(one.strip()) for one in sources], np.bool_) & (
        np.asarray(sample["kind"].to_pylist()) == "real"
    )
    return np.where(named, sources, makers)
