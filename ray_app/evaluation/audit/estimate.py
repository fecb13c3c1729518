"""Estimate from people's labels of a sample how right a run's verdicts are (`estimate`)."""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from ray_app.archives.label_tables import columns_hint
from ray_app.datasets.label_reader import Labels, open_labels
from ray_app.errors import ConfigError
from ray_app.evaluation.audit.sample import Audit, changed_since, read_audit
from ray_app.metrics import intervals, survey_sampling
from ray_app.reports.format import counted, percent
from ray_app.runs import RunDirectory

UNSURE = "unsure"
RESULT = "result.json"
SCHEMA = 2
_KEYS = (["image_id"], ["uri", "member"])
"""Columns that name the images of a sample. A file outside of archives has no `member`."""


@dataclass(frozen=True)
class AuditLabels:
    """People's labels of a sample.

    Attributes:
        strata: Labels of each stratum.
        blank: Drawn images without a label.
        others: Labels of images that were not drawn.
    """

    strata: tuple[survey_sampling.LabelledStratum, ...]
    blank: int
    others: int

    @property
    def labelled(self) -> int:
        """Images whose label is real or fake."""
        return sum(stratum.labelled for stratum in self.strata)

    @property
    def unsure(self) -> int:
        """Images that people could not decide."""
        return sum(stratum.unsure for stratum in self.strata)


def estimate(url: str, labels: str, folder: Path) -> dict[str, Any]:
    """Return the estimate from labels of a sample of a run, and write it to `folder`/result.json.

    Args:
        url: Path or URL of the run.
        labels: Path or URL of the labels.
        folder: The folder with the sample's `audit.json`, which may also lie next to the labels.

    Raises:
        ConfigError: There is no sample, it is of another run, or a label is invalid.
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
    """Read the labels at a path or URL as answers about a sample: real, fake, unsure, or nothing.

    Raises:
        ConfigError: No label is of the sample, a label is invalid, or an image has two labels.
    """
    source = open_labels(place, words=(UNSURE,))
    known = source.find_columns()
    keys = [key for key in _KEYS if {key[0], "label"} <= set(known)]
    if not keys:
        raise ConfigError(
            f"{source.name}: labels need the columns `label` and `image_id` or `uri`",
            hint=columns_hint(source.list_columns()),
        )
    sample = pd.DataFrame(audit.images).fillna({"member": ""})
    answers = max((_match(source, key, sample) for key in keys), key=len)
    if answers.empty:
        raise ConfigError(
            f"{source.name}: not one label is of the {len(sample):,} images of the sample",
            hint="give the labels of the last sample that was drawn into this folder",
        )
    drawn = answers[answers["stratum"].notna()]
    counts = pd.crosstab(drawn["stratum"], drawn["label"]).reindex(
        index=range(len(audit.strata)), columns=["fake", "real", UNSURE], fill_value=0
    )
    strata = [
        survey_sampling.LabelledStratum(
            stratum.size, stratum.verdict == "fake", fakes, reals, unsure, stratum.words
        )
        for stratum, (fakes, reals, unsure) in zip(
            audit.strata, counts.to_numpy().tolist(), strict=True
        )
    ]
    return AuditLabels(tuple(strata), len(sample) - len(drawn), len(answers) - len(drawn))


def _match(source: Labels, key: list[str], sample: pd.DataFrame) -> pd.DataFrame:
    """Return each label once with the stratum of its image, missing for images that were not drawn;
    no label if none is of the sample. A spreadsheet may have rounded the ids.
    """
    columns = [name for name in (*key, "label") if name in source.find_columns()]
    try:
        labels = pd.concat(table.to_pandas() for table in source.tables(columns))
    except ConfigError:
        if key != ["image_id"] or "uri" not in source.find_columns():
            raise
        return pd.DataFrame({"stratum": []})
    labels = labels.dropna(subset="label")
    if "member" in key:
        labels["member"] = labels["member"].fillna("") if "member" in labels else ""
    labels = labels.drop_duplicates()
    found = labels.merge(sample[[*key, "stratum"]], on=key, how="left")
    drawn = found[found["stratum"].notna()]
    if drawn.empty:
        return drawn
    doubled = drawn[drawn.duplicated(key, keep=False)]
    if len(doubled):
        first = doubled.iloc[0]
        words = doubled[(doubled[key] == first[key]).all(axis=1)]["label"]
        raise ConfigError(
            f"{source.name}: image {first[key[0]]} is labelled {' and '.join(words)}",
            hint="keep one label of the image",
        )
    return found


def document_of(audit: Audit, answers: AuditLabels) -> dict[str, Any]:
    """Return the estimates, the labels of each stratum, and what follows (`findings`)."""
    strata = [
        {
            "name": stratum.words,
            **asdict(stratum),
            "fakes": labels.fakes,
            "reals": labels.reals,
            "unsure": labels.unsure,
            "fake_share": intervals.proportion(
                labels.fakes, labels.labelled, "none is labelled"
            ).to_dict(),
        }
        for stratum, labels in zip(audit.strata, answers.strata, strict=True)
    ]
    figures = survey_sampling.archive_figures(answers.strata)
    rate = figures["false_positive_rate"].interval
    flagged_reals = _flagged_reals(audit, figures["precision"].interval)
    promise = _promise(audit.facts.get("target_fpr"), rate, flagged_reals)
    kept = ("run", "fingerprint", "listing", "ensemble", "seed", "made_at", "unscored")
    return {
        "schema": SCHEMA,
        "audit": {key: audit.facts[key] for key in kept},
        "scored": audit.scored,
        "drawn": len(audit.images),
        "labelled": answers.labelled,
        "unsure": answers.unsure,
        "blank": answers.blank,
        "figures": {name: figure.to_dict() for name, figure in figures.items()},
        "strata": strata,
        "flagged_reals": flagged_reals,
        "promise": promise,
        "findings": list(_findings(flagged_reals if rate is None else None, promise)),
    }


def _notes(audit: Audit, answers: AuditLabels, run: RunDirectory) -> list[str]:
    """Return what a reader of the estimates must know."""
    unscored = sum(audit.facts["unscored"].values())
    counts = [
        (unscored, "file", "of the archive without a verdict: nothing is known of them"),
        (answers.unsure, "image", "left out as unsure, as if not drawn"),
        (answers.blank, "image", "of the sample without a label: as if not drawn"),
        (answers.others, "label", "left out: of images that were not drawn"),
    ]
    changed = changed_since(audit, run)
    return ([changed] if changed else []) + [
        f"{counted(number, noun)} {words}" for number, noun, words in counts if number
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
        of = f"the card promises that at most {percent(promise['target_fpr'], 3)} of the reals are flagged"
        if promise["kept"]:
            if_half = (
                ", if at least half of the archive is real" if promise["if_half_is_real"] else ""
            )
            yield f"{of}: the labels show that this is kept{if_half} (at most {percent(high)} are)"
        elif promise["kept"] is None:
            yield f"{of}: so few labels cannot say whether this is kept ({percent(low)} to {percent(high)})"
        else:
            yield f"{of}: the labels show that this is broken (at least {percent(low)} are)"
