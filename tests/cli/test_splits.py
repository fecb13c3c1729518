import json

import pytest
from click.testing import CliRunner

from ray_app.cli.data import split
from ray_app.datasets import read_index
from tests.datasets.made_index import made_index


def run(command, *words):
    return CliRunner().invoke(command, [str(word) for word in words], standalone_mode=False)


@pytest.fixture
def at(tmp_path):
    rows = [{"label": label, "generator": maker, "prompt": f"picture {number}", "uri": f"/{number}/{maker}.png"}
            for number in range(200) for label, maker in (("real", "real"), ("fake", "flux"), ("fake", "sora"))]  # fmt: skip
    return made_index(tmp_path / "index", rows)


def test_a_split_is_told_and_says_what_comes_next(at, tmp_path):
    said = run(
        split,
        at,
        "--out",
        tmp_path / "out",
        "--hold-out",
        "sora",
        "--train",
        "0.7",
        "--validation",
        "0.2",
    )
    assert (said.exit_code, said.exception) == (0, None)
    lines = said.stdout.splitlines()
    assert lines[0] == "600 images in 200 groups, the largest of 3"
    assert [line.split()[0] for line in lines[2:7]] == [
        "split",
        "train",
        "validation",
        "test",
        "aside",
    ]
    assert any("sora (held out)" in line for line in lines)
    assert lines[-2].startswith("next: touchstone train ")
    assert lines[-1].endswith(f"--labels {tmp_path / 'out'} --split test --out figures")
    assert len(read_index(str(tmp_path / "out"))) == 600
    again = run(
        split,
        at,
        "--out",
        tmp_path / "out",
        "--hold-out",
        "sora",
        "--train",
        "0.7",
        "--validation",
        "0.2",
        "--json",
    )
    assert json.loads(again.stdout) == json.loads((tmp_path / "out" / "split.json").read_text())


def test_a_check_exits_with_2_where_splits_share_images(at, tmp_path):
    run(split, at, "--out", tmp_path / "out", "--by", "group,looks")
    said = run(split, tmp_path / "out", "--check")
    lines = said.stdout.splitlines()
    assert said.return_value == 2
    assert any(line.startswith("LEAK by the same prompt: ") for line in lines)
    assert sum(line.startswith("  = /") for line in lines) == 5
    run(split, at, "--out", tmp_path / "whole")
    said = run(split, tmp_path / "whole", "--check")
    assert said.return_value == 0
    assert said.stdout.splitlines()[-1] == "the splits share nothing, as far as can be told"
