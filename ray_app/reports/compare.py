"""A comparison of two runs → one HTML page that loads nothing and runs nothing (`render_comparison`), and a few lines
(`comparison_lines`).

Every text in the document of `touchstone compare` is taken for hostile.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from markupsafe import Markup

from ray_app.reports import charts, text
from ray_app.reports import format as wording
from ray_app.reports.evaluation.system_model import IntervalFacts
from ray_app.reports.html import render

_MOST_GENERATORS = 60
_MOST_SETTINGS = 200
_MOST_STATUSES = 24
_LONGEST_NAME = 48
_LINES = 110  # columns of the terminal's table
_SHOWN = (0.05, 0.5, 0.95)
VERDICTS = tuple(wording.VERDICT_WORDS)

Figure = Mapping[str, Any]


def render_comparison(document: Mapping[str, Any]) -> str:
    """Write a comparison (`ray_app.evaluation.compare.compare.compare`) as one self-contained HTML page."""
    return render(
        "comparison.html",
        document=document,
        findings=_findings(document),
        shifts=[_shift(document, system) for system in document["systems"]],
        drifts=[_drift(document, system) for system in document["systems"]],
        charts=[(system["name"], chart) for place, system in enumerate(document["systems"]) if (chart := _chart(place, system))],
        rows=_rows(document["rows"]),
        identity=document["identity"][:_MOST_SETTINGS],
        statuses=document["statuses"]["pairs"][:_MOST_STATUSES],
        verdicts=VERDICTS,
        better=_better(document["labelled"]),
        interval_words=_interval_words(document["labelled"]),
        generators=_generators(document["labelled"]),
        most_generators=_MOST_GENERATORS,
        measured=measured,
        ends=ends,
        scored=lambda value: wording.score(value).replace("-", "−"),
    )


def comparison_lines(document: Mapping[str, Any]) -> list[str]:
    """A comparison in words, for the terminal."""
    rows, verdicts = document["rows"], document["verdicts"]
    lines = [document["headline"]]
    matched = f"matched by {rows['by']}" + (f": {wording.visible(rows['why'])}" if rows["why"] else "")
    lines.append(f"images: {rows['both']:,} in both runs, {rows['only_a']:,} only in A, {rows['only_b']:,} only in B ({matched})")
    lines += [f"not finished: run {side.upper()}" for side in "ab" if not document["runs"][side]["finished"]]
    if document["identity"]:
        keys = [wording.shortened(one["key"], _LONGEST_NAME) for one in document["identity"]]
        more = f" and {len(keys) - 5:,} more" if len(keys) > 5 else ""
        lines.append(f"made with different settings: {', '.join(keys[:5])}{more}")
    lines += [f"only in {side.upper()}: detector {wording.visible(name)}" for side in "ab" for name in document["only_detectors"][side]]
    if verdicts["n"]:
        a, b = (wording.percent(verdicts[side]["value"]) for side in ("flagged_a", "flagged_b"))
        lines.append(f"verdicts: {verdicts['flips']:,} of {verdicts['n']:,} changed; flagged {a} in A, {b} in B")
    if rows["both"]:
        heads = ["scores", "mean shift", "5 % … 95 %", "moved", "equal", "KS", "PSI"]
        cells = [_line(document, system) for system in document["systems"]]
        lines += text.table(heads, cells, _LINES, right={1, 2, 3, 4, 5, 6})
    else:
        cells = [[row[0], *row[3:]] for row in (_drift(document, system) for system in document["systems"])]
        lines += text.table(["scores", "median A", "median B", "KS", "p", "PSI", "p"], cells, _LINES, right={1, 2, 3, 4, 5, 6})
    if words := _interval_words(document["labelled"]):
        lines.append(f"by labels: {words}")
    for row in _better(document["labelled"]):
        unit = "" if row["what"] == "AUC" else " points"
        change = f"{row['a']} in A, {row['b']} in B ({row['difference']}{unit}, p {row['p']})"
        lines.append(f"{wording.shortened(row['name'], _LONGEST_NAME)}: {row['what']} {change}")
    return lines + [f"changed: {one['text']}" for one in document["findings"]]


def measured(figure: Figure, kind: str = "share") -> str:
    """A figure's value as a share, a difference of shares in points, or log-odds; a dash where it is not defined."""
    return _written(figure["value"], kind)


def ends(figure: Figure, kind: str = "share") -> list[str]:
    """The ends of a figure's interval, written alike; nothing where there is none."""
    return [_written(end, kind) for end in figure["interval"] or ()]


def _written(value: float | None, kind: str) -> str:
    if value is None:
        return wording.NONE
    if kind == "share":
        return wording.percent(value)
    if kind == "area":
        return wording.written("auc", value)
    return {"points": f"{100 * value:+.2f}", "log-odds": f"{value:+.3f}", "areas": f"{value:+.4f}"}[kind].replace("-", "−")


def _rows(counts: Mapping[str, Any]) -> list[tuple[str, int, int]]:
    """What became of the rows of A and of B; only kinds that there are."""
    kinds = {
        "only_{}": "of images in this run only",
        "doubled_{}": "of images that have a row already",
        "unnamed_{}": "never read, so without a hash to match by",
    }
    rows = [("all", counts["a"], counts["b"]), ("of images in both", counts["both"], counts["both"])]
    found = [(words, counts[name.format("a")], counts[name.format("b")]) for name, words in kinds.items()]
    return rows + [row for row in found if row[1] or row[2]]


def _findings(document: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """What changed, its 95 % interval, and p after correction."""
    kinds = {"mean_shift": "log-odds", "flagged": "points", "right": "points", "auc": "areas"}
    found = []
    for one in document["findings"]:
        kind = kinds.get(one["what"], "share")
        unit = {"log-odds": " log-odds", "points": " points"}.get(kind, "")
        between = f"{' to '.join(_written(end, kind) for end in one['interval'])}{unit}" if one["interval"] else ""
        found.append((one["text"], between, wording.probability(one["p_holm"])))
    return found


def _shift(document: Mapping[str, Any], system: Mapping[str, Any]) -> list[str]:
    """The system, images, mean with its interval, quantiles, share that moved, share that is equal, p."""
    shift = system["shift"]
    between = " to ".join(ends(shift["mean"], "log-odds"))
    quantiles = _quantiles(document, shift["quantiles"])
    equal = wording.percent(shift["equal"] / shift["n"]) if shift["n"] else wording.NONE
    middle = [f"{quantiles[0]} … {quantiles[2]}" if quantiles else wording.NONE, measured(shift["moved"]), equal]
    return [system["name"], wording.count(shift["n"]), measured(shift["mean"], "log-odds"), between, *middle, _p(shift)]


def _drift(document: Mapping[str, Any], system: Mapping[str, Any]) -> list[str]:
    """The system, images of A and of B, medians of both, KS, its p, PSI, its p."""
    shift = system["distribution"]
    medians = [(_quantiles(document, shift[f"quantiles_{side}"]) or [wording.NONE] * 3)[1] for side in "ab"]
    drift = shift["drift"]
    tests = [f"{drift['ks']:.3f}", _p(drift, "ks_p"), f"{drift['psi']:.3f}", _p(drift, "psi_p")] if drift else [wording.NONE] * 4
    return [system["name"], wording.count(shift["n_a"]), wording.count(shift["n_b"]), *medians, *tests]


def _quantiles(document: Mapping[str, Any], values: Sequence[float]) -> list[str]:
    """The 5 %, 50 % and 95 % points; nothing without scores."""
    return [wording.score(values[document["quantiles"].index(share)]).replace("-", "−") for share in _SHOWN] if values else []


def _line(document: Mapping[str, Any], system: Mapping[str, Any]) -> list[str]:
    shift, drift = _shift(document, system), _drift(document, system)
    return [wording.shortened(shift[0], _LONGEST_NAME), shift[2], *shift[4:7], drift[5], drift[7]]


def _chart(place: int, system: Mapping[str, Any]) -> Markup | None:
    """The scores of both runs as two outlines over one axis, each as shares of its run."""
    drawn = system["distribution"]["histogram"]
    counts = [drawn["a"], drawn["b"]]
    taken = [index for index, pair in enumerate(zip(*counts, strict=True)) if any(pair)]
    if not taken or not all(map(sum, counts)):
        return None
    first, last = max(0, taken[0] - 1), min(len(drawn["edges"]) - 1, taken[-1] + 2)
    edges = drawn["edges"][first : last + 1]
    shares = [[number / sum(one) for number in one[first:last]] for one in counts]
    outlines = [_outline(edges, one) for one in shares]
    top = 1.08 * max(map(max, shares))
    described = f"{sum(counts[0]):,} scores in A, {sum(counts[1]):,} in B."
    axes = charts.number_axis("score, log-odds", edges[0], edges[-1]), charts.share_axis("share of images", 0, top)
    traces = [charts.Trace(style, points) for style, points in enumerate(outlines)]
    title = f"Scores of {system['name']} in both runs"
    return charts.plane(traces, *axes, ident=f"scores-{place}", title=title, description=described, flat=True)


def _outline(edges: Sequence[float], heights: Sequence[float]) -> list[tuple[float, float]]:
    """Bars as one line along their tops."""
    steps = [point for ends, height in zip(pairwise(edges), heights, strict=True) for point in ((ends[0], height), (ends[1], height))]
    return [(edges[0], 0.0), *steps, (edges[-1], 0.0)]


def _interval_words(labelled: Mapping[str, Any] | None) -> str:
    """What the intervals and tests of figures by labels are of; empty in a document that does not say."""
    return IntervalFacts.model_validate((labelled or {}).get("intervals") or {}).words


def _better(labelled: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """Figures of A and of B by the labels, and their differences, of each system."""
    rows = []
    for system in labelled["systems"] if labelled else ():
        for key, what, kinds in (("auc", "AUC", ("area", "areas")), ("right", "judged correctly", ("share", "points"))):
            if test := system[key]:
                row = {"name": system["name"], "what": what, "n": test["n"], "ends": ends(test["difference"], kinds[1]), "p": _p(test)}
                rows.append(
                    row | {side: measured(test[side], kinds[0]) for side in "ab"} | {"difference": measured(test["difference"], kinds[1])}
                )
    return rows


def _generators(labelled: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    """The generators that changed most surely first, then those that changed most."""
    rows = list(labelled["generators"]) if labelled else []
    rows.sort(key=lambda one: (1 if one["p_holm"] is None else one["p_holm"], -abs(one["difference"]["value"] or 0), one["generator"]))
    return rows


def _p(test: Mapping[str, Any], name: str = "p") -> str:
    return wording.probability(test[f"{name}_holm"])
