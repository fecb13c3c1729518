"""Write the summary and the report of a finished run.

`write_summary` writes `summary.json`, and a copy for the last manifest (list of files).
`write_report` writes `report.html`. The thumbnails in the report are new images, which contain no
metadata of the originals.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from datetime import UTC, datetime
from typing import Any

from ray_app import __version__
from ray_app.archives import list_complete_manifests, read_complete
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
    """Count the results of a run and write its summary, which finishes all manifests listed so far.

    The summary is `summary.json`, with a copy in `summaries/` for the last manifest. Only the
    current (newest) row of each file counts.

    Args:
        run: The run, in which every block of every manifest (list of files) has its rows.
        spec: The ensemble that computed the verdicts.
        session: The session, the work of the present command, which finishes the run.
        thumbnails: Whether reports show thumbnails.

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
        **_describe_session(session),
        **_sum_sessions(run, session),
    ).to_dict()
    run.write_json(f"summaries/{rows.last:05d}.json", content)
    run.write_json("summary.json", content)
    return content


def renew_summary(
    run: RunDirectory, session: ScoringSession, *, thumbnails: bool = True
) -> dict[str, Any]:
    """Write `summary.json` for a session that scored nothing, without counting rows again.

    A session is the work of one command. The counts are copied from the last summary.

    Args:
        run: The run, which is finished.
        session: The session that found nothing to score.
        thumbnails: Whether reports show thumbnails.

    Returns:
        The content of `summary.json`.
    """
    before = run.read_json(f"summaries/{run.last_finished():05d}.json")
    changed = _describe_session(session) | {"thumbnails": thumbnails}
    content = document.RunSummary.model_validate(before | changed).to_dict()
    run.write_json("summary.json", content)
    return content


def count_current(run: RunDirectory, spec: ScoringSpec, rows: CurrentRows) -> dict[str, Any]:
    """Count the results of a run for its summary, by the current (newest) row of each file.

    If the last summary has the same settings and version, only rows that changed since are read.

    Args:
        run: The run.
        spec: The ensemble that computed the verdicts.
        rows: The current rows of the run.

    Returns:
        Keys of `summary.json` with their values: the counts, the comparison with the calibration
        (`guarantee`), the facts about the ensemble, and the identity of the run.
    """
    run_info = run.describe()
    identity = fingerprint(run_info["identity"])
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
            document.RunCounts.model_validate(before.to_dict()),
            replace(changed, now=rows),
            run_info["detectors"],
        )
    if counts is None:
        counts = summary.summarise(rows.tables(summary.COLUMNS), run_info["detectors"])
    return {
        **counts.get_set_fields(),
        "guarantee": compared,
        "ensemble": ensemble_facts(spec),
        "fingerprint": identity,
        "identity": run_info["identity"],
    }


def _last_summary(run: RunDirectory) -> document.RunSummary | None:
    finished = run.last_finished()
    if finished < 0:
        return None
    return document.RunSummary.model_validate(run.read_json(f"summaries/{finished:05d}.json"))


def _describe_session(session: ScoringSession) -> dict[str, Any]:
    facts = session.facts()
    return {
        "started_at": session.started_at.isoformat(timespec="seconds"),
        "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "session": facts,
        "bottleneck": summary.bottleneck(facts.seconds),
    }


def _sum_sessions(run: RunDirectory, session: ScoringSession) -> dict[str, Any]:
    """Return the time per detector and the maximum memory of a worker, of all sessions.

    The sums of earlier sessions come from the last summary.
    """
    before = (
        document.RunSummary.model_validate(run.read_json("summary.json"))
        if run.store.exists("summary.json")
        else document.RunSummary()
    )
    since = range(before.session.number + 1, session.number)
    paths = [
        f"sessions/{number:05d}.json"
        for number in since
        if run.store.exists(f"sessions/{number:05d}.json")
    ]
    facts = [
        *(document.SessionSummary.model_validate(run.read_json(path)) for path in paths),
        session.facts(),
    ]
    peak = max([before.memory_per_worker_bytes or 0, *(part.peak_worker_bytes for part in facts)])
    times = _merge_times([before.detectors or {}, *(part.detectors or {} for part in facts)])
    return {"detectors": times or None, "memory_per_worker_bytes": peak or None}


def _merge_times(
    times: Iterable[Mapping[str, document.DetectorTime]],
) -> dict[str, document.DetectorTime]:
    """Return the time per detector of several sessions together."""
    total: dict[str, document.DetectorTime] = {}
    for name, added in (item for session_times in times for item in session_times.items()):
        before = total.get(name, document.DetectorTime())
        images = before.images + added.images
        time_ms = sum((part.ms_per_image or 0.0) * part.images for part in (before, added))
        total[name] = document.DetectorTime(
            seconds=round(before.seconds + added.seconds, 6),
            images=images,
            ms_per_image=round(time_ms / images, 4) if images else None,
        )
    return total


def ensemble_facts(spec: ScoringSpec) -> document.EnsembleSummary:
    """Return the facts about an ensemble that a user needs to interpret its scores.

    They include the rule that combines the detectors' scores, the thresholds with their rates, and
    whether probabilities are calibrated.
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
        # All of them are written, also those that the card does not set.
        thresholds=Thresholds(**card.thresholds.model_dump()),
        blind_to=list(blind_to(spec.cards.values())) or None,
    )


def linked_folders(run: RunDirectory) -> NotedFolders:
    """Return the number of symbolic links to folders that the last listing of a run did not follow.

    The result also has the path of one of them as an example.
    """
    info = read_complete(run.store, list_complete_manifests(run.store)[-1])
    return (
        NotedFolders() if info is None else NotedFolders(info.linked_folders, info.linked_example)
    )


def closed_folders(run: RunDirectory) -> NotedFolders:
    """Return the number of folders that the last listing of a run could not list.

    The result also has the path of one of them as an example.
    """
    info = read_complete(run.store, list_complete_manifests(run.store)[-1])
    return (
        NotedFolders() if info is None else NotedFolders(info.closed_folders, info.closed_example)
    )


def bad_fraction(summary: dict[str, Any]) -> float:
    """Return the fraction of a run's files that are images but have no score.

    A run exits with `TOO_MANY_BAD` if this exceeds the setting `max_bad_fraction`. The counts are
    those in `summary`, the content of the run's `summary.json`. Files in an unsupported format do
    not count as bad.
    """
    good = (Status.OK, Status.UNSUPPORTED_FORMAT)
    bad = sum(count for status, count in summary["statuses"].items() if status not in good)
    return bad / summary["members"] if summary["members"] else 0.0


def has_read_nothing(summary: dict[str, Any]) -> bool:
    """Return whether a run listed files, but could read none of them from storage.

    Without a setting `max_bad_fraction`, such a run exits with `TOO_MANY_BAD`. The counts are those
    in `summary`, the content of the run's `summary.json`.
    """
    return bool(summary["members"]) and all(
        status.startswith("source_") for status, count in summary["statuses"].items() if count
    )


def write_report(
    run: RunDirectory, *, prior: float | None = None, thumbnails: bool | None = None
) -> str:
    """Render `report.html` from the summary, and return its URL.

    Args:
        run: The run.
        prior: The fraction of fakes to expect in the archive, or None if it is not known.
        thumbnails: Whether to show thumbnails. None uses the setting of the run.

    Raises:
        ConfigError: If the run is not finished.
    """
    run.describe_finished()
    summary = run.read_json("summary.json")
    has_thumbnails = summary.get("thumbnails", True) if thumbnails is None else thumbnails
    images = (
        pictures.load_thumbnails(run, summary["top"][: pictures.MAX_THUMBNAILS])
        if has_thumbnails
        else None
    )
    # Imported late, because the import takes as long as writing an empty page.
    from ray_app.reports import render_run_report

    run.store.write(
        "report.html", render_run_report(summary, prior=prior, thumbnails=images).encode()
    )
    return f"{run.store.url}/report.html"
