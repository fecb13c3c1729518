"""docs/weights.md claims to have confirmed no SHA-256 that a card does not state."""

import re
from pathlib import Path

from ray_app.detectors import load_card

PAGE = (Path(__file__).parents[2] / "docs" / "weights.md").read_text()
ROWS = re.findall(r"^\| (?:bytes|pointer|third party) \| (.+) \|$", PAGE, re.MULTILINE)
NAMES = re.findall(r"`([^`]+)`", " ".join(ROWS))


def test_the_table_is_read():
    assert len(ROWS) == 3
    assert len(set(NAMES)) == len(NAMES) > 15


def test_confirmed_file_is_one_that_the_card_states():
    assert [name for name in NAMES if not load_card(name).weights.sha256] == []
