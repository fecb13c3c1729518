"""`touchstone data index`."""

import pytest

from ray_app.datasets import read_index
from tests.make.published import write_files, write_json, write_openfake


@pytest.fixture
def folders(tmp_path):
    names = ("real/1.png", "fake/sdxl/2.png", "fake/sdxl/3.png", "fake/notes.txt")
    return write_files(tmp_path / "set", *names)


def test_index_prints_counts_and_what_it_left_out(folders, tmp_path, touchstone):
    line = f"data index {folders} --layout folders --out {tmp_path / 'index'}"
    ended = touchstone(line)
    assert ended.code == 0, ended.err
    lines = ended.out.splitlines()
    assert lines[0].startswith("3 labelled images, layout folders · digest ")
    assert [line.split() for line in lines[2:5]] == [
        ["split", "label", "generator", "images"],
        ["–", "fake", "sdxl", "2"],
        ["–", "real", "real", "1"],
    ]
    assert "all: 3 · no published count · unknown" in lines
    assert f"left out: 1 × no labelled image (.txt), for example {folders}/fake/notes.txt" in lines
    assert len(read_index(str(tmp_path / "index"))) == 3
    assert touchstone(line).out == ended.out


def test_index_json_has_hashes_and_arguments(folders, tmp_path, touchstone):
    line = f"data index {folders} --layout folders --out {tmp_path / 'index'}"
    more = "--hash sha256,phash --json --set arguments.generator=all"
    document = touchstone(f"{line} {more}").document
    assert document["hashes"] == ["sha256", "phash"]
    assert {count["generator"] for count in document["counts"]} == {"all", "real"}
    assert document["source"]["arguments"] == {"generator": "all"}


def test_index_complete_fails_if_counts_differ(folders, tmp_path, touchstone):
    images = write_files(tmp_path / "images", "1.png", "2.png")
    whole = write_json(tmp_path / "a/mj.json", {"1": {}, "2": {}})
    part = write_json(tmp_path / "b/mj.json", {"1": {}, "2": {}, "3": {}})
    line = f"data index {images} --layout dflip --complete --set arguments.file="
    assert touchstone(f"{line}{whole} --out {tmp_path / 'whole'}").code == 0
    ended = touchstone(f"{line}{part} --out {tmp_path / 'part'}")
    assert ended.code == 3
    assert "all: 2 · published 3 · DIFFER" in ended.out
    assert "the counts differ from the published ones" in ended.err
    assert len(read_index(str(tmp_path / "part"))) == 2
    ended = touchstone(f"data index {folders} --layout folders --out {tmp_path}/x --complete")
    assert ended.code == 2
    assert "there is no published count to compare with" in ended.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--layout gen-image", "no layout 'gen-image'"),
        ("--layout folders --set split=train", "cannot be set for an index"),
        ("--layout folders --set arguments.generatr=x", "did you mean 'generator'"),
    ],
)
def test_index_usage_error_exits_2(folders, tmp_path, words, said, touchstone):
    ended = touchstone(f"data index {folders} --out {tmp_path / 'index'} {words}")
    assert ended.code == 2
    assert said in ended.err
    assert not (tmp_path / "index").exists()


def test_index_names_known_faults_and_leaves_them_out(tmp_path, touchstone):
    line = f"data index {write_openfake(tmp_path / 'set')} --layout openfake --set arguments.version=v1 --out"
    [fault] = [
        line
        for line in touchstone(line, tmp_path / "index").out.splitlines()
        if "openfake-v1-prompts" in line
    ]
    assert fault.startswith("known fault: OpenFake, version 1, 2 rows: prompts belong to other")
    faults = touchstone(line, tmp_path / "index", "--json").document["known_faults"]
    assert any("openfake-sana" in fault for fault in faults)
    ended = touchstone(line, tmp_path / "sparing", "--leave-out-faults")
    assert ended.out.startswith("7 labelled images")
    assert "left out: 1 × spoiled by a documented fault of the data" in ended.out


@pytest.mark.parametrize("names", [("Au", "Tp"), ("real_coco_valid", "biggan_256")])
def test_unknown_folder_names_hint_at_rules(names, tmp_path, touchstone):
    source = write_files(tmp_path / "set", *(f"{name}/1.png" for name in names))
    line = f"data index {source} --out {tmp_path / 'index'} --layout"
    for layout in ("folders", "genimage"):
        ended = touchstone(f"{line} {layout}")
        assert ended.code == 2
        hint = ended.err[ended.err.index("--layout paths") :]
    for example, name in zip(("Au", "Tp"), names, strict=True):
        hint = hint.replace(f'"{example}/*"', f'"{name}/*"')
    ended = touchstone(f"{line} {hint.removeprefix('--layout')}")
    assert ended.code == 0, ended.err
    assert "all: 2" in ended.out
