"""The result of `touchstone compare` (`Comparison`), and its text (`comparison_lines`).

The command shows what changed between two runs, A and B, above all on the images that both contain.
Texts of both runs are untrusted and therefore escaped.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ray_app import __version__
from ray_app.metrics.registry import METRICS
from ray_app.metrics.values import MetricValue
from ray_app.reports import format as wording
from ray_app.reports import text

SCHEMA = 3
VERDICTS = ("fake", "abstain", "real", "none")
"""Verdicts of the crosstab; `none` is a file without a verdict."""
_TITLES = {"real": "no evidence", "none": "no verdict"}
_MAX_NAME_WIDTH, _MAX_SETTINGS = 48, 5
_MIN_SHARED = 0.5
"""If a smaller fraction of the smaller run is shared, the first line warns about it."""


@dataclass(frozen=True)
class ScoreDifference:
    """The difference between the scores of one system in run B and in run A, in log-odds.

    A system is a detector or the ensemble. The difference is B minus A.

    Attributes:
        system: Name of the detector, or `ensemble`.
        n: Number of images with a score in both runs.
        equal: Number of images whose two scores are bitwise equal.
        only_a: Number of shared images with a score in A only.
        only_b: Number of shared images with a score in B only.
        mean: Mean difference.
        quantiles: Differences by fraction of images, such as `0.05`; empty if n is 0.
        max_difference: The largest absolute difference.
        moved: Fraction of images whose score differs by more than 0.1. Another batch size,
            precision, or processor does not cause such a difference.
        ks: Kolmogorov–Smirnov distance of all scores in A and all scores in B, shared or not.
        ks_p: p-value of that distance.
    """

    system: str
    n: int
    equal: int
    only_a: int
    only_b: int
    mean: MetricValue
    quantiles: Mapping[str, float]
    max_difference: float | None
    moved: MetricValue
    ks: float | None
    ks_p: float | None


@dataclass(frozen=True)
class MetricDifference:
    """A metric of one system in run A and in run B on the same labelled images.

    Attributes:
        system: Name of the detector, or `ensemble`.
        metric: `tpr`, `tnr`, or `auc`.
        a: The metric in A.
        b: The metric in B.
        difference: B minus A.
        p: p-value of the difference. None if it cannot be tested.
    """

    system: str
    metric: str
    a: MetricValue
    b: MetricValue
    difference: MetricValue
    p: float | None


@dataclass(frozen=True)
class Comparison:
    """The differences between run A and run B.

    Attributes:
        a: URL of run A.
        b: URL of run B.
        by: The column that matches rows.
        rows_a: Number of rows of A.
        rows_b: Number of rows of B.
        shared: Number of images in both runs.
        settings: Each setting that differs, with its value in A and in B.
        detectors_only_a: Detectors of A only.
        detectors_only_b: Detectors of B only.
        statuses: Each change of the status of shared images (in A, in B), with its count.
        verdicts: Number of shared images by verdict in A, then by verdict in B.
        flagged_a: Fraction of the verdicts of A that are fake.
        flagged_b: Fraction of the verdicts of B that are fake.
        scores: Differences of scores by system.
        labels: Name of the labels. None without labels.
        labelled: Number of shared images with a label.
        groups: Numbers of generators (key `fake`) and of sources of real images (key `real`) from
            which the intervals of `metrics` are computed. A number is 0 if the intervals are valid
            only for further images of the same generators or sources.
        metrics: Differences of metrics by system; empty without labels.
    """

    a: str
    b: str
    by: str
    rows_a: int
    rows_b: int
    shared: int
    settings: Sequence[tuple[str, str, str]]
    detectors_only_a: Sequence[str]
    detectors_only_b: Sequence[str]
    statuses: Sequence[tuple[str, str, int]]
    verdicts: Mapping[str, Mapping[str, int]]
    flagged_a: MetricValue
    flagged_b: MetricValue
    scores: Sequence[ScoreDifference]
    labels: str | None
    labelled: int
    groups: Mapping[str, int]
    metrics: Sequence[MetricDifference]

    @property
    def changed_verdicts(self) -> int:
        """Number of shared images whose verdict changed."""
        counts = {(a, b): n for a, row in self.verdicts.items() for b, n in row.items()}
        return sum(n for (a, b), n in counts.items() if a != b)

    @property
    def is_equal(self) -> bool:
        """Whether no shared image differs in status, verdict, or any score."""
        has_equal_scores = all(
            row.equal == row.n and not row.only_a and not row.only_b for row in self.scores
        )
        return has_equal_scores and not self.changed_verdicts and not self.statuses

    def to_dict(self) -> dict[str, Any]:
        """Return the comparison as JSON-compatible values."""
        facts = {"schema": SCHEMA, "version": __version__, "is_equal": self.is_equal}
        return facts | {"changed_verdicts": self.changed_verdicts} | asdict(self)


def comparison_lines(comparison: Comparison, width: int = text.OUTPUT_WIDTH) -> list[str]:
    """Return a comparison as lines for a terminal with `width` columns."""
    lines = _first_lines(comparison)
    if comparison.settings:
        keys = [wording.truncate(key, _MAX_NAME_WIDTH) for key, *_ in comparison.settings]
        more = f" and {len(keys) - _MAX_SETTINGS:,} more" if len(keys) > _MAX_SETTINGS else ""
        lines.append(f"different settings: {', '.join(keys[:_MAX_SETTINGS])}{more}")
    for side, names in (("A", comparison.detectors_only_a), ("B", comparison.detectors_only_b)):
        lines += [f"only in {side}: detector {wording.escape_invisible(name)}" for name in names]
    if comparison.statuses:
        changed = sum(n for *_, n in comparison.statuses)
        lines.append(f"statuses: {changed:,} of {comparison.shared:,} changed")
    flagged = [wording.percent(side.value) for side in (comparison.flagged_a, comparison.flagged_b)]
    lines.append(f"flagged as fake: {flagged[0]} in A, {flagged[1]} in B")
    if comparison.shared:
        changed = comparison.changed_verdicts
        lines += [f"verdicts: {changed:,} of {comparison.shared:,} changed", ""]
        lines += _crosstab_lines(comparison.verdicts, width)
    return [*lines, "", *_score_lines(comparison.scores, width), *_label_lines(comparison, width)]


def _first_lines(comparison: Comparison) -> list[str]:
    counts = (
        f"images: {comparison.shared:,} in both runs, {comparison.rows_a:,} in A, "
        f"{comparison.rows_b:,} in B (matched by {comparison.by})"
    )
    smaller = min(comparison.rows_a, comparison.rows_b)
    if not smaller:
        return ["nothing to compare: a run has no rows", counts]
    if not comparison.shared:
        return ["no image is in both runs: only fractions and distributions are compared", counts]
    if comparison.is_equal:
        images = wording.pluralize(comparison.shared, "image")
        return [f"no difference: statuses, scores, and verdicts of {images} are equal", counts]
    if comparison.shared < _MIN_SHARED * smaller:
        return ["few images are in both runs: differences are of these images only", counts]
    return [counts]


def _crosstab_lines(verdicts: Mapping[str, Mapping[str, int]], width: int) -> list[str]:
    titles = {name: _TITLES.get(name, name) for name in VERDICTS}
    headers = ["verdict in A", *(f"{titles[name]} in B" for name in VERDICTS)]
    rows = [
        [titles[a], *(wording.count(verdicts[a][b]) for b in VERDICTS)]
        for a in VERDICTS
        if any(verdicts[a].values())
    ]
    return text.table(headers, rows, width, right={1, 2, 3, 4})


def _score_lines(scores: Sequence[ScoreDifference], width: int) -> list[str]:
    headers = ["scores, B − A", "images", "mean", "5 %", "95 %", "moved", "equal", "KS", "p"]
    rows = [
        [
            wording.truncate(row.system, _MAX_NAME_WIDTH),
            wording.count(row.n),
            wording.signed(row.mean.value, 3),
            wording.signed(row.quantiles.get("0.05"), 3),
            wording.signed(row.quantiles.get("0.95"), 3),
            wording.percent(row.moved.value),
            wording.percent(row.equal / row.n) if row.n else wording.NONE,
            wording.number(row.ks, 1, decimals=3),
            wording.probability(row.ks_p),
        ]
        for row in scores
    ]
    return text.table(headers, rows, width, right=set(range(1, len(headers))))


def _label_lines(comparison: Comparison, width: int) -> list[str]:
    if comparison.labels is None:
        return []
    fakes, reals = comparison.groups["fake"], comparison.groups["real"]
    further = " and ".join(
        [
            f"generators like these {fakes:,}" if fakes else "fakes of the same generators",
            f"sources like these {reals:,}" if reals else "reals of the same sources",
        ]
    )
    rows = [
        [
            wording.truncate(row.system, _MAX_NAME_WIDTH),
            METRICS[row.metric].title,
            wording.format_metric(row.metric, row.a.value),
            wording.format_metric(row.metric, row.b.value),
            wording.signed(row.difference.value, 4),
            " to ".join(wording.signed(bound, 4) for bound in row.difference.interval)
            if row.difference.interval
            else "",
            wording.probability(row.p),
        ]
        for row in comparison.metrics
    ]
    headers = ["metric", "", "A", "B", "B − A", "95 % interval", "p"]
    images = wording.pluralize(comparison.labelled, "image")
    return [
        "",
        f"labels: {images} of {wording.escape_invisible(comparison.labels)}; intervals are for further {further}",
        *text.table(headers, rows, width, right={2, 3, 4, 5, 6}),
    ]
