"""Two runs → one document that says what changed from A to B: images, statuses, verdicts, scores and, with labels, how good they are.

Knows in which order; `pairing` matches rows, `shifts`, `flips` and `labelled_changes` compute, `findings` says what of it matters.
"""

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from ray_app import __version__
from ray_app.comparison import findings
from ray_app.comparison.flips import STATUSES, VERDICTS, examples_of, flagged_of, flips_of, statuses_of
from ray_app.comparison.labelled_changes import LabelsOfRows, Numbers, Truth, labelled_changes, tests_in, truth_of
from ray_app.comparison.pairing import By, Pairing, RunColumns, pair
from ray_app.comparison.shifts import QUANTILES, distribution_of, shift_of
from ray_app.evaluation.joining import OwnLabels, index_labels
from ray_app.evaluation.labels import open_labels
from ray_app.evaluation.systems import ENSEMBLE
from ray_app.runs.identity import as_known_to, differing_keys

SCHEMA = 1


def compare(run_a: str, run_b: str, labels: str | LabelsOfRows | None = None, *, by: By | None = None) -> dict[str, Any]:
    """The comparison of the runs at two URLs, as plain JSON; differences are B less A.

    `labels`: a file or an index of labels, or labels that are read already; None: the runs' own columns, if they have labels.
    `by`: what names an image in both runs; None: `image_id` and, where the runs share no id, `sha256`. Columns are read one after the
    other: 10⁷ rows take less than 2 GiB. Raises ConfigError where there is no run or a label is wrong.
    """
    a, b = RunColumns.open(run_a), RunColumns.open(run_b)
    pairing = pair(a, b, by)
    document = {
        "schema": SCHEMA,
        "version": __version__,
        "made_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "runs": {"a": _described(a), "b": _described(b)},
        "rows": pairing.counts,
        "identity": _identity(a, b),
        "only_detectors": {"a": _missing(a, b), "b": _missing(b, a)},
        **_decisions(a, b, pairing),
        "systems": [{"name": name, **_system(a, b, pairing, name)} for name in _systems(a, b)],
        "quantiles": list(QUANTILES),
        "labelled": _labelled(a, b, pairing, labels),
        "rule": {"alpha": findings.ALPHA, "least": dict(findings.LEAST), "text": findings.RULE},
    }
    return concluded(document)


def concluded(document: Mapping[str, Any]) -> dict[str, Any]:
    """A document with its tests corrected, and with what follows from them: `equal`, `findings` and `headline`."""
    _correct(document)
    told = dict(document) | {"equal": _equal(document), "findings": findings.findings(document)}
    return told | {"headline": findings.headline(told)}


def _systems(a: RunColumns, b: RunColumns) -> list[str]:
    return [ENSEMBLE, *(name for name in a.detectors if name in b.detectors)]


def _missing(here: RunColumns, there: RunColumns) -> list[str]:
    return [name for name in here.detectors if name not in there.detectors]


def _described(run: RunColumns) -> dict[str, Any]:
    told = run.run.describe()
    facts = {name: told.get(name) for name in ("created_at", "detectors")}
    ensemble = (told.get("ensemble") or {}).get("name")
    return {"url": run.run.store.url, **facts, "ensemble": ensemble, "finished": run.run.store.exists("summary.json")}


def _identity(a: RunColumns, b: RunColumns) -> list[dict[str, str]]:
    """What the runs were made with that is not the same; what one of them is too old to have noted is left out."""
    first, second = a.run.describe(), b.run.describe()
    schema = min(first["schema"], second["schema"])
    known = [as_known_to(schema, one["identity"]) for one in (first, second)]
    return [{"key": key, "a": left, "b": right} for key, left, right in differing_keys(*known)]


def _decisions(a: RunColumns, b: RunColumns, pairing: Pairing) -> dict[str, Any]:
    verdicts = [run.codes("verdict", VERDICTS) for run in (a, b)]
    scores = [run.scores(ENSEMBLE)[places] for run, places in zip((a, b), (pairing.places_a, pairing.places_b), strict=True)]
    paired = (verdicts[0][pairing.places_a], verdicts[1][pairing.places_b])
    statuses = [run.codes("status", STATUSES) for run in (a, b)]
    return {
        "statuses": statuses_of(statuses[0][pairing.places_a], statuses[1][pairing.places_b]),
        "verdicts": flips_of(*paired),
        "flagged": flagged_of(*verdicts),
        "examples": examples_of((a, b), pairing, paired, scores),
    }


def _system(a: RunColumns, b: RunColumns, pairing: Pairing, name: str) -> dict[str, Any]:
    first, second = a.scores(name), b.scores(name)
    shift = shift_of(first[pairing.places_a], second[pairing.places_b])
    return {"shift": shift, "distribution": distribution_of(first, second)}


def _labelled(a: RunColumns, b: RunColumns, pairing: Pairing, labels: str | LabelsOfRows | None) -> dict[str, Any] | None:
    truth = _truth(a, b, pairing, labels)
    if truth is None or not (truth.codes >= 0).any():
        return None

    def scores(name: str) -> tuple[Numbers, Numbers]:
        return a.scores(name)[pairing.places_a], b.scores(name)[pairing.places_b]

    verdicts = (a.codes("verdict", VERDICTS)[pairing.places_a], b.codes("verdict", VERDICTS)[pairing.places_b])
    return labelled_changes(truth, _systems(a, b), scores, verdicts)


def _truth(a: RunColumns, b: RunColumns, pairing: Pairing, labels: str | LabelsOfRows | None) -> Truth | None:
    """The truth about the paired images: by the labels given, else by A's own columns, else by B's."""
    if labels is not None:
        return truth_of(a, index_labels(open_labels(labels)) if isinstance(labels, str) else labels).at(pairing.places_a)
    for run, places in ((a, pairing.places_a), (b, pairing.places_b)):
        if "input" in run.columns:
            truth = truth_of(run, OwnLabels(run.run.store.url)).at(places)
            if (truth.codes >= 0).any():
                return truth
    return None


def _correct(document: Mapping[str, Any]) -> None:
    """Holm's correction over all tests of the whole, and over those of generators apart: they are many, and look for something else."""
    tests = list(_tests(document))
    findings.correct(tests)
    for test in tests:
        if "of" in test:
            test["of"][f"{test['which']}_p_holm"] = test["p_holm"]
    if document["labelled"]:
        findings.correct(document["labelled"]["generators"])


def _tests(document: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    yield from (document["verdicts"], document["flagged"])
    for system in document["systems"]:
        yield system["shift"]
        if drift := system["distribution"]["drift"]:
            yield from ({"p": drift[f"{which}_p"], "of": drift, "which": which} for which in ("ks", "psi"))
    if document["labelled"]:
        yield from (test for test in tests_in(document["labelled"]) if test)


def _equal(document: Mapping[str, Any]) -> bool:
    """Whether no paired image differs in status, verdict or any score."""
    shifts = [system["shift"] for system in document["systems"]]
    same = all(one["equal"] == one["n"] and not one["gained"] and not one["lost"] for one in shifts)
    return same and not document["verdicts"]["flips"] and not document["statuses"]["pairs"]
