"""Scores of both classes for tests: random and degenerate, as raw arrays, as `ScoredImages`, and as
scikit-learn takes them.
"""

import numpy as np

from ray_app.metrics.registry import ScoredImages

RNG = np.random.default_rng(7)
BOTH = {
    "smooth": (RNG.normal(1.5, 1, 400), RNG.normal(0, 1.3, 700)),
    "ties": (RNG.normal(1, 2, 900).round(), RNG.normal(-1, 2, 1200).round()),
    "few values": (
        RNG.choice([-1.0, 0.0, 2.0], 300, p=[0.1, 0.3, 0.6]),
        RNG.choice([-1.0, 0.0, 2.0], 1100, p=[0.8, 0.15, 0.05]),
    ),
    "few fakes": (RNG.normal(2, 1, 3), RNG.normal(0, 1, 5000)),
    "few reals": (RNG.normal(2, 1, 5000).round(1), RNG.normal(0, 1, 2)),
    "all equal": (np.full(150, 0.25), np.full(130, 0.25)),
    "all at the threshold": (np.zeros(40), np.zeros(110)),
    "apart": (np.arange(1.0, 301), -np.arange(1.0, 301)),
    "the wrong way round": (-np.arange(1.0, 301), np.arange(1.0, 301)),
    "one of each": (np.array([0.5]), np.array([-0.5])),
    "equal pair": (np.array([0.5]), np.array([0.5])),
    "chances of 0 and 1": (np.array([-40.0, 30.0, 40.0] * 40), np.array([-40.0, -35.0, 36.0] * 40)),
}


def images(fakes, reals, **cut):
    scores = np.concatenate([np.asarray(fakes), np.asarray(reals)])
    return ScoredImages.from_scores(scores, np.arange(len(scores)) < len(fakes), **cut)


def joined(fakes, reals):
    """Labels (1 = fake) and scores."""
    return np.repeat([1, 0], [len(fakes), len(reals)]), np.concatenate([fakes, reals])
