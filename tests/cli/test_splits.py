"""`touchstone data split`."""

import json

import pytest

from ray_app.datasets import read_index
from tests.make.datasets import made_index
from tests.make.published import write_files


@pytest.fixture
def index(tmp_path):
    generators = (("real", "real"), ("fake", "flux"), ("fake", "sora"))
    rows = [
        {
            "label": label,
            "generator": generator,
            "prompt": f"picture {number}",
            "uri": f"/{number}/{generator}.png",
        }
        for number in range(200)
        for label, generator in generators
    ]
    return made_index(tmp_path / "index", rows)


def test_split_prints_counts_and_next_commands(index, tmp_path, touchstone):
    out = tmp_path / "out"
    line = f"data split {index} --out {out} --hold-out sora --train 0.7 --validation 0.2"
    ended = touchstone(line)
    assert ended.code == 0
    lines = ended.out.splitlines()
    assert lines[0] == "600 images in 200 groups, the largest of 3"
    columns = [line.split()[0] for line in lines[2:7]]
    assert columns == ["split", "train", "validation", "test", "aside"]
    assert any("sora (held out)" in line for line in lines)
    assert lines[-2].startswith("next: touchstone train ")
    assert lines[-1].endswith(f"--labels {out} --split test --out figures")
    assert len(read_index(str(out))) == 600
    assert touchstone(f"{line} --json").document == json.loads((out / "split.json").read_text())


def test_check_exits_3_if_splits_share_images(index, tmp_path, touchstone):
    touchstone(f"data split {index} --out {tmp_path / 'leaky'} --by group,looks")
    ended = touchstone(f"data split {tmp_path / 'leaky'} --check")
    lines = ended.out.splitlines()
    assert ended.code == 3
    assert any(line.startswith("LEAK by the same prompt: ") for line in lines)
    assert sum(line.startswith("  = /") for line in lines) == 5
    touchstone(f"data split {index} --out {tmp_path / 'whole'}")
    ended = touchstone(f"data split {tmp_path / 'whole'} --check --seed 0")
    assert ended.code == 2
    assert "--check writes no index, and --seed has no effect with it" in ended.err
    ended = touchstone(f"data split {tmp_path / 'whole'} --check")
    assert ended.code == 0
    assert "the splits share nothing" in ended.out


def test_split_keeps_the_manifest_of_a_run(index, tmp_path, touchstone):
    theirs = write_files(tmp_path / "run", "run.json", "manifest/0/_complete")
    ended = touchstone(f"data split {index} --out {theirs}")
    assert ended.code == 2
    assert "it contains a scored run (run.json)" in ended.err
    assert (theirs / "manifest/0/_complete").exists()
