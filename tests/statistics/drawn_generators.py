"""Data sets in which every generator, and every source of real images, has an effect of its own,
and what is true of further ones.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from ray_app.metrics.arrays import ScoreHistogram
from ray_app.metrics.clusters import ClassSample
from ray_app.metrics.detection import detection_of
from ray_app.metrics.detection_intervals import ScoredClass

MANY = 40_000  # generators that stand for all
EACH = 20


@dataclass(frozen=True)
class Setting:
    """Images of each generator and source; the means of both classes (log-odds) and how far
    generators and sources deviate (sd).

    `ties`: what scores are rounded to. `named`: whether labels name the sources of real images.
    """

    sizes: tuple[int, ...] = (50,) * 10
    sources: tuple[int, ...] = (500,)
    fake: float = 1.0
    real: float = -1.0
    apart: float = 0.8
    sources_apart: float = 0.5
    ties: float = 0.0

    @property
    def share(self) -> float:
        """Of fakes among all images."""
        return sum(self.sizes) / (sum(self.sizes) + sum(self.sources))

    @property
    def named(self) -> bool:
        """Whether real images come from several sources."""
        return len(self.sources) > 1

    def effects(self, rng):
        """One of each generator, and one of each source."""
        return rng.normal(0, self.apart, len(self.sizes)), rng.normal(
            0, self.sources_apart * self.named, len(self.sources)
        )

    def drawn(self, rng, effects=None):
        """((scores, generators) of fakes, (scores, sources) of reals), (n,) each."""
        parts = []
        for sizes, mean, effect in zip(
            (self.sizes, self.sources),
            (self.fake, self.real),
            effects or self.effects(rng),
            strict=True,
        ):
            scores = rng.normal(mean, 1, sum(sizes)) + np.repeat(effect, sizes)
            if self.ties:
                scores = np.round(scores / self.ties) * self.ties
            parts.append(
                (scores, np.repeat(np.arange(len(sizes)).astype(str), sizes).astype(object))
            )
        return parts

    def classes(self, rng, effects=None, *, images=False):
        """The same as what intervals are worked out from. `images`: as if nobody had named a
        generator.
        """
        (fakes, makers), (reals, sources) = self.drawn(rng, effects)
        return [ScoredClass(ScoreHistogram.of(scores), ClassSample.of(scores, None if images or not is_named else names))
                for scores, names, is_named in ((fakes, makers, True), (reals, sources, self.named))]  # fmt: skip

    def truth(self, effects=None) -> Mapping[str, float | None]:
        """All figures of detection over very many generators and sources, or with these effects
        over very many images of each.
        """
        if effects is None:
            many = replace(
                self, sizes=(EACH,) * MANY, sources=(EACH,) * MANY if self.named else (EACH * MANY,)
            )
        else:
            more = 400_000 // sum(self.sizes)
            many = replace(
                self,
                sizes=tuple(more * one for one in self.sizes),
                sources=tuple(more * one for one in self.sources),
            )
        (fakes, _), (reals, _) = many.drawn(np.random.default_rng(1), effects)
        one, other = ScoreHistogram.of(fakes), ScoreHistogram.of(reals)
        # The mixture of the setting: counts times whole numbers that stand in its ratio.
        times = round(1e4 * self.share * other.n / one.n), round(1e4 * (1 - self.share))
        weighted = [
            ScoreHistogram(histogram.values, histogram.counts * time)
            for histogram, time in zip((one, other), times, strict=True)
        ]
        return {name: figure.value for name, figure in detection_of(*weighted).items()}
