"""Two runs → one document (`compare`) of what changed from A to B: images, statuses, verdicts,
scores, and, with labels, error rates.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from ray_app import __version__
from ray_app.evaluation.compare import changes
from ray_app.evaluation.interval_sample import Meaning
from ray_app.evaluation.join import own_labels, read_labels
from ray_app.evaluation.labels import open_labels
from ray_app.evaluation.systems import ENSEMBLE
from ray_app.runs import current_tables
from ray_app.runs.directory import differing_keys

SCHEMA = 2


def compare(
    run_a: str,
    run_b: str,
    labels: str | None = None,
    *,
    by: changes.By | None = None,
    intervals: Meaning = "generators",
) -> dict[str, Any]:
    """The comparison of the runs at two URLs, as plain JSON; differences are B less A.

    `labels`: a file or an index of labels; None: the runs' own columns, if they have labels.
    `intervals`: of what figures by labels and their tests are: further generators and sources where
    labels name eight or more, or further images of these only. `by`: what names an image in both
    runs; None: `image_id` and, where the runs share no id, `sha256`. Each run is in memory as
    compact columns (`changes.ComparedRun`). Raises ConfigError where there is no run or a label is
    wrong.
    """
    a, b = changes.ComparedRun.open(run_a), changes.ComparedRun.open(run_b)
    pairing, runs = changes.pair(a, b, by), (a, b)

    def paired(name: str) -> tuple[changes.Numbers, changes.Numbers]:
        return a.column(name)[pairing.places[0]], b.column(name)[pairing.places[1]]

    verdicts, systems = paired("verdict"), _systems(a, b)
    truth = _truth(runs, pairing, labels)
    settings = differing_keys(*(one.described["identity"] for one in runs))
    document = {
        "schema": SCHEMA,
        "version": __version__,
        "made_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "runs": {side: _described(one) for side, one in zip("ab", runs, strict=True)},
        "rows": dict(pairing.counts),
        "identity": [{"key": key, "a": left, "b": right} for key, left, right in settings],
        "only_detectors": {
            "a": [name for name in a.detectors if name not in b.detectors],
            "b": [name for name in b.detectors if name not in a.detectors],
        },
        "statuses": changes.statuses_of(*paired("status")),
        "verdicts": changes.flips_of(*verdicts),
        "flagged": changes.flagged_of(a.column("verdict"), b.column("verdict")),
        "examples": changes.examples_of(
            a, a.column("image_id")[pairing.places[0]], verdicts, paired(ENSEMBLE)
        ),
        "systems": [
            {
                "name": name,
                "shift": changes.shift_of(*paired(name)),
                "distribution": changes.distribution_of(a.column(name), b.column(name)),
            }
            for name in systems
        ],
        "quantiles": list(changes.QUANTILES),
        "labelled": None
        if truth is None
        else changes.labelled_changes(truth, systems, paired, verdicts, intervals),
    }
    return document | {"equal": _equal(document)}


def _described(run: changes.ComparedRun) -> dict[str, Any]:
    facts = {name: run.described.get(name) for name in ("created_at", "detectors")}
    ensemble = (run.described.get("ensemble") or {}).get("name")
    return {
        "url": run.run.store.url,
        **facts,
        "ensemble": ensemble,
        "finished": run.run.store.exists("summary.json"),
    }


def _systems(a: changes.ComparedRun, b: changes.ComparedRun) -> list[str]:
    """The ensemble and the detectors of both runs, but one that is all that both ensembles consist
    of.
    """
    shared = [name for name in a.detectors if name in b.detectors]
    alone = [
        len((run.described.get("ensemble") or {}).get("members", ())) == len(run.detectors) == 1
        for run in (a, b)
    ]
    return [ENSEMBLE, *([] if all(alone) else shared)]


def _truth(
    runs: Sequence[changes.ComparedRun], pairing: changes.Pairing, labels: str | None
) -> changes.ImageTruth | None:
    """The truth about the paired images: by the labels given, else by A's own columns, else by B's."""
    if labels is not None:
        with read_labels(open_labels(labels)) as read:
            return changes.truth_of(runs[0], read, pairing.places[0])
    for run, places in zip(runs, pairing.places, strict=True):
        first = next(current_tables(run.run, ["image_id", "input"]), None)
        if first is not None and "input" in first.column_names:
            with own_labels(run.run.store.url) as own:
                if (truth := changes.truth_of(run, own, places)) is not None:
                    return truth
    return None


def _equal(document: Mapping[str, Any]) -> bool:
    """Whether no paired image differs in status, verdict or any score."""
    shifts = [system["shift"] for system in document["systems"]]
    same = all(one["equal"] == one["n"] and not one["gained"] and not one["lost"] for one in shifts)
    return same and not document["verdicts"]["flips"] and not document["statuses"]["pairs"]
