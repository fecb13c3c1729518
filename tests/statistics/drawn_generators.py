"""Data sets in which every generator, and every source of real images, has an effect of its own,
and the metrics of further ones.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from ray_app.metrics.detection import measure_detection
from ray_app.metrics.registry import Resampled
from tests.metrics import drawn

MANY = 800_000  # images that show the truth


@dataclass(frozen=True)
class Setting:
    """Images of each generator and source.

    Attributes:
        sizes: Images of each generator.
        sources: Images of each source.
        fake: Mean log-odds of fakes.
        real: Mean log-odds of real images.
        apart: Standard deviation of generators; 0 if images are independent.
        sources_apart: Standard deviation of sources.
        ties: What scores are rounded to; 0 for none.
    """

    sizes: tuple[int, ...] = (50,) * 10
    sources: tuple[int, ...] = (500,)
    fake: float = 1.0
    real: float = -1.0
    apart: float = 0.8
    sources_apart: float = 0.5
    ties: float = 0.0

    @property
    def named(self) -> bool:
        """Whether real images come from several sources."""
        return len(self.sources) > 1

    def effects(self, rng):
        """One of each generator, and one of each source."""
        of_generators = rng.normal(0, self.apart, len(self.sizes))
        return of_generators, rng.normal(0, self.sources_apart * self.named, len(self.sources))

    def drawn(self, rng, effects=None):
        """((scores, generators) of fakes, (scores, sources) of reals), (n,) each."""
        parts, (of_fakes, of_reals) = [], effects or self.effects(rng)
        fakes, reals = (self.sizes, self.fake, of_fakes), (self.sources, self.real, of_reals)
        for sizes, mean, effect in (fakes, reals):
            scores = rng.normal(mean, 1, sum(sizes)) + np.repeat(effect, sizes)
            if self.ties:
                scores = np.round(scores / self.ties) * self.ties
            names = np.arange(len(sizes)).astype(str).astype(object)
            parts.append((scores, np.repeat(names, sizes)))
        return parts

    def resampled(self, rng, effects=None, *, images=False):
        """The images in the groups that intervals are worked out from.

        `images`: as if no labels named a generator.
        """
        (fakes, makers), (reals, sources) = self.drawn(rng, effects)
        is_fake = np.arange(len(fakes) + len(reals)) < len(fakes)
        names = None if images else np.concatenate([makers, sources])
        return Resampled.in_groups(np.concatenate([fakes, reals]), is_fake, names)

    def truth(self, effects=None) -> Mapping[str, float | None]:
        """All metrics over very many generators and sources, or with these effects over very many
        images of each, at the setting's share of fakes.
        """
        n_fake, n_real = sum(self.sizes), sum(self.sources)
        if effects is None:
            fakes = round(MANY * n_fake / (n_fake + n_real))
            reals = MANY - fakes
            sizes, sources = (1,) * fakes, (1,) * reals if self.named else (reals,)
        else:
            more = MANY // (n_fake + n_real)
            sizes, sources = (
                tuple(more * one for one in some) for some in (self.sizes, self.sources)
            )
        many = replace(self, sizes=sizes, sources=sources)
        (fakes, _), (reals, _) = many.drawn(np.random.default_rng(1), effects)
        found = measure_detection(drawn.images(fakes, reals))
        return {name: one.value for name, one in found.items()}
