"""The documents of a finished run: `write_summary` (`summary.json`, one per listing beside it) and
`write_report` (`report.html`).

Its pictures are made anew, so that no metadata of the originals survives.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from datetime import UTC, datetime
from typing import Any

from ray_app import __version__
from ray_app.archives import manifests, read_complete
from ray_app.detectors.card import blind_to
from ray_app.ensembles import Thresholds, is_calibrated
from ray_app.errors import Status
from ray_app.inference import ScoringSpec
from ray_app.runs import (
    ChangedRows,
    CurrentRows,
    RunDirectory,
    document,
    fingerprint,
    schema,
    summary,
)
from ray_app.scoring import guarantee, pictures
from ray_app.scoring.session import ScoringSession
from ray_app.storage import NotedFolders


def write_summary(
    run: RunDirectory, spec: ScoringSpec, session: ScoringSession, *, thumbnails: bool = True
) -> dict[str, Any]:
    """Count the current rows and write the summary, which finishes every manifest listed so far.

    Args:
        run: The run, in which every block of every manifest has its rows.
        spec: The ensemble that decided the rows.
        session: The session that ends.
        thumbnails: Whether reports show small images.

    Returns:
        The content of `summary.json`.
    """
    rows = CurrentRows.at_end(run)
    content = document.RunSummary(
        schema=document.SUMMARY_SCHEMA,
        row_schema=schema.SCHEMA_VERSION,
        run=run.store.url,
        listing=rows.last,
        version=__version__,
        complete=True,
        thumbnails=thumbnails,
        linked_folders=document.LinkedFoldersSummary(**asdict(linked_folders(run))),
        **count_current(run, spec, rows),
        **_of_session(session),
        **_of_all_sessions(run, session),
    ).written()
    run.write_json(f"summaries/{rows.last:05d}.json", content)
    run.write_json("summary.json", content)
    return content


def renew_summary(
    run: RunDirectory, session: ScoringSession, *, thumbnails: bool = True
) -> dict[str, Any]:
    """Write `summary.json` for a session that scored nothing; no row is counted again."""
    before = run.read_json(f"summaries/{run.last_finished():05d}.json")
    changed = _of_session(session) | {"thumbnails": thumbnails}
    content = document.RunSummary.model_validate(before | changed).written()
    run.write_json("summary.json", content)
    return content


def count_current(run: RunDirectory, spec: ScoringSpec, rows: CurrentRows) -> dict[str, Any]:
    """Return by key what a summary says of rows: counts, guarantee, ensemble, identity.

    If the last summary has the same settings and version, only rows that changed since are read.
    """
    described = run.describe()
    identity = fingerprint(described["identity"])
    before = _last_summary(run)
    is_usable = before is not None and (before.version, before.fingerprint) == (
        __version__,
        identity,
    )
    changed = ChangedRows(CurrentRows.read(run), rows) if is_usable else None
    compared = None
    if guarantee.has_comparison(spec.ensemble):
        counted = before.guarantee.counted if before and before.guarantee else None
        compared = guarantee.compare(
            run, spec, guarantee.count_archive(spec, rows, changed, counted)
        )
    rows = replace(rows, unlike=compared.unlike if compared else None)
    counts = None
    if before is not None and changed is not None and changed.before.unlike == rows.unlike:
        counts = summary.count_changes(
            document.RunCounts.model_validate(before.written()),
            replace(changed, now=rows),
            described["detectors"],
        )
    if counts is None:
        counts = summary.summarise(rows.tables(summary.COLUMNS), described["detectors"])
    return {
        **counts.given(),
        "guarantee": compared,
        "ensemble": ensemble_facts(spec),
        "fingerprint": identity,
        "identity": described["identity"],
    }


def _last_summary(run: RunDirectory) -> document.RunSummary | None:
    finished = run.last_finished()
    if finished < 0:
        return None
    return document.RunSummary.model_validate(run.read_json(f"summaries/{finished:05d}.json"))


def _of_session(session: ScoringSession) -> dict[str, Any]:
    facts = session.facts()
    return {
        "started_at": session.started_at.isoformat(timespec="seconds"),
        "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "session": facts,
        "bottleneck": summary.bottleneck(facts.seconds),
    }


def _of_all_sessions(run: RunDirectory, session: ScoringSession) -> dict[str, Any]:
    """What detectors took, and the most memory of a worker: as the summary before has it, with the
    sessions since.
    """
    before = (
        document.RunSummary.model_validate(run.read_json("summary.json"))
        if run.store.exists("summary.json")
        else document.RunSummary()
    )
    since = range(before.session.number + 1, session.number)
    known = [
        f"sessions/{number:05d}.json"
        for number in since
        if run.store.exists(f"sessions/{number:05d}.json")
    ]
    facts = [
        *(document.SessionSummary.model_validate(run.read_json(path)) for path in known),
        session.facts(),
    ]
    peak = max([before.memory_per_worker_bytes or 0, *(one.peak_worker_bytes for one in facts)])
    times = _together([before.detectors or {}, *(one.detectors or {} for one in facts)])
    return {"detectors": times or None, "memory_per_worker_bytes": peak or None}


def _together(
    times: Iterable[Mapping[str, document.DetectorTime]],
) -> dict[str, document.DetectorTime]:
    """What several commands took, together."""
    found: dict[str, document.DetectorTime] = {}
    for name, one in (item for some in times for item in some.items()):
        before = found.get(name, document.DetectorTime())
        images = before.images + one.images
        spent_ms = sum((each.ms_per_image or 0.0) * each.images for each in (before, one))
        found[name] = document.DetectorTime(
            seconds=round(before.seconds + one.seconds, 6),
            images=images,
            ms_per_image=round(spent_ms / images, 4) if images else None,
        )
    return found


def ensemble_facts(spec: ScoringSpec) -> document.EnsembleSummary:
    """What a reader of scores must know of the ensemble: rule, thresholds with their rates, whether
    anything is calibrated.
    """
    members = [
        document.DetectorSummary(
            name=name,
            title=card.title,
            licence=card.licence,
            calibrated=spec.calibrations[name] is not None,
            demonstration=card.demonstration,
            masks=card.masks,
        )
        for name, card in spec.cards.items()
    ]
    card = spec.ensemble
    return document.EnsembleSummary(
        name=card.name,
        title=card.title,
        rule=card.rule,
        calibrated=is_calibrated(card, spec.calibrations),
        demonstration=any(member.demonstration for member in members),
        members=members,
        # all of them are written, given or not
        thresholds=Thresholds(**card.thresholds.model_dump()),
        blind_to=list(blind_to(spec.cards.values())) or None,
    )


def linked_folders(run: RunDirectory) -> NotedFolders:
    """Links to folders that the last listing did not follow."""
    info = read_complete(run.store, manifests(run.store)[-1])
    return (
        NotedFolders() if info is None else NotedFolders(info.linked_folders, info.linked_example)
    )


def closed_folders(run: RunDirectory) -> NotedFolders:
    """Folders that the last listing could not list."""
    info = read_complete(run.store, manifests(run.store)[-1])
    return (
        NotedFolders() if info is None else NotedFolders(info.closed_folders, info.closed_example)
    )


def bad_fraction(summary: dict[str, Any]) -> float:
    """Share of members without a score, not counting files that are no images."""
    good = (Status.OK, Status.UNSUPPORTED_FORMAT)
    bad = sum(count for status, count in summary["statuses"].items() if status not in good)
    return bad / summary["members"] if summary["members"] else 0.0


def has_read_nothing(summary: dict[str, Any]) -> bool:
    """Return whether no file of a run with members could be read from storage."""
    return bool(summary["members"]) and all(
        status.startswith("source_") for status, count in summary["statuses"].items() if count
    )


def write_report(
    run: RunDirectory, *, prior: float | None = None, thumbnails: bool | None = None
) -> str:
    """Render `report.html` from the summary; returns where it lies. `thumbnails`: with small
    pictures; null: as the run was asked to.

    Raises ConfigError where no run has finished.
    """
    run.describe_finished()
    summary = run.read_json("summary.json")
    wanted = summary.get("thumbnails", True) if thumbnails is None else thumbnails
    found = pictures.pictures_of(run, summary["top"][: pictures.MOST]) if wanted else None
    # an empty page takes as long to import as to write
    from ray_app.reports import render_run_report

    run.store.write(
        "report.html", render_run_report(summary, prior=prior, thumbnails=found).encode()
    )
    return f"{run.store.url}/report.html"
