"""What an evaluation leaves behind: `metrics.json`, `metrics.csv` and `report.html`, each written at once. Knows the document's shape."""

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ray_app.storage import Store

COLUMNS = ("system", "view", "scope", "figure", "value", "low", "high", "method", "n", "why")
Line = tuple[str, str, str, str, Mapping[str, Any]]
"""System, view, scope, name and figure."""
_FORMULA = re.compile(r"^\s*[=+\-@\t\r]")
_SCOPES = ("figures", "decided", "averages")


def write_document(document: Mapping[str, Any], out: Store) -> None:
    """Write all three files. Raises ValueError for a number that JSON does not know, which no figure is."""
    from ray_app.reports.evaluation_report import render_evaluation

    out.write("metrics.json", json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False).encode())
    out.write("metrics.csv", metrics_csv(document).encode())
    out.write("report.html", render_evaluation(document).encode())


def metrics_csv(document: Mapping[str, Any]) -> str:
    """Every figure of the document as a line of COLUMNS; a text that a spreadsheet would take for a formula has a ' before it."""
    stream = io.StringIO(newline="")
    writer = csv.writer(stream, lineterminator="\r\n")
    writer.writerow(COLUMNS)
    for system, view, scope, name, figure in _figures(document):
        low, high = figure.get("interval") or (None, None)
        facts = [figure.get("value"), low, high, figure.get("method"), figure.get("n"), figure.get("why")]
        writer.writerow([_tame(value) for value in (system, view, scope, name, *facts)])
    return stream.getvalue()


def _figures(document: Mapping[str, Any]) -> Iterator[Line]:
    yield "", "", "data", "shortcut_auc", document["data"]["shortcut"]["auc"]
    for system in document["systems"]:
        for view, scope, figures in _of_system(system):
            for name, figure in figures.items():
                yield system["name"], view, scope, name, figure
    for pair in document["paired"]:
        yield pair["b"], "", f"less {pair['a']}", pair["test"], pair["difference"]
    yield from _of_masks((document["localization"] or {}).get("systems", []))
    for footer in document["table"]["footers"]:
        for system_name, figure in footer["cells"].items():
            yield system_name, "", "table", footer["name"], figure
    for section in ("identification", "prompts", "groups"):
        for name, figure in _among(document.get(section) or {}):
            yield "", "", section, name, figure


def _of_masks(systems: Iterable[Mapping[str, Any]]) -> Iterator[Line]:
    for one in systems:
        for view in [one, *one["views"]]:
            for name, figure in view["figures"].items():
                yield one["name"], "" if view is one else view["name"], f"masks at {one['resolution']} size", name, figure
        for name, figure in _among({part: one.get(part) for part in ("generators", "imdlbenco", "opensdi")}):
            yield one["name"], "", f"masks at {one['resolution']} size", name, figure


def _of_system(system: Mapping[str, Any]) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """View, scope and figures of every part of a system's entry."""
    for part in _SCOPES:
        yield "", "all" if part == "figures" else part, system[part] or {}
    yield "", "all", {"aurc": system["risk_coverage"]["aurc"]}
    for kind, figures in system["kinds"].items():
        yield "", f"{kind} fakes", figures
    for one in system["generators"]:
        named = {key: value for key, value in one.items() if isinstance(value, Mapping)}
        yield "", f"{one['label']}, {one['kind']}: {one['name']}", named
    for one in system["strata"]:
        yield "", f"{one['format']}, {one['size']}", {name: one[name] for name in ("auc", "balanced_accuracy")}
    for one in system["views"]:
        yield one["name"], "all", one["figures"]


def _among(section: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """All figures of a section, wherever they stand, with the way to them; what stands in a list goes by its name."""
    for key, value in section.items():
        if isinstance(value, list):
            value = {one["name"]: one for one in value if isinstance(one, Mapping) and "name" in one}
        if isinstance(value, Mapping):
            if {"value", "why"} <= value.keys():
                yield path + key, value
            else:
                yield from _among(value, f"{path}{key}.")


def _tame(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and _FORMULA.match(value) else value
