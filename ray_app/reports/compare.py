"""A comparison of two runs in a few lines for the terminal (`comparison_lines`).

Every text in the document of `touchstone compare` is taken for hostile.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from ray_app.reports import format as wording
from ray_app.reports import text
from ray_app.reports.evaluation.result import IntervalInfo

_LONGEST_NAME = 48
_SHOWN = (0.05, 0.5, 0.95)
_FEW_SHARED = 0.5  # of the images of the smaller run


def comparison_lines(document: Mapping[str, Any], width: int = text.OUTPUT_WIDTH) -> list[str]:
    """A comparison in words, for the terminal."""
    rows, verdicts, statuses = document["rows"], document["verdicts"], document["statuses"]
    lines = _note_few_shared(rows)
    if document["equal"] and rows["both"]:
        lines.append(
            f"no difference: statuses, scores, and verdicts are equal for {wording.counted(rows['both'], 'image')} in both runs"
        )
    matched = f"matched by {rows['by']}" + (
        f": {wording.visible(rows['why'])}" if rows["why"] else ""
    )
    lines.append(
        f"images: {rows['both']:,} in both runs, {rows['only_a']:,} only in A, {rows['only_b']:,} only in B ({matched})"
    )
    lines += [
        f"not finished: run {side.upper()}"
        for side in "ab"
        if not document["runs"][side]["finished"]
    ]
    if document["identity"]:
        keys = [wording.shortened(one["key"], _LONGEST_NAME) for one in document["identity"]]
        more = f" and {len(keys) - 5:,} more" if len(keys) > 5 else ""
        lines.append(f"made with different settings: {', '.join(keys[:5])}{more}")
    lines += [
        f"only in {side.upper()}: detector {wording.visible(name)}"
        for side in "ab"
        for name in document["only_detectors"][side]
    ]
    if statuses["pairs"]:
        lines.append(
            f"statuses: {sum(count for _, _, count in statuses['pairs']):,} of {statuses['n']:,} changed"
        )
    if verdicts["n"]:
        a, b = (wording.percent(verdicts[side]["value"]) for side in ("flagged_a", "flagged_b"))
        lines.append(
            f"verdicts: {verdicts['flips']:,} of {verdicts['n']:,} changed; flagged {a} in A, {b} in B"
        )
    if rows["both"]:
        heads = ["scores", "mean shift", "5 % … 95 %", "moved", "equal", "KS", "PSI"]
        cells = [_shift_cells(document, system) for system in document["systems"]]
        lines += text.table(heads, cells, width, right={1, 2, 3, 4, 5, 6})
    else:
        cells = [_drift_cells(document, system) for system in document["systems"]]
        lines += text.table(
            ["scores", "median A", "median B", "KS", "p", "PSI", "p"],
            cells,
            width,
            right={1, 2, 3, 4, 5, 6},
        )
    return lines + _label_lines(document["labelled"])


def _note_few_shared(rows: Mapping[str, Any]) -> list[str]:
    """Return a line if a run is empty, or if less than half of the images of the smaller run are in
    both runs.
    """
    if not rows["a"] or not rows["b"]:
        return [
            "nothing to compare: "
            + ("one run has no rows" if rows["a"] or rows["b"] else "neither run has a row")
        ]
    both, images = rows["both"], [rows["both"] + rows[f"only_{side}"] for side in "ab"]
    if both >= _FEW_SHARED * min(images):
        return []
    if not both:
        return ["no image is in both runs: only the distributions of their scores can be compared"]
    return [
        f"few images are in both runs ({both:,} of {images[0]:,} in A and {images[1]:,} in B): the table is about these alone"
    ]


def _written(value: float | None, kind: str) -> str:
    """A value as a share, a difference of shares in points, an area, or log-odds; a dash where it
    is not defined.
    """
    if value is None:
        return wording.NONE
    if kind == "share":
        return wording.percent(value)
    if kind == "area":
        return wording.written("auc", value)
    return {"points": f"{100 * value:+.2f}", "log-odds": f"{value:+.3f}", "areas": f"{value:+.4f}"}[
        kind
    ].replace("-", "−")


def _shift_cells(document: Mapping[str, Any], system: Mapping[str, Any]) -> list[str]:
    """The system, mean shift, its 5 % and 95 % points, share that moved, share that is equal, KS,
    PSI.
    """
    shift, drift = system["shift"], system["distribution"]["drift"]
    quantiles = _quantiles(document, shift["quantiles"])
    between = f"{quantiles[0]} … {quantiles[2]}" if quantiles else wording.NONE
    equal = wording.percent(shift["equal"] / shift["n"]) if shift["n"] else wording.NONE
    drifted = [f"{drift['ks']:.3f}", f"{drift['psi']:.3f}"] if drift else [wording.NONE] * 2
    mean, moved = (
        _written(shift["mean"]["value"], "log-odds"),
        _written(shift["moved"]["value"], "share"),
    )
    return [wording.shortened(system["name"], _LONGEST_NAME), mean, between, moved, equal, *drifted]


def _drift_cells(document: Mapping[str, Any], system: Mapping[str, Any]) -> list[str]:
    """The system, medians of A and of B, KS, its p, PSI, its p."""
    distribution = system["distribution"]
    medians = [
        (_quantiles(document, distribution[f"quantiles_{side}"]) or [wording.NONE] * 3)[1]
        for side in "ab"
    ]
    drift = distribution["drift"]
    tests = [wording.NONE] * 4
    if drift:
        tests = [
            f"{drift['ks']:.3f}",
            wording.probability(drift["ks_p"]),
            f"{drift['psi']:.3f}",
            wording.probability(drift["psi_p"]),
        ]
    return [system["name"], *medians, *tests]


def _quantiles(document: Mapping[str, Any], values: Sequence[float]) -> list[str]:
    """The 5 %, 50 % and 95 % points; nothing without scores."""
    return (
        [
            wording.score(values[document["quantiles"].index(share)]).replace("-", "−")
            for share in _SHOWN
        ]
        if values
        else []
    )


def _label_lines(labelled: Mapping[str, Any] | None) -> list[str]:
    """Metrics of A and of B by the labels, and their differences, of each system."""
    if not labelled:
        return []
    words = IntervalInfo(**(labelled.get("intervals") or {})).words
    lines = [f"by labels: {words}"] if words else []
    for system in labelled["systems"]:
        name = wording.shortened(system["name"], _LONGEST_NAME)
        for key, what, kind, unit in (
            ("auc", "AUC", "area", "areas"),
            ("right", "judged correctly", "share", "points"),
        ):
            if test := system[key]:
                a, b = (_written(test[side]["value"], kind) for side in "ab")
                difference = _written(test["difference"]["value"], unit) + (
                    " points" if unit == "points" else ""
                )
                lines.append(
                    f"{name}: {what} {a} in A, {b} in B ({difference}, p {wording.probability(test['p'])})"
                )
    return lines
