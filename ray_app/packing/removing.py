"""Which rows of a run go and which stay, and why in words. Columns in, columns out; reads and writes no file."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ray_app.errors import Status
from ray_app.reports import wording
from ray_app.runs.rows import with_reasons
from ray_app.runs.schema import DETAIL

_TEXT, _NUMBER = pa.string(), pa.float64()
_NAMES = [("uri", _TEXT), ("member", _TEXT), ("occurrence", pa.int32()), ("sha256", _TEXT)]
REMOVED = pa.schema([*_NAMES, ("verdict", _TEXT), ("score", _NUMBER), ("probability", _NUMBER), ("status", _TEXT), ("reason", _TEXT)])
COLUMNS = ["image_id", *REMOVED.names[:-1], "detail", "calibrated", "verdict_reason", DETAIL]


def goes(rows: pa.Table, drop: Sequence[str]) -> npt.NDArray[np.bool_]:
    """For each row whether it is removed: its verdict is in `drop`, or it has no score and `failed` is."""
    verdicts = [word for word in drop if word != "failed"]
    removed = pc.fill_null(pc.is_in(rows["verdict"].cast(pa.string()), pa.array(verdicts, pa.string())), False)
    if "failed" in drop:
        removed = pc.or_(removed, pc.not_equal(rows["status"].cast(pa.string()), Status.OK.value))
    return np.asarray(removed.to_numpy())


@dataclass(frozen=True)
class Reasons:
    """Says why a member is removed, in the words of the ensemble that decided."""

    name: str
    rule: str
    members: tuple[str, ...]
    fake_above: float

    @classmethod
    def of(cls, ensemble: Mapping[str, Any]) -> "Reasons":
        """From an ensemble card as `run.json` keeps it."""
        members = tuple(member["detector"] for member in ensemble["members"])
        return cls(ensemble["name"], ensemble["rule"], members, ensemble["thresholds"]["fake_above"])

    def removed(self, rows: pa.Table) -> pa.Table:
        """Rows that go, as the removal list has them (`REMOVED`)."""
        plain = [pc.cast(rows[name], REMOVED.field(name).type) for name in REMOVED.names if name != "reason"]
        reasons = [self.reason(row) for row in with_reasons(rows).select(COLUMNS).to_pylist()]
        return pa.Table.from_arrays([*plain, pa.array(reasons, pa.string())], schema=REMOVED)

    def reason(self, row: Mapping[str, Any]) -> str:
        """Why one row goes, in one sentence."""
        if row["status"] != Status.OK:
            said = f"{wording.meaning(row['status'])} ({row['status']})"
            return f"no score: {said}" + (f": {row['detail']}" if row["detail"] else "")
        if row["verdict"] != "fake":
            return f"{row['verdict']} by {self._judge}: {_why(row)}; {_figures(row)}"
        return f"fake by {self._judge}: score {row['score']:+.4g} is not below the threshold {self.fake_above:g}; {_figures(row)}"

    @property
    def _judge(self) -> str:
        rule = f"{self.rule} of " if len(self.members) > 1 else ""
        return f"ensemble {self.name} ({rule}{', '.join(self.members)})"


def _why(row: Mapping[str, Any]) -> str:
    return "no evidence found" if row["verdict_reason"] is None else wording.why(row["verdict_reason"], row[DETAIL])


def _figures(row: Mapping[str, Any]) -> str:
    if row["probability"] is None:
        return "no probability"
    calibrated = "calibrated" if row["calibrated"] else "not calibrated: the plain sigmoid of the score"
    return f"probability {wording.probability(row['probability'])} ({calibrated})"
