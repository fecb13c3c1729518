"""The files that a project has beside its code: citation, forms, the release checklist, what version numbers promise."""

import importlib.util
import re
import shlex
from pathlib import Path

import pytest
import yaml

from ray_app import __version__
from ray_app.cli import main as command_line
from ray_app.config import named_configs
from ray_app.detectors.card import load_card
from ray_app.runs.schema import SCHEMA_VERSION
from ray_app.serving.http.schemas import API_VERSION
from tests.groups import make_targets

ROOT = Path(__file__).resolve().parent.parent
CITATION = yaml.safe_load((ROOT / "CITATION.cff").read_text())
FORMS = sorted(path for path in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml") if path.name != "config.yml")
RELEASE = (ROOT / "docs" / "release-checklist.md").read_text()
VERSIONING = (ROOT / "docs" / "versioning.md").read_text()
COMMANDS = [
    shlex.split(line, comments=True)
    for block in re.findall(r"```console\n(.*?)```", RELEASE, re.DOTALL)
    for line in block.splitlines()
    if line.strip()
]
ARXIV = re.compile(r"\d{4}\.\d{5}")

# Of the Citation File Format 1.2.0: what must stand, and what may, of the keys that we use.
MUST = {"cff-version", "message", "title", "authors"}
MAY = MUST | {"abstract", "type", "version", "license", "keywords", "references"}


def test_the_citation_has_what_its_format_asks_for():
    assert set(CITATION) >= MUST
    assert set(CITATION) <= MAY
    assert (CITATION["cff-version"], CITATION["type"], CITATION["license"]) == ("1.2.0", "software", "Apache-2.0")
    assert str(CITATION["version"]) == __version__


def test_the_papers_of_all_published_detectors_are_named_with_their_cards():
    cited = {}
    for name in named_configs("detectors"):
        first = ARXIV.search(load_card(name).citation)
        if first and not name.startswith("touchstone-"):  # ours name what they learnt from
            cited.setdefault(first[0], set()).add(name)
    told = {ARXIV.search(entry["url"])[0]: set(entry["notes"].split(", ")) for entry in CITATION["references"]}
    assert told == cited


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.stem)
def test_an_issue_form_is_one(path):
    form = yaml.safe_load(path.read_text())
    assert {"name", "description", "body"} <= set(form) <= {"name", "description", "body", "title", "labels"}
    fields = [one for one in form["body"] if one["type"] != "markdown"]
    assert len({one["id"] for one in fields}) == len(fields)
    for one in form["body"]:
        assert one["type"] in {"markdown", "textarea", "input", "checkboxes"}
        assert set(one) <= {"type", "id", "attributes", "validations"}
        assert "value" in one["attributes"] if one["type"] == "markdown" else one["attributes"]["label"]
    named = re.findall(r"\b(?:docs/)?[A-Za-z_-]+\.md\b", path.read_text())
    assert [one for one in named if not (ROOT / one).exists()] == []


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_a_command_of_the_release_checklist_exists(words):
    program, *rest = words
    if program == "make":
        assert set(rest) <= make_targets()
    elif program == "touchstone":
        assert rest[0] in command_line.touchstone.commands
    elif words[:2] == ["python", "-m"]:
        assert importlib.util.find_spec(words[2])
    elif "/" in program:
        assert (ROOT / program).exists()
    else:
        assert program in {"git", "uv", "pip", "docker", "rm"}


def test_files_that_the_checklist_names_exist():
    named = re.findall(r"`((?:docs|ray_app|configs)/[\w./-]+|[A-Z]+\.(?:md|cff)|Dockerfile|pyproject\.toml)`", RELEASE)
    assert len(named) > 6
    assert [one for one in named if not (ROOT / one).exists()] == []


def test_the_page_of_versions_has_the_numbers_of_the_code():
    assert f"| {SCHEMA_VERSION}, `SCHEMA_VERSION` in" in VERSIONING
    assert f"| {API_VERSION}, `API_VERSION` in" in VERSIONING


def test_the_page_of_versions_names_what_stays_and_what_goes():
    for_good, until = (re.search(rf"- \*\*{words}\*\*.*?(?=\n- \*\*)", VERSIONING, re.DOTALL)[0] for words in ("For good", "Until 1.0"))
    core = {one for one in command_line.touchstone.commands if one not in command_line._GROUPS}
    assert {name for name in core | set(command_line.PERMANENT) if f"`{name}`" not in for_good} == set()
    assert {name for name in command_line.UNTIL_1_0 if f"`{name}`" not in until} == set()
