"""What the reference is made of: Markdown that means what the text said, links that hold, nothing
left out.
"""

import json
from html import unescape

import markdown as python_markdown
import pytest

from docs_site import settings
from docs_site.columns import COLUMN_MEANING
from docs_site.markdown import code, docstring, notebook_page, prose, relink, table
from docs_site.reference import EXIT_MEANING
from ray_app.datasets.split_index import SplitConfig
from ray_app.errors import ExitCode
from ray_app.scoring.config import ScoreConfig
from ray_app.training.config import TrainConfig
from tests.docs.site import every_column

PAGES = {"README.md": "index.md", "SECURITY.md": "project/security.md"}


def html(text):
    return python_markdown.markdown(text, extensions=["tables", "fenced_code"])


def test_plain_text_stays_what_it_was():
    for text in (
        *("*.jpg and a_b_c", "[link](x)", "<lora:name>", "a | b", "&#42;", "1. one", "# head"),
        "{job}",
    ):
        for made in (prose(text), code(text)):
            assert text in unescape(html(table(["head"], [[made]]))), text


def test_docstring_keeps_its_examples():
    page = docstring(
        "Does it.\n\n    One paragraph\n    of `two` lines.\n\n    \b\n    touchstone demo\n    touchstone check a.jpg\n"
    )
    assert "One paragraph of <code>two</code> lines." in page
    assert "```text\ntouchstone demo\ntouchstone check a.jpg\n```" in page


def test_notebook_becomes_a_page():
    rich = {"data": {"text/html": ["<b>x</b>"], "text/plain": ["x"]}}
    plain = {"data": {"text/plain": ["2"]}}
    cells = [
        {"cell_type": "markdown", "source": ["# Title\n", "text"]},
        {"cell_type": "code", "source": ["1 + 1"], "outputs": [plain]},
        {"cell_type": "code", "source": ["x"], "outputs": [rich]},
    ]
    page = notebook_page(json.dumps({"cells": cells}))
    assert page.startswith("# Title\ntext\n\n```python\n1 + 1\n```\n\n```text\n2\n```")
    assert "<b>x</b>" in page


CHANGELOG = ("CHANGELOG.md", "project/changelog.md")
RUNS = ("docs/runs.md", "runs.md")


@pytest.mark.parametrize(
    ("source_and_page", "link", "becomes"),
    [
        (CHANGELOG, "[a](docs/trust.md#audit)", "[a](../trust.md#audit)"),
        (CHANGELOG, "[a](SECURITY.md)", "[a](security.md)"),
        (RUNS, "[a](../README.md)", "[a](index.md)"),
        (RUNS, "[`a`](../configs/serve/x.yaml)", "`a`"),
        (RUNS, "[a](https://parquet.apache.org)", "[a](https://parquet.apache.org)"),
        (RUNS, "```\n[a](../README.md)\n```", "```\n[a](../README.md)\n```"),
    ],
)
def test_links_hold_on_the_site(source_and_page, link, becomes):
    assert relink(f"See\n{link}\n", *source_and_page, PAGES) == f"See\n{becomes}\n"


def test_every_column_and_exit_code_has_a_meaning():
    assert every_column() == set(COLUMN_MEANING)
    assert set(ExitCode) == set(EXIT_MEANING)


def test_sections_of_a_docstring_become_lists():
    text = "Read labels.\n\nArgs:\n    label: Column of the label,\n        or None.\n    root: A folder.\n"
    assert docstring(text) == (
        "Read labels.\n\nArguments:\n\n- <code>label</code>: Column of the label, or None.\n"
        "- <code>root</code>: A folder.\n"
    )


def test_keys_are_those_that_a_config_takes():
    keys = {key.path for key in settings.iter_keys(ScoreConfig)}
    assert {"source", "limits.max_bytes", "cluster.stall_timeout_s", "prices.per_hour"} <= keys
    assert settings.pages()["config-score"].count("\n| <code>") == len(keys)
    of_evaluation = {key.path for key in settings.iter_keys(settings.CONFIGS["evaluate"][0])}
    assert "score" in of_evaluation
    assert "score.source" not in of_evaluation, "these keys have a page of their own"


def test_key_has_the_meaning_of_its_field():
    said = {key.path: settings.describe_key(key) for key in settings.iter_keys(TrainConfig)}
    assert said["departures"] == "differences from the source, with reasons"
    assert said["out"].startswith("directory of card, weights")
    of_split = {key.path: settings.describe_key(key) for key in settings.iter_keys(SplitConfig)}
    assert of_split["seed"]


def test_section_of_a_card_is_described_once():
    page = settings.pages()["card-detector"]
    sentence = (
        "Where a network's weight files are, and how their keys map to the keys of the network.\n"
    )
    assert page.count(sentence) == 1
    assert page.count("prefix to add to every key") == len(
        ("backbone.weights.prefix", "weights.prefix")
    )


def test_every_key_of_a_config_or_a_card_has_a_meaning():
    for name, (model, *_) in (settings.CONFIGS | settings.CARDS).items():
        keys = settings.iter_keys(model)
        assert [key.path for key in keys if not settings.describe_key(key)] == [], name
