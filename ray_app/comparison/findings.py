"""What of a comparison is worth saying: significant, and not negligible. Knows the document of `comparing`; computes no test.

A run of 10⁷ images makes any trifle significant, and one of 50 hardly anything: so each finding takes both.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ray_app.comparison.shifts import MOVED
from ray_app.evaluation.systems import ENSEMBLE
from ray_app.metrics.paired import holm
from ray_app.reports import wording

ALPHA = 0.01  # after Holm's correction over all tests of a comparison
LEAST: Mapping[str, float] = {
    "flipped": 0.001,  # share of images whose verdict is another
    "statuses": 0.001,  # share of images whose status is another
    "mean_shift": 0.05,  # log-odds
    "moved": 0.01,  # share of images whose score changed by more than MOVED
    "flagged": 0.005,  # difference of the shares that are flagged
    "auc": 0.005,
    "right": 0.005,  # difference of the shares that are told right
    "ks": 0.05,
    "psi": 0.1,
}
RULE = (
    f"Said is what is significant, p < {ALPHA:g} after Holm’s correction over all tests here, and not negligible: a mean shift of "
    f"{LEAST['mean_shift']:g} log-odds, {wording.stated(LEAST['flagged'])} more or fewer flagged or told right, {LEAST['auc']:g} of AUC, a "
    f"Kolmogorov–Smirnov distance (KS) of {LEAST['ks']:g} or a stability index (PSI) of {LEAST['psi']:g} at least. Shares of verdicts or "
    f"statuses that changed ({wording.stated(LEAST['flipped'])}) and of scores that moved by more than {MOVED:g} "
    f"({wording.stated(LEAST['moved'])}) are said where their whole 95 % interval lies beyond that."
)
_MOST_IN_HEADLINE = 2


def correct(tests: Sequence[dict[str, Any]]) -> None:
    """Set `p_holm` beside the `p` of each test, corrected for all of them."""
    for test, corrected in zip(tests, holm([test["p"] for test in tests]), strict=True):
        test["p_holm"] = corrected


def findings(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What changed, with its size in words, the most telling first."""
    found = [*_of_decisions(document), *(one for system in document["systems"] for one in _of_scores(system))]
    told = {one["system"] for one in found if one["what"] in ("mean_shift", "moved")}
    found += [one for system in document["systems"] if system["name"] not in told for one in _of_distribution(system)]
    if not any(one["what"] in ("flagged", "flipped") for one in found):
        found += _of_rate(document["flagged"], "all images of either run")
    return found + list(_of_labels(document["labelled"]) if document["labelled"] else [])


def headline(document: Mapping[str, Any]) -> str:
    """The comparison in one sentence."""
    found, rows = document["findings"], document["rows"]
    if not rows["a"] or not rows["b"]:
        return "Nothing to compare: " + ("both runs have no row." if not rows["a"] and not rows["b"] else "one run has no row.")
    if found:
        texts = "; ".join(one["text"] for one in found[:_MOST_IN_HEADLINE])
        more = len(found) - _MOST_IN_HEADLINE
        return f"{texts[0].upper()}{texts[1:]}{f'; and {more} more' if more > 0 else ''}."
    if not rows["both"]:
        return "No difference found: the runs share no image, and their scores and verdicts are distributed alike."
    pairs = wording.counted(rows["both"], "image")
    if document["equal"]:
        return f"No difference: statuses, scores and verdicts of the {pairs} in both runs are the same."
    return f"No difference worth saying: what differs on the {pairs} in both runs is negligible or within chance."


def _of_decisions(document: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    verdicts, statuses = document["verdicts"], document["statuses"]
    if _surely(verdicts["flipped"], "flipped"):
        yield _finding("flipped", None, f"{_share(verdicts['flipped'])} of verdicts changed", verdicts["flipped"])
    if _is_said(verdicts, "flagged"):
        a, b = (wording.percent(verdicts[side]["value"]) for side in ("flagged_a", "flagged_b"))
        yield _finding("flagged", None, f"of the same images {a} were flagged in A and {b} in B", verdicts["difference"], verdicts)
    if _surely(statuses["changed"], "statuses"):
        yield _finding("statuses", None, f"{_share(statuses['changed'])} of statuses changed", statuses["changed"])


def _of_scores(system: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    shift, name = system["shift"], _called(system["name"])
    mean = shift["mean"]
    if mean["value"] is not None and _significant(shift["p_holm"]) and abs(mean["value"]) >= LEAST["mean_shift"]:
        words = f"scores of {name} {'rose' if mean['value'] > 0 else 'fell'} by {abs(mean['value']):.2f} log-odds on average"
        yield _finding("mean_shift", system["name"], words, mean, shift)
    elif _surely(shift["moved"], "moved"):
        yield _finding(
            "moved", system["name"], f"{_share(shift['moved'])} of scores of {name} moved by more than {MOVED:g}", shift["moved"]
        )


def _of_distribution(system: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    drift = system["distribution"]["drift"]
    if drift and any(_significant(drift[f"{one}_p_holm"]) and drift[one] >= LEAST[one] for one in ("ks", "psi")):
        name = _called(system["name"])
        words = f"scores of {name} are distributed otherwise (KS {drift['ks']:.2f}, PSI {drift['psi']:.2f})"
        p = min(drift["ks_p_holm"], drift["psi_p_holm"])
        yield {"what": "drift", "system": system["name"], "text": words, "value": drift["ks"], "interval": None, "p_holm": p}


def _of_rate(flagged: Mapping[str, Any], of: str) -> Iterator[dict[str, Any]]:
    if _is_said(flagged, "flagged"):
        a, b = (wording.percent(flagged[side]["value"]) for side in ("a", "b"))
        yield _finding("flagged", None, f"of {of} {a} were flagged in A and {b} in B", flagged["difference"], flagged)


def _of_labels(labelled: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for system in labelled["systems"]:
        name = _called(system["name"])
        for key, words in (("auc", "the AUC of {}"), ("right", "the share that {} tells right")):
            test = system[key]
            if test and _is_said(test, key):
                a, b = (
                    wording.figure("auc", test[side]["value"]) if key == "auc" else wording.percent(test[side]["value"]) for side in "ab"
                )
                rose = "rose" if test["difference"]["value"] > 0 else "fell"
                yield _finding(key, system["name"], f"{words.format(name)} {rose} from {a} to {b}", test["difference"], test)


def _finding(what: str, system: str | None, text: str, figure: Mapping[str, Any], test: Mapping[str, Any] | None = None) -> dict[str, Any]:
    p = test["p_holm"] if test else None
    return {"what": what, "system": system, "text": text, "value": figure["value"], "interval": figure["interval"], "p_holm": p}


def _is_said(test: Mapping[str, Any], what: str) -> bool:
    value = test["difference"]["value"]
    return value is not None and abs(value) >= LEAST[what] and _significant(test["p_holm"])


def _surely(figure: Mapping[str, Any], what: str) -> bool:
    return figure["value"] is not None and figure["interval"][0] > LEAST[what]


def _significant(p: float | None) -> bool:
    return p is not None and p < ALPHA


def _share(figure: Mapping[str, Any]) -> str:
    return wording.percent(figure["value"])


def _called(system: str) -> str:
    return "the ensemble" if system == ENSEMBLE else wording.visible(system)
