"""What a run's profile says, counted and looked for on columns of result rows. Knows columns; knows no model and no page."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ray_app.errors import ConfigError
from ray_app.profiling.generators import means
from ray_app.runs.directory import RunDirectory
from ray_app.runs.schema import DESCRIBED, IDENTIFIED

COLUMNS = ("predicted_generator", *IDENTIFIED, "predicted_prompt", *DESCRIBED)
UNKNOWN = "unknown"  # what is asked for where the identifier names none of the generators that it knows
TOLD = 8  # flagged images whose profile a summary repeats
_TOLD = ("image_id", "uri", "member", "score", *COLUMNS)


class ProfileCounter:
    """Counts table after table, of flagged images alone: an identifier names a generator for real images too, and means nothing by it."""

    def __init__(self) -> None:
        self._flagged = self._unlike = self._silent = self._described = 0
        self._is_identified = self._is_described = False
        self._named: Counter[tuple[str, str]] = Counter()
        self._told: list[dict[str, Any]] = []

    def add(self, table: pa.Table) -> None:
        """Count the columns of result rows; tables of runs without a profile count as nothing."""
        names = table.column_names
        self._is_identified |= "generator_confidence" in names
        self._is_described |= "prompt_likelihood" in names
        if not (self._is_identified or self._is_described):
            return
        flagged = table.filter(pc.fill_null(pc.equal(table["verdict"].cast(pa.string()), "fake"), False))
        self._flagged += len(flagged)
        if "generator_confidence" in names:
            self._count_names(flagged)
        if "prompt_likelihood" in names:
            self._described += len(flagged) - flagged["predicted_prompt"].null_count
        self._told = _highest(self._told, flagged)

    def _count_names(self, flagged: pa.Table) -> None:
        self._silent += flagged["generator_confidence"].null_count
        self._unlike += flagged["predicted_generator"].null_count - flagged["generator_confidence"].null_count
        named = flagged.filter(pc.is_valid(flagged["predicted_generator"]))
        pairs = zip(named["generator_family"].to_pylist(), named["predicted_generator"].to_pylist(), strict=True)
        self._named.update(pairs)

    def counts(self) -> dict[str, Any] | None:
        """None without a profile. `flagged` images; of them `generators` (family, generator, flagged), most frequent first, those `unlike`
        any known one, those `silent`: with no say; `described`: with words; `told`: the highest scores with what was said of them.
        """
        if not (self._is_identified or self._is_described):
            return None
        ranked = sorted(self._named.items(), key=lambda item: (-item[1], item[0]))
        return {
            "flagged": self._flagged,
            "identified": self._is_identified,
            "generators": [{"family": family, "generator": name, "flagged": count} for (family, name), count in ranked],
            "unlike": self._unlike,
            "silent": self._silent,
            "describes": self._is_described,
            "described": self._described,
            "told": self._told,
        }


def of_generator(table: pa.Table, wanted: str) -> pa.Table:
    """The rows that a profile says are of a generator or of a family, by any spelling of its name; `unknown`: of none that it knows."""
    if "generator_confidence" not in table.column_names:
        return table.slice(0, 0)
    names, families = table["predicted_generator"].to_pylist(), table["generator_family"].to_pylist()
    if wanted == UNKNOWN:
        return table.filter(pc.and_(pc.is_null(table["predicted_generator"]), pc.is_valid(table["generator_confidence"])))
    meant = {pair: means(wanted, *pair) for pair in set(zip(names, families, strict=True))}
    return table.filter(pa.array([meant[pair] for pair in zip(names, families, strict=True)], pa.bool_()))


def require_identified(run: RunDirectory) -> None:
    """Raises ConfigError for a run in which no identifier was asked, or where there is no run."""
    if not run.exists():
        raise ConfigError(f"{run.store.url}: no run here", hint="touchstone score SOURCE --out DIR makes one")
    if not (run.describe()["ensemble"].get("profile") or {}).get("identifier"):
        raise ConfigError(
            f"{run.store.url}: this run named no generators",
            hint="score with an ensemble whose `profile` has an identifier, or touchstone rescore RUN --identifier CARD",
        )


def _highest(told: Sequence[dict[str, Any]], flagged: pa.Table) -> list[dict[str, Any]]:
    """The highest scores so far with what was said of them; of equal ones the first of the archive."""
    rows = flagged.select([name for name in _TOLD if name in flagged.column_names])
    best = rows.take(pc.sort_indices(rows, sort_keys=[("score", "descending")])[:TOLD]).to_pylist()
    return sorted([*told, *best], key=lambda row: -row["score"])[:TOLD]
