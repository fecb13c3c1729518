"""Every report: pages of examples, and pages and lines whose every name, path and sentence is a
given text.
"""

from dataclasses import replace
from functools import cache
from pathlib import Path

from ray_app.metrics.table import MetricsTable
from ray_app.reports import render_run_report, summary_lines
from ray_app.reports.check import check_lines, render_check
from ray_app.reports.compare import comparison_lines
from ray_app.reports.evaluation.page import evaluation_lines, render_evaluation
from ray_app.reports.evaluation.result import (
    TABLE,
    EvaluationMeta,
    EvaluationResult,
    SystemInfo,
)
from ray_app.reports.gallery import GalleryTile, PageNumber, render_gallery_page
from ray_app.reports.identification import (
    identifier_lines,
    identifier_plan_lines,
    render_identifier_report,
)
from ray_app.reports.training import render_training_report, training_lines
from ray_app.runs.document import EnsembleSummary, RunSummary
from tests.reports.check_example import FACTS, check_row
from tests.reports.comparison_example import example_comparison
from tests.reports.evaluation_example import evaluation, example_result
from tests.reports.example import example_summary, thumbnail
from tests.reports.hostile import poisoned
from tests.reports.identifier_example import CLASSES, FAMILIES, example_identifier
from tests.reports.profile_example import example_profile
from tests.reports.training_example import example_facts


def _without_parts() -> EvaluationResult:
    result = example_result()
    systems = tuple(replace(one, generators=(), strata=(), views=()) for one in result.meta.systems)
    return replace(result, meta=replace(result.meta, systems=systems))


# Documents by report and by what is special about each: they are made when a test needs their page.
DOCUMENTS = {
    "run": {
        "example": example_summary,
        "profile": lambda: example_summary(profile=example_profile()),
        "nothing scored": lambda: example_summary(
            statuses={"corrupt_image": 3000}, verdicts={}, histogram={}, top=[]
        ),
        "empty": dict,
    },
    "training": {
        "example": example_facts,
        "no test": lambda: example_facts(test=None),
        "one class": lambda: example_facts(
            validation={"n_real": 3, "auc": None, "loss": 0.4}, test=None
        ),
        "empty": dict,
    },
    "evaluation": {
        "example": example_result,
        "large": lambda: evaluation("large"),
        "empty": EvaluationResult,
        "only reals": lambda: evaluation("only reals"),
        "only fakes": lambda: evaluation("only fakes"),
        "no image": lambda: EvaluationResult(
            EvaluationMeta(systems=(SystemInfo("a", "detector"),))
        ),
        "no generator, no view": _without_parts,
        "no curve": lambda: replace(example_result(), curves={}),
        "no table": lambda: replace(
            example_result(), meta=replace(example_result().meta, table=(), footers=())
        ),
    },
    "identifier": {
        "example": example_identifier,
        "no test": lambda: example_identifier(test=None),
        "no open set": lambda: example_identifier(open_set=None),
    },
}
RENDERERS = {
    "run": lambda summary: render_run_report(
        summary, thumbnails={row["image_id"]: thumbnail() for row in summary.get("top") or ()}
    ),
    "training": render_training_report,
    "evaluation": render_evaluation,
    "identifier": render_identifier_report,
}
EXAMPLES = [(report, kind) for report, kinds in DOCUMENTS.items() for kind in kinds]


@cache
def page_of(report, kind="example"):
    return RENDERERS[report](DOCUMENTS[report][kind]())


def hostile_run(text):
    summary = example_summary(profile=example_profile())
    free = {
        name
        for part in ("flags", "formats", "verdict_reasons", "identity")
        for name in summary[part]
    }
    free |= {*summary["histogram"]["counts"], *summary["session"]["seconds"]} - {"ensemble"}
    found = poisoned(summary, text, names=sorted(free))
    return found | {
        "statuses": summary["statuses"] | {text or "other": 4},
        "examples": found["examples"] | {text: [{"uri": text}]},
    }


def hostile_training(text):
    facts = example_facts()
    data, leaks = facts["data"], facts["data"]["leakage"]
    maps = (
        facts["test"]["generators"],
        leaks["checked"],
        leaks["pairs"],
        data["set_aside"]["why"],
        facts["environment"],
        facts["card"],
    )
    maps += tuple(split["generators"] for split in data["splits"].values())
    fields = {*facts, *facts["mistakes"][0], *next(iter(leaks["pairs"].values()))}
    free = {name for names in maps for name in names} - fields
    found = poisoned(facts, text, names=sorted(free), words={"label"})
    pictures = [one | {"jpeg": b"<svg onload=alert(1)>"} for one in found["mistakes"]]
    return found | {"calibration": None, "calibration_note": text, "mistakes": pictures}


@cache
def hostile_evaluation(text):
    result = example_result()
    meta = result.meta
    first = meta.systems[0]
    listed = (meta.systems, first.generators, first.views, meta.table)
    names = [*(one.name for part in listed for one in part), "JPEG", "PNG", "WEBP", "1–4 MP"]
    words = {"label", "kind", "seen", "output", "test", "method", "scope", "rules", "resolution"}
    words |= {"system", "view", "figure", "distribution"}
    found = poisoned(replace(result, curves={}), text, names=names, words=words)
    run = replace(found.meta.run, identity={text or "key": {text or "key": [text]}})
    data = replace(found.meta.data, statuses=meta.data.statuses | {text or "other": 3})
    return replace(
        found,
        meta=replace(found.meta, run=run, data=data),
        metrics=_renamed(result, found),
        curves={
            new.name: result.curves[old.name]
            for old, new in zip(meta.systems, found.meta.systems, strict=True)
        },
        mistakes=tuple(replace(one, thumbnail="<svg onload=alert(1)>") for one in found.mistakes),
        overlays=tuple(
            replace(one, picture="PHN2ZyBvbmxvYWQ9YWxlcnQoMSk+") for one in found.overlays
        ),
    )


def _renamed(result, hostile):
    """The metrics of hostile texts under the names that the facts have now."""
    names, views, scopes = {}, {}, {}
    for old, new in zip(result.meta.systems, hostile.meta.systems, strict=True):
        names[old.name] = new.name
        views |= {one.name: other.name for one, other in zip(old.views, new.views, strict=True)}
        for part in ("generators", "strata"):
            pairs = zip(getattr(old, part), getattr(new, part), strict=True)
            scopes |= {one.scope: other.scope for one, other in pairs}
    for part in ("groups", "paired"):
        pairs = zip(getattr(result.meta, part), getattr(hostile.meta, part), strict=True)
        scopes |= {one.scope: other.scope for one, other in pairs}
    rows = {
        one.name: other.name
        for one, other in zip(result.meta.table, hostile.meta.table, strict=True)
    }
    return MetricsTable(
        tuple(
            row._replace(
                system=names.get(row.system, row.system),
                view=views.get(row.view, row.view),
                scope=scopes.get(row.scope, row.scope),
                figure=rows.get(row.figure, row.figure) if row.scope == TABLE else row.figure,
            )
            for row in hostile.metrics.rows
        )
    )


def hostile_identifier(text):
    free = [*CLASSES, *dict.fromkeys(FAMILIES.values()), "aside"]
    found = poisoned(
        example_identifier(left_out={"aside": 3}),
        text,
        names=free,
        words={"method", "level", "head"},
    )
    return found | {"recipe": {text: [text, {text: text}]}, "card": {text: text}}


def hostile_gallery(text):
    """A page in the middle of three whose every name and word is `text`."""
    row = {
        "uri": text, "member": text, "verdict": "fake", "probability": 0.5, "calibrated": True, "predicted_generator": text,
        "generator_family": text, "generator_ranking": [text], "generator_probability": 0.5, "generator_confidence": 1.0,
        "predicted_prompt": text, "prompt_likelihood": -1.0, "input": {"label": text, "generator": text, "prompt": text},
    }  # fmt: skip
    tiles = [
        GalleryTile(row, thumbnail()),
        GalleryTile(row | {"predicted_generator": None}, None, text),
        GalleryTile(row | {"verdict": text}, b"<svg>"),
    ]
    return render_gallery_page(
        tiles,
        PageNumber(2, 3),
        run=text,
        shown="said to be of it",
        images=9,
        first=3,
        summary=RunSummary(ensemble=EnsembleSummary(name=text)),
    )


def hostile_check(text, render=lambda *given: "".join(render_check(*given))):
    """Three pictures whose names, details, findings and grounds are all `text`."""
    grounds = [{"source": text, "says": text, "error": text}] * 2
    named = {
        "uri": text,
        "finding": text,
        "format": text,
        "predicted_generator": text,
        "predicted_prompt": text,
        "scores": {text: 1.0, "b": 2.0},
    }
    rows = [
        check_row("", 1.0, "abstain", why=text, detail=text, grounds=grounds),
        check_row("", 2.0, "fake"),
        check_row("", None, None, detail=text),
    ]
    facts = FACTS._replace(name=text, title=text, blind_to=(text,), detectors={text: text})
    return render(
        [row | named for row in rows],
        [text] * 3,
        [thumbnail(), b"<svg>", None],
        facts,
        Path("/tmp/page.html"),
    )


HOSTILE_PAGES = {
    "run": lambda text: render_run_report(hostile_run(text), thumbnails={1001: b"<svg>"}),
    "training": lambda text: render_training_report(hostile_training(text)),
    "evaluation": lambda text: render_evaluation(hostile_evaluation(text)),
    "identifier": lambda text: render_identifier_report(hostile_identifier(text)),
    "gallery": hostile_gallery,
    "check": hostile_check,
}
# several tests look at each
HOSTILE_PAGES = {report: cache(rendered) for report, rendered in HOSTILE_PAGES.items()}


def _identifier_plan(text):
    split = {"images": 9, "known": {text: 4}, "others": {text: 5}}
    return {
        "name": text, "detector": text, "head": "linear", "level": "generator", "classes": [text], "left_out": {text: 1},
        "held_out": [text], "open_set": {"method": "energy", "abstains": 0.05}, "splits": {"train": split},
    }  # fmt: skip


HOSTILE_LINES = {
    "run": lambda text: summary_lines(hostile_run(text)),
    "training": lambda text: training_lines(hostile_training(text) | {"metric": "auc"}),
    "evaluation": lambda text: evaluation_lines(hostile_evaluation(text)),
    "comparison": lambda text: comparison_lines(example_comparison(n=60, text=text)),
    "check": lambda text: hostile_check(
        text,
        lambda rows, names, _, facts, __: "\n".join(check_lines(rows, names, facts, 100)).split(
            "\n"
        ),
    ),
    "identifier": lambda text: [
        *identifier_lines(hostile_identifier(text)),
        *identifier_plan_lines(_identifier_plan(text)),
    ],
}
