"""Two runs → one document (`compare`) of what changed from A to B: images, statuses, verdicts, scores and, with labels, how good they are.

`findings` are the changes worth reporting. A run of 10⁷ images makes any trifle significant, and one of 50 hardly anything: so each
finding is both significant and not negligible.
"""

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from ray_app import __version__
from ray_app.evaluation.compare import changes
from ray_app.evaluation.interval_sample import Meaning
from ray_app.evaluation.join import own_labels, read_labels
from ray_app.evaluation.labels import open_labels
from ray_app.evaluation.systems import ENSEMBLE
from ray_app.metrics.significance import holm
from ray_app.reports import format as wording
from ray_app.runs import current_tables
from ray_app.runs.directory import differing_keys

ALPHA = 0.01  # after Holm's correction over all tests of a comparison
LEAST: Mapping[str, float] = {
    "flipped": 0.001,  # share of images whose verdict is another
    "statuses": 0.001,  # share of images whose status is another
    "mean_shift": 0.05,  # log-odds
    "moved": 0.01,  # share of images whose score changed by more than MOVED
    "flagged": 0.005,  # difference of the shares that are flagged
    "auc": 0.005,
    "right": 0.005,  # difference of the shares that are classified correctly
    "ks": 0.05,
    "psi": 0.1,
}
RULE = (
    f"Reported is what is significant (p < {ALPHA:g} after Holm’s correction over all tests here) and not negligible: a mean shift of "
    f"{LEAST['mean_shift']:g} log-odds, {wording.stated(LEAST['flagged'])} more or fewer flagged or judged correctly, {LEAST['auc']:g} "
    "of AUC, a "
    f"Kolmogorov–Smirnov distance (KS) of {LEAST['ks']:g} or a stability index (PSI) of {LEAST['psi']:g} at least. Shares of verdicts or "
    f"statuses that changed ({wording.stated(LEAST['flipped'])}) and of scores that moved by more than {changes.MOVED:g} "
    f"({wording.stated(LEAST['moved'])}) are reported where their whole 95 % interval lies beyond that. "
    "Figures by labels are tested for what their table says; everything else holds for these images."
)
_MOST_IN_HEADLINE = 2
_FEW_SHARED = 0.5  # of the images of the smaller run: where fewer are in both, the headline begins with that
SCHEMA = 1


def compare(
    run_a: str, run_b: str, labels: str | None = None, *, by: changes.By | None = None, intervals: Meaning = "generators"
) -> dict[str, Any]:
    """The comparison of the runs at two URLs, as plain JSON; differences are B less A.

    `labels`: a file or an index of labels; None: the runs' own columns, if they have labels.
    `intervals`: of what figures by labels and their tests are: further generators and sources where labels name three or more, or
    further images of these only.
    `by`: what names an image in both runs; None: `image_id` and, where the runs share no id, `sha256`. Each run is in memory as compact
    columns (`changes.ComparedRun`). Raises ConfigError where there is no run or a label is wrong.
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
        "examples": changes.examples_of(a, a.column("image_id")[pairing.places[0]], verdicts, paired(ENSEMBLE)),
        "systems": [
            {
                "name": name,
                "shift": changes.shift_of(*paired(name)),
                "distribution": changes.distribution_of(a.column(name), b.column(name)),
            }
            for name in systems
        ],
        "quantiles": list(changes.QUANTILES),
        "labelled": None if truth is None else changes.labelled_changes(truth, systems, paired, verdicts, intervals),
        "rule": {"alpha": ALPHA, "least": dict(LEAST), "text": RULE},
    }
    return concluded(document)


def concluded(document: Mapping[str, Any]) -> dict[str, Any]:
    """A document with its tests corrected, and with what follows from them: `equal`, `findings` and `headline`.

    Holm's correction is over all tests of the whole, and over those of generators apart: they are many, and test something else.
    """
    tests = list(_tests(document))
    _correct(tests)
    for test in tests:
        if "of" in test:
            test["of"][f"{test['which']}_p_holm"] = test["p_holm"]
    if document["labelled"]:
        _correct(document["labelled"]["generators"])
    complete = dict(document) | {"equal": _equal(document), "findings": findings(document)}
    return complete | {"headline": headline(complete)}


def _correct(tests: Sequence[dict[str, Any]]) -> None:
    """Set `p_holm` beside the `p` of each test, corrected for all of them."""
    for test, corrected in zip(tests, holm([test["p"] for test in tests]), strict=True):
        test["p_holm"] = corrected


def findings(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What changed, with its size in words, the most important first."""
    found = [*_of_decisions(document), *(one for system in document["systems"] for one in _of_scores(system))]
    systems = {one["system"] for one in found if one["what"] in ("mean_shift", "moved")}
    found += [one for system in document["systems"] if system["name"] not in systems for one in _of_distribution(system)]
    if not any(one["what"] in ("flagged", "flipped") for one in found):
        found += _of_rate(document["flagged"], "all images of either run")
    return found + list(_of_labels(document["labelled"]) if document["labelled"] else [])


def headline(document: Mapping[str, Any]) -> str:
    """The comparison in one sentence, after another where few images are in both runs."""
    rows = document["rows"]
    if not rows["a"] or not rows["b"]:
        return "Nothing to compare: " + ("neither run has a row." if not rows["a"] and not rows["b"] else "one run has no rows.")
    return " ".join(filter(None, [few_shared(rows), _changes(document)]))


def few_shared(rows: Mapping[str, Any]) -> str:
    """A sentence where no image, or few, are in both runs; else nothing."""
    both, images = rows["both"], [rows["both"] + rows[f"only_{side}"] for side in "ab"]
    if both >= _FEW_SHARED * min(images):
        return ""
    if not both:
        return f"No image is in both runs (A has {images[0]:,}, B has {images[1]:,}), so only their distributions can be compared."
    of = f"{images[0]:,} images" if images[0] == images[1] else f"{images[0]:,} images in A and {images[1]:,} in B"
    return f"Only {both:,} of {of} {'is' if both == 1 else 'are'} in both runs, so what follows says little about the others."


def _changes(document: Mapping[str, Any]) -> str:
    found, rows = document["findings"], document["rows"]
    if found:
        texts = "; ".join(one["text"] for one in found[:_MOST_IN_HEADLINE])
        more = len(found) - _MOST_IN_HEADLINE
        return f"{texts[0].upper()}{texts[1:]}{f'; and {more} more' if more > 0 else ''}."
    if not rows["both"]:
        return "No difference found: their scores and verdicts are distributed alike."
    pairs = wording.counted(rows["both"], "image")
    if document["equal"]:
        return f"No difference: statuses, scores and verdicts are the same for the {pairs} in both runs."
    return f"No difference that matters: what differs on the {pairs} in both runs is negligible or within chance."


def _of_decisions(document: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    verdicts, statuses = document["verdicts"], document["statuses"]
    if _surely(verdicts["flipped"], "flipped"):
        yield _finding("flipped", None, f"{wording.percent(verdicts['flipped']['value'])} of verdicts changed", verdicts["flipped"])
    if _is_reported(verdicts, "flagged"):
        a, b = (wording.percent(verdicts[side]["value"]) for side in ("flagged_a", "flagged_b"))
        yield _finding("flagged", None, f"of the same images {a} were flagged in A and {b} in B", verdicts["difference"], verdicts)
    if _surely(statuses["changed"], "statuses"):
        yield _finding("statuses", None, f"{wording.percent(statuses['changed']['value'])} of statuses changed", statuses["changed"])


def _of_scores(system: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    shift, name = system["shift"], _called(system["name"])
    mean = shift["mean"]
    if mean["value"] is not None and _significant(shift["p_holm"]) and abs(mean["value"]) >= LEAST["mean_shift"]:
        words = f"scores of {name} {'rose' if mean['value'] > 0 else 'fell'} by {abs(mean['value']):.2f} log-odds on average"
        yield _finding("mean_shift", system["name"], words, mean, shift)
    elif _surely(shift["moved"], "moved"):
        words = f"{wording.percent(shift['moved']['value'])} of scores of {name} moved by more than {changes.MOVED:g}"
        yield _finding("moved", system["name"], words, shift["moved"])


def _of_distribution(system: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    drift = system["distribution"]["drift"]
    if drift and any(_significant(drift[f"{one}_p_holm"]) and drift[one] >= LEAST[one] for one in ("ks", "psi")):
        name = _called(system["name"])
        words = f"scores of {name} are distributed differently (KS {drift['ks']:.2f}, PSI {drift['psi']:.2f})"
        test = {"p_holm": min(drift["ks_p_holm"], drift["psi_p_holm"])}
        yield _finding("drift", system["name"], words, {"value": drift["ks"], "interval": None}, test)


def _of_rate(flagged: Mapping[str, Any], of: str) -> Iterator[dict[str, Any]]:
    if _is_reported(flagged, "flagged"):
        a, b = (wording.percent(flagged[side]["value"]) for side in ("a", "b"))
        yield _finding("flagged", None, f"of {of} {a} were flagged in A and {b} in B", flagged["difference"], flagged)


def _of_labels(labelled: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for system in labelled["systems"]:
        name = _called(system["name"])
        for key, words in (("auc", "the AUC of {}"), ("right", "the share that {} judges correctly")):
            test = system[key]
            if test and _is_reported(test, key):
                a, b = (
                    wording.written("auc", test[side]["value"]) if key == "auc" else wording.percent(test[side]["value"]) for side in "ab"
                )
                rose = "rose" if test["difference"]["value"] > 0 else "fell"
                yield _finding(key, system["name"], f"{words.format(name)} {rose} from {a} to {b}", test["difference"], test)


def _finding(what: str, system: str | None, text: str, figure: Mapping[str, Any], test: Mapping[str, Any] | None = None) -> dict[str, Any]:
    p = test["p_holm"] if test else None
    return {"what": what, "system": system, "text": text, "value": figure["value"], "interval": figure["interval"], "p_holm": p}


def _is_reported(test: Mapping[str, Any], what: str) -> bool:
    value = test["difference"]["value"]
    return value is not None and abs(value) >= LEAST[what] and _significant(test["p_holm"])


def _surely(figure: Mapping[str, Any], what: str) -> bool:
    return figure["value"] is not None and figure["interval"][0] > LEAST[what]


def _significant(p: float | None) -> bool:
    return p is not None and p < ALPHA


def _called(system: str) -> str:
    return "the ensemble" if system == ENSEMBLE else wording.visible(system)


def _described(run: changes.ComparedRun) -> dict[str, Any]:
    facts = {name: run.described.get(name) for name in ("created_at", "detectors")}
    ensemble = (run.described.get("ensemble") or {}).get("name")
    return {"url": run.run.store.url, **facts, "ensemble": ensemble, "finished": run.run.store.exists("summary.json")}


def _systems(a: changes.ComparedRun, b: changes.ComparedRun) -> list[str]:
    """The ensemble and the detectors of both runs, but one that is all that both ensembles consist of."""
    shared = [name for name in a.detectors if name in b.detectors]
    alone = [len((run.described.get("ensemble") or {}).get("members", ())) == len(run.detectors) == 1 for run in (a, b)]
    return [ENSEMBLE, *([] if all(alone) else shared)]


def _truth(runs: Sequence[changes.ComparedRun], pairing: changes.Pairing, labels: str | None) -> changes.ImageTruth | None:
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


def _tests(document: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    yield from (document["verdicts"], document["flagged"])
    for system in document["systems"]:
        yield system["shift"]
        if drift := system["distribution"]["drift"]:
            yield from ({"p": drift[f"{which}_p"], "of": drift, "which": which} for which in ("ks", "psi"))
    for system in document["labelled"]["systems"] if document["labelled"] else ():
        yield from filter(None, (system["auc"], system["right"]))


def _equal(document: Mapping[str, Any]) -> bool:
    """Whether no paired image differs in status, verdict or any score."""
    shifts = [system["shift"] for system in document["systems"]]
    same = all(one["equal"] == one["n"] and not one["gained"] and not one["lost"] for one in shifts)
    return same and not document["verdicts"]["flips"] and not document["statuses"]["pairs"]
