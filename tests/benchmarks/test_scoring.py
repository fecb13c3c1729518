import json
from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.contenders import CONTENDERS, OURS
from benchmarks.figures import DETAILS, PEERS, TARGETS
from benchmarks.figures import OURS as NAMED_OURS
from benchmarks.scoring import main
from benchmarks.work import DETECTORS


def test_every_name_in_the_figures_is_a_contender():
    assert set(CONTENDERS) == {OURS, *PEERS, *DETAILS}
    assert OURS == NAMED_OURS
    assert {work for work, _ in TARGETS} == set(DETECTORS)


def test_a_run_directory_becomes_a_record(tmp_path):
    start = datetime(2030, 1, 1, tzinfo=UTC)
    rows = [
        {
            "uri": f"/a/{i}.jpg",
            "scores": {"one": None if i == 5 else i / 4},
            "scored_at": start + timedelta(seconds=i // 4),
        }
        for i in range(8)
    ]
    (tmp_path / "scores").mkdir()
    pq.write_table(
        pa.Table.from_pylist(rows), tmp_path / "scores" / "00000-00000000-00000001.parquet"
    )
    (tmp_path / "sessions").mkdir()
    session = {"started_at": start.isoformat(), "rows": 8, "seconds": {"decode": 0.4, "score": 0.8}}
    (tmp_path / "sessions" / "00001.json").write_text(json.dumps(session))
    record = CONTENDERS[OURS].read("", tmp_path)
    assert record.finished == [(start.timestamp(), 4), (start.timestamp() + 1, 8)]
    assert record.scores == {f"{i}.jpg": i / 4 for i in range(8) if i != 5}
    assert record.detail == {"decode_s": pytest.approx(0.05), "score_s": pytest.approx(0.1)}


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(900)
def test_a_small_run_end_to_end(tmp_path, capsys):
    target = tmp_path / "result.json"
    assert (
        main(["--quick", "--json", str(target), "--works", "decode_bound", "--scale", "0.34"]) == 0
    )
    result = json.loads(target.read_text())
    assert (
        set(result["ratios"]["decode_bound"])
        == {*PEERS, *DETAILS} - {"daft_model"} - result["left_out"].keys()
    )
    # where no package index answers
    assert result["left_out"].keys() <= {"daft_guide", "daft_model"}
    processor = result["processor_s_per_image"]["decode_bound"]
    assert (
        processor[OURS]["own"]
        > sum(seconds for kind, seconds in processor[OURS].items() if kind != "own")
        > 0
    )
    assert result["object_store_bytes_per_image"]["decode_bound"]["ray_guide"] > 1_000_000
    assert result["object_store_bytes_per_image"]["decode_bound"][OURS] < 10_000
    assert result["machine"]["cores"] >= 1
    assert "ray_guide" in capsys.readouterr().out
