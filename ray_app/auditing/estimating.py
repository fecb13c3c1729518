"""An audit's answer: prevalence, precision and recall of a run's verdicts from labels of its sample, as plain JSON."""

import json
from pathlib import Path
from typing import Any

from ray_app.auditing.answers import Answers, read_answers
from ray_app.auditing.sample import Audit, changed_since, read_audit
from ray_app.metrics.figure import figure_rows
from ray_app.metrics.intervals import proportion
from ray_app.metrics.stratified import archive_figures, either_way
from ray_app.reports.wording import counted
from ray_app.runs import RunDirectory

RESULT = "result.json"
SCHEMA = 1


def estimate(url: str, labels: str, folder: Path) -> dict[str, Any]:
    """What labels of a sample of the run at `url` say of it; also written to `folder`/result.json.

    The sample's `audit.json` lies in that folder, or beside the labels. Raises ConfigError as `read_audit` and `read_answers` do, and
    where the sample is of another run.
    """
    audit = read_audit(folder, Path(labels).parent)
    answers = read_answers(labels, audit)
    document = document_of(audit, answers) | {"notes": _notes(audit, answers, RunDirectory.open(url))}
    (folder / RESULT).write_text(json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False), encoding="utf-8")
    return document


def document_of(audit: Audit, answers: Answers) -> dict[str, Any]:
    """The figures, each with its interval, and what each stratum was found to hold."""
    seed = int(audit.facts["seed"])
    strata = [
        {**one.row(), "fakes": found.fakes, "reals": found.reals, "unsure": found.unsure,
         "fake_share": proportion(found.fakes, found.labelled, "none is labelled").row()}
        for one, found in zip(audit.strata, answers.strata, strict=True)
    ]  # fmt: skip
    widest = either_way(answers.strata, seed=seed) if answers.unsure else {}
    return {
        "schema": SCHEMA,
        "audit": {key: audit.facts[key] for key in ("run", "fingerprint", "listing", "ensemble", "seed", "made_at", "unscored")},
        "scored": audit.scored,
        "drawn": len(audit.images),
        "labelled": answers.labelled,
        "unsure": answers.unsure,
        "blank": answers.blank,
        "figures": figure_rows(archive_figures(answers.strata, seed=seed)),
        "if_unsure_were_either": {name: list(ends) for name, ends in widest.items()},
        "strata": strata,
    }


def _notes(audit: Audit, answers: Answers, run: RunDirectory) -> list[str]:
    """What a reader of the figures must know."""
    unscored = sum(audit.facts["unscored"].values())
    found = [
        (unscored, "member", "of the archive without a verdict: nothing is said of them"),
        (answers.unsure, "image", "left out as unsure: beside each figure stands how far they could move it"),
        (answers.blank, "image", "of the sample without a label: as if not drawn"),
        (answers.others, "label", "left out: of images that were not drawn"),
    ]
    changed = changed_since(audit, run)
    return ([changed] if changed else []) + [f"{counted(number, noun)} {words}" for number, noun, words in found if number]
