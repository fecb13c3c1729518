"""Whatever the header of a file states: one row per file, no exception, through decoding, judging, rows and Parquet."""

import io
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ray_app.ensembles import load_ensemble_card
from ray_app.errors import Reason, Status
from ray_app.images import FLAG_MEANING, ImageLimits
from ray_app.images.facts import MOST
from ray_app.images.provenance import ProvenancePolicy
from ray_app.inference import BatchDecoder, DetectorOutputs, StageClock, judge, make_spec
from ray_app.runs import block_tables
from tests.images.flips import flipped

SPEC = make_spec(load_ensemble_card("tiny"), limits=ImageLimits(), precision="fp32", perceptual_hash=True, provenance=ProvenancePolicy())
NAME = next(iter(SPEC.cards))


def rows_of(files: list[bytes]) -> list[dict]:
    """The files' rows, as they come back from Parquet; every image that decodes has the score of a fake."""
    decoder = BatchDecoder(SPEC, StageClock())
    starts = range(0, len(files), SPEC.slots)
    batches = [decoder.decode(list(enumerate(files[start : start + SPEC.slots], start))) for start in starts]
    outcomes = [outcome for batch in batches for outcome in batch.outcomes]
    scores = np.array([9.0 if outcome.status is Status.OK else np.nan for outcome in outcomes], np.float32)
    members = pa.table({
        "image_id": pa.array(range(len(files)), pa.int64()), "uri": [f"{number}" for number in range(len(files))],
        "member": pa.nulls(len(files), pa.string()), "occurrence": pa.array([0] * len(files), pa.int32()),
    })  # fmt: skip
    scored = judge(SPEC, outcomes, DetectorOutputs.clean(scores={NAME: scores}))
    made = block_tables(members, scored, attempt=1, scored_at=datetime.now(UTC), perceptual_hash=True)
    assert made.failures == []
    file = io.BytesIO()
    pq.write_table(made.rows, file)
    return pq.read_table(file).to_pylist()


def check(cases: range) -> dict[str, int]:
    """The statuses of these cases. Fails with the number of the first one that costs more than its own row."""
    statuses: dict[str, int] = {}
    for start in range(cases.start, cases.stop, 50):
        some = range(start, min(start + 50, cases.stop))
        made = [flipped(case) for case in some]
        try:
            rows = rows_of([data for _, data in made])
        except Exception:
            for case, (name, data) in zip(some, made, strict=True):
                try:
                    rows_of([data])
                except Exception as error:
                    raise AssertionError(f"case {case}, made of {name}: python -m tests.images.flips {case} > file") from error
            raise
        assert [row["image_id"] for row in rows] == list(range(len(some)))
        for case, row in zip(some, rows, strict=True):
            check_row(row, case)
            statuses[row["status"]] = statuses.get(row["status"], 0) + 1
    return statuses


def check_row(row: dict, case: int) -> None:
    assert row["status"] in set(Status), case
    assert row["status"] != Status.DECODER_CRASHED, case
    assert (row["status"] == "ok") == (row["detail"] is None) == (row["verdict"] is not None), case
    assert row["detail"] is None or (row["detail"].isprintable() and len(row["detail"]) <= 1000), case
    assert all(row[name] is None or 0 <= row[name] <= most for name, most in MOST.items()), case
    assert set(row["flags"]) <= FLAG_MEANING.keys(), case
    assert row["verdict_reason"] in (None, *Reason), case
    assert (row["verdict_reason"] == "no_content") == (row["status"] == "ok" and "no_content" in row["flags"]), case


def test_header_flips_cost_their_own_row_alone():
    assert len(check(range(300))) >= 4


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_ten_thousand_header_flips_cost_their_own_rows_alone():
    print(check(range(10_000)))
