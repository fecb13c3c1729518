"""The closed lists: code, docs and page say the same."""

import pickle
import re
import traceback
from pathlib import Path

import pytest

from ray_app.errors import (
    ClusterError,
    ConfigError,
    InputError,
    Reason,
    Status,
    is_image_error,
    one_line,
)
from ray_app.reports.check import ALWAYS, CAVEATS
from ray_app.serving.http.schemas import ImageAnswer

ROOT = Path(__file__).resolve().parents[1]


def test_every_status_and_every_reason_has_a_meaning():
    assert all(one.meaning for one in (*Status, *Reason))
    assert Status("ok") is Status.OK
    assert pickle.loads(pickle.dumps(Reason.UNSTABLE)) is Reason.UNSTABLE


def test_the_docs_list_every_reason_in_order_with_its_meaning():
    table = re.findall(
        r"^\| `(\w+)` \| ([^|]+) \|",
        (ROOT / "docs/trust.md").read_text().partition("## Find out why there is no verdict")[2],
        re.MULTILINE,
    )
    assert table[1 : len(Reason) + 1] == [(reason.value, reason.meaning) for reason in Reason]


def test_the_page_gives_every_reason_its_meaning():
    words = (ROOT / "ray_app/serving/page/words.js").read_text()
    listed = words.partition("export const REASONS = {")[2].partition("};")[0]
    assert re.findall(r"^  (\w+): \"(.*)\",$", listed, re.MULTILINE) == [
        (reason.value, reason.meaning) for reason in Reason
    ]


def test_both_pages_say_the_same_about_what_a_verdict_does_not_mean():
    script = (ROOT / "ray_app/serving/page/verdict.js").read_text()
    listed = script.partition("const CAVEATS = {")[2].partition("\n\n")[0]
    sentences = [sentence for verdict in CAVEATS.values() for sentence in verdict]
    assert re.findall(r"\"(.*)\"[,;]$", listed, re.MULTILINE) == [*sentences, ALWAYS]


def test_the_api_says_which_reasons_there_are():
    schema = ImageAnswer.model_json_schema()
    assert schema["$defs"]["Reason"]["enum"] == [reason.value for reason in Reason]


def test_a_traceback_shows_what_to_do_also_from_another_process():
    error = ConfigError("no such thing", hint="name another")
    for one in (error, pickle.loads(pickle.dumps(error))):
        assert traceback.format_exception_only(one)[-1] == "→ name another\n"
    assert len(traceback.format_exception_only(ConfigError("no such thing"))) == 1


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("plain × “words”", "plain × “words”"),
        ("two\nlines\r\n\ttabbed", "two\\nlines\\r\\n\\ttabbed"),
        ("\x1b[31mred\x00", "\\x1b[31mred\\x00"),
        ("half \ud800", "half \\ud800"),
        ("\u202eolleh", "\\u202eolleh"),
        ("a" * 1000, "a" * 1000),
        ("a" * 1001, "a" * 999 + "…"),
        ("\0" * 2000, "\\x00" * 249 + "\\x0…"),
    ],
)
def test_a_detail_is_one_printable_line(text, line):
    error = InputError(Status.CORRUPT_IMAGE, text)
    assert error.detail == one_line(text) == line
    assert line.isprintable()
    line.encode()


@pytest.mark.parametrize(
    ("error", "of_one"),
    [(TypeError("x"), True), (OSError("x"), True), (MemoryError(), False), (ImportError("x"), False), (ClusterError("x"), False),
     (RuntimeError("DefaultCPUAllocator: not enough memory"), False)],
)  # fmt: skip
def test_what_may_be_put_down_to_one_image(error, of_one):
    assert is_image_error(error) is of_one
