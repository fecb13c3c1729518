import json

import pytest
from click.testing import CliRunner

from ray_app.cli.data import index
from ray_app.datasets import read_index
from ray_app.errors import ConfigError
from tests.datasets.published import write_files, write_json, write_openfake


def run(*words, standalone=False):
    return CliRunner().invoke(
        index, [str(word) for word in words], standalone_mode=standalone, catch_exceptions=True
    )


@pytest.fixture
def folders(tmp_path):
    return write_files(
        tmp_path / "set", "real/1.png", "fake/sdxl/2.png", "fake/sdxl/3.png", "fake/notes.txt"
    )


def test_index_shows_counts(folders, tmp_path):
    said = run(folders, "--layout", "folders", "--out", tmp_path / "index")
    assert said.exit_code == 0, said.exception
    lines = said.stdout.splitlines()
    assert lines[0].startswith("3 labelled images, layout folders · digest ")
    assert [line.split() for line in lines[2:5]] == [
        ["split", "label", "generator", "images"],
        ["–", "fake", "sdxl", "2"],
        ["–", "real", "real", "1"],
    ]
    assert "all: 3 · no published count · unknown" in lines
    assert f"left out: 1 × no labelled image (.txt), for example {folders}/fake/notes.txt" in lines
    assert len(read_index(str(tmp_path / "index"))) == 3
    assert run(folders, "--layout", "folders", "--out", tmp_path / "index").stdout == said.stdout


def test_index_in_json_with_hashes(folders, tmp_path):
    said = run(
        folders,
        "--layout",
        "folders",
        "--out",
        tmp_path / "index",
        "--hash",
        "sha256,phash",
        "--json",
        "--set",
        "arguments.generator=all",
    )
    found = json.loads(said.stdout)
    assert found["hashes"] == ["sha256", "phash"]
    assert {one["generator"] for one in found["counts"]} == {"all", "real"}
    assert found["source"]["arguments"] == {"generator": "all"}


def test_complete(folders, tmp_path):
    images = write_files(tmp_path / "images", "1.png", "2.png")
    words = (images, "--layout", "dflip", "--complete", "--set")
    whole, part = (
        write_json(tmp_path / "a/mj.json", {"1": {}, "2": {}}),
        write_json(tmp_path / "b/mj.json", {"1": {}, "2": {}, "3": {}}),
    )
    assert run(*words, f"arguments.file={whole}", "--out", tmp_path / "whole").exit_code == 0
    said = run(*words, f"arguments.file={part}", "--out", tmp_path / "part")
    assert isinstance(said.exception, ConfigError)
    assert "all: 2 · published 3 · DIFFER" in said.stdout
    assert len(read_index(str(tmp_path / "part"))) == 2
    said = run(folders, "--layout", "folders", "--out", tmp_path / "index", "--complete")
    assert "no published count to compare with" in str(said.exception)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--layout", "gen-image"), "no layout 'gen-image'"),
        (("--layout", "folders", "--set", "split=train"), "chosen by those who read an index"),
        (("--layout", "folders", "--set", "arguments.generatr=x"), "did you mean 'generator'"),
    ],
)
def test_what_is_wrong_is_said(folders, tmp_path, words, message):
    said = run(folders, "--out", tmp_path / "index", *words)
    assert isinstance(said.exception, ConfigError)
    assert message in said.exception.message
    assert not (tmp_path / "index").exists()


def test_documented_faults_of_the_data_are_told_and_left_out_on_request(tmp_path):
    words = (
        write_openfake(tmp_path / "set"),
        "--layout",
        "openfake",
        "--set",
        "arguments.version=v1",
        "--out",
    )
    said = run(*words, tmp_path / "index")
    [told] = [line for line in said.stdout.splitlines() if "openfake-v1-prompts" in line]
    assert told.startswith(
        "known fault: OpenFake, version 1, 2 rows: prompts belong to other images"
    )
    assert any(
        "openfake-sana" in line
        for line in json.loads(run(*words, tmp_path / "index", "--json").stdout)["known_faults"]
    )
    said = run(*words, tmp_path / "sparing", "--leave-out-faults")
    assert said.stdout.startswith("7 labelled images")
    assert "left out: 1 × spoiled by a documented fault of the data" in said.stdout
