"""What a run answered about the makers of its images, counted: generator, answer, and where the truth stands in the ranking.

Knows joined rows and names; computes no figure.
"""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ray_app.evaluation.dflip import name_in
from ray_app.evaluation.joining import Tables
from ray_app.evaluation.naming import Names

COLUMNS = ("label", "generator", "verdict", "predicted_generator", "generator_ranking", "generator_confidence")
_BETWEEN = "\x1f"  # no name holds it
Words = tuple[str, str, str | None, str | None]
Floats = npt.NDArray[np.float64]


class Answer(NamedTuple):
    """Of one image. `generator`, `said`: keys of names, None = none was named. `asked`: whether anything was said at all, be it that it is
    none of the known. `place`, `family_place`: of the truth in the ranking, 0 = first; None = not there.
    """

    label: str
    generator: str
    said: str | None
    asked: bool
    place: int | None
    family_place: int | None


@dataclass
class Answers:
    """Of all images. `words`: label, generator, verdict and prediction as they stand in the rows. `confidences`: of fakes, by the key of
    their generator.
    """

    names: Names
    counts: Counter[Answer] = field(default_factory=Counter)
    words: Counter[Words] = field(default_factory=Counter)
    confidences: dict[str, list[Floats]] = field(default_factory=dict)
    ranked: bool = False

    def add(self, table: pa.Table) -> None:
        """Joined rows with `COLUMNS`."""
        plain = {name: table[name].cast(pa.string()) for name in COLUMNS[:4]}
        confidence = _confidences(table["generator_confidence"])
        ranking = _rankings(table["generator_ranking"])
        self.ranked = self.ranked or ranking.null_count < len(ranking)
        sure = pa.array(np.isfinite(confidence))
        columns = pa.table(plain | {"ranking": ranking, "sure": sure})
        # In the order of the rows: the first spelling of a name is the one that is shown.
        counted = columns.group_by(columns.column_names, use_threads=False).aggregate([([], "count_all")])
        for row in counted.to_pylist():
            self.words[row["label"], row["generator"], row["verdict"], row["predicted_generator"]] += row["count_all"]
            self.counts[self._answer(row)] += row["count_all"]
        self._keep(table, confidence)

    def _answer(self, row: dict[str, Any]) -> Answer:
        names = self.names
        truth, said = names.label(row["generator"]), names.said(name_in(row["predicted_generator"]))
        ranking = [names.said(name) for name in row["ranking"].split(_BETWEEN)] if row["ranking"] else []
        families = list(dict.fromkeys(names.family(name) for name in ranking if name))
        asked = bool(said or ranking or row["sure"])
        return Answer(row["label"], truth, said, asked, _place(truth, ranking), _place(names.family(truth), families))

    def _keep(self, table: pa.Table, confidence: Floats) -> None:
        kept = np.isfinite(confidence) & np.asarray(pc.equal(table["label"].cast(pa.string()), "fake"))
        if kept.any():
            makers = table["generator"].cast(pa.string()).combine_chunks().dictionary_encode()
            codes = np.asarray(makers.indices)
            for code, name in enumerate(makers.dictionary.to_pylist()):
                if len(mine := confidence[kept & (codes == code)]):
                    self.confidences.setdefault(self.names.label(name), []).append(mine)


def answers_of(tables: Tables, names: Names) -> Answers | None:
    """All of a run's answers; None where no image was asked."""
    found = Answers(names)
    for table in tables(COLUMNS):
        found.add(table)
    return found if any(one.asked for one in found.counts) else None


def _place(name: str, ranking: list[Any]) -> int | None:
    return ranking.index(name) if name in ranking else None


def _rankings(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Lists of names as one text each."""
    return pc.binary_join(column, _BETWEEN) if pa.types.is_list(column.type) else pa.chunked_array([pa.nulls(len(column), pa.string())])


def _confidences(column: pa.ChunkedArray) -> Floats:
    """(n,), NaN where there is none."""
    if not pa.types.is_floating(column.type):
        return np.full(len(column), np.nan)
    found: Floats = np.asarray(pc.fill_null(column.cast(pa.float64()), float("nan")))
    return found
