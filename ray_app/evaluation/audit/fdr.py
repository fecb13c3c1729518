"""The images of a run that can be listed as fakes with few reals among them, by its card's known reals: `discover`."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ray_app.errors import ConfigError, Reason
from ray_app.metrics.survey_sampling import Discoveries, References, discoveries, fewest_listed
from ray_app.runs import RunDirectory, current_tables
from ray_app.runs.reader import numbers
from ray_app.runs.rows import with_reasons
from ray_app.scoring.identity import references_of

# Why a row abstains that can be tested all the same: its score is what the card makes of images like those that it was calibrated on, or
# the reason is of the whole archive and stands beside the list.
_STILL_TESTED = pa.array([Reason.INSIDE_BAND, Reason.UNSTABLE, Reason.UNLIKE_ARCHIVE])
_COLUMNS = ["image_id", "score", "verdict", "verdict_reason"]


@dataclass(frozen=True)
class DiscoveryList:
    """A list: what it consists of, and the remarks that belong to it. `left_out`: images with a score that the card does not cover."""

    run: RunDirectory
    references: References
    list: Discoveries
    left_out: int
    remarks: tuple[str, ...]

    def rows(self) -> Iterator[dict[str, Any]]:
        """The rows on the list, each with its `p_value`, in the order of the archive."""
        if not self.list.count:
            return
        for table in current_tables(self.run):
            scores = numbers(table["score"])
            listed = np.flatnonzero(_tested(table, scores) & (scores > self.list.above))
            values = self.references.p_values(scores[listed])
            for row, p in zip(table.take(pa.array(listed)).to_pylist(), values.tolist(), strict=True):
                yield row | {"p_value": p}

    def facts(self) -> dict[str, Any]:
        """As plain JSON."""
        return {"fdr": self.list.rate, "references": self.list.n_references, "tested": self.list.tested, "listed": self.list.count,
                "above": self.list.above if np.isfinite(self.list.above) else None, "p_value": self.list.p_value,
                "left_out": self.left_out, "remarks": list(self.remarks)}  # fmt: skip


def discover(url: str, rate: float) -> DiscoveryList:
    """The list at a rate of false discoveries. Raises ConfigError where there is no run, or its card has no references."""
    run = RunDirectory.open(url)
    if not run.exists():
        raise ConfigError(f"{run.store.url}: no run here", hint="touchstone score SOURCE --out DIR makes one")
    run.check_settled()
    references = References.of(references_of(run))
    counts, left_out = np.zeros(references.n + 1, np.int64), 0
    for table in current_tables(run, _COLUMNS):
        scores = numbers(table["score"])
        tested = _tested(table, scores)
        left_out += int((np.isfinite(scores) & ~tested).sum())
        counts += references.counted(scores[tested])
    found = discoveries(references, counts, rate)
    return DiscoveryList(run, references, found, left_out, tuple(_remarks(run, references, found, left_out)))


def _remarks(run: RunDirectory, references: References, found: Discoveries, left_out: int) -> Iterator[str]:
    guarantee = _guarantee(run)
    yield (
        f"{found.count:,} of {found.tested:,} images are listed; of such a list at most {found.rate:.3g} is real on average, "
        f"if the archive's reals score like the {found.n_references:,} that the card was calibrated with (conformal p-values, "
        "Benjamini and Hochberg)"
    )
    if guarantee is None:
        yield "nothing has compared this archive with those reals, so whether that holds is not known"
    elif not guarantee.get("holds"):
        known = "that does not hold here" if guarantee.get("holds") is False else "whether that holds here is not known"
        yield f"{known}: {guarantee.get('why') or 'the archive differs from what the card was calibrated on'}"
    if left_out:
        yield f"{left_out:,} images with a score are left out: they lie outside what the card speaks for"
    if not found.count and found.tested:
        least = fewest_listed(references, found.tested, found.rate)
        yield f"a list of any length needs {least:,} images above all {found.n_references:,} known reals, or more reals to compare with"


def _guarantee(run: RunDirectory) -> dict[str, Any] | None:
    """The run's section on its card's guarantee; None where it has none."""
    if not run.store.exists("summary.json"):
        return {"holds": None, "why": "the run is not finished, and the archive was not compared with what the card was calibrated on"}
    section: dict[str, Any] | None = run.read_json("summary.json").get("guarantee")
    return section


def _tested(table: pa.Table, scores: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    """Whether the card speaks for each row, (n,)."""
    reasons = with_reasons(table)["verdict_reason"]
    known = np.asarray(pc.or_(pc.is_null(reasons), pc.is_in(reasons, _STILL_TESTED)))
    decided = np.asarray(pc.fill_null(pc.is_in(table["verdict"].cast(pa.string()), pa.array(["fake", "real"])), False))
    tested: npt.NDArray[np.bool_] = np.isfinite(scores) & (decided | known)
    return tested
