"""Render the report of a run (`render_run_report`), and describe its parts in sentences.

The report is one HTML page without scripts that loads nothing. The sentences, which the terminal
shows as well, have four subjects: the guaranteed false-positive rate of the ensemble, the expected
number of false flags, predicted generators and prompts, and files above the limits.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from markupsafe import Markup

from ray_app.ensembles.card import Thresholds
from ray_app.errors import ConfigError
from ray_app.identification.generators import family_title, find_title
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
NEAREST = "A name is the nearest of the generators that the identifier knows; it does not prove the origin of an image."
WORDS = "A predicted prompt is a guess. Many prompts lead to similar images."
NO_PROOF = (
    "this is no proof: real images of a new kind that score as fakes look like more fakes; "
    "`touchstone runs audit RUN --draw 30 --flagged` bounds by labels how many flags are wrong"
)
_MAX_ENTRIES = 12
_MAX_ENTRIES_IN_LINE = 4
PRIORS = (0.001, 0.01, 0.1)
LOUD_SHARE = 0.01  # Fraction of the files above which limits are reported at the top.
_DECODING = "decoding takes 4 to 24 bytes of memory per pixel, and images over 50 megapixels on a node take turns"
_MEANING = {
    "max_bytes": ("more bytes", "a whole file is in memory while it is decoded"),
    "max_pixels": ("more pixels", _DECODING),
    "max_whole_pixels": ("more pixels, in a format other than JPEG, TIFF and WebP", _DECODING),
    "max_side": ("a longer side", "a resize takes memory in proportion to the longer side"),
    "max_aspect": (
        "a longer and narrower image",
        "a resize takes memory in proportion to the longer side",
    ),
    "max_ratio": ("fewer bytes for their number of pixels", "the pixels bound the memory"),
    "max_text_bytes": (
        "a larger CMYK profile",
        "it is in memory while the image is decoded",
    ),
}


class Rate(NamedTuple):
    """A measured rate, or an expected number, with its 95 % interval.

    Attributes:
        value: The rate or number.
        low: Lower bound of the interval. It is `value` if the number of images is not known.
        high: Upper bound of the interval. It is `value` if the number of images is not known.
    """

    value: float
    low: float
    high: float


class RightShare(NamedTuple):
    """The flags to expect from an archive with an assumed fraction of fakes.

    A flag is an image with the verdict `fake`.

    Attributes:
        prior: Assumed fraction of fakes, from 0 to 1.
        flags: Expected number of flags.
        missed: Expected number of fakes that are not flagged.
        right: Fraction of the flags that are fakes. None if nothing would be flagged.
        right_low: Lower bound of `right`.
        right_high: Upper bound of `right`.
    """

    prior: float
    flags: float
    missed: float
    right: float | None
    right_low: float | None
    right_high: float | None


@dataclass(frozen=True)
class FalseFlags:
    """Number of flags of a run, compared with the number to expect from real images alone.

    A flag is an image with the verdict `fake`.

    Attributes:
        scored: Number of scored images.
        raised: Number of flagged images.
        rate: False-positive rate of the ensemble.
        expected: Number of flags to expect if all images were real.
        has_interval: Whether `rate` and `expected` have an interval.
        shares: Expected flags for each assumed fraction of fakes.
    """

    scored: int
    raised: int
    rate: Rate
    expected: Rate
    has_interval: bool
    shares: tuple[RightShare, ...]

    @property
    def is_explained_by_rate(self) -> bool:
        """Whether the false-positive rate alone explains the number of flags.

        An archive without any fake could then have that many flags: `raised` is at most the upper
        bound of `expected`.
        """
        return self.raised <= self.expected.high


def guarantee_lines(section: Mapping[str, Any] | None) -> list[str]:
    """Return lines for the terminal on the guarantee of a run's ensemble.

    The guarantee is a bound on the false-positive rate. `section` is the value of `guarantee` in
    `summary.json`, or None.
    """
    return [
        f"guarantee: {sentence}"
        for sentence in guarantee_sentences(GuaranteeSummary.model_validate(dict(section or {})))
    ]


def flag_lines(summary: Mapping[str, Any], *, prior: float | None = None) -> list[str]:
    """Return lines on how many of the images that a run flags as fake are expected to be real.

    The list is empty if the false-positive rate of the ensemble is not known, or if no image was
    scored.

    Args:
        summary: The content of `summary.json`.
        prior: Expected fraction of fakes in the archive. None for a line for each of 0.1 %, 1 %,
            and 10 % (`PRIORS`).

    Raises:
        ConfigError: If the prior is not between 0 and 1.
    """
    run = RunSummary.model_validate(dict(summary))
    flags = _compute_flags(run, prior)
    if flags is None or not run.scored:
        return []
    images = wording.pluralize(run.scored, "scored image")
    lines = [
        f"flagged: {flags.raised:,} of {images}; if all were real, it would be about {wording.number(flags.expected.value, 2)}"
    ]
    for share in flags.shares:
        bounds = (
            f" ({wording.interval((share.right_low, share.right_high), wording.percent)})"
            if flags.has_interval
            else ""
        )
        lines.append(
            f"if {wording.percent(share.prior, 3)} of the archive is fake, {wording.percent(share.right)} of the flags are right{bounds}"
        )
    return lines


def profile_lines(profile: ProfileSummary | None) -> list[str]:
    """Return lines for the terminal on the profile of a run.

    The profile has the generators and the prompts that were predicted for flagged images. The list
    is empty without a profile, and without flagged images.
    """
    if profile is None or not profile.flagged:
        return []
    lines = []
    if profile.identified:
        counts = {title: flagged for title, flagged, _ in families(profile.generators)}
        parts = [
            f"{wording.escape_invisible(title)} {number:,}"
            for title, number in wording.largest(counts, _MAX_ENTRIES_IN_LINE)
        ]
        parts += [f"like no known generator {profile.unlike:,}"] if profile.unlike else []
        parts += [f"not identified {profile.silent:,}"] if profile.silent else []
        lines.append(f"flagged images are nearest to: {', '.join(parts)}")
    if profile.describes:
        lines.append(
            f"prompts: predicted for {profile.described:,} of {wording.pluralize(profile.flagged, 'flagged image')}"
        )
    return lines


def render_run_report(
    summary: Mapping[str, Any],
    *,
    prior: float | None = None,
    thumbnails: Mapping[int, bytes | str] | None = None,
) -> str:
    """Render the report of a run as one self-contained HTML page.

    Args:
        summary: The content of `summary.json`.
        prior: Expected fraction of fakes in the archive, between 0 and 1. It decides how many flags
            are expected to be right. None shows this for 0.1 %, 1 %, and 10 % (`PRIORS`).
        thumbnails: For each `image_id`, JPEG bytes that were encoded again without metadata, or a
            text on why there is no image. Files with the highest scores (`RunSummary.top`) that
            have no entry are listed in a table.

    Returns:
        The page as HTML.

    Raises:
        ConfigError: If the prior is not between 0 and 1.
    """
    run, images = RunSummary.model_validate(dict(summary)), thumbnails or {}
    flags = _compute_flags(run, prior)
    return render(
        "run.html",
        run=run,
        headline=wording.headline(run),
        verdicts=_count_outcomes(run),
        scores=_draw_scores(run),
        detectors=_draw_detector_scores(run),
        outside=run.scored - sum(run.histogram.ensemble),
        limits=limit_sentences(run),
        guarantee=guarantee_sentences(run.guarantee),
        unlike=unlike_sentence(run.guarantee.unlike if run.guarantee else None),
        shifted=[
            (name_feature(shift.feature), shift)
            for shift in (run.guarantee.shifts if run.guarantee else ())
        ],
        flags=flags,
        flag_scale=max(flags.raised, flags.expected.high) if flags else 0.0,
        stages=_sum_stages(run),
        pictured=[row for row in run.top if row.image_id in images],
        listed=[row for row in run.top if row.image_id not in images],
        thumbnails={
            image_id: uri
            for image_id, data in images.items()
            if isinstance(data, bytes) and (uri := jpeg_uri(data))
        },
        missing={image_id: text for image_id, text in images.items() if isinstance(text, str)},
        identity=settings(run.identity),
        prior=prior,
        families=families(run.profile.generators) if run.profile else [],
        said_generator=generator_in_words,
        beginning=beginning,
        profile_notes=(NEAREST, WORDS),
    )


def guarantee_sentences(guarantee: GuaranteeSummary | None) -> list[str]:
    """Return sentences on the guarantee of a run's ensemble card and on whether it holds.

    The guarantee is a bound on the false-positive rate. It holds only for images like those of the
    calibration. The list is empty if the card has no guarantee.
    """
    if guarantee is None or not guarantee.stated:
        return []
    sentences = []
    if guarantee.target_fpr:
        bound = guarantee.target_fpr if guarantee.upper_bound is None else guarantee.upper_bound
        sentences.append(
            describe_guarantee(
                guarantee.target_fpr, bound, guarantee.confidence, guarantee.population
            )
        )
    reason = f": {wording.truncate(guarantee.why, 400)}" if guarantee.why else ""
    if guarantee.holds:
        names = ", ".join(
            dict.fromkeys(
                "scores of detectors" if ":" in shift.feature else name_feature(shift.feature)
                for shift in guarantee.shifts
            )
        )
        sentences.append(
            f"no difference was found between {wording.pluralize(guarantee.images or 0, 'image')} of this archive and those that the card was "
            f"calibrated on ({names})"
        )
    elif guarantee.holds is None:
        sentences.append(f"not known to hold for this archive{reason}")
    else:
        sentences.append(f"does not hold for this archive{reason}")
    if guarantee.holds:
        sentences.append(NO_PROOF)
    if guarantee.unlike:
        sentences.append(
            "so different that all verdicts abstain: calibrate on labelled images of this archive, or keep the ensemble’s verdicts with "
            "`touchstone runs decide --waive-guarantee`"
        )
    elif guarantee.waived:
        sentences.append("it was waived: some verdicts are not covered by the card")
    return sentences


def unlike_sentence(unlike: str | None) -> str | None:
    """Return a sentence on why every verdict of a run is `abstain`.

    The reason is that the archive differs too much from the images on which the ensemble was
    calibrated. `unlike` describes the difference, as in `guarantee.unlike` of `summary.json`. The
    result is None if `unlike` is None.
    """
    return f"all verdicts abstain: {wording.truncate(unlike, 400)}" if unlike else None


def describe_guarantee(
    target_fpr: float, upper_bound: float, confidence: float | None, population: str | None
) -> str:
    """Return a sentence on the false-positive rate that an ensemble's card (YAML) states.

    The sentence calls the stated rate guaranteed if the measured upper bound does not exceed it.
    Otherwise it has the measured bound.

    Args:
        target_fpr: The stated false-positive rate, such as 0.01.
        upper_bound: Upper confidence bound of the false-positive rate, as measured on the images of
            the calibration.
        confidence: Confidence of the bound. None if it is not known.
        population: Description of the images that it was measured on. None if it is not known.
    """
    images = (
        f"real images like those of “{wording.truncate(population, 120)}”" if population else ""
    )
    confidence_text = f", with {wording.percent(confidence, 3)} confidence" if confidence else ""
    if upper_bound <= target_fpr:
        basis, bound = "guaranteed", target_fpr
    else:
        basis, bound = (
            f"measured, not under the stated {wording.percent(target_fpr, 3)}",
            upper_bound,
        )
    return f"of {images or 'real images'} at most {wording.percent(bound, 3)} are called fake ({basis}{confidence_text})"


def name_feature(name: str) -> str:
    """Return the name to show for a property of images, such as their size or a score.

    An archive is compared in such properties with the images on which the ensemble was calibrated.
    `name` is the key of the property, such as `short_side_px` or `score:DETECTOR`.
    """
    kind, _, detector = name.partition(":")
    if kind == "score" and detector:
        return f"score of {wording.truncate(detector, 60)}"
    return FEATURE_WORDS.get(name) or wording.truncate(name, 60)


def families(counts: Sequence[GeneratorCount]) -> list[tuple[str, int, list[tuple[str, int]]]]:
    """Sum up the flagged images of a run by family of their predicted generators.

    Args:
        counts: Number of flagged images of each predicted generator.

    Returns:
        (title, number of flagged images, generators) of each family, the highest number first. The
        generators are (title, number of flagged images) pairs, also the highest number first. Each
        list of families or generators has at most 12 entries, and one more that sums up the rest.
        The list of generators is empty if the family has only one, of the same title.
    """
    by_family: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for count in counts:
        by_family[family_title(count.family)][find_title(count.generator)] += count.flagged
    ranked = wording.largest(
        {title: names.total() for title, names in by_family.items()}, _MAX_ENTRIES
    )
    members = {
        title: wording.largest(names, _MAX_ENTRIES)
        for title, names in by_family.items()
        if list(names) != [title]
    }
    return [(title, flagged, members.get(title, [])) for title, flagged in ranked]


def generator_in_words(name: str | None, family: str | None, ranking: Sequence[str] | None) -> str:
    """Describe the generator of an image; "" if the image was not identified.

    Args:
        name: Name of the generator. None if the image resembles no known generator.
        family: Family of the generator.
        ranking: Names of known generators, the nearest first.
    """
    if name is not None:
        title, base = find_title(name), family_title(family or name)
        return title if title.startswith(base) or base == name else f"{title} ({base})"
    return f"like no known generator; nearest: {find_title(ranking[0])}" if ranking else ""


def beginning(text: str, limit: int = 200) -> str:
    """Cut a prompt at a space to at most `limit` characters; its first words matter most."""
    escaped = wording.escape_invisible(text)
    return escaped if len(escaped) <= limit else f"{escaped[:limit].rsplit(' ', 1)[0]} …"


def false_flags(
    thresholds: Thresholds, *, scored: int, raised: int, prior: float | None = None
) -> FalseFlags | None:
    """Compare the number of flags of a run with the number of false flags to expect.

    A flag is an image with the verdict `fake`. Even an archive without fakes has some flags,
    because of the false-positive rate of the ensemble.

    Args:
        thresholds: Thresholds of the ensemble with their error rates.
        scored: Number of scored images.
        raised: Number of flagged images.
        prior: Expected fraction of fakes in the archive. None for 0.1 %, 1 %, and 10 % (`PRIORS`).

    Returns:
        The comparison; None if no false-positive rate is stated. `shares` is empty if no
        true-positive rate is stated.

    Raises:
        ConfigError: If the prior is not between 0 and 1.
    """
    if prior is not None and not 0 < prior < 1:
        raise ConfigError(
            f"prior must be between 0 and 1, got {prior}",
            hint="use 0.01 if one image in a hundred is fake",
        )
    if thresholds.false_positive_rate is None:
        return None
    fpr = measured_rate(thresholds.false_positive_rate, thresholds.n_real)
    if thresholds.n_real and thresholds.upper_bound is not None:
        # The bound on the card may be wider, because images of one family are alike.
        fpr = fpr._replace(high=max(fpr.high, thresholds.upper_bound))
    shares: tuple[RightShare, ...] = ()
    if thresholds.true_positive_rate is not None:
        tpr = measured_rate(thresholds.true_positive_rate, thresholds.n_fake)
        shares = tuple(
            _compute_right_share(p, tpr, fpr, scored)
            for p in (PRIORS if prior is None else (prior,))
        )
    return FalseFlags(
        scored=scored,
        raised=raised,
        rate=fpr,
        expected=Rate(fpr.value * scored, fpr.low * scored, fpr.high * scored),
        has_interval=bool(thresholds.n_real),
        shares=shares,
    )


def measured_rate(rate: float, n: int | None) -> Rate:
    """Return a rate that was measured on `n` images, with its exact 95 % interval.

    Without `n`, both bounds equal the rate.
    """
    return Rate(rate, *proportion_interval(rate * n, n)) if n else Rate(rate, rate, rate)


def share_right(prior: float, tpr: float, fpr: float) -> float | None:
    """Return the fraction of the flagged images that are really fakes (the precision).

    Args:
        prior: Fraction of fakes in the archive.
        tpr: True-positive rate.
        fpr: False-positive rate.

    Returns:
        prior·TPR / (prior·TPR + (1 − prior)·FPR). None if no image is ever flagged.
    """
    flagged = prior * tpr + (1 - prior) * fpr
    return prior * tpr / flagged if flagged else None


def limit_sentences(run: RunSummary) -> list[str]:
    """Return sentences on files without a score because they exceed a limit of the run.

    The first sentence has the number of such files. A sentence for each limit, such as
    `max_pixels`, follows with the option that raises it. The list is empty if such files are no
    more than 1 % of all files.
    """
    rejected = sum(run.refused_by_limits.values())
    if not run.members or rejected <= LOUD_SHARE * run.members:
        return []
    fraction = wording.percent(rejected / run.members)
    return [
        f"limits refused {fraction} of the archive, {wording.pluralize(rejected, 'file')} that have no verdict",
        *(
            _describe_limit(run, name, number)
            for name, number in wording.largest(run.refused_by_limits, len(run.refused_by_limits))
        ),
    ]


def _compute_flags(run: RunSummary, prior: float | None) -> FalseFlags | None:
    thresholds = run.ensemble.thresholds
    return (
        false_flags(thresholds, scored=run.scored, raised=run.verdict("fake"), prior=prior)
        if thresholds
        else None
    )


def _compute_right_share(prior: float, tpr: Rate, fpr: Rate, scored: int) -> RightShare:
    return RightShare(
        prior=prior,
        flags=scored * (prior * tpr.value + (1 - prior) * fpr.value),
        missed=scored * prior * (1 - tpr.value),
        right=share_right(prior, tpr.value, fpr.value),
        right_low=share_right(prior, tpr.low, fpr.high),
        right_high=share_right(prior, tpr.high, fpr.low),
    )


def _describe_limit(run: RunSummary, name: str, count: int) -> str:
    files = wording.pluralize(count, "file")
    if name == "decode_bytes":
        node_bytes = run.session.memory and run.session.memory.decode_bytes
        limit_text, doubled = (
            (f"{wording.size(node_bytes)} of a node", str(2 * node_bytes))
            if node_bytes
            else ("of a node", "…")
        )
        return (
            f"decode_bytes ({limit_text}): {files} would have taken more memory; if the node has more, "
            f"run the same command with --retry image_too_large --set cluster.decode_bytes={doubled}"
        )
    if name not in _MEANING:
        name = wording.escape_invisible(name)
        return f"{name}: {files}; --set {name}=… raises it, in a new run directory"
    excess, memory = _MEANING[name]
    limit = run.identity.get("limits", {}).get(name)
    limit_text, doubled = (
        (f" ({limit:,})", str(2 * limit)) if isinstance(limit, int | float) else ("", "…")
    )
    return f"{name}{limit_text}: {files} with {excess}; --set limits.{name}={doubled} admits more, in a new run directory; {memory}"


def _count_outcomes(run: RunSummary) -> list[tuple[str, str, int]]:
    """Return style class, text, and count of each outcome of a file, except irrelevant zeros."""
    outcomes = (
        [
            (verdict, phrase, run.verdict(verdict))
            for verdict, phrase in wording.VERDICT_PHRASES.items()
        ]
        if run.scored
        else []
    )
    outcomes += [("none", "could not be scored", run.not_scored)] if run.not_scored else []
    outcomes += (
        [("unseen", "not reached yet", run.members - run.rows)] if run.members > run.rows else []
    )
    return outcomes


def _draw_scores(run: RunSummary) -> Markup | None:
    counts, edges, thresholds = run.histogram.ensemble, run.histogram.edges, run.ensemble.thresholds
    if not counts:
        return None
    peak = counts.index(max(counts))
    description = f"{sum(counts):,} scores from {edges[0]:g} to {edges[-1]:g}; the fullest bin, {max(counts):,}, is "
    description += f"{edges[peak]:g} to {edges[peak + 1]:g}."
    zones = (thresholds.real_below, thresholds.fake_above) if thresholds else None
    description += f" Abstain band from {zones[0]:g} to {zones[1]:g}." if zones else ""
    return charts.histogram(
        edges,
        counts,
        ident="scores",
        title="Number of images by score",
        description=description,
        zones=zones,
    )


def _draw_detector_scores(run: RunSummary) -> list[tuple[str, Markup]]:
    """Draw the scores of each detector.

    A single detector is left out, because the histogram of the ensemble shows the same scores.
    """
    if len(run.histogram.detectors) == len(run.ensemble.members) == 1 and run.histogram.ensemble:
        return []
    titles = {detector.name: detector.title for detector in run.ensemble.members}
    named_charts = []
    for index, (name, counts) in enumerate(run.histogram.detectors.items()):
        texts: Any = {
            "ident": f"detector-{index}",
            "title": f"Scores of {titles.get(name) or name}",
        }
        description = f"{sum(counts):,} scores; the fullest bin has {max(counts):,}."
        named_charts.append(
            (
                name,
                charts.histogram(
                    run.histogram.edges, counts, **texts, description=description, compact=True
                ),
            )
        )
    return named_charts


def _sum_stages(run: RunSummary) -> list[tuple[str, float, float]]:
    """Return name, summed worker seconds, and fraction of each stage, in pipeline order."""
    elapsed_s = {
        stage: seconds for stage, seconds in run.session.seconds.items() if math.isfinite(seconds)
    }
    total = sum(elapsed_s.values())
    return (
        [(stage, seconds, seconds / total) for stage, seconds in elapsed_s.items()]
        if total > 0
        else []
    )
