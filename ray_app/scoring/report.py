"""The documents of a finished run: `write_summary` (`summary.json`, one per listing beside it) and
`write_report` (`report.html`).

Its pictures are made anew, so that no metadata of the originals survives.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from ray_app import __version__
from ray_app.archives import manifests, read_complete
from ray_app.detectors.card import blind_to
from ray_app.ensembles import Thresholds, is_calibrated
from ray_app.errors import Status
from ray_app.inference import ScoringSpec
from ray_app.runs import RunDirectory, document, fingerprint, schema, settled_state, summary
from ray_app.scoring import pictures
from ray_app.scoring.session import ScoringSession
from ray_app.storage import NotedFolders

_COUNTS = "counts"  # the tally of a run's rows that is the counted part of its summary


def write_summary(
    run: RunDirectory,
    spec: ScoringSpec,
    session: ScoringSession,
    guarantee: document.GuaranteeSummary | None,
    rows: settled_state.NewRows | None = None,
    *,
    thumbnails: bool = True,
) -> dict[str, Any]:
    """Count the current rows and write the summary, whose JSON is returned. `guarantee`: of a card
    that promises something.

    `rows`: those that are not counted yet, and the counts of the others; None: all are counted.
    `thumbnails`: reports show pictures.
    """
    content = document.RunSummary(
        schema=document.SUMMARY_SCHEMA,
        row_schema=schema.SCHEMA_VERSION,
        run=run.store.url,
        listing=max(manifests(run.store)),
        version=__version__,
        complete=True,
        thumbnails=thumbnails,
        linked_folders=document.LinkedFoldersSummary(**asdict(linked_folders(run))),
        **counted(run, spec, guarantee, rows),
        **_of_session(session),
        **_of_all_sessions(run, session),
    )
    return _write(run, content)


def renew_summary(
    run: RunDirectory, session: ScoringSession, *, thumbnails: bool = True
) -> dict[str, Any]:
    """The summary once more, for a session that found nothing to do: no row is counted again."""
    before = run.read_json("summary.json")
    return _write(
        run,
        document.RunSummary.model_validate(
            before | _of_session(session) | {"thumbnails": thumbnails}
        ),
    )


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


def _write(run: RunDirectory, found: document.RunSummary) -> dict[str, Any]:
    content = found.written()
    run.write_json(f"summaries/{found.listing:05d}.json", content)
    run.write_json("summary.json", content)
    return content


def _counted_rows(rows: settled_state.NewRows, detectors: list[str]) -> document.RunCounts:
    """The counted part of a summary (statuses, verdicts, histograms, highest scores), of all rows
    by those that are new.
    """
    earlier = rows.earlier.get(_COUNTS)
    counts = summary.summarise(rows.tables(earlier, summary.COLUMNS), detectors)
    if earlier is not None:
        counts = summary.joined(document.RunCounts.model_validate(earlier), counts)
    rows.found[_COUNTS] = counts.written()
    return counts


def counted(
    run: RunDirectory,
    spec: ScoringSpec,
    guarantee: document.GuaranteeSummary | None,
    rows: settled_state.NewRows | None = None,
) -> dict[str, Any]:
    """By key what a summary says of a run's rows as the ensemble decides them: counts, guarantee,
    ensemble, identity.
    """
    described = run.describe()
    run.check_settled()
    rows = rows or settled_state.NewRows.all_of(run)
    return {
        **_counted_rows(rows, described["detectors"]).given(),
        "guarantee": guarantee,
        "ensemble": ensemble_facts(spec),
        "fingerprint": fingerprint(described["identity"]),
        "identity": described["identity"],
    }


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
