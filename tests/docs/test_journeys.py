"""The three tutorials, run as they are written, in an empty folder, with what `pip install` brings."""

import json
import re
from itertools import pairwise
from pathlib import Path

import pytest

from tests.docs import shell
from tests.docs.blocks import CONSOLE, ROOT, blocks_of

FOLDER = ROOT / "docs" / "tutorials"
INTERRUPTED = 130
# What is there in the end.
WRITTEN = {
    "archive-overnight": ("run/report.html", "verdicts.csv", "flagged.parquet", "clean/kept.csv"),
    "check-pictures": ("verdicts.html", "explained/touchstone-tiny.png", "evidence/evidence.html"),
    "your-own-detector": ("my-head/card.yaml", "my-network/card.yaml", "figures/report.html", "leaderboard.html"),
}
LARGEST_PICTURE = 200_000
_HEAD = re.compile(r"^\*\*(\d+) commands(?: and two files)?, about (\d+) minutes? on two cores\*\*", re.MULTILINE)


def commands_of(name):
    """What a reader types: commands, the installation among them, and Python blocks; not the files to be saved."""
    return sum(not step.text.startswith("cat >") for step in shell.steps_of(blocks_of(FOLDER / f"{name}.md")))


@pytest.mark.parametrize("name", WRITTEN)
def test_the_head_says_how_many_commands(name):
    head = _HEAD.search((FOLDER / f"{name}.md").read_text(encoding="utf-8"))
    assert head, "**N commands, about M minutes on two cores**"
    assert int(head[1]) == commands_of(name)
    index = (FOLDER / "index.md").read_text(encoding="utf-8")
    assert re.search(rf"\| \[[^\]]+\]\({name}\.md\) \| {head[1]} \| {head[2]} min \|", index)


@pytest.mark.parametrize("name", WRITTEN)
def test_every_command_is_followed_by_what_one_sees(name):
    """Or prints nothing."""
    blocks = blocks_of(FOLDER / f"{name}.md")
    shown = {str(before): after.language == "text" for before, after in pairwise(blocks)}
    silent = [str(block) for block in blocks if block.language in CONSOLE and not shown.get(str(block), False)]
    assert all(re.match(r"pip install|kill ", block.text) for block in blocks if str(block) in silent), silent


@pytest.mark.parametrize("name", WRITTEN)
def test_its_pictures_are_there_and_light(name):
    pictures = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", (FOLDER / f"{name}.md").read_text(encoding="utf-8"))
    assert pictures
    assert all(0 < (FOLDER / one).stat().st_size <= LARGEST_PICTURE for one in pictures)


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", WRITTEN)
def test_a_reader_sees_what_the_page_says(name, programs, tmp_path):
    before = shell.processor_seconds()
    steps = shell.run_blocks(blocks_of(FOLDER / f"{name}.md"), tmp_path, programs, timeout=1700)
    print("\n".join(shell.report(steps)), f"{shell.processor_seconds() - before:.0f} s of a processor", sep="\n")
    for step in steps:
        assert step.code == (INTERRUPTED if step.interrupted else 0), f"{step.text}\n" + "\n".join(step.lines[-30:])
        assert shell.missing(step, tmp_path) == [], f"{step.text}\n" + "\n".join(step.lines[-60:])
    assert [one for one in WRITTEN[name] if not (tmp_path / one).exists()] == []
    if name == "archive-overnight":
        every_file_has_one_row(tmp_path)


def every_file_has_one_row(folder: Path):
    """After the interruption and the next night."""
    summary = json.loads((folder / "run" / "summary.json").read_text(encoding="utf-8"))
    loose = sum(1 for path in (folder / "scraped").rglob("*") if path.is_file() and path.suffix not in (".tar", ".parquet"))
    assert summary["members"] == loose + 1000
