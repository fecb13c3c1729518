import json

import pytest

from benchmarks.contenders import CONTENDERS, OURS
from benchmarks.contenders.contender import Record
from benchmarks.figures import DETAILS, PEERS, TARGETS
from benchmarks.figures import OURS as NAMED_OURS
from benchmarks.scoring import COUNTS, _count, main
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
    assert count >= (32 if name == "limit" else 160)  # five batches of 32: three lie inside the window


@pytest.mark.parametrize("name", CONTENDERS)
def test_commands_name_the_work(name, tmp_path):
    work = Work("decode_bound", "card.yaml", "default", str(tmp_path))
    command = CONTENDERS[name].command(work, 320, tmp_path / "out")
    assert "320" in command
    assert any(str(tmp_path) in word for word in command)


def test_a_record_survives_its_line():
    record = Record([(1.5, 4)], {"a.jpg": -0.25}, {"imported": 1.0}, detail={"decode_s": 0.1})
    assert Record.parse("noise\n" + json.dumps(vars(record)) + "\n") == record


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(900)
def test_a_small_run_end_to_end(tmp_path, capsys):
    target = tmp_path / "result.json"
    assert main(["--quick", "--json", str(target), "--works", "decode_bound", "--scale", "0.2"]) == 0
    result = json.loads(target.read_text())
    assert set(result["ratios"]["decode_bound"]) == {*PEERS, *DETAILS}
    assert result["object_store_bytes_per_image"]["decode_bound"]["ray_guide"] > 1_000_000
    assert result["object_store_bytes_per_image"]["decode_bound"][OURS] < 10_000
    assert result["machine"]["cores"] >= 1
    assert "ray_guide" in capsys.readouterr().out
