"""One finished run into another, block by block, where nothing is fetched: what rescoring and renaming do alike."""

from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from ray_app.archives import BlockRef, copy_manifest, manifests, read_blocks
from ray_app.archives.cutting import TableStream
from ray_app.inference import ScoringSpec
from ray_app.runs import RunDirectory, check_conservation
from ray_app.runs.reader import publish_vanished
from ray_app.scoring.guarantee import settle_guarantee
from ray_app.scoring.redeciding import decided
from ray_app.scoring.reporting import write_report, write_summary
from ray_app.scoring.session import Session


def missing_blocks(source: RunDirectory, run: RunDirectory) -> Iterator[tuple[BlockRef, pa.Table]]:
    """Copy the listings, and give each block that `run` does not have yet with its rows in `source`; one block in memory."""
    had = manifests(run.store)
    for manifest in manifests(source.store):
        if manifest not in had:
            copy_manifest(source.store, manifest, run.store)
        done = run.done_blocks(manifest)
        rows = TableStream(source.tables(manifest))
        for ref in read_blocks(source.store, manifest):
            of_block = rows.take(ref.members)
            if ref.block not in done:
                yield ref, of_block


def finished(run: RunDirectory, spec: ScoringSpec, session: Session) -> dict[str, Any]:
    """Publish a run that has all its blocks, and report on it; returns the summary."""
    for manifest in manifests(run.store):
        run.publish(manifest)
    publish_vanished(run)
    check_conservation(run)
    summary = write_summary(run, spec, session, settle_guarantee(run, spec, decided))
    write_report(run)
    session.log("finished")
    return summary
