"""The documents of a finished run: `write_summary` (`summary.json`, one per listing beside it) and `write_report` (`report.html`).

Thumbnails are re-encoded, so that no metadata of the originals survives.
"""

import io
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from ray_app import __version__
from ray_app.archives import guard_of, manifests, read_complete
from ray_app.ensembles import Thresholds, is_calibrated
from ray_app.errors import ConfigError, InputError, Status
from ray_app.images import ImageLimits, decode_image
from ray_app.inference import ScoringSpec
from ray_app.reports import render_run_report
from ray_app.runs import RunDirectory, bottleneck, current_tables, fingerprint, summarise
from ray_app.runs.document import (
    SUMMARY_SCHEMA,
    DetectorSummary,
    EnsembleSummary,
    GuaranteeSummary,
    LinkedFoldersSummary,
    RunCounts,
    RunSummary,
)
from ray_app.runs.summary import COLUMNS
from ray_app.scoring.identity import stability_facts
from ray_app.scoring.session import ScoringSession
from ray_app.storage import Fetcher, Guard, LinkedFolders

SIDE_PX = 160


def write_summary(run: RunDirectory, spec: ScoringSpec, session: ScoringSession, guarantee: GuaranteeSummary | None) -> dict[str, Any]:
    """Count the current rows and write the summary, whose JSON is returned. `guarantee`: of a card that promises something."""
    summary = RunSummary(
        schema=SUMMARY_SCHEMA,
        run=run.store.url,
        listing=max(manifests(run.store)),
        version=__version__,
        complete=True,
        linked_folders=LinkedFoldersSummary(**asdict(linked_folders(run))),
        **counted(run, spec, guarantee),
        **_of_session(session),
    )
    return _write(run, summary)


def renew_summary(run: RunDirectory, session: ScoringSession) -> dict[str, Any]:
    """The summary once more, for a session that found nothing to do: no row is counted again."""
    return _write(run, RunSummary.model_validate(run.read_json("summary.json") | _of_session(session)))


def _of_session(session: ScoringSession) -> dict[str, Any]:
    facts = session.facts()
    return {
        "started_at": session.started_at.isoformat(timespec="seconds"),
        "finished_at": session.now().isoformat(timespec="seconds"),
        "session": facts,
        "bottleneck": bottleneck(facts.seconds),
    }


def _write(run: RunDirectory, summary: RunSummary) -> dict[str, Any]:
    content = summary.written()
    run.write_json(f"summaries/{summary.listing:05d}.json", content)
    run.write_json("summary.json", content)
    return content


def count_rows(run: RunDirectory, detectors: list[str]) -> RunCounts:
    """The counted part of a summary: statuses, verdicts, histograms, highest scores."""
    return summarise(current_tables(run, COLUMNS), detectors)


def counted(run: RunDirectory, spec: ScoringSpec, guarantee: GuaranteeSummary | None) -> dict[str, Any]:
    """By key what a summary says of a run's rows as the ensemble decides them: counts, stability, guarantee, ensemble, identity."""
    described = run.describe()
    return {
        **count_rows(run, described["detectors"]).given(),
        "stability": stability_facts(run, spec.ensemble.thresholds),
        "guarantee": guarantee,
        "ensemble": ensemble_facts(spec),
        "fingerprint": fingerprint(described["identity"]),
        "identity": described["identity"],
    }


def ensemble_facts(spec: ScoringSpec) -> EnsembleSummary:
    """What a reader of scores must know of the ensemble: rule, thresholds with their rates, whether anything is calibrated."""
    members = [
        DetectorSummary(
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
    return EnsembleSummary(
        name=card.name,
        title=card.title,
        rule=card.rule,
        calibrated=is_calibrated(card, spec.calibrations),
        demonstration=any(member.demonstration for member in members),
        members=members,
        thresholds=Thresholds(**card.thresholds.model_dump()),  # all of them are written, given or not
    )


def linked_folders(run: RunDirectory) -> LinkedFolders:
    """Links to folders that the last listing did not follow."""
    info = read_complete(run.store, manifests(run.store)[-1])
    return LinkedFolders() if info is None else LinkedFolders(info.linked_folders, info.linked_example)


def bad_fraction(summary: dict[str, Any]) -> float:
    """Share of members without a score, not counting files that are no images."""
    good = (Status.OK, Status.UNSUPPORTED_FORMAT)
    bad = sum(count for status, count in summary["statuses"].items() if status not in good)
    return bad / summary["members"] if summary["members"] else 0.0


def write_report(run: RunDirectory, *, prior: float | None = None, thumbnails: bool = False) -> str:
    """Render `report.html` from the summary; returns where it lies. Raises ConfigError where no run has finished."""
    if not run.store.exists("summary.json"):
        raise ConfigError(
            f"{run.store.url}: no finished run here", hint="touchstone score SOURCE --out DIR makes one; the same command finishes it"
        )
    summary = run.read_json("summary.json")
    top = ((row["image_id"], row["uri"]) for row in summary["top"] if row["member"] is None)
    pictures = thumbnails_of(top, run.limits(), guard_of(run.store)) if thumbnails else None
    run.store.write("report.html", render_run_report(summary, prior=prior, thumbnails=pictures).encode())
    return f"{run.store.url}/report.html"


def thumbnails_of(images: Iterable[tuple[int, str]], limits: ImageLimits, guard: Guard) -> dict[int, bytes]:
    """JPEG bytes by image id; an image that cannot be read any more has none."""
    fetcher, pictures = Fetcher(guard=guard), {}
    for image_id, uri in images:
        try:
            pictures[image_id] = thumbnail(fetcher.fetch(uri, "", limits.max_bytes), limits)
        except InputError:
            continue
    return pictures


def thumbnail(data: bytes, limits: ImageLimits, side: int = SIDE_PX) -> bytes:
    """JPEG bytes of an encoded image, no side above `side` pixels. Raises InputError where it does not decode."""
    picture = decode_image(data, limits).pixels
    picture.thumbnail((side, side))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=80)
    return buffer.getvalue()
