import os
import shlex
import stat

import pytest
import yaml

from ray_app.detectors import load_card
from ray_app.detectors.licences import (
    accept_licence,
    accepted_licences,
    config_file,
    infer_terms,
    is_accepted,
    require_accepted,
)
from ray_app.errors import ConfigError, DetectorError, ExitCode
from tests.make.cards import write_tiny
from tests.make.file_modes import umask

NON_COMMERCIAL = "openfake-swinv2-small"


def may_be_used(card, now=()):
    return is_accepted(card.name, card.licence, card.terms, now)


def written(config, text):
    """Write the file of the configuration, and return it."""
    config.parent.mkdir(exist_ok=True)
    config.write_text(text)
    return config


@pytest.fixture(autouse=True)
def config(tmp_path, monkeypatch):
    path = tmp_path / "home" / "config.yaml"
    monkeypatch.setenv("TOUCHSTONE_CONFIG", str(path))
    return path


def card_with(**changes):
    return load_card(NON_COMMERCIAL).model_copy(update=changes)


@pytest.mark.parametrize(
    ("terms", "words"),
    [
        ("non-commercial", "no commercial use"),
        ("research-only", "research only"),
        ("none-stated", "no licence was published"),
    ],
)
def test_other_terms_are_refused_with_the_command(terms, words):
    card = card_with(terms=terms)
    with pytest.raises(DetectorError) as raised:
        require_accepted(card)
    error = raised.value
    assert error.exit_code == ExitCode.DETECTOR
    assert "\n" not in error.message
    assert all(text in error.message for text in (card.name, card.licence, words, card.weights.uri))
    assert f"touchstone detectors fetch {card.name} --accept-licence {card.name}" in error.hint


def test_terms_follow_from_the_name_of_a_licence():
    for licence, terms in {
        "MIT": "permissive",
        "CC BY-SA 4.0": "permissive",
        "CC-BY-NC-SA-4.0": "non-commercial",
        "CC BY 4.0 (full set); CC BY-NC-SA 4.0 (Small)": "non-commercial",
        "Research use only": "research-only",
        "none stated": "none-stated",
        "": "none-stated",
        "own": "permissive",
        "our own": "permissive",
        "terms of its own": "restricted",
        "Terms of the agency": "restricted",
        "Synchrotron licence": "restricted",
    }.items():
        assert infer_terms(licence) == terms, licence


@pytest.mark.parametrize("variant", ["", ":closer"])
def test_hint_for_a_card_of_ones_own_can_be_followed(variant, tmp_path):
    changes = {"terms": "restricted", "variants": {"closer": {"title": "closer"}}}
    path = write_tiny(tmp_path / "my card.yaml", name="mine", **changes)
    with pytest.raises(DetectorError) as raised:
        require_accepted(load_card(f"{path}{variant}"))
    words = shlex.split(raised.value.hint.partition("then: ")[2].partition(" (or")[0])
    assert words == [
        "touchstone",
        "detectors",
        "fetch",
        f"{path}{variant}",
        "--accept-licence",
        str(path),
    ]
    assert accept_licence(words[-1]).name == "mine"
    require_accepted(load_card(words[3]))


def test_an_accepted_detector_is_remembered(config):
    assert accept_licence(NON_COMMERCIAL).file == config
    require_accepted(load_card(NON_COMMERCIAL))
    assert accepted_licences().keys() == {NON_COMMERCIAL}
    assert may_be_used(card_with(name=f"{NON_COMMERCIAL}:small")), "its variants come with it"
    entry = yaml.safe_load(config.read_text())["accepted_licences"][NON_COMMERCIAL]
    assert entry["licence"] == "CC-BY-NC-4.0"
    assert entry["accepted_at"][:2] == "20"
    before = config.stat().st_mtime_ns, config.read_text()
    accept_licence(NON_COMMERCIAL)
    assert (config.stat().st_mtime_ns, config.read_text()) == before, "a second time writes nothing"


def test_a_licence_covers_every_detector_under_it():
    accept_licence("cc-by-nc-4.0")
    assert may_be_used(load_card(NON_COMMERCIAL))
    assert may_be_used(card_with(name="another"))
    assert not may_be_used(card_with(name="another", licence="CC-BY-NC-SA-4.0"))
    assert accepted_licences().keys() == {"CC-BY-NC-4.0"}


def test_missing_licence_is_accepted_by_name_only():
    """Two authors who published none have nothing in common: each is accepted by name."""
    card = card_with(name="another", licence="none published", terms="none-stated")
    assert not may_be_used(card, ["none published"])
    assert may_be_used(card, ["another"]), "names for this command count without a file"


def test_changed_licence_must_be_accepted_again():
    accept_licence(NON_COMMERCIAL)
    changed = card_with(licence="Yissum-Research", terms="research-only")
    assert not may_be_used(changed)
    told = r"Yissum-Research.*you accepted CC-BY-NC-4\.0 earlier"
    with pytest.raises(DetectorError, match=told):
        require_accepted(changed)


def test_accepting_keeps_the_rest_of_the_file(config):
    head, tail = "# mine\ncache: /data   # big disk\n", "# after\nnested: {a: [1, 2]}\n"
    old = "accepted_licences:\n  old:  # long ago\n    licence: X\n    accepted_at: then\n"
    written(config, f"{head}\n{old}\n{tail}").chmod(0o600)
    accept_licence(NON_COMMERCIAL)
    text = config.read_text()
    assert text.startswith(head)
    assert text.endswith(tail)
    accepted = yaml.safe_load(text)["accepted_licences"]
    assert accepted.keys() == {"old", NON_COMMERCIAL}
    assert accepted["old"] == {"licence": "X", "accepted_at": "then"}
    assert stat.S_IMODE(config.stat().st_mode) == 0o600
    assert os.listdir(config.parent) == [config.name]


def test_file_with_a_byte_order_mark_keeps_one_section(config):
    old = "accepted_licences:\n  old: {licence: X, accepted_at: then}\n"
    written(config, f"\ufeff{old}# after\n")
    accept_licence(NON_COMMERCIAL)
    assert config.read_text().startswith("accepted_licences:\n")
    assert config.read_text().count("accepted_licences:") == 1
    assert yaml.safe_load(config.read_text())["accepted_licences"].keys() == {"old", NON_COMMERCIAL}


@pytest.mark.parametrize("mask", [0o022, 0o027])
def test_new_file_has_the_mode_of_the_umask(config, mask):
    with umask(mask) as mode:
        accept_licence(NON_COMMERCIAL)
    assert stat.S_IMODE(config.stat().st_mode) == mode


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("{a: 1, b: {c: 2}}", {"a": 1, "b": {"c": 2}}),
        ("---\na: 1\n...\n", {"a": 1}),
        ("a: 1\naccepted_licences:\n", {"a": 1}),
        ("", {}),
    ],
)
def test_any_layout_keeps_its_values(config, text, kept):
    written(config, text)
    accept_licence(NON_COMMERCIAL)
    data = yaml.safe_load(config.read_text())
    assert data.pop("accepted_licences")[NON_COMMERCIAL]["licence"] == "CC-BY-NC-4.0"
    assert data == kept


@pytest.mark.parametrize(
    "text", ["}{", "accepted_licences: [a]\n", "accepted_licences: {a: {accepted_at: now}}\n"]
)
def test_damaged_file_is_named(config, text):
    written(config, text)
    require_accepted(load_card("community-forensics-vits384"))  # needs and reads nothing
    with pytest.raises(ConfigError, match=str(config)):
        require_accepted(load_card(NON_COMMERCIAL))
    with pytest.raises(ConfigError, match=str(config)):
        accept_licence(NON_COMMERCIAL)
    assert config.read_text() == text


def test_unwritable_home_remembers_nothing(tmp_path, monkeypatch):
    # A file where the folder should be stops even root.
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TOUCHSTONE_CONFIG", str(tmp_path / "file" / "config.yaml"))
    assert accepted_licences() == {}
    accepted = accept_licence(NON_COMMERCIAL)
    assert (accepted.name, accepted.file) == (NON_COMMERCIAL, None)
    assert may_be_used(load_card(NON_COMMERCIAL), [accepted.name])


def test_config_file_is_in_the_home(tmp_path, monkeypatch):
    monkeypatch.delenv("TOUCHSTONE_CONFIG")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "xdg"))
    assert config_file() == tmp_path / "xdg" / "touchstone" / "config.yaml"
    monkeypatch.delenv("XDG_CONFIG_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert config_file() == tmp_path / ".config" / "touchstone" / "config.yaml"
    assert accepted_licences() == {}
