"""Estimate the error rates of a run from people's labels of a sample (`estimate`)."""

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
from ray_app.reports.format import percent, pluralize
from ray_app.runs import RunDirectory

UNSURE = "unsure"
RESULT = "result.json"
SCHEMA = 2
_KEYS = (["image_id"], ["uri", "member"])
"""Columns that name the images of a sample. A file outside of archives has no `member`."""


@dataclass(frozen=True)
class AuditLabels:
    """Counts of the labels that people gave to the images of a sample of a run.

    Attributes:
        strata: The counts by stratum, a part of the run with one verdict and a range of scores.
        blank: Number of images of the sample without a label.
        others: Number of labels of images that are not in the sample.
    """

    strata: tuple[survey_sampling.LabelledStratum, ...]
    blank: int
    others: int

    @property
    def labelled(self) -> int:
        """Number of images whose label is real or fake."""
        return sum(stratum.labelled for stratum in self.strata)

    @property
    def unsure(self) -> int:
        """Number of images that people labelled `unsure`."""
        return sum(stratum.unsure for stratum in self.strata)


def estimate(url: str, labels: str, folder: Path) -> dict[str, Any]:
    """Estimate the error rates of a run, and write the result to `folder`/result.json.

    The estimate uses people's labels of a sample that `draw_sample` drew from the run.

    Args:
        url: Path or URL of the run.
        labels: Path or URL of the labels.
        folder: The folder of the result. The sample's `audit.json` is in this folder or in that of
            the labels.

    Returns:
        The content of `result.json`: the estimates with 95 % intervals, and counts of labels. The
        key `notes` has sentences on files and labels that the estimates leave out, and on changes
        of the run since the sample was drawn.

    Raises:
        ConfigError: The sample is missing or was drawn from another run, or a label is invalid.
    """
    audit = read_audit(folder, Path(labels).parent)
    answers = read_answers(labels, audit)
    document = build_document(audit, answers) | {
        "notes": _build_notes(audit, answers, RunDirectory.open(url))
    }
    (folder / RESULT).write_text(
        json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False), encoding="utf-8"
    )
    return document


def read_answers(url: str, audit: Audit) -> AuditLabels:
    """Read the labels that people gave to the images of a sample, and count them by stratum.

    A stratum is a part of the run with one verdict and a range of scores. A label is real, fake, or
    `unsure`.

    Args:
        url: Path or URL of the labels.
        audit: The sample.

    Returns:
        The counts of labels, and of images without a label.

    Raises:
        ConfigError: No label belongs to the sample, a label is invalid, or an image has two labels.
    """
    source = open_labels(url, words=(UNSURE,))
    columns = source.find_columns()
    keys = [key for key in _KEYS if {key[0], "label"} <= set(columns)]
    if not keys:
        raise ConfigError(
            f"{source.name}: labels need the columns `label` and `image_id` or `uri`",
            hint=columns_hint(source.list_columns()),
        )
    sample = pd.DataFrame(audit.images).fillna({"member": ""})
    answers = max((_match(source, key, sample) for key in keys), key=len)
    if answers.empty:
        raise ConfigError(
            f"{source.name}: no label matches any of the {len(sample):,} images of the sample",
            hint="give labels of the sample that was drawn into this folder, with the same image_id or uri in each row",
        )
    matched = answers[answers["stratum"].notna()]
    counts = pd.crosstab(matched["stratum"], matched["label"]).reindex(
        index=range(len(audit.strata)), columns=["fake", "real", UNSURE], fill_value=0
    )
    strata = [
        survey_sampling.LabelledStratum(
            stratum.size, stratum.verdict == "fake", fakes, reals, unsure, stratum.description
        )
        for stratum, (fakes, reals, unsure) in zip(
            audit.strata, counts.to_numpy().tolist(), strict=True
        )
    ]
    return AuditLabels(tuple(strata), len(sample) - len(matched), len(answers) - len(matched))


def _match(source: Labels, key: list[str], sample: pd.DataFrame) -> pd.DataFrame:
    """Return each label once with the stratum of its image.

    The stratum is missing for images that were not drawn. The result is empty if no label is of the
    sample, for example because a spreadsheet has rounded the ids.

    Args:
        source: The labels.
        key: The columns that name an image.
        sample: The images of the sample.
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
    merged = labels.merge(sample[[*key, "stratum"]], on=key, how="left")
    matched = merged[merged["stratum"].notna()]
    if matched.empty:
        return matched
    duplicates = matched[matched.duplicated(key, keep=False)]
    if len(duplicates):
        first = duplicates.iloc[0]
        conflicting = duplicates[(duplicates[key] == first[key]).all(axis=1)]["label"]
        raise ConfigError(
            f"{source.name}: image {first[key[0]]} is labelled {' and '.join(conflicting)}",
            hint="keep one label of the image",
        )
    return merged


def build_document(audit: Audit, answers: AuditLabels) -> dict[str, Any]:
    """Return the content of `result.json` except for the key `notes`, which `estimate` adds.

    The content has the estimated error rates, the counts of labels by stratum, and conclusions as
    sentences. The ensemble's card may guarantee a maximum false-positive rate. One conclusion is
    then whether the labels show that the run keeps this rate.

    Args:
        audit: The sample of the run.
        answers: The labels that people gave to the images of the sample.

    Returns:
        The content as JSON-compatible values.
    """
    strata = [
        {
            "name": stratum.description,
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
    metrics = survey_sampling.archive_figures(answers.strata)
    rate = metrics["false_positive_rate"].interval
    flagged_reals = _bound_flagged_reals(audit, metrics["precision"].interval)
    guarantee = _check_guarantee(audit.facts.get("target_fpr"), rate, flagged_reals)
    keys = ("run", "fingerprint", "listing", "ensemble", "seed", "made_at", "unscored")
    return {
        "schema": SCHEMA,
        "audit": {key: audit.facts[key] for key in keys},
        "scored": audit.scored,
        "drawn": len(audit.images),
        "labelled": answers.labelled,
        "unsure": answers.unsure,
        "blank": answers.blank,
        "figures": {name: metric.to_dict() for name, metric in metrics.items()},
        "strata": strata,
        "flagged_reals": flagged_reals,
        "promise": guarantee,
        "findings": list(_format_findings(flagged_reals if rate is None else None, guarantee)),
    }


def _build_notes(audit: Audit, answers: AuditLabels, run: RunDirectory) -> list[str]:
    """Return sentences on files and labels that the estimates leave out, and on later changes."""
    unscored = sum(audit.facts["unscored"].values())
    counts = [
        (unscored, "file", "of the archive without a verdict: nothing is known of them"),
        (answers.unsure, "image", "left out as unsure, as if not drawn"),
        (answers.blank, "image", "of the sample without a label: as if not drawn"),
        (answers.others, "label", "left out: of images that were not drawn"),
    ]
    change = changed_since(audit, run)
    return ([change] if change else []) + [
        f"{pluralize(number, noun)} {phrase}" for number, noun, phrase in counts if number
    ]


def _bound_flagged_reals(
    audit: Audit, precision: tuple[float, float] | None
) -> dict[str, Any] | None:
    """Return bounds on the number of flagged images that are real.

    The upper bound is also given as a fraction of the archive. The result is None if no flagged
    image is labelled.
    """
    flagged = sum(stratum.size for stratum in audit.strata if stratum.verdict == "fake")
    if precision is None:
        return None
    # Bounds are rounded outwards to whole numbers of images. The tolerance ignores differences that
    # are only rounding errors.
    min_real, max_real = (
        math.floor((1 - precision[1]) * flagged + 1e-6),
        math.ceil((1 - precision[0]) * flagged - 1e-6),
    )
    return {
        "flagged": flagged,
        "scored": audit.scored,
        "least": min_real,
        "most": max_real,
        "most_of_archive": max_real / audit.scored,
    }


def _check_guarantee(
    target: float | None, rate: tuple[float, float] | None, reals: Mapping[str, Any] | None
) -> dict[str, Any] | None:
    """Return whether the false-positive rate is within the card's target.

    `kept` is True, False, or None if the labels do not show it. If only flagged images are
    labelled, the rate is at least their reals divided by all images, and at most twice that if half
    of the archive is real (`if_half_is_real`).

    Args:
        target: The target rate of the card, or None.
        rate: The interval of the false-positive rate, or None.
        reals: The bounds on flagged reals, or None.
    """
    if target is None or (rate is None and reals is None):
        return None
    is_one_sided = rate is None
    if rate is None and reals is not None:
        rate = reals["least"] / reals["scored"], min(1.0, 2 * reals["most_of_archive"])
    assert rate is not None
    is_kept = False if rate[0] > target else True if rate[1] <= target else None
    return {
        "target_fpr": target,
        "kept": is_kept,
        "ends": list(rate),
        "if_half_is_real": is_one_sided,
    }


def _format_findings(
    reals: Mapping[str, Any] | None, result: Mapping[str, Any] | None
) -> Iterator[str]:
    """Yield the conclusions from the labels, as sentences."""
    if reals is not None:
        yield (
            f"at most {reals['most']:,} of the {reals['flagged']:,} images flagged as fake are real: no more than "
            f"{percent(reals['most_of_archive'])} of the archive's {reals['scored']:,} images are real and flagged (95 % confidence)"
        )
        if 2 * reals["most_of_archive"] < 1:
            yield f"if at least half of the archive is real, no more than {percent(2 * reals['most_of_archive'])} of its reals are flagged"
    if result is not None:
        low, high = result["ends"]
        guarantee = f"the card guarantees that at most {percent(result['target_fpr'], 3)} of the reals are flagged"
        if result["kept"]:
            if_half = (
                ", if at least half of the archive is real" if result["if_half_is_real"] else ""
            )
            yield f"{guarantee}: the labels show that this is kept{if_half} (at most {percent(high)} are)"
        elif result["kept"] is None:
            yield f"{guarantee}: there are too few labels to show whether this is kept ({percent(low)} to {percent(high)})"
        else:
            yield f"{guarantee}: the labels show that this is not kept (at least {percent(low)} are)"
