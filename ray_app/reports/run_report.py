"""A run's summary → one HTML page that loads nothing, runs nothing and can be mailed as it is.

Knows what the page says and in which order; `templates/` knows how it looks, `page` what all pages share.
"""

import math
from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from ray_app.reports import wording
from ray_app.reports.charts import Segment, Zones, histogram, stacked_bar
from ray_app.reports.false_flags import FalseFlags, false_flags
from ray_app.reports.guarantee_words import feature, guarantee_sentences
from ray_app.reports.limit_words import limit_sentences
from ray_app.reports.page import jpeg_uri, render, settings
from ray_app.reports.profile_words import NEAREST, WORDS, beginning, families, said_generator
from ray_app.reports.run_summary import RunSummary, Thresholds


def render_run_report(summary: Mapping[str, Any], *, prior: float | None = None, thumbnails: Mapping[int, bytes] | None = None) -> str:
    """Write a run's summary as one self-contained HTML page.

    `prior` is the share of the archive thought to be fake, in (0, 1). `thumbnails` maps image_id to JPEG bytes that are
    already re-encoded and free of metadata; they are shown beside the highest scores.
    Raises ConfigError for a prior outside (0, 1).
    """
    run = RunSummary.model_validate(dict(summary))
    thresholds = run.ensemble.thresholds
    flags = false_flags(thresholds, scored=run.scored, raised=run.verdict("fake"), prior=prior) if thresholds else None
    return render(
        "run.html",
        run=run,
        headline=wording.headline(run),
        verdicts=_verdicts(run),
        verdict_bar=_verdict_bar(run),
        scores=_score_chart(run),
        detectors=_detector_charts(run),
        outside=run.scored - sum(run.histogram.ensemble),
        limits=limit_sentences(run),
        guarantee=guarantee_sentences(run.guarantee),
        shifted=[(feature(shift.feature), shift) for shift in run.guarantee.shifts],
        flags=flags,
        flag_scale=_flag_scale(flags),
        stages=_stages(run),
        thumbnails={image_id: uri for image_id, data in (thumbnails or {}).items() if (uri := jpeg_uri(data))},
        identity=settings(run.identity),
        prior=prior,
        families=families(run.profile.generators) if run.profile else [],
        said_generator=said_generator,
        beginning=beginning,
        profile_notes=(NEAREST, WORDS),
    )


def _verdicts(run: RunSummary) -> list[tuple[str, str, int]]:
    """Style class, words and count of every fate that a member can have; empty ones only where they inform."""
    fates = [(word, words, run.verdict(word)) for word, words in wording.VERDICT_WORDS.items()] if run.scored else []
    fates += [("none", "could not be scored", run.not_scored)] if run.not_scored else []
    fates += [("unseen", "not reached yet", run.members - run.rows)] if run.members > run.rows else []
    return fates


def _verdict_bar(run: RunSummary) -> Markup | None:
    fates = _verdicts(run)
    if not any(number for *_, number in fates):
        return None
    described = "; ".join(f"{words}: {number:,} ({wording.percent(number / run.members)})" for _, words, number in fates)
    segments = [Segment(kind, f"{words}: {number:,}", number) for kind, words, number in fates]
    return stacked_bar(segments, ident="verdicts", title="What became of the members", description=described)


def _score_chart(run: RunSummary) -> Markup | None:
    counts, edges = run.histogram.ensemble, run.histogram.edges
    if not counts:
        return None
    thresholds = run.ensemble.thresholds
    zones = Zones(thresholds.real_below, thresholds.fake_above) if thresholds else None
    return histogram(
        edges, counts, ident="scores", title="How many images have which score", description=_described(run, thresholds), zones=zones
    )


def _described(run: RunSummary, thresholds: Thresholds | None) -> str:
    counts, edges = run.histogram.ensemble, run.histogram.edges
    peak = counts.index(max(counts))
    fullest = f"{edges[peak]:g} to {edges[peak + 1]:g}"
    text = f"{sum(counts):,} scores from {edges[0]:g} to {edges[-1]:g}; the fullest bin, {max(counts):,}, is {fullest}."
    if thresholds:
        text += f" Abstain band from {thresholds.real_below:g} to {thresholds.fake_above:g}."
    return text


def _detector_charts(run: RunSummary) -> list[tuple[str, Markup]]:
    titles = {detector.name: detector.title for detector in run.ensemble.members}
    charts = []
    for index, (name, counts) in enumerate(run.histogram.detectors.items()):
        title = f"Scores of {titles.get(name) or name}"
        described = f"{sum(counts):,} scores; the fullest bin has {max(counts):,}."
        chart = histogram(run.histogram.edges, counts, ident=f"detector-{index}", title=title, description=described, compact=True)
        charts.append((name, chart))
    return charts


def _flag_scale(flags: FalseFlags | None) -> float:
    return max(flags.raised, flags.expected.high) if flags else 0.0


def _stages(run: RunSummary) -> list[tuple[str, float, float]]:
    """Stage, summed worker seconds and share, in the order of the walk."""
    spent = {stage: seconds for stage, seconds in run.session.seconds.items() if math.isfinite(seconds)}
    total = sum(spent.values())
    return [(stage, seconds, seconds / total) for stage, seconds in spent.items()] if total > 0 else []
