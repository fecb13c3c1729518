"""docs/weights.md says of a published file what its card says, and claims to have confirmed none that the card does not state."""

import re
from pathlib import Path

import pytest

from ray_app.detectors import load_card

PAGE = (Path(__file__).parents[2] / "docs" / "weights.md").read_text()
ROWS = re.findall(r"^\| `([^`]+)` \| `([^`]+)`[^|]*\| ([\d,]*) ?\| ([0-9a-f]{12}) \| (bytes|pointer|third party)", PAGE, re.MULTILINE)


def test_the_table_is_read():
    assert len(ROWS) == PAGE.count("\n| `") > 10


@pytest.mark.parametrize(("name", "file", "size", "digest", "how"), ROWS, ids=[row[0] for row in ROWS])
def test_a_row_is_the_card_s(name, file, size, digest, how):
    weights = load_card(name).weights
    assert weights.uri.endswith("/" + file)
    assert weights.sha256.startswith(digest)
    assert bool(size) == (how != "third party")
