"""Labelled images whose population is known: reals of sources, fakes of generators, and the true
share of reals above any raw score.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.stats import norm

from ray_app.ensembles import EnsembleMember
from ray_app.errors import ConfigError
from ray_app.evaluation.calibrate.config import CalibrateConfig
from ray_app.evaluation.calibrate.division import Division, assign_parts, group_images
from ray_app.evaluation.calibrate.fit_card import Assembled, add_thresholds, fit_card
from tests.evaluation.calibrate.drawn import labelled_of

MEMBERS = (EnsembleMember(detector="a"),)


@dataclass(frozen=True)
class Reals:
    """Scores (n,), the source of each (None: not named), the share of the population's reals at or
    above a score, and more of them.
    """

    scores: np.ndarray
    sources: list
    share_above: Callable[[float], float]
    more: Callable[[np.random.Generator, int], np.ndarray] = lambda rng, n: rng.standard_normal(n)


def independent(rng, n=2_000):
    """Reals of no source, their scores normal."""
    return Reals(rng.standard_normal(n), [None] * n, norm.sf)


def mixed(rng, shares, shifts, n):
    """Scores (n,) of a mixture of normal distributions of one width."""
    return rng.standard_normal(n) + np.asarray(shifts)[rng.choice(len(shares), n, p=shares)]


def dominated(rng, parts, n=2_000):
    """Reals of which each of `parts`, (share, shift), is one source whose scores are shifted; the
    archive is the same mixture.
    """
    sizes = [int(share * n) for share, _ in parts]
    codes = np.repeat([*range(len(parts)), -1], [*sizes, n - sum(sizes)])
    shifts = np.array([shift for _, shift in parts] + [0.0])
    rest = 1 - sum(share for share, _ in parts)
    return Reals(
        rng.standard_normal(n) + shifts[codes],
        [f"source {code}" if code >= 0 else None for code in codes.tolist()],
        lambda at: rest * norm.sf(at) + sum(share * norm.sf(at - shift) for share, shift in parts),
        lambda rng, n: mixed(rng, [*(share for share, _ in parts), rest], shifts, n),
    )


def clustered(rng, sources=60, each=33, correlation=0.3, sizes=None):
    """Reals of sources whose mean scores are normal, so that images of one have this correlation;
    the archive is of further sources.
    """
    codes = np.repeat(np.arange(sources), each if sizes is None else sizes)
    shared, own = rng.standard_normal(sources)[codes], rng.standard_normal(len(codes))
    scores = correlation**0.5 * shared + (1 - correlation) ** 0.5 * own
    return Reals(scores, [f"source {code}" for code in codes.tolist()], norm.sf)


def tied(reals):
    """The same with scores rounded to halves."""
    return Reals(
        np.round(2 * reals.scores) / 2,
        reals.sources,
        lambda at: reals.share_above(np.ceil(2 * at + 1e-6) / 2 - 0.25),
        lambda rng, n: np.round(2 * reals.more(rng, n)) / 2,
    )


def photo_sets(rng, sets=6, each=400):
    """Photographs, each its own source, in sets whose mean scores differ by 0.7 sd; the archive is
    of the same sets.
    """
    shifts = rng.normal(0, 0.7, sets)
    scores = (shifts[:, None] + rng.standard_normal((sets, each))).ravel()
    return Reals(
        scores,
        [f"photo {place}" for place in range(sets * each)],
        lambda at: float(norm.sf(at - shifts).mean()),
    )


def images_of(rng, reals, fakes=400, generators=6, edits=False):
    """A detector's scores of these reals and of fakes of some generators; `edits`: every real is
    edited, by a generator for each sixth.
    """
    n = len(reals.scores)
    fakes = n if edits else fakes
    maker = np.arange(n) * generators // n if edits else np.arange(fakes)
    if not edits and fakes > generators:
        maker = rng.integers(0, generators, fakes)
    effect = rng.normal(0, 0.7, generators)
    scores = np.concatenate([reals.scores, rng.normal(2.5 + effect[maker], 1)])
    sources = [*reals.sources, *(reals.sources if edits else [None] * fakes)]
    sha256 = [f"{number:016x}" * 4 for number in rng.integers(0, 2**63, n + fakes).tolist()]
    return labelled_of(
        np.arange(n + fakes) >= n,
        {"a": scores.astype(np.float32)},
        generator=[None] * n + [f"generator {one}" for one in maker.tolist()],
        source=sources,
        sha256=sha256,
        format=["JPEG"] * (n + fakes),
    )


def scored(scores):
    """Images of an archive with these scores of the detector."""
    fake, columns = np.zeros(len(scores), bool), {"a": scores.astype(np.float32)}
    return labelled_of(fake, columns, sha256=[""] * len(scores))


def assembled(images, **options) -> Assembled:
    """The calibration as `touchstone detectors calibrate` makes it of these images."""
    config = CalibrateConfig(run="", out="", **options)
    shared = {"share_generators": config.share_generators, "share_sources": config.share_sources}
    groups = group_images(images, **shared)
    division = Division.from_parts(images, groups, assign_parts(images, groups, seed=config.seed))
    return add_thresholds(fit_card(division, MEMBERS, config), division, config)


def calibrated(images, **options) -> Assembled | None:
    """As `assembled`; None if it refuses."""
    try:
        return assembled(images, **options)
    except ConfigError:
        return None


def raw_threshold(found):
    """The detector's own score at a card's threshold, of one detector whose calibrations are
    straight lines.
    """
    [member] = found.card.members
    low, high = found.card.calibration(member.calibration(np.array([0.0, 1.0])))
    return (found.card.thresholds.fake_above - low) / (high - low)
