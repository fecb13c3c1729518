import json
import re
import shlex
from pathlib import Path

import pytest
import yaml

from benchmarks.seeded import seeded_card
from ray_app.cli.main import main
from ray_app.config import named_configs
from ray_app.detectors import load_card
from ray_app.detectors.weights import located, parts_of
from ray_app.errors import ExitCode
from ray_app.reports.card import SPEED_WORDS
from tests.detectors.checkable import golden_of, sha256, write_checkable

ROOT = Path(__file__).resolve().parents[2]
CARDS = {name: load_card(name) for name in named_configs("detectors")}
with pytest.MonkeyPatch.context() as patch:
    patch.setenv("TOUCHSTONE_CACHE", "/nonexistent")  # whatever this machine's user has fetched
    WITHOUT_WEIGHTS = [
        name for name, card in CARDS.items() if not all(map(located, parts_of(card)))
    ]
TO_ACCEPT = [name for name, card in CARDS.items() if card.terms != "permissive"]
NON_COMMERCIAL = "openfake-swinv2-small"


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """A user who accepted nothing, with an empty cache and no network."""
    home = tmp_path / "home"
    monkeypatch.setenv("TOUCHSTONE_CONFIG", str(home / "config.yaml"))
    monkeypatch.setenv("TOUCHSTONE_CACHE", str(home / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.delenv("TOUCHSTONE_WEIGHTS_MIRROR", raising=False)
    return home


def test_list_is_a_table_that_explains_itself_and_json_has_everything(capsys):
    assert main(["detectors", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(len(line) <= 120 for line in lines)
    for name, card in CARDS.items():
        place = next(index for index, line in enumerate(lines) if line.startswith(f"{name} "))
        below = [line.split()[0] for line in lines[place + 1 : place + 1 + len(card.variants)]]
        assert below == [f":{variant}" for variant in card.variants]
        assert (" ! " in lines[place]) == (name in TO_ACCEPT)
        assert lines[place].endswith("missing" if name in WITHOUT_WEIGHTS else "here")
    marks = " ".join(lines[lines.index("") :])
    assert all(
        text in marks for text in ("! the licence has to be accepted", "✓", ":NAME", SPEED_WORDS)
    )
    assert main(["detectors", "list", "--json"]) == 0
    entries = json.loads(capsys.readouterr().out)
    assert [entry["name"] for entry in entries] == list(CARDS)
    for entry in entries:
        card = CARDS[entry["name"]]
        assert entry["card"] == json.loads(card.model_dump_json())
        assert entry["accepted"] == (entry["name"] not in TO_ACCEPT)
        assert entry["weights"] == ("missing" if entry["name"] in WITHOUT_WEIGHTS else "here")
        assert [variant["name"] for variant in entry["variants"]] == [
            f"{card.name}:{variant}" for variant in card.variants
        ]


@pytest.mark.parametrize("name", list(CARDS))
def test_show_prints_yaml_or_json(name, tmp_path, capsys):
    assert main(["detectors", "show", name]) == 0
    again = tmp_path / "again.yaml"
    again.write_text(capsys.readouterr().out)
    assert load_card(again).model_dump() == CARDS[name].model_dump()
    assert main(["detectors", "show", name, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(CARDS[name].model_dump_json())
    for variant in CARDS[name].variants:
        assert main(["detectors", "show", f"{name}:{variant}"]) == 0
        assert capsys.readouterr().out.startswith(f"name: {name}:{variant}\n")


def test_show_asks_nothing_of_this_machine(home, capsys):
    home.mkdir()
    (home / "config.yaml").write_text("accepted_licences: [damaged]\n")
    assert main(["detectors", "show", NON_COMMERCIAL]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["name"] == NON_COMMERCIAL
    assert main(["detectors", "show", NON_COMMERCIAL, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["name"] == NON_COMMERCIAL


@pytest.mark.parametrize("name", WITHOUT_WEIGHTS)
def test_without_network_and_weights_one_clear_line(name, capsys):
    assert (
        main(
            ["detectors", "fetch", name, *(["--accept-licence", name] if name in TO_ACCEPT else [])]
        )
        == 4
    )
    captured = capsys.readouterr()
    error, command = captured.err.splitlines()[-2:]
    assert error.startswith(f"touchstone: {name}: no weights")
    assert any(part.weights.uri in error for part in parts_of(CARDS[name]))
    assert f"touchstone detectors fetch {name}" in command
    assert captured.out == ""


@pytest.mark.parametrize("verb", ["fetch", "verify"])
@pytest.mark.parametrize("name", TO_ACCEPT)
def test_terms_come_before_weights(name, verb, home, capsys):
    assert main(["detectors", verb, name]) == 4
    error, command = capsys.readouterr().err.splitlines()
    assert all(
        text in error
        for text in (name, CARDS[name].licence, "not accepted", CARDS[name].weights.uri)
    )
    assert f"touchstone detectors fetch {name} --accept-licence {name}" in command
    assert not home.exists()


def test_acceptance_is_remembered_and_marked(home, capsys):
    assert main(["detectors", "fetch", NON_COMMERCIAL, "--accept-licence", NON_COMMERCIAL]) == 4
    assert (
        f"accepted: {NON_COMMERCIAL}, licence CC-BY-NC-4.0; remembered in {home / 'config.yaml'}"
        in capsys.readouterr().err
    )
    assert yaml.safe_load((home / "config.yaml").read_text())["accepted_licences"].keys() == {
        NON_COMMERCIAL
    }
    assert main(["detectors", "fetch", NON_COMMERCIAL]) == 4
    assert "no weights" in capsys.readouterr().err
    main(["detectors", "list"])
    line = next(
        line for line in capsys.readouterr().out.splitlines() if line.startswith(NON_COMMERCIAL)
    )
    assert " ✓ " in line
    assert " ! " not in line


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["fetch"], "--all"),
        (["fetch", "touchstone-tiny", "--all"], "not both"),
        (
            ["fetch", "touchstone-tiny", "--accept-licence", "openfake-swinv2-smol"],
            "did you mean 'openfake-swinv2-small'?",
        ),
        (["show", "touchstone-tiny:none"], "no variant 'none'"),
    ],
)
def test_usage_errors_exit_2(arguments, said, capsys):
    assert main(["detectors", *arguments]) == 2
    captured = capsys.readouterr()
    assert said in captured.err
    assert captured.out == ""


def test_fetch_prints_the_files_and_says_what_it_does_on_stderr(capsys):
    assert main(["detectors", "fetch", "touchstone-tiny"]) == 0
    captured = capsys.readouterr()
    assert captured.out.strip().endswith("configs/detectors/touchstone-tiny.safetensors")
    assert "touchstone-tiny: 1 file, 0.2 MB" in captured.err
    assert main(["detectors", "fetch", "touchstone-tiny", "--json"]) == 0
    (fetched,) = json.loads(capsys.readouterr().out)
    assert (fetched["name"], fetched["published"]) == ("touchstone-tiny", None)
    assert fetched["files"] == [captured.out.strip()]


def test_fetch_all_says_what_it_leaves_out_and_why(capsys):
    assert main(["detectors", "fetch", "--all"]) == 4
    captured = capsys.readouterr()
    assert captured.out.strip().endswith("touchstone-tiny.safetensors")
    assert all(f"left out: {name}: {CARDS[name].licence}" in captured.err for name in TO_ACCEPT)
    told = re.findall(r"^(?:left out|touchstone): ([\w.-]+): ", captured.err, re.MULTILINE)
    assert sorted(told) == sorted(WITHOUT_WEIGHTS)


def test_fetch_to_a_folder_serves_machines_without_internet(tmp_path, monkeypatch, capsys):
    card = write_checkable(tmp_path / "here")
    monkeypatch.chdir(tmp_path)
    assert main(["detectors", "fetch", str(card), "--to", "a mirror"]) == 0
    export = capsys.readouterr().out.splitlines()[-1]
    word, assignment = shlex.split(export)
    assert (word, assignment) == ("export", f"TOUCHSTONE_WEIGHTS_MIRROR={tmp_path / 'a mirror'}")
    (tmp_path / "here" / "checkable.safetensors").unlink()
    assert main(["detectors", "verify", str(card)]) == 4
    assert "no weights" in capsys.readouterr().out
    monkeypatch.setenv("TOUCHSTONE_WEIGHTS_MIRROR", assignment.partition("=")[2])
    assert main(["detectors", "verify", str(card)]) == 0
    assert main(["detectors", "fetch", str(card)]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith(str(tmp_path / "home" / "cache"))


def test_fetch_to_a_bucket(tmp_path, s3, monkeypatch, capsys):
    s3.bucket("weights")
    card = write_checkable(tmp_path / "here")
    assert main(["detectors", "fetch", str(card), "--to", "s3://weights/zoo", "--json"]) == 0
    (fetched,) = json.loads(capsys.readouterr().out)
    assert fetched["published"].startswith("s3://weights/zoo/checkable-")
    (tmp_path / "here" / "checkable.safetensors").unlink()
    monkeypatch.setenv("TOUCHSTONE_WEIGHTS_MIRROR", "s3://weights/zoo")
    assert main(["detectors", "fetch", str(card)]) == 0


def test_verify_says_one_line_per_check_and_names_the_images_that_it_needs(tmp_path, capsys):
    card = write_checkable(tmp_path)
    assert main(["detectors", "verify", str(card), "--images", str(tmp_path / "images")]) == 0
    lines = [line.split()[:3] for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        ["checkable", name, "ok"]
        for name in ("present", "sha256", "keys", "parameters", "tensors", "loads", "golden")
    ]
    assert main(["detectors", "verify", str(card)]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert "golden      skipped  published.png is needed (--images FOLDER)" in last
    assert sha256(tmp_path / "images" / "any-name.png") in last


def test_verify_fails_with_exit_4_and_says_by_how_much(tmp_path, capsys):
    card = write_checkable(tmp_path)
    data = yaml.safe_load(card.read_text())
    right = data["golden"][0]["probability"]
    wrong = golden_of(
        tmp_path / "images" / "any-name.png", right - 0.01 if right > 0.5 else right + 0.01
    )
    card.write_text(yaml.safe_dump(data | {"golden": [wrong]}))
    assert main(["detectors", "verify", str(card), "--images", str(tmp_path / "images")]) == 4
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.split()[:3] == ["checkable", "golden", "failed"]
    assert f"P(fake) {right:.4f}, published {wrong['probability']:.4f}" in last
    assert (
        main(["detectors", "verify", str(card), "--images", str(tmp_path / "images"), "--json"])
        == 4
    )
    (told,) = json.loads(capsys.readouterr().out)
    assert (told["name"], told["ok"], told["checks"][-1]["outcome"]) == (
        "checkable",
        False,
        "failed",
    )


def test_add_copies_weights_and_says_what_to_do_next(tmp_path, home, capsys):
    file = Path(seeded_card("safe", tmp_path).weights.uri)
    assert main(["detectors", "add", str(file), "--as", "safe"]) == 0
    first, last = capsys.readouterr().out.splitlines()
    assert first.startswith(f"{file}: the weights of safe; copied to {home / 'cache'}")
    assert last == "safe: complete: touchstone detectors verify safe"
    assert main(["detectors", "add", str(file), "--as", "safe", "--json"]) == 0
    added = json.loads(capsys.readouterr().out)
    assert (added["part"], added["sha256"], added["lacking"]) == (
        "safe",
        sha256(file),
        {"safe": []},
    )
    assert Path(added["path"]).is_relative_to(home / "cache")
    assert main(["detectors", "verify", "safe", "--accept-licence", "safe"]) == 0


def test_add_refuses_a_file_with_another_sha256(tmp_path, home, capsys):
    (tmp_path / "head.pth").write_bytes(b"x" * 300)
    assert (
        main(["detectors", "add", str(tmp_path / "head.pth"), "--as", "unifd"]) == ExitCode.DETECTOR
    )
    assert "the card states" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words", [["FILE"], ["FILE", "FILE", "--as", "unifd"], ["FOLDER", "--as", "unifd"]]
)
def test_add_requires_one_file_and_its_name(tmp_path, words):
    (tmp_path / "head.pth").write_bytes(b"x" * 300)
    places = {"FILE": str(tmp_path / "head.pth"), "FOLDER": str(tmp_path)}
    assert main(["detectors", "add", *(places.get(word, word) for word in words)]) == ExitCode.USAGE


@pytest.mark.parametrize("family", ["detectzoo", "imdlbenco"])
def test_retired_adapter_names_its_example(tmp_path, capsys, family):
    word = f"{family}:safe"
    for command in (
        ["detectors", "add", word],
        ["detectors", "show", word],
        ["plan", str(tmp_path), "--detector", word],
    ):
        assert main(command) == ExitCode.USAGE
        told = capsys.readouterr().err
        assert f"{family}:safe: the adapter {family} is retired" in told
        assert f"examples/{family}_adapter.py" in " ".join(told.split())
    assert (ROOT / "examples" / f"{family}_adapter.py").is_file()
