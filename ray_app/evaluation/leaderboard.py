"""Systems of several evaluations of the same labelled images, best first (`rank_systems`)."""

from collections.abc import Sequence

from ray_app.config import did_you_mean
from ray_app.errors import ConfigError
from ray_app.evaluation.assemble import read_result
from ray_app.metrics.registry import METRICS
from ray_app.reports.evaluation.leaderboard import LeaderboardEntry
from ray_app.reports.evaluation.result import SystemResult
from ray_app.storage import strip_secrets


def rank_systems(places: Sequence[str], figure: str = "auc") -> list[LeaderboardEntry]:
    """Return the systems of evaluations by one metric of all images, the best first.

    Systems without a value are last. Intervals that overlap do not show which system is better:
    evaluate one run with both detectors for a paired test.

    Args:
        places: Directories that `touchstone evaluate` wrote; paths or fsspec URLs.
        figure: The name of the metric.

    Raises:
        ConfigError: There is no such metric, a directory has no evaluation, or the evaluations are
            not of the same labelled images.
    """
    if figure not in METRICS:
        raise ConfigError(
            f"there is no metric {figure}{did_you_mean(figure, METRICS)}",
            hint=f"one of {', '.join(METRICS)}",
        )
    entries, digests = [], dict[str, str]()
    for place in places:
        result, name = read_result(place), strip_secrets(place)
        digests.setdefault(result.meta.data.digest, name)
        entries += [_entry_of(system, name, figure) for system in result.systems]
    if len(digests) > 1:
        first, second, *_ = digests.values()
        raise ConfigError(
            f"{first} and {second} do not have the same labelled images",
            hint="evaluate both runs with the same labels; --split and --protocol choose among them",
        )
    sign = -1 if METRICS[figure].direction == "max" else 1
    return sorted(
        entries,
        key=lambda one: (one.metric.value is None, sign * (one.metric.value or 0.0), one.system),
    )


def _entry_of(system: SystemResult, evaluation: str, figure: str) -> LeaderboardEntry:
    fakes = [one for one in system.info.generators if one.label == "fake"]
    return LeaderboardEntry(
        evaluation,
        system.info.name,
        system.info.called,
        system.figure(figure),
        system.info.n,
        sum(one.seen == "in-training" for one in fakes),
        sum(one.seen == "unseen" for one in fakes),
        len(fakes),
    )
