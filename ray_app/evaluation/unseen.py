"""Figures on what a system was not trained on (`unseen_of`), and the scores of that alone (`unseen_sample`), by which pairs are tested.

An image counts as seen where a card of the system lists its generator, or the source that its label names. What no card lists stays,
and is counted as unknown. Rows are those of the evaluation's sample (`accumulate.Cells.sample`).
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from ray_app.detectors import DetectorCard
from ray_app.evaluation import interval_sample
from ray_app.evaluation.labels import FAKE_KINDS
from ray_app.evaluation.systems import Seen, System, combined_overlap, is_named, training_overlap
from ray_app.metrics import detection
from ray_app.metrics.arrays import Bools, ScoreHistogram
from ray_app.reports.evaluation import system_model

FIGURES = ("auc", "tpr_at_fpr_5", "tpr_at_fpr_1", "balanced_accuracy", "tpr", "tnr", "ece")
_FEW = 20  # images of a generator under which it is called the worst only where no other has more
_REAL = "real"


@dataclass(frozen=True)
class SampleOverlap:
    """Rows (n,) of a sample against one system's training: whether each was `seen`, and the group that it belongs to (label, name).

    `unknown`: groups that no card lists.
    """

    seen: Bools
    groups: Sequence[tuple[str, str]]
    unknown: frozenset[tuple[str, str]]


def source_overlap(card: DetectorCard, source: str) -> Seen:
    """Whether the card's weights were fitted or chosen on images of this source, by the name that labels give it."""
    data = card.training_data
    if any(is_named(source, glob) for glob in data.sources):
        return "in-training"
    return "unseen" if data.sources and data.complete else "unknown"


def overlap_of(cards: Sequence[DetectorCard | None], sample: pa.Table) -> SampleOverlap:
    """The rows of a sample against cards that all take part in a score; None: one that cannot be read.

    A fake was seen where its generator or its source was; a real image where its source was, or its group's name. Where labels name no
    source, that of a real image is unknown unless no card lists sources of real images.
    """
    makers = sample["generator"].to_pylist()
    labels = ["real" if kind == _REAL else "fake" for kind in sample["kind"].to_pylist()]
    sources = sample["source"].to_pylist() if "source" in sample.column_names else [None] * len(sample)
    known: dict[tuple[str, str, str | None], Seen] = {}
    found = []
    for row in zip(labels, makers, sources, strict=True):
        if row not in known:
            known[row] = combined_overlap("unknown" if card is None else _seen(card, *row) for card in cards)
        found.append(known[row])
    groups = [(label, source if label == _REAL and source else maker) for label, maker, source in zip(labels, makers, sources, strict=True)]
    unknown = frozenset(group for group, word in zip(groups, found, strict=True) if word == "unknown")
    return SampleOverlap(np.array([word == "in-training" for word in found], np.bool_), groups, unknown)


def unseen_sample(sample: pa.Table, systems: Sequence[System], members: Sequence[System]) -> tuple[pa.Table, Mapping[str, SampleOverlap]]:
    """The sample without every score that a system gave an image which it was trained on, and each system's overlap."""
    overlaps = {one.name: overlap_of(_cards(one, members), sample) for one in systems}
    for one in systems:
        name, overlap = f"score:{one.name}", overlaps[one.name]
        if overlap.seen.any():
            scores = np.where(overlap.seen, np.nan, np.asarray(sample[name].fill_null(np.nan)))
            sample = sample.set_column(sample.column_names.index(name), name, pa.array(scores, pa.float64(), from_pandas=True))
    return sample, overlaps


def unseen_of(
    system: System, whole: system_model.SystemFacts, sample: pa.Table, overlap: SampleOverlap, how: Mapping[str, Any], *, sampled: bool
) -> system_model.UnseenFacts:
    """One system's figures on unseen images of `sample` (of `unseen_sample`); where nothing was seen, those of `whole`, its section.

    `how`: `meaning`, `wanted` and `seed` of `Intervals`; `sampled`: the sample is not all rows.
    """
    counted = Counter(group for group, seen in zip(overlap.groups, overlap.seen.tolist(), strict=True) if seen)
    facts: dict[str, Any] = {
        "left_out": tuple(system_model.LeftOut(name=name, label=label, n=n) for (label, name), n in sorted(counted.items())),
        "unknown": len(overlap.unknown),
        "names_sources": any(label == _REAL and name != _REAL for label, name in overlap.groups),
    }
    if not counted:
        figures = {name: whole.figures[name] for name in FIGURES if name in whole.figures}
        return system_model.UnseenFacts(figures=figures, n_real=whole.n_real, n_fake=whole.n_fake, worst=whole.worst, **facts)
    rest = sample.filter(pa.array(~overlap.seen))
    fake = np.asarray(rest["kind"].to_pylist(), object) != _REAL
    scores = np.asarray(rest[f"score:{system.name}"].fill_null(np.nan))
    there = np.isfinite(scores)
    fakes, reals = (ScoreHistogram.of(scores[there & mine]) for mine in (fake, ~fake))
    facts |= {"n_real": reals.n, "n_fake": fakes.n, "sampled": sampled}
    if not fakes.n or not reals.n:
        missing = " and ".join(word for word, one in (("fakes", fakes), ("real images", reals)) if not one.n)
        return system_model.UnseenFacts(why=f"all {missing} here are of generators or sources that it was trained on", **facts)
    found = detection.detection_of(fakes, reals, continuous=whole.output == "continuous", **system.cut)
    intervals = interval_sample.Intervals(how["meaning"], rest, wanted=how["wanted"], seed=how["seed"])
    found = intervals.of({name: found[name] for name in FIGURES}, system, (fakes, reals), FAKE_KINDS)
    makers = {name for (label, name), seen in zip(overlap.groups, overlap.seen.tolist(), strict=True) if label == "fake" and not seen}
    makers -= {name for label, name in counted if label == "fake"}
    worst = worst_of(one for one in whole.generators if one.name in makers)
    return system_model.UnseenFacts(figures=found, intervals=intervals.facts, worst=worst, **facts)


def _seen(card: DetectorCard, label: str, maker: str, source: str | None) -> Seen:
    by_source = source_overlap(card, source) if source else "unknown"
    by_maker = training_overlap(card, maker)
    if "in-training" in (by_source, by_maker):
        return "in-training"
    if label == "fake":
        return by_maker
    return by_source if source else source_overlap(card, maker.removeprefix("real:")) if maker != _REAL else "unknown"


def _cards(system: System, members: Sequence[System]) -> list[DetectorCard | None]:
    return [one.card for one in members] if system.is_ensemble and members else [system.card]


def worst_of(generators: Iterable[system_model.GeneratorFacts]) -> system_model.WorstGenerator | None:
    """The fakes of which the fewest are found; of those with twenty images or more where there are any."""
    known = [one for one in generators if one.label == "fake" and one.rate.number is not None]
    many = [one for one in known if one.n >= _FEW] or known
    worst = min(many, key=lambda one: one.rate.number or 0.0, default=None)
    return None if worst is None else system_model.WorstGenerator(generator=worst.name, rate=worst.rate)
