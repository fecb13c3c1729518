"""Whatever the header of a file states: one row per file, no exception, through decoding, judging,
rows and Parquet.
"""

import io
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ray_app.ensembles import load_ensemble_card
from ray_app.errors import Reason, Status
from ray_app.images import FLAG_MEANING, ImageLimits
from ray_app.images.facts import MAX_VALUES
from ray_app.images.provenance import ProvenancePolicy
from ray_app.inference import BatchDecoder, DetectorOutputs, StageClock, judge, make_spec
from ray_app.runs import block_tables
from tests.make.flips import flipped

SPEC = make_spec(
    load_ensemble_card("tiny"),
    limits=ImageLimits(),
    precision="fp32",
    provenance=ProvenancePolicy(),
)
NAME = next(iter(SPEC.cards))


def rows_of(files: list[bytes]) -> list[dict]:
    """The files' rows, as they come back from Parquet; every image that decodes has the score of a
    fake.
    """
    decoder = BatchDecoder(SPEC, StageClock())
    outcomes = []
    for start in range(0, len(files), SPEC.slots):
        batch = list(enumerate(files[start : start + SPEC.slots], start))
        outcomes += decoder.decode(batch).outcomes
    scores = np.array([9.0 if one.status is Status.OK else np.nan for one in outcomes], np.float32)
    members = pa.table({
        "image_id": pa.array(range(len(files)), pa.int64()), "uri": [f"{number}" for number in range(len(files))],
        "member": pa.nulls(len(files), pa.string()), "occurrence": pa.array([0] * len(files), pa.int32()),
    })  # fmt: skip
    scored = judge(SPEC, outcomes, DetectorOutputs.clean(scores={NAME: scores}))
    made = block_tables(members, scored, attempt=1, scored_at=datetime.now(UTC))
    assert made.failures == []
    file = io.BytesIO()
    pq.write_table(made.rows, file)
    return pq.read_table(file).to_pylist()


TOGETHER = 300
STARTS = [0, *(pytest.param(n, marks=pytest.mark.slow) for n in range(TOGETHER, 10_000, TOGETHER))]


@pytest.mark.parametrize("start", STARTS)
def test_header_flips_cost_their_own_row_alone(start):
    """`python -m tests.make.flips CASE > file` writes one of these files."""
    cases = range(start, start + TOGETHER)
    rows = rows_of([flipped(case)[1] for case in cases])
    assert [row["image_id"] for row in rows] == list(range(TOGETHER))
    assert len({row["status"] for row in rows}) > 1
    for case, row in zip(cases, rows, strict=True):
        is_ok, detail = row["status"] == "ok", row["detail"]
        assert row["status"] in set(Status) - {Status.DECODER_CRASHED}, case
        assert is_ok == (detail is None) == (row["verdict"] is not None), case
        assert is_ok or (detail.isprintable() and len(detail) <= 1000), case
        assert all(
            row[name] is None or 0 <= row[name] <= most for name, most in MAX_VALUES.items()
        ), case
        assert set(row["flags"]) <= FLAG_MEANING.keys(), case
        assert row["verdict_reason"] in (None, *Reason), case
        has_no_content = is_ok and "no_content" in row["flags"]
        assert (row["verdict_reason"] == "no_content") == has_no_content, case
