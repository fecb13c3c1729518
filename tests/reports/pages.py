"""Every report: pages of examples, and pages and lines whose every name, path and sentence is a
given text.
"""

from functools import cache
from pathlib import Path

from ray_app.reports import render_run_report, summary_lines
from ray_app.reports.attribution import (
    identifier_lines,
    identifier_plan_lines,
    render_identifier_report,
)
from ray_app.reports.check import check_lines, render_check
from ray_app.reports.compare import comparison_lines
from ray_app.reports.evaluation.page import evaluation_lines, render_evaluation
from ray_app.reports.gallery import GalleryTile, PageNumber, render_gallery_page
from ray_app.reports.training import render_training_report, training_lines
from ray_app.runs.document import EnsembleSummary
from tests.reports.check_example import FACTS, check_row
from tests.reports.comparison_example import GENERATORS, example_comparison
from tests.reports.evaluation_example import (
    example_document,
    large_document,
    one_class,
    small_document,
)
from tests.reports.example import example_summary, thumbnail
from tests.reports.hostile import poisoned
from tests.reports.identifier_example import CLASSES, FAMILIES, example_identifier
from tests.reports.profile_example import example_profile
from tests.reports.training_example import example_facts

NO_SECTIONS = {key: None for key in small_document()}


def _without(*keys):
    document = small_document()
    return document | {
        "systems": [
            {key: value for key, value in one.items() if key not in keys}
            for one in document["systems"]
        ]
    }


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
        "example": example_document,
        "large": large_document,
        "empty": dict,
        "nulls": lambda: NO_SECTIONS,
        "only reals": lambda: one_class("real"),
        "only fakes": lambda: one_class("fake"),
        "no image": lambda: (
            small_document()
            | {"systems": [{"name": "a", "kind": "detector"}], "table": {"columns": ["a"]}}
        ),
        "no generator, no view": lambda: _without(
            "generators", "views", "strata", "kinds", "averages"
        ),
        "no curve": lambda: _without(
            "roc", "precision_recall", "reliability", "histogram", "risk_coverage"
        ),
        "no table": lambda: (
            small_document() | {"table": {"rows": [], "columns": [], "cells": {}, "footers": []}}
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
    found = poisoned(
        facts, text, names=sorted({name for names in maps for name in names}), words={"label"}
    )
    pictures = [one | {"jpeg": b"<svg onload=alert(1)>"} for one in found["mistakes"]]
    return found | {"calibration": None, "calibration_note": text, "mistakes": pictures}


@cache
def hostile_evaluation(text):
    document = small_document()
    first = document["systems"][0]
    listed = (document["systems"], first["generators"], first["views"], document["table"]["rows"])
    names = [*(one["name"] for part in listed for one in part), "JPEG", "PNG", "WEBP", "1–4 MP"]
    found = poisoned(
        document, text, names=names, words={"label", "kind", "seen", "output", "test", "method"}
    )
    found["mistakes"] = [one | {"thumbnail": "<svg onload=alert(1)>"} for one in found["mistakes"]]
    found["overlays"] = [
        one | {"picture": "PHN2ZyBvbmxvYWQ9YWxlcnQoMSk+"} for one in found["overlays"]
    ]
    found["data"]["statuses"] |= {text or "other": 3}
    found["run"]["identity"] = {text or "key": {text or "key": [text]}}
    return found


def hostile_comparison(text):
    words = {"verdict_a", "verdict_b", "by", "method", "kind", "label"}
    return poisoned(
        example_comparison(n=60), text, names=["touchstone-tiny", *GENERATORS], words=words
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
        ensemble=EnsembleSummary(name=text),
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
    "comparison": lambda text: comparison_lines(hostile_comparison(text)),
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
