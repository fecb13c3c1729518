"""A run's summary → one HTML page that loads nothing and runs nothing (`render_run_report`), and
its parts in sentences for page and terminal.

The parts: the card's guarantee, the profile, how many flags will be wrong, and what the limits
refused.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from markupsafe import Markup

from ray_app.ensembles.card import Thresholds
from ray_app.errors import ConfigError
from ray_app.identification.generators import family_title, title_of
from ray_app.metrics.uncertainty import proportion_interval
from ray_app.reports import charts
from ray_app.reports import format as wording
from ray_app.reports.html import jpeg_uri, render, settings
from ray_app.runs.document import (
    GeneratorCount,
    GuaranteeSummary,
    ProfileSummary,
    RunSummary,
)

FEATURE_WORDS = {
    "score": "score",
    "format": "format",
    "megapixels": "megapixels",
    "short_side_px": "short side",
    "jpeg_quality": "JPEG quality",
}
NEAREST = "A name is the nearest of the generators that the identifier knows: no proof of where an image came from."
WORDS = "Words are a guess at the prompt. Many prompts lead to one image."
NO_PROOF = (
    "this is no proof: real images of a new kind that score as fakes look like more fakes; "
    "`touchstone runs audit RUN --draw 30 --flagged` bounds by labels how many flags are wrong"
)
_MOST = 12
_MOST_IN_LINE = 4
PRIORS = (0.001, 0.01, 0.1)
LOUD_SHARE = 0.01  # of the members; fewer stand in the table of statuses alone
_DECODING = "decoding takes 4 to 24 bytes of memory for each pixel, which all images over 50 megapixels on a node share in turns"
_MEANING = {
    "max_bytes": ("more bytes", "a file is held as a whole while it is decoded"),
    "max_pixels": ("more pixels", _DECODING),
    "max_whole_pixels": ("more pixels, in a format other than JPEG, TIFF and WebP", _DECODING),
    "max_side": ("a longer side", "a resize takes memory by the longer side"),
    "max_aspect": ("a longer and narrower picture", "a resize takes memory by the longer side"),
    "max_ratio": ("fewer bytes for so many pixels", "the pixels bound the memory"),
    "max_text_bytes": (
        "a larger profile of printing colours",
        "it is held while the image is decoded",
    ),
}


class Rate(NamedTuple):
    """A measured rate with its 95 % interval. If n is not known, both ends are the rate."""

    value: float
    low: float
    high: float


class RightShare(NamedTuple):
    """What flags are worth if `prior` of the archive is fake; `right` is None where nothing would
    be flagged.
    """

    prior: float
    flags: float
    missed: float
    right: float | None
    right_low: float | None
    right_high: float | None


@dataclass(frozen=True)
class FalseFlags:
    """Flags to expect from real images alone, and per prior the share of flags that is right."""

    scored: int
    raised: int
    rate: Rate
    expected: Rate
    has_interval: bool
    shares: tuple[RightShare, ...]

    @property
    def is_explained_by_rate(self) -> bool:
        """Whether an archive without a single fake could well have raised as many flags."""
        return self.raised <= self.expected.high


def guarantee_lines(section: Mapping[str, Any] | None) -> list[str]:
    """The same for a terminal, from that section of a run's summary."""
    return [
        f"guarantee: {sentence}"
        for sentence in guarantee_sentences(GuaranteeSummary.model_validate(dict(section or {})))
    ]


def flag_lines(summary: Mapping[str, Any], *, prior: float | None = None) -> list[str]:
    """How many of a run's flags will be false, for a terminal; nothing where its thresholds have no
    stated rates.
    """
    run = RunSummary.model_validate(dict(summary))
    flags = _flags_of(run, prior)
    if flags is None or not run.scored:
        return []
    images = wording.counted(run.scored, "scored image")
    lines = [
        f"flagged: {flags.raised:,} of {images}; if all were real, it would be about {wording.number(flags.expected.value, 2)}"
    ]
    for share in flags.shares:
        between = (
            f" ({wording.interval((share.right_low, share.right_high), wording.percent)})"
            if flags.has_interval
            else ""
        )
        lines.append(
            f"if {wording.percent(share.prior, 3)} of the archive is fake, {wording.percent(share.right)} of the flags are right{between}"
        )
    return lines


def profile_lines(profile: ProfileSummary | None) -> list[str]:
    """A run's profile for the terminal; nothing without one."""
    if profile is None or not profile.flagged:
        return []
    lines = []
    if profile.identified:
        named = {title: flagged for title, flagged, _ in families(profile.generators)}
        parts = [
            f"{wording.visible(title)} {number:,}"
            for title, number in wording.largest(named, _MOST_IN_LINE)
        ]
        parts += [f"like no known generator {profile.unlike:,}"] if profile.unlike else []
        parts += [f"no say {profile.silent:,}"] if profile.silent else []
        lines.append(f"flagged images are nearest to: {', '.join(parts)}")
    if profile.describes:
        lines.append(
            f"words: predicted for {profile.described:,} of {wording.counted(profile.flagged, 'flagged image')}"
        )
    return lines


def render_run_report(
    summary: Mapping[str, Any],
    *,
    prior: float | None = None,
    thumbnails: Mapping[int, bytes | str] | None = None,
) -> str:
    """Write a run's summary as one self-contained HTML page.

    `prior` is the share of the archive thought to be fake, in (0, 1). `thumbnails` maps image_id to
    JPEG bytes that are made anew and free of metadata, or to words why there is no picture; these
    files are shown with them, the others in a table. Raises ConfigError for a prior outside (0, 1).
    """
    run, given = RunSummary.model_validate(dict(summary)), thumbnails or {}
    flags = _flags_of(run, prior)
    return render(
        "run.html",
        run=run,
        headline=wording.headline(run),
        verdicts=_verdicts(run),
        scores=_score_chart(run),
        detectors=_detector_charts(run),
        outside=run.scored - sum(run.histogram.ensemble),
        limits=limit_sentences(run),
        guarantee=guarantee_sentences(run.guarantee),
        unlike=unlike_sentence(run.guarantee.unlike if run.guarantee else None),
        shifted=[
            (feature(shift.feature), shift)
            for shift in (run.guarantee.shifts if run.guarantee else ())
        ],
        flags=flags,
        flag_scale=max(flags.raised, flags.expected.high) if flags else 0.0,
        stages=_stages(run),
        pictured=[row for row in run.top if row.image_id in given],
        listed=[row for row in run.top if row.image_id not in given],
        thumbnails={
            image_id: uri
            for image_id, data in given.items()
            if isinstance(data, bytes) and (uri := jpeg_uri(data))
        },
        missing={image_id: why for image_id, why in given.items() if isinstance(why, str)},
        identity=settings(run.identity),
        prior=prior,
        families=families(run.profile.generators) if run.profile else [],
        said_generator=generator_in_words,
        beginning=beginning,
        profile_notes=(NEAREST, WORDS),
    )


def guarantee_sentences(found: GuaranteeSummary | None) -> list[str]:
    """The promise, and whether it holds; nothing where a run's card promises nothing."""
    if found is None or not found.stated:
        return []
    sentences = []
    if found.target_fpr:
        bound = found.target_fpr if found.upper_bound is None else found.upper_bound
        sentences.append(
            describe_guarantee(found.target_fpr, bound, found.confidence, found.population)
        )
    why = f": {wording.shortened(found.why, 400)}" if found.why else ""
    if found.holds:
        names = ", ".join(
            dict.fromkeys(
                "scores of detectors" if ":" in one.feature else feature(one.feature)
                for one in found.shifts
            )
        )
        sentences.append(
            f"no difference was noticed between {wording.counted(found.images or 0, 'image')} of this archive and those that the card was "
            f"calibrated on ({names})"
        )
    elif found.holds is None:
        sentences.append(f"not known to hold for this archive{why}")
    else:
        sentences.append(f"does not hold for this archive{why}")
    if found.holds:
        sentences.append(NO_PROOF)
    if found.unlike:
        sentences.append(
            "so different that all verdicts abstain: calibrate on labelled images of this archive, or keep the ensemble’s verdicts with "
            "`touchstone runs decide --waive-guarantee`"
        )
    elif found.waived:
        sentences.append("it was waived: verdicts stand that the card does not answer for")
    return sentences


def unlike_sentence(unlike: str | None) -> str | None:
    """Return in one sentence that an archive is unlike the calibration images; None if it is not.

    Args:
        unlike: The difference, as `guarantee.unlike` in a summary has it.
    """
    return f"all verdicts abstain: {wording.shortened(unlike, 400)}" if unlike else None


def describe_guarantee(
    target_fpr: float, upper_bound: float, confidence: float | None, population: str | None
) -> str:
    """Return what a card states of its false positives: a guarantee if the upper bound is at most
    the stated rate, otherwise the measured bound.

    Args:
        target_fpr: The stated false-positive rate.
        upper_bound: The exact upper bound of the rate.
        confidence: The confidence of the bound.
        population: The images that it was measured on.
    """
    images = (
        f"real images like those of “{wording.shortened(population, 120)}”" if population else ""
    )
    sure = f", with {wording.percent(confidence, 3)} confidence" if confidence else ""
    if upper_bound <= target_fpr:
        known, most = "guaranteed", target_fpr
    else:
        known, most = (
            f"measured, not under the stated {wording.percent(target_fpr, 3)}",
            upper_bound,
        )
    return f"of {images or 'real images'} at most {wording.percent(most, 3)} are called fake ({known}{sure})"


def feature(name: str) -> str:
    """A property by its name in a card."""
    kind, _, detector = name.partition(":")
    if kind == "score" and detector:
        return f"score of {wording.shortened(detector, 60)}"
    return FEATURE_WORDS.get(name) or wording.shortened(name, 60)


def families(counts: Sequence[GeneratorCount]) -> list[tuple[str, int, list[tuple[str, int]]]]:
    """Titles of families with their flagged images, and the same of their generators where there
    are several.

    The most frequent first, the rest of either as one line.
    """
    by_family: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for one in counts:
        by_family[family_title(one.family)][title_of(one.generator)] += one.flagged
    ranked = wording.largest({title: names.total() for title, names in by_family.items()}, _MOST)
    members = {
        title: wording.largest(names, _MOST)
        for title, names in by_family.items()
        if list(names) != [title]
    }
    return [(title, flagged, members.get(title, [])) for title, flagged in ranked]


def generator_in_words(name: str | None, family: str | None, ranking: Sequence[str] | None) -> str:
    """One image's generator in words: the name with its family, or that it is like none known and
    which is nearest; "" where there is none.
    """
    if name is not None:
        title, base = title_of(name), family_title(family or name)
        return title if title.startswith(base) or base == name else f"{title} ({base})"
    return f"like no known generator; nearest: {title_of(ranking[0])}" if ranking else ""


def beginning(text: str, limit: int = 200) -> str:
    """A prompt cut where it gets long; its first words matter most."""
    shown = wording.visible(text)
    return shown if len(shown) <= limit else f"{shown[:limit].rsplit(' ', 1)[0]} …"


def false_flags(
    thresholds: Thresholds, *, scored: int, raised: int, prior: float | None = None
) -> FalseFlags | None:
    """Set flags raised against flags to expect at this archive's size; None where no false-positive
    rate is stated.

    Shares are those of `prior`, or of three priors where it is None, and empty where no
    true-positive rate is stated. Raises ConfigError for a prior outside (0, 1).
    """
    if prior is not None and not 0 < prior < 1:
        raise ConfigError(
            f"prior {prior}: must lie between 0 and 1",
            hint="0.01 says that one image in a hundred is fake",
        )
    if thresholds.false_positive_rate is None:
        return None
    wrong = measured_rate(thresholds.false_positive_rate, thresholds.n_real)
    shares: tuple[RightShare, ...] = ()
    if thresholds.true_positive_rate is not None:
        found = measured_rate(thresholds.true_positive_rate, thresholds.n_fake)
        shares = tuple(
            _right_share(p, found, wrong, scored) for p in (PRIORS if prior is None else (prior,))
        )
    return FalseFlags(
        scored=scored,
        raised=raised,
        rate=wrong,
        expected=Rate(wrong.value * scored, wrong.low * scored, wrong.high * scored),
        has_interval=bool(thresholds.n_real),
        shares=shares,
    )


def measured_rate(rate: float, n: int | None) -> Rate:
    """Return a rate that was measured on n images, with its exact interval."""
    return Rate(rate, *proportion_interval(rate * n, n)) if n else Rate(rate, rate, rate)


def share_right(prior: float, found: float, wrong: float) -> float | None:
    """prior·TPR / (prior·TPR + (1 − prior)·FPR); None where nothing is ever flagged."""
    flagged = prior * found + (1 - prior) * wrong
    return prior * found / flagged if flagged else None


def limit_sentences(run: RunSummary) -> list[str]:
    """Nothing where limits refused no more than 1 % of the members; else first how many they are,
    then each limit.
    """
    refused = sum(run.refused_by_limits.values())
    if not run.members or refused <= LOUD_SHARE * run.members:
        return []
    share = wording.percent(refused / run.members)
    return [
        f"limits refused {share} of the archive, {wording.counted(refused, 'file')} that have no verdict",
        *(
            _sentence(run, name, number)
            for name, number in wording.largest(run.refused_by_limits, len(run.refused_by_limits))
        ),
    ]


def _flags_of(run: RunSummary, prior: float | None) -> FalseFlags | None:
    thresholds = run.ensemble.thresholds
    return (
        false_flags(thresholds, scored=run.scored, raised=run.verdict("fake"), prior=prior)
        if thresholds
        else None
    )


def _right_share(prior: float, found: Rate, wrong: Rate, scored: int) -> RightShare:
    return RightShare(
        prior=prior,
        flags=scored * (prior * found.value + (1 - prior) * wrong.value),
        missed=scored * prior * (1 - found.value),
        right=share_right(prior, found.value, wrong.value),
        right_low=share_right(prior, found.low, wrong.high),
        right_high=share_right(prior, found.high, wrong.low),
    )


def _sentence(run: RunSummary, name: str, number: int) -> str:
    members = wording.counted(number, "file")
    if name == "decode_bytes":
        has = (run.session.memory and run.session.memory.decode_bytes) or 0
        return (
            f"decode_bytes ({wording.size(has)} of a node): {members} would have taken more memory; where there is more, "
            f"the same command with --retry image_too_large --set cluster.decode_bytes={2 * has}"
        )
    if name not in _MEANING:
        name = wording.visible(name)
        return f"{name}: {members}; --set {name}=… raises it, in a run directory of its own"
    what, memory = _MEANING[name]
    limit = run.identity.get("limits", {}).get(name)
    stated, twice = (
        (f" ({limit:,})", str(2 * limit)) if isinstance(limit, int | float) else ("", "…")
    )
    return f"{name}{stated}: {members} with {what}; --set limits.{name}={twice} admits more, in a run directory of its own; {memory}"


def _verdicts(run: RunSummary) -> list[tuple[str, str, int]]:
    """Style class, words and count of every fate that a member can have; empty ones only where they
    inform.
    """
    fates = (
        [(word, words, run.verdict(word)) for word, words in wording.VERDICT_WORDS.items()]
        if run.scored
        else []
    )
    fates += [("none", "could not be scored", run.not_scored)] if run.not_scored else []
    fates += (
        [("unseen", "not reached yet", run.members - run.rows)] if run.members > run.rows else []
    )
    return fates


def _score_chart(run: RunSummary) -> Markup | None:
    counts, edges, thresholds = run.histogram.ensemble, run.histogram.edges, run.ensemble.thresholds
    if not counts:
        return None
    peak = counts.index(max(counts))
    described = f"{sum(counts):,} scores from {edges[0]:g} to {edges[-1]:g}; the fullest bin, {max(counts):,}, is "
    described += f"{edges[peak]:g} to {edges[peak + 1]:g}."
    zones = (thresholds.real_below, thresholds.fake_above) if thresholds else None
    described += f" Abstain band from {zones[0]:g} to {zones[1]:g}." if zones else ""
    return charts.histogram(
        edges,
        counts,
        ident="scores",
        title="How many images have which score",
        description=described,
        zones=zones,
    )


def _detector_charts(run: RunSummary) -> list[tuple[str, Markup]]:
    """Of each detector; none of one that is all that the ensemble consists of, whose scores stand
    above.
    """
    if len(run.histogram.detectors) == len(run.ensemble.members) == 1 and run.histogram.ensemble:
        return []
    titles = {detector.name: detector.title for detector in run.ensemble.members}
    drawn = []
    for index, (name, counts) in enumerate(run.histogram.detectors.items()):
        texts: Any = {
            "ident": f"detector-{index}",
            "title": f"Scores of {titles.get(name) or name}",
        }
        described = f"{sum(counts):,} scores; the fullest bin has {max(counts):,}."
        drawn.append(
            (
                name,
                charts.histogram(
                    run.histogram.edges, counts, **texts, description=described, compact=True
                ),
            )
        )
    return drawn


def _stages(run: RunSummary) -> list[tuple[str, float, float]]:
    """Stage, summed worker seconds and share, in the order of the walk."""
    spent = {
        stage: seconds for stage, seconds in run.session.seconds.items() if math.isfinite(seconds)
    }
    total = sum(spent.values())
    return (
        [(stage, seconds, seconds / total) for stage, seconds in spent.items()] if total > 0 else []
    )
