"""`touchstone data collect`, and DFLIP-3K's own command line; `index` accepts the result."""

import json
import shlex

import pyarrow.parquet as pq
import pytest

from ray_app.datasets import read_index
from tests.make.servers.wild import RESOLVE, Web, picture


@pytest.fixture
def meta(wild: Web, tmp_path):
    record = {
        "Prompt": "oil painting of a lighthouse in fog, <lora:foo:0.6>",
        "Seed": "42",
        "Model": "someMix_v2",
        "ENSD": "",
    }
    urls = {
        "0012345": "good/0.x",
        "v1.5.7": "good/1.x",
        "gone": "gone/2.x",
        "page": "html/3.x",
        "7": "moved/5.x",
    }
    records = {name: {"url": wild.url("h1", url), **record} for name, url in urls.items()}
    (tmp_path / "pd.json").write_text(json.dumps(records))
    return tmp_path / "pd.json"


@pytest.fixture
def collect(touchstone):
    """Run `collect` against the test's servers, and the command that its last line names."""
    settings = ["allow_private=true", f"resolve={json.dumps(RESOLVE)}", "retry.base_s=0.01"]
    words = [word for setting in settings for word in ("--set", setting)]

    def run(line):
        ended = touchstone(f"data collect {line} --contact me@example.org", *words)
        assert ended.code == 0
        following, program, *command = shlex.split(ended.out.rstrip().splitlines()[-1])
        assert (following, program, command[:2]) == ("next", "touchstone", ["data", "index"])
        assert touchstone("", *command).code == 0
        return ended

    return run


def test_collect_accepts_the_reference_command_line(meta, tmp_path, collect):
    save = tmp_path / "saved"
    collect(f"--meta_file {meta} --save_dir {save}")
    names = {path.name for path in save.iterdir()}
    assert names == {"0012345.jpeg", "v1.5.7.png", "7.webp", "_collected"}
    assert (save / "v1.5.7.png").read_bytes() == picture(1)[0]
    rows = pq.read_table(save / "_collected" / "collected.parquet").to_pylist()
    assert [row["uri"] for row in rows] == ["../0012345.jpeg", "../v1.5.7.png", "../7.webp"]
    indexed = read_index(str(save / "_collected" / "index"))["uri"].to_pylist()
    assert sorted(indexed) == sorted(str(path) for path in save.iterdir() if path.suffix)


def test_collect_keeps_prompts_and_generators(meta, tmp_path, collect):
    out = tmp_path / "out"
    ended = collect(f"{meta} --out {out} --per-host 1")
    assert "3 of 5 images" in ended.out
    assert "5 urls, 5 to request from 1 host" in ended.err
    rows = read_index(str(out / "index"))
    labels = rows["input"].to_pylist()
    assert len(rows) == 3
    assert {label["generator"] for label in labels} == {"someMix_v2"}
    assert all(label["prompt"].startswith("oil painting") for label in labels)
    assert all(str(out / "images") in uri for uri in rows["uri"].to_pylist())


def test_collect_usage_error_exits_2(meta, tmp_path, touchstone):
    for words, said in ((f"{meta} --retry never", "source_timeout"), ("", "meta")):
        ended = touchstone(f"data collect {words} --out {tmp_path / 'out'}")
        assert ended.code == 2, words
        assert said in ended.err
