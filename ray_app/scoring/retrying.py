"""`--retry`: members whose rows have certain statuses are scored again, before anything else is done with the run, or instead of it."""

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from ray_app.archives import BlockPlan, manifests, read_blocks
from ray_app.errors import ConfigError
from ray_app.runs import Retry, RunDirectory, begin_retry, begun_retry, merge_retry
from ray_app.scoring.config import ScoreConfig
from ray_app.scoring.listing import Listing
from ray_app.scoring.tasks import on_ray

if TYPE_CHECKING:
    from ray_app.scoring.session import Session

ScoreBlocks = Callable[[RunDirectory, Listing], None]


def check_retry(config: ScoreConfig, run: RunDirectory) -> None:
    """Whether a retry that is asked for makes sense here, before a cluster is started. Raises ConfigError."""
    if config.rescore and not run.exists():
        raise ConfigError(f"{run.store.url}: no run here to retry", hint="the same command without --retry makes one")


def finish_begun(run: RunDirectory, session: "Session", score: ScoreBlocks) -> None:
    """Finish the retry that an earlier session began, if there is one."""
    retry = begun_retry(run)
    if retry is not None:
        _finish(run, retry, session, score)


def retry_members(config: ScoreConfig, run: RunDirectory, session: "Session", plan: BlockPlan, score: ScoreBlocks) -> None:
    """Score the current members whose row has one of `config.rescore` again; nothing is listed.

    Rows are replaced under the same ids, with the session's number as `attempt`. Raises ConfigError while blocks of the run are
    still to be scored for the first time.
    """
    numbers = manifests(run.store)
    if not numbers or any(not _is_scored(run, number) for number in numbers):
        raise ConfigError(
            f"{run.store.url}: not all members have been scored once", hint="the same command without --retry does that first"
        )
    for number in numbers:
        run.publish(number, each=on_ray)
    passed_over = list[int]()
    retry = begin_retry(run, session.number, [status.value for status in config.rescore], plan, passed_over=passed_over.append)
    if sum(passed_over):
        refused = f"{sum(passed_over):,} that were refused when the archive was listed"
        print(f"not retried: {refused}; the same command without --retry lists it again", file=sys.stderr)
    elif retry is None:
        print(f"no member has the status {' or '.join(config.rescore)}: nothing to retry", file=sys.stderr)
    if retry is not None:
        _finish(run, retry, session, score)


def _is_scored(run: RunDirectory, manifest: int) -> bool:
    return not read_blocks(run.store, manifest).without(run.done_blocks(manifest))


def _finish(run: RunDirectory, retry: Retry, session: "Session", score: ScoreBlocks) -> None:
    print(f"retrying {retry.members:,} members with the status {' or '.join(retry.statuses)}", file=sys.stderr)
    session.retrying(retry.number, retry.statuses, retry.members)
    pending = retry.pending()
    if pending:
        score(retry.directory, Listing([0], retry.blocks(), pending, 0.0))
    merge_retry(run, retry)
