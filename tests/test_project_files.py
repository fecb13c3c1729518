"""The citation, and the page of version numbers."""

import re
from pathlib import Path

import yaml

from ray_app import __version__
from ray_app.config import named_configs
from ray_app.detectors.card import load_card
from ray_app.runs.schema import SCHEMA_VERSION
from ray_app.serving.http.schemas import API_VERSION

ROOT = Path(__file__).resolve().parent.parent
CITATION = yaml.safe_load((ROOT / "CITATION.cff").read_text())
VERSIONING = (ROOT / "docs" / "versioning.md").read_text()
ARXIV = re.compile(r"\d{4}\.\d{5}")

# Of the Citation File Format 1.2.0: what must stand, and what may, of the keys that we use.
MUST = {"cff-version", "message", "title", "authors"}
MAY = MUST | {"abstract", "type", "version", "license", "keywords", "references"}


def test_the_citation_has_what_its_format_asks_for():
    assert set(CITATION) >= MUST
    assert set(CITATION) <= MAY
    assert (CITATION["cff-version"], CITATION["type"], CITATION["license"]) == (
        "1.2.0",
        "software",
        "Apache-2.0",
    )
    assert str(CITATION["version"]) == __version__


def test_the_papers_of_all_published_detectors_are_named_with_their_cards():
    cited = {}
    for name in named_configs("detectors"):
        first = ARXIV.search(load_card(name).citation)
        if first and not name.startswith("touchstone-"):  # ours name what they learnt from
            cited.setdefault(first[0], set()).add(name)
    told = {
        ARXIV.search(entry["url"])[0]: set(entry["notes"].split(", "))
        for entry in CITATION["references"]
    }
    assert told == cited


def test_the_page_of_versions_has_the_numbers_of_the_code():
    assert f"| {SCHEMA_VERSION}, `SCHEMA_VERSION` in" in VERSIONING
    assert f"| {API_VERSION}, `API_VERSION` in" in VERSIONING
