"""Rank the detectors and ensembles of evaluations of the same labelled images (`rank_systems`)."""

from collections.abc import Sequence

from ray_app.config import did_you_mean
from ray_app.errors import ConfigError
from ray_app.evaluation.assemble import read_result
from ray_app.metrics.registry import METRICS
from ray_app.reports.evaluation.leaderboard import LeaderboardEntry
from ray_app.reports.evaluation.result import SystemResult
from ray_app.storage import strip_secrets


def rank_systems(urls: Sequence[str], metric: str = "auc") -> list[LeaderboardEntry]:
    """Rank the detectors and ensembles of evaluations by one metric of all images, the best first.

    Systems without a value are last. Overlapping intervals do not show which system is better. For
    a paired test, evaluate one run with both detectors.

    Args:
        urls: Paths or fsspec URLs of directories that `touchstone evaluate` wrote.
        metric: The name of the metric.

    Returns:
        An entry for each detector or ensemble of each evaluation.

    Raises:
        ConfigError: The metric is unknown, a directory has no evaluation, or the evaluations have
            different labelled images.
    """
    if metric not in METRICS:
        raise ConfigError(
            f"unknown metric '{metric}'{did_you_mean(metric, METRICS)}",
            hint=f"use one of {', '.join(METRICS)}",
        )
    entries, digests = [], dict[str, str]()
    for url in urls:
        result, name = read_result(url), strip_secrets(url)
        digests.setdefault(result.meta.data.digest, name)
        entries += [_make_entry(system, name, metric) for system in result.systems]
    if len(digests) > 1:
        first, second, *_ = digests.values()
        raise ConfigError(
            f"{first} and {second} do not have the same labelled images",
            hint="evaluate both runs with the same labels, --split, and --protocol",
        )
    sign = -1 if METRICS[metric].direction == "max" else 1
    return sorted(
        entries,
        key=lambda entry: (
            entry.metric.value is None,
            sign * (entry.metric.value or 0.0),
            entry.system,
        ),
    )


def _make_entry(system: SystemResult, evaluation: str, metric: str) -> LeaderboardEntry:
    fakes = [generator for generator in system.info.generators if generator.label == "fake"]
    return LeaderboardEntry(
        evaluation,
        system.info.name,
        system.info.called,
        system.figure(metric),
        system.info.n,
        sum(generator.seen == "in-training" for generator in fakes),
        sum(generator.seen == "unseen" for generator in fakes),
        len(fakes),
    )
