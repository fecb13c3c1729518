"""What UPGRADING.md and docs/versioning.md tell a user of an older version, tried."""

import re
from pathlib import Path

import pytest

from ray_app.cli import main as command_line
from ray_app.config import validate
from ray_app.errors import ConfigError
from ray_app.scoring import ScoreConfig
from ray_app.serving import config

ROOT = Path(__file__).resolve().parent.parent
VERSIONING = (ROOT / "docs" / "versioning.md").read_text()


def test_page_on_versions_guarantees_each_permanent_name():
    names = re.search(r"^- \*\*Permanent\*\*:.*?(?=^- )", VERSIONING, re.MULTILINE | re.DOTALL)[0]
    assert set(command_line.PERMANENT) <= set(re.findall(r"`(\w+)`", names))


@pytest.mark.parametrize(
    ("key", "replacement"), [("arena", "touchstone runs audit"), ("jobs", "ray job submit")]
)
def test_serve_config_refuses_retired_keys_with_a_hint(key, replacement):
    with pytest.raises(ConfigError, match=f"{key}: retired") as error:
        config.ServeConfig(**{key: {"max_images": 1000}})
    assert replacement in error.value.hint


@pytest.mark.parametrize("key", ["events", "jpeg_decoder"])
def test_score_config_refuses_retired_keys(key):
    with pytest.raises(ConfigError, match=f"mine.yaml: {key}: retired: "):
        validate({key: "x"}, ScoreConfig, where="mine.yaml")
