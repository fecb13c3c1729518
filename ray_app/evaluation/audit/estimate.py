"""An audit's answer (`estimate`): prevalence, and precision, recall and false-positive rate of a
run's verdicts, from people's labels of its sample (`read_answers`); whether the card's promise was
kept.
"""

import contextlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ray_app.archives.label_tables import columns_hint
from ray_app.datasets.labels import parse_label
from ray_app.errors import ConfigError
from ray_app.evaluation.audit.sample import Audit, changed_since, read_audit
from ray_app.evaluation.labels import LabelTables, open_labels
from ray_app.metrics import intervals, survey_sampling
from ray_app.reports.format import counted, percent, stated
from ray_app.runs import RunDirectory

UNSURE = "unsure"
RESULT = "result.json"
SCHEMA = 1


@dataclass(frozen=True)
class AuditLabels:
    """`strata`: what was found in each; `blank`: drawn images without a label; `others`: labels of
    images that were not drawn.
    """

    strata: tuple[survey_sampling.LabelledStratum, ...]
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
    """The estimate from labels of a sample of the run at `url`; also written to
    `folder`/result.json.

    The sample's `audit.json` lies in that folder, or beside the labels. Raises ConfigError as
    `read_audit` and `read_answers` do, and where the sample is of another run.
    """
    audit = read_audit(folder, Path(labels).parent)
    answers = read_answers(labels, audit)
    document = document_of(audit, answers) | {
        "notes": _notes(audit, answers, RunDirectory.open(url))
    }
    (folder / RESULT).write_text(
        json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False), encoding="utf-8"
    )
    return document


def read_answers(place: str, audit: Audit) -> AuditLabels:
    """The labels at a path or URL (CSV, JSONL, Parquet), as answers about a sample: real, fake,
    unsure or nothing.

    Raises ConfigError where there is no label of the sample, for a word that is not a label, and
    for one image with two of them.
    """
    source = open_labels(place)
    named = source.names()
    ways = list(_names(source, named)) if "label" in named else []
    if not ways:
        raise ConfigError(
            f"{source.name}: labels need the columns `label` and `image_id` or `uri`",
            hint=columns_hint(source.list_columns()),
        )
    words = [
        _word(answer, f"{source.name}, row {row}")
        for row, answer in enumerate(_rows(source, ["label"], "label"), 1)
    ]
    labels, others = max(
        (_matched(key, names, words, audit, source.name) for key, names in ways),
        key=lambda one: len(one[0]),
    )
    if not labels:
        raise ConfigError(
            f"{source.name}: not one label is of the {len(audit.images):,} images of the sample",
            hint="was it drawn anew since?",
        )
    counts = [{"fake": 0, "real": 0, UNSURE: 0} for _ in audit.strata]
    for at, word in labels.items():
        counts[audit.images[at]["stratum"]][word] += 1
    strata = [
        survey_sampling.LabelledStratum(
            one.size, one.verdict == "fake", found["fake"], found["real"], found[UNSURE], one.words
        )
        for one, found in zip(audit.strata, counts, strict=True)
    ]
    return AuditLabels(tuple(strata), len(audit.images) - len(labels), others)


def document_of(audit: Audit, answers: AuditLabels) -> dict[str, Any]:
    """The figures, each with its interval, what each stratum was found to hold, and what follows
    (`findings`).
    """
    strata = [
        {"name": one.words, **asdict(one), "fakes": found.fakes, "reals": found.reals, "unsure": found.unsure,
         "fake_share": intervals.proportion(found.fakes, found.labelled, "none is labelled").to_dict()}
        for one, found in zip(audit.strata, answers.strata, strict=True)
    ]  # fmt: skip
    figures = survey_sampling.archive_figures(answers.strata)
    widest = survey_sampling.unsure_bounds(answers.strata) if answers.unsure else {}
    ends = {name: one.interval for name, one in figures.items() if one.interval} | widest
    flagged_reals = _flagged_reals(audit, ends.get("precision"))
    promise = _promise(
        audit.facts.get("target_fpr"), ends.get("false_positive_rate"), flagged_reals
    )
    return {
        "schema": SCHEMA,
        "audit": {
            key: audit.facts[key]
            for key in ("run", "fingerprint", "listing", "ensemble", "seed", "made_at", "unscored")
        },
        "scored": audit.scored,
        "drawn": len(audit.images),
        "labelled": answers.labelled,
        "unsure": answers.unsure,
        "blank": answers.blank,
        "figures": {name: figure.to_dict() for name, figure in figures.items()},
        "if_unsure_were_either": {name: list(ends) for name, ends in widest.items()},
        "strata": strata,
        "flagged_reals": flagged_reals,
        "promise": promise,
        "findings": list(
            _findings(flagged_reals if "false_positive_rate" not in ends else None, promise)
        ),
    }


def _rows(source: LabelTables, columns: Sequence[str], *wanted: str) -> list[Any]:
    """Of every row the values of some columns, one alone as it is; None where there is no such
    column.
    """
    rows = (row for table in source.tables(columns) for row in table.to_pylist())
    return [
        row[wanted[0]] if len(wanted) == 1 else tuple(row.get(name) for name in wanted)
        for row in rows
    ]


def _names(
    source: LabelTables, named: Sequence[str]
) -> Iterator[tuple[tuple[str, ...], list[Any]]]:
    """What names the image of every row, for each key that there is; ids of which a spreadsheet
    made no whole numbers are passed over.
    """
    if "image_id" in named:
        with contextlib.suppress(*([ConfigError] if "uri" in named else [])):
            yield ("image_id",), _rows(source, ["image_id"], "image_id")
    if "uri" in named:
        yield (
            ("uri", "member"),
            _rows(source, [name for name in ("uri", "member") if name in named], "uri", "member"),
        )


def _word(answer: Any, where: str) -> str | None:
    """A label as real, fake or unsure; None where there is none."""
    if answer is None or not str(answer).strip():
        return None
    return UNSURE if str(answer).strip().lower() == UNSURE else parse_label(answer, where)


def _matched(
    key: Sequence[str], names: Sequence[Any], words: Sequence[str | None], audit: Audit, name: str
) -> tuple[dict[int, str], int]:
    """The word for each place of the sample that has one, and how many labels are of other images."""
    shown = [tuple(image[column] for column in key) for image in audit.images]
    places = {one if len(key) > 1 else one[0]: place for place, one in enumerate(shown)}
    labels: dict[int, str] = {}
    others = 0
    for row, (image, word) in enumerate(zip(names, words, strict=True), 1):
        place = places.get(image)
        if word is not None and place is None:
            others += 1
        elif word is not None and place is not None and labels.setdefault(place, word) != word:
            raise ConfigError(
                f"{name}, row {row}: {shown[place][0]} is {labels[place]} in an earlier row and {word} here"
            )
    return labels, others


def _notes(audit: Audit, answers: AuditLabels, run: RunDirectory) -> list[str]:
    """What a reader of the figures must know."""
    unscored = sum(audit.facts["unscored"].values())
    found = [
        (unscored, "file", "of the archive without a verdict: nothing is known of them"),
        (
            answers.unsure,
            "image",
            "left out as unsure: beside each figure stands how far they could move it",
        ),
        (answers.blank, "image", "of the sample without a label: as if not drawn"),
        (answers.others, "label", "left out: of images that were not drawn"),
    ]
    changed = changed_since(audit, run)
    return ([changed] if changed else []) + [
        f"{counted(number, noun)} {words}" for number, noun, words in found if number
    ]


def _flagged_reals(audit: Audit, precision: tuple[float, float] | None) -> dict[str, Any] | None:
    """How many of the flagged images are real, at least and at most, the latter also as a share of
    the archive. None: none is labelled.
    """
    flagged = sum(one.size for one in audit.strata if one.verdict == "fake")
    if precision is None:
        return None
    # An end is rounded outwards to a whole number of images, unless it differs from one by rounding
    # alone.
    least, most = (
        math.floor((1 - precision[1]) * flagged + 1e-6),
        math.ceil((1 - precision[0]) * flagged - 1e-6),
    )
    return {
        "flagged": flagged,
        "scored": audit.scored,
        "least": least,
        "most": most,
        "most_of_archive": most / audit.scored,
    }


def _promise(
    target: float | None, rate: tuple[float, float] | None, reals: Mapping[str, Any] | None
) -> dict[str, Any] | None:
    """Whether the share `target` of reals that the card lets be flagged was kept: True, False, or
    None where the labels cannot say.

    `rate`: the ends of the false-positive rate's interval. Where only flagged images are labelled,
    it is at least their reals by all images, and at most twice that if half of the archive is real
    (`if_half_is_real`).
    """
    if target is None or (rate is None and reals is None):
        return None
    halved = rate is None
    if rate is None and reals is not None:
        rate = reals["least"] / reals["scored"], min(1.0, 2 * reals["most_of_archive"])
    assert rate is not None
    kept = False if rate[0] > target else True if rate[1] <= target else None
    return {"target_fpr": target, "kept": kept, "ends": list(rate), "if_half_is_real": halved}


def _findings(reals: Mapping[str, Any] | None, promise: Mapping[str, Any] | None) -> Iterator[str]:
    """What follows from the labels, in sentences."""
    if reals is not None:
        yield (
            f"at most {reals['most']:,} of the {reals['flagged']:,} images flagged as fake are real: no more than "
            f"{percent(reals['most_of_archive'])} of the archive's {reals['scored']:,} images are real and flagged (95 % confidence)"
        )
        if 2 * reals["most_of_archive"] < 1:
            yield f"if at least half of the archive is real, no more than {percent(2 * reals['most_of_archive'])} of its reals are flagged"
    if promise is not None:
        low, high = promise["ends"]
        of = f"the card promises that at most {stated(promise['target_fpr'])} of the reals are flagged"
        if promise["kept"]:
            if_half = (
                ", if at least half of the archive is real" if promise["if_half_is_real"] else ""
            )
            yield f"{of}: the labels show that this is kept{if_half} (at most {percent(high)} are)"
        elif promise["kept"] is None:
            yield f"{of}: so few labels cannot say whether this is kept ({percent(low)} to {percent(high)})"
        else:
            yield f"{of}: the labels show that this is broken (at least {percent(low)} are)"
