"""`touchstone detectors list`, `show`, `fetch`, `verify`, and `add` without a network."""

import json
import re
import shlex
from pathlib import Path

import pytest
import yaml

from benchmarks.seeded import seeded_card
from ray_app.config import named_configs
from ray_app.detectors import load_card
from ray_app.detectors.weights import find_local_file, list_parts
from ray_app.reports.card import SPEED_WORDS
from tests.detectors.checkable import golden_of, sha256, write_checkable
from tests.make.profiles import make_identifier

ROOT = Path(__file__).resolve().parents[2]
CARDS = {name: load_card(name) for name in named_configs("detectors")}
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


def without_weights():
    return [name for name, card in CARDS.items() if not all(map(find_local_file, list_parts(card)))]


def test_list_shows_licence_weights_and_variants(touchstone):
    lines = touchstone("detectors list").out.splitlines()
    missing = without_weights()
    assert all(len(line) <= 120 for line in lines)
    for name, card in CARDS.items():
        place = next(index for index, line in enumerate(lines) if line.startswith(f"{name} "))
        below = [line.split()[0] for line in lines[place + 1 : place + 1 + len(card.variants)]]
        assert below == [f":{variant}" for variant in card.variants]
        assert (" ! " in lines[place]) == (name in TO_ACCEPT)
        assert lines[place].endswith("missing" if name in missing else "here")
    assert SPEED_WORDS in " ".join(lines[lines.index("") :])
    entries = touchstone("detectors list --json").document
    assert [entry["name"] for entry in entries] == list(CARDS)
    for entry in entries:
        card = CARDS[entry["name"]]
        assert entry["card"] == json.loads(card.model_dump_json())
        assert entry["accepted"] == (card.name not in TO_ACCEPT)
        assert entry["weights"] == ("missing" if card.name in missing else "here")
        variants = [variant["name"] for variant in entry["variants"]]
        assert variants == [f"{card.name}:{variant}" for variant in card.variants]


def test_show_prints_a_card_that_loads_again(touchstone, home, tmp_path):
    home.mkdir()
    (home / "config.yaml").write_text("accepted_licences: [damaged]\n")  # Not read by `show`.
    name = next(
        name for name, card in CARDS.items() if card.variants and card.terms != "permissive"
    )
    again = tmp_path / "again.yaml"
    again.write_text(touchstone("detectors show", name).out)
    assert load_card(again).model_dump() == CARDS[name].model_dump()
    shown = touchstone("detectors show --json", name).document
    assert shown == json.loads(CARDS[name].model_dump_json())
    variant = f"{name}:{next(iter(CARDS[name].variants))}"
    assert touchstone("detectors show", variant).out.startswith(f"name: {variant}\n")


@pytest.mark.parametrize("kind", ["identifiers", "describers"])
def test_show_prints_cards_of_a_profile(kind, touchstone):
    for name in named_configs(kind):
        assert yaml.safe_load(touchstone("detectors show", name).out)["name"] == name


def test_show_prints_an_identifier_by_its_path(touchstone, tmp_path):
    names = ["sdxl", "sdxl_1.0/mine", "midjourney-6"]
    card = make_identifier(tmp_path, names, [[0] * 3] * 3, "touchstone-tiny", {"width": 3})
    assert touchstone("detectors show --json", card).document["classes"][0] == "sdxl"


@pytest.mark.parametrize("verb", ["fetch", "verify"])
def test_licence_must_be_accepted_before_weights_are_read(verb, touchstone, home):
    ended = touchstone(f"detectors {verb} {NON_COMMERCIAL}")
    error, command = ended.err.splitlines()
    card = CARDS[NON_COMMERCIAL]
    assert ended.code == 4
    assert all(text in error for text in (card.licence, "not accepted", card.weights.uri))
    assert f"fetch {NON_COMMERCIAL} --accept-licence {NON_COMMERCIAL}" in command
    assert not home.exists()


def test_accepted_licence_is_remembered_and_marked(touchstone, home):
    ended = touchstone(f"detectors fetch {NON_COMMERCIAL} --accept-licence {NON_COMMERCIAL}")
    assert ended.code == 4
    assert f"accepted: {NON_COMMERCIAL}, licence CC-BY-NC-4.0" in ended.err
    assert str(home / "config.yaml") in ended.err
    accepted = yaml.safe_load((home / "config.yaml").read_text())["accepted_licences"]
    assert accepted.keys() == {NON_COMMERCIAL}
    ended = touchstone(f"detectors fetch {NON_COMMERCIAL}")
    assert (ended.code, ended.out) == (4, "")
    error, command = ended.err.splitlines()[-2:]
    assert error.startswith(f"touchstone: {NON_COMMERCIAL}: no weights")
    assert CARDS[NON_COMMERCIAL].weights.uri in error
    assert f"touchstone detectors fetch {NON_COMMERCIAL}" in command
    lines = touchstone("detectors list").out.splitlines()
    assert " ✓ " in next(line for line in lines if line.startswith(NON_COMMERCIAL))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("fetch", "--all"),
        ("fetch touchstone-tiny --all", "cannot be combined"),
        ("fetch touchstone-tiny --accept-licence openfake-swinv2-smol", "openfake-swinv2-small"),
        ("show touchstone-tiny:none", "unknown variant 'none'"),
        ("add {tmp}/head.pth", "--as"),
        ("add {tmp}/head.pth {tmp}/head.pth --as unifd", "--as"),
        ("add {tmp} --as unifd", "directory"),
    ],
)
def test_detectors_usage_error_exits_2(line, said, tmp_path, touchstone):
    (tmp_path / "head.pth").write_bytes(b"x" * 300)
    ended = touchstone("detectors " + line.format(tmp=tmp_path))
    assert (ended.code, ended.out) == (2, "")
    assert said in ended.err


def test_fetch_prints_paths_on_stdout_and_sizes_on_stderr(touchstone):
    ended = touchstone("detectors fetch touchstone-tiny")
    assert ended.out.strip().endswith("configs/detectors/touchstone-tiny.safetensors")
    assert "touchstone-tiny: 1 file, 0.2 MB" in ended.err
    (fetched,) = touchstone("detectors fetch touchstone-tiny --json").document
    assert (fetched["name"], fetched["published"]) == ("touchstone-tiny", None)
    assert fetched["files"] == [ended.out.strip()]


def test_fetch_all_names_each_detector_it_leaves_out(touchstone):
    ended = touchstone("detectors fetch --all")
    assert ended.code == 4
    assert ended.out.strip().endswith("touchstone-tiny.safetensors")
    assert all(f"left out: {name}: {CARDS[name].licence}" in ended.err for name in TO_ACCEPT)
    told = re.findall(r"^(?:left out|touchstone): ([\w.-]+): ", ended.err, re.MULTILINE)
    assert sorted(told) == sorted(without_weights())


def test_fetch_to_a_folder_fills_a_mirror(tmp_path, monkeypatch, touchstone):
    card = write_checkable(tmp_path / "here")
    monkeypatch.chdir(tmp_path)
    export = touchstone("detectors fetch --to 'a mirror'", card).out.splitlines()[-1]
    word, assignment = shlex.split(export)
    assert (word, assignment) == ("export", f"TOUCHSTONE_WEIGHTS_MIRROR={tmp_path / 'a mirror'}")
    (tmp_path / "here" / "checkable.safetensors").unlink()
    ended = touchstone("detectors verify", card)
    assert ended.code == 4
    assert "no weights" in ended.out
    monkeypatch.setenv("TOUCHSTONE_WEIGHTS_MIRROR", assignment.partition("=")[2])
    assert touchstone("detectors verify", card).code == 0
    fetched = touchstone("detectors fetch", card).out
    assert fetched.splitlines()[-1].startswith(str(tmp_path / "home" / "cache"))


def test_verify_prints_a_line_per_check(tmp_path, touchstone):
    card, images = write_checkable(tmp_path), tmp_path / "images"
    ended = touchstone("detectors verify", card, "--images", images)
    assert ended.code == 0
    checks = ["present", "sha256", "keys", "parameters", "tensors", "loads", "golden"]
    lines = [line.split()[:3] for line in ended.out.splitlines()]
    assert lines == [["checkable", name, "ok"] for name in checks]
    ended = touchstone("detectors verify", card)
    assert ended.code == 0
    last = ended.out.splitlines()[-1]
    assert "golden      skipped  published.png is required (--images FOLDER)" in last
    assert sha256(images / "any-name.png") in last
    data = yaml.safe_load(card.read_text())
    right = data["golden"][0]["probability"]
    wrong = right - 0.01 if right > 0.5 else right + 0.01
    golden = golden_of(images / "any-name.png", wrong)
    card.write_text(yaml.safe_dump(data | {"golden": [golden]}))
    ended = touchstone("detectors verify --json", card, "--images", images)
    (result,) = ended.document
    assert (ended.code, result["ok"], result["checks"][-1]["outcome"]) == (4, False, "failed")
    assert f"P(fake) {right:.4f}, published {wrong:.4f}" in result["checks"][-1]["told"]


def test_add_copies_weights_that_verify_accepts(tmp_path, home, touchstone):
    file = Path(seeded_card("safe", tmp_path).weights.uri)
    first, last = touchstone("detectors add --as safe", file).out.splitlines()
    assert first.startswith(f"{file}: the weights of safe; copied to {home / 'cache'}")
    assert last == "safe: complete: touchstone detectors verify safe"
    added = touchstone("detectors add --as safe --json", file).document
    assert (added["part"], added["sha256"], added["lacking"]) == (
        "safe",
        sha256(file),
        {"safe": []},
    )
    assert Path(added["path"]).is_relative_to(home / "cache")
    assert touchstone("detectors verify safe --accept-licence safe").code == 0


def test_add_rejects_a_file_with_another_sha256(tmp_path, touchstone):
    (tmp_path / "head.pth").write_bytes(b"x" * 300)
    ended = touchstone("detectors add --as unifd", tmp_path / "head.pth")
    assert ended.code == 4
    assert "the card states" in ended.err


@pytest.mark.parametrize("family", ["detectzoo", "imdlbenco"])
def test_retired_adapter_names_its_example(family, tmp_path, touchstone):
    example = f"examples/{family}_adapter.py"
    assert (ROOT / example).is_file()
    for line in ("detectors add", "detectors show", f"plan {tmp_path} --detector"):
        ended = touchstone(line, f"{family}:safe")
        assert ended.code == 2
        assert "is retired" in ended.err
        assert example in " ".join(ended.err.split())
