"""SECURITY.md speaks of code and tests that exist."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "SECURITY.md").read_text()
ROWS = [
    line.split("|")
    for line in TEXT.splitlines()
    if line.startswith("| ") and line.count("|") == 6 and "---" not in line
][1:]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[1].strip()[:40])
def test_what_holds_an_adversary_has_code_and_a_test_that_tries_it(row):
    code, tests = (re.findall(r"`([\w/.]+)`", cell) for cell in row[4:6])
    assert code
    assert tests
    assert [one for one in code if not (ROOT / "ray_app" / one).exists()] == []
    assert [one for one in tests if not (ROOT / one).exists()] == []


def test_the_adversaries_are_read():
    assert len(ROWS) >= 10


def test_links_lead_to_files():
    assert [link for link in re.findall(r"\]\(([^)#:]+)", TEXT) if not (ROOT / link).exists()] == []
