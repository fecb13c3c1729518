import json
from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.contenders import CONTENDERS, OURS
from benchmarks.contenders.contender import Record
from benchmarks.figures import DETAILS, PEERS, TARGETS
from benchmarks.figures import OURS as NAMED_OURS
from benchmarks.scoring import COUNTS, _count, _store_bytes, main
from benchmarks.work import DETECTORS, Work


def test_every_name_in_the_figures_is_a_contender():
    assert set(CONTENDERS) == {OURS, *PEERS, *DETAILS}
    assert OURS == NAMED_OURS
    assert {work for work, _ in TARGETS} == set(DETECTORS)


@pytest.mark.parametrize("quick", [True, False])
@pytest.mark.parametrize("work", DETECTORS)
@pytest.mark.parametrize("name", CONTENDERS)
def test_counts_are_whole_batches(quick, work, name):
    count = _count(COUNTS[quick][work], name, 1.0)
    assert count % 32 == 0
    assert count >= (32 if name == "limit" else 128)  # four batches of 32: three lie inside the window


@pytest.mark.parametrize("name", CONTENDERS)
def test_commands_name_the_work(name, tmp_path):
    work = Work("decode_bound", "card.yaml", "tiny", str(tmp_path))
    command = CONTENDERS[name].command(work, 320, tmp_path / "out")
    assert "320" in command
    assert any(str(tmp_path) in word for word in command)


def test_a_record_survives_its_line():
    record = Record([(1.5, 4)], {"a.jpg": -0.25}, {"imported": 1.0}, detail={"decode_s": 0.1})
    assert Record.parse("noise\n" + json.dumps(vars(record)) + "\n") == record


def test_a_run_directory_becomes_a_record(tmp_path):
    start = datetime(2030, 1, 1, tzinfo=UTC)
    rows = [{"uri": f"/a/{i}.jpg", "score": None if i == 5 else i / 4, "scored_at": start + timedelta(seconds=i // 4)} for i in range(8)]
    (tmp_path / "scores").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "scores" / "00000-00000000-00000001.parquet")
    (tmp_path / "sessions").mkdir()
    session = {"started_at": start.isoformat(), "rows": 8, "seconds": {"decode": 0.4, "score": 0.8}}
    (tmp_path / "sessions" / "00001.json").write_text(json.dumps(session))
    record = CONTENDERS[OURS].read("", tmp_path)
    assert record.finished == [(start.timestamp(), 4), (start.timestamp() + 1, 8)]
    assert record.scores == {f"{i}.jpg": i / 4 for i in range(8) if i != 5}
    assert record.detail == {"decode_s": pytest.approx(0.05), "score_s": pytest.approx(0.1)}


def test_the_object_store_is_counted_by_the_raylets_own_log(tmp_path):
    logs = tmp_path / "ray" / "session_2030" / "logs"
    logs.mkdir(parents=True)
    lines = ["- num bytes created total: 0", "noise", "- num bytes created total: 4096"]
    (logs / "raylet.out").write_text("\n".join(lines))
    assert _store_bytes(tmp_path) == 4096
    assert _store_bytes(tmp_path / "absent") == 0


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(900)
def test_a_small_run_end_to_end(tmp_path, capsys):
    target = tmp_path / "result.json"
    assert main(["--quick", "--json", str(target), "--works", "decode_bound", "--scale", "0.34"]) == 0
    result = json.loads(target.read_text())
    assert set(result["ratios"]["decode_bound"]) == {*PEERS, *DETAILS} - result["left_out"].keys()
    assert result["left_out"].keys() <= {"daft_guide"}  # where no package index answers
    processor = result["processor_s_per_image"]["decode_bound"]
    assert processor[OURS]["own"] > sum(seconds for kind, seconds in processor[OURS].items() if kind != "own") > 0
    assert result["object_store_bytes_per_image"]["decode_bound"]["ray_guide"] > 1_000_000
    assert result["object_store_bytes_per_image"]["decode_bound"][OURS] < 10_000
    assert result["machine"]["cores"] >= 1
    assert "ray_guide" in capsys.readouterr().out
