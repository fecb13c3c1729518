"""An audit's answer (`estimate`): prevalence, precision and recall of a run's verdicts from people's labels of its sample
(`read_answers`).
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from ray_app.datasets.labels import parse_label
from ray_app.errors import ConfigError
from ray_app.evaluation.audit.sample import Audit, changed_since, read_audit
from ray_app.evaluation.join import JoinKey
from ray_app.evaluation.labels import LabelTables, open_labels
from ray_app.metrics.arrays import figure_rows
from ray_app.metrics.intervals import proportion
from ray_app.metrics.survey_sampling import LabelledStratum, archive_figures, either_way
from ray_app.reports.format import counted
from ray_app.runs import RunDirectory

UNSURE = "unsure"
_KEYS = ("image_id", "uri")  # a spreadsheet may have rounded the former
RESULT = "result.json"
SCHEMA = 1


@dataclass(frozen=True)
class AuditLabels:
    """`strata`: what was found in each; `blank`: drawn images without a label; `others`: labels of images that were not drawn."""

    strata: tuple[LabelledStratum, ...]
    blank: int
    others: int

    @property
    def labelled(self) -> int:
        """Images whose label is real or fake."""
        return sum(one.labelled for one in self.strata)

    @property
    def unsure(self) -> int:
        """Images that people could not decide."""
        return sum(one.unsure for one in self.strata)


def estimate(url: str, labels: str, folder: Path) -> dict[str, Any]:
    """The estimate from labels of a sample of the run at `url`; also written to `folder`/result.json.

    The sample's `audit.json` lies in that folder, or beside the labels. Raises ConfigError as `read_audit` and `read_answers` do, and
    where the sample is of another run.
    """
    audit = read_audit(folder, Path(labels).parent)
    answers = read_answers(labels, audit)
    document = document_of(audit, answers) | {"notes": _notes(audit, answers, RunDirectory.open(url))}
    (folder / RESULT).write_text(json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False), encoding="utf-8")
    return document


def read_answers(place: str, audit: Audit) -> AuditLabels:
    """The labels at a path or URL (CSV, JSONL, Parquet), as answers about a sample: real, fake, unsure or nothing.

    Raises ConfigError where there is no label of the sample, for a word that is no label, and for one image with two of them.
    """
    source = open_labels(place)
    named = source.names()
    keys = [key for key in _KEYS if key in named and not (key == "image_id" and "uri" in named and _are_mangled(source))]
    if not keys or "label" not in named:
        raise ConfigError(f"{source.name}: labels need the columns `label` and `image_id` or `uri`", hint=f"found: {', '.join(named)}")
    labels, others = max((_labels_by(source, JoinKey(key), audit) for key in keys), key=lambda one: len(one[0]))
    if not labels:
        raise ConfigError(
            f"{source.name}: not one label is of the {len(audit.images):,} images of the sample", hint="was it drawn anew since?"
        )
    return AuditLabels(tuple(_strata(audit, labels)), len(audit.images) - len(labels), others)


def document_of(audit: Audit, answers: AuditLabels) -> dict[str, Any]:
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


def _labels_by(source: LabelTables, key: JoinKey, audit: Audit) -> tuple[dict[int, str], int]:
    """The word for each place of the sample that has one, and how many labels are of other images."""
    places = {text: place for place, text in enumerate(_texts(key, audit.images))}
    labels: dict[int, str] = {}
    others = rows = 0
    for table in source.tables([name for name in [*key.columns, "label"] if name in source.names()]):
        for text, answer in zip(key.texts(table).to_pylist(), table["label"].to_pylist(), strict=True):
            rows += 1
            if answer is None or not str(answer).strip():
                continue
            word, place = _word(answer, f"{source.name}, row {rows}"), places.get(text)
            if place is None:
                others += 1
            elif labels.setdefault(place, word) != word:
                raise ConfigError(f"{source.name}, row {rows}: {text} is {labels[place]} in an earlier row and {word} here")
    return labels, others


def _are_mangled(source: LabelTables) -> bool:
    """Whether a spreadsheet has made something else than whole numbers of the ids."""
    try:
        for _ in source.tables(["image_id"]):
            pass
    except ConfigError:
        return True
    return False


def _word(answer: Any, where: str) -> str:
    return UNSURE if str(answer).strip().lower() == UNSURE else parse_label(answer, where)


def _texts(key: JoinKey, images: Sequence[Mapping[str, Any]]) -> list[str]:
    columns = {name: [row[name] for row in images] for name in key.columns}
    table = pa.table({name: pa.array(column, pa.int64() if name == "image_id" else pa.string()) for name, column in columns.items()})
    return [str(text) for text in key.texts(table).to_pylist()]


def _strata(audit: Audit, labels: Mapping[int, str]) -> list[LabelledStratum]:
    counts = [{"fake": 0, "real": 0, UNSURE: 0} for _ in audit.strata]
    for place, word in labels.items():
        counts[audit.images[place]["stratum"]][word] += 1
    return [
        LabelledStratum(one.size, one.verdict == "fake", found["fake"], found["real"], found[UNSURE], one.words)
        for one, found in zip(audit.strata, counts, strict=True)
    ]


def _notes(audit: Audit, answers: AuditLabels, run: RunDirectory) -> list[str]:
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
