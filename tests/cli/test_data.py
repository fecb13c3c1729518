"""`touchstone data collect` as a user types it, and as DFLIP-3K's own downloader is called; what it
writes, `index` takes as it is.
"""

import json

import pyarrow.parquet as pq
import pytest

from ray_app.cli.main import main
from ray_app.datasets import read_index
from tests.datajobs.download.conftest import RESOLVE, Web, wild  # noqa: F401 - the fixture
from tests.datajobs.download.wild_server import picture

SETTINGS = ["--contact", "me@example.org"]
for setting in ("allow_private=true", f"resolve={json.dumps(RESOLVE)}", "retry.base_s=0.01"):
    SETTINGS += ["--set", setting]


@pytest.fixture
def meta(wild: Web, tmp_path):  # noqa: F811
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
    path = tmp_path / "pd.json"
    path.write_text(
        json.dumps({name: {"url": wild.url("h1", url), **record} for name, url in urls.items()})
    )
    return path


def test_the_reference_command_line_gives_the_reference_names(meta, tmp_path, capsys):
    save = tmp_path / "saved"
    assert (
        main(["data", "collect", "--meta_file", str(meta), "--save_dir", str(save), *SETTINGS]) == 0
    )
    assert {path.name for path in save.iterdir()} == {
        "0012345.jpeg",
        "v1.5.7.png",
        "7.webp",
        "_collected",
    }
    assert (save / "v1.5.7.png").read_bytes() == picture(1)[0]
    rows = pq.read_table(save / "_collected" / "collected.parquet").to_pylist()
    assert [row["uri"] for row in rows] == ["../0012345.jpeg", "../v1.5.7.png", "../7.webp"]
    command = capsys.readouterr().out.rstrip().splitlines()[-1].split()
    assert command[:4] == ["next", "touchstone", "data", "index"]
    assert main(command[2:]) == 0
    assert sorted(read_index(str(save / "_collected" / "index"))["uri"].to_pylist()) == sorted(
        str(path) for path in save.iterdir() if path.suffix
    )


def test_what_is_collected_is_indexed_by_the_command_that_it_names(meta, tmp_path, capsys):
    out = tmp_path / "out"
    assert (
        main(["data", "collect", str(meta), "--out", str(out), "--per-host", "1", *SETTINGS]) == 0
    )
    printed = capsys.readouterr()
    assert "3 of 5 images" in printed.out
    assert "5 urls, 5 to be asked at 1 host" in printed.err
    command = printed.out.rstrip().splitlines()[-1].split()
    assert command[0] == "next"
    assert main(command[2:]) == 0
    rows = read_index(str(out / "index"))
    labels = rows["input"].to_pylist()
    assert len(rows) == 3
    assert {row["generator"] for row in labels} == {"someMix_v2"}
    assert all(row["prompt"].startswith("oil painting") for row in labels)
    assert all(str(out / "images") in uri for uri in rows["uri"].to_pylist())


def test_a_wrong_status_and_a_missing_list_are_told(meta, tmp_path, capsys):
    assert (
        main(["data", "collect", str(meta), "--out", str(tmp_path / "out"), "--retry", "never"])
        == 2
    )
    assert "source_timeout" in capsys.readouterr().err
    assert main(["data", "collect", "--out", str(tmp_path / "out")]) == 2
    assert "meta" in capsys.readouterr().err
