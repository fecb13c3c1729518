"""How many files say of themselves that a model made them, and what the detectors said of those: counted on columns, no JSON is parsed.

A row's JSON is this package's own (`Provenance.row`), and every quote inside a value is escaped: what stands between bare quotes is a
key or a closed word, and `ai_declared` comes last.
"""

from collections import Counter
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

C2PA_STATES = ("trusted", "intact", "invalid", "unreadable")
NO_VERDICT = "none"


class DeclarationCounter:
    """Counts table after table."""

    def __init__(self) -> None:
        self._stated = 0
        self._verdicts: dict[bool, Counter[str]] = {True: Counter(), False: Counter()}
        self._states: Counter[str] = Counter()

    def add(self, table: pa.Table) -> None:
        """Count the columns `provenance` and `verdict` of result rows."""
        said = table["provenance"]
        self._stated += len(said) - said.null_count
        declared = pc.fill_null(pc.ends_with(said, '"ai_declared":true}'), False)
        verdicts = pc.fill_null(table["verdict"].cast(pa.string()), NO_VERDICT)
        for is_declared, counter in self._verdicts.items():
            some = verdicts.filter(declared if is_declared else pc.invert(declared))
            counter.update({item["values"]: item["counts"] for item in pc.value_counts(some).to_pylist()})
        for state in C2PA_STATES:
            self._states[state] += pc.sum(pc.match_substring(said, f'"c2pa":{{"state":"{state}"')).as_py() or 0

    def counts(self) -> dict[str, Any]:
        """`stated`: rows with any statement; `declared` and `undeclared`: rows per verdict; `c2pa`: rows per state of a manifest."""
        return {
            "stated": self._stated,
            "declared": dict(self._verdicts[True]),
            "undeclared": dict(self._verdicts[False]),
            "c2pa": {state: count for state, count in self._states.items() if count},
        }
