"""The three tutorials, run as they are written, in an empty folder, with what `pip install` brings."""

import json
from pathlib import Path

import pytest

from tests.docs import shell
from tests.docs.blocks import ROOT, blocks_of

FOLDER = ROOT / "docs" / "tutorials"
INTERRUPTED = 130
# What is there in the end.
WRITTEN = {
    "archive-overnight": ("run/report.html", "verdicts.csv", "flagged.parquet", "kept.csv"),
    "check-images": ("verdicts.html", "one.html"),
    "your-own-detector": ("my-head/card.yaml", "my-network/card.yaml", "figures/report.html"),
}


def test_every_tutorial_is_run():
    assert {path.stem for path in FOLDER.glob("*.md")} - {"index"} == set(WRITTEN)


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", WRITTEN)
def test_tutorial_prints_what_it_shows(name, programs, tmp_path):
    before = shell.processor_seconds()
    steps = shell.run_blocks(blocks_of(FOLDER / f"{name}.md"), tmp_path, programs, timeout=1700)
    print(
        "\n".join(shell.report(steps)),
        f"{shell.processor_seconds() - before:.0f} s of a processor",
        sep="\n",
    )
    for step in steps:
        assert step.code == (INTERRUPTED if step.interrupted else 0), f"{step.text}\n" + "\n".join(
            step.lines[-30:]
        )
        assert shell.missing(step, tmp_path) == [], f"{step.text}\n" + "\n".join(step.lines[-60:])
    assert [one for one in WRITTEN[name] if not (tmp_path / one).exists()] == []
    if name == "archive-overnight":
        every_file_has_one_row(tmp_path)


def every_file_has_one_row(folder: Path):
    """After the interruption and the next night."""
    summary = json.loads((folder / "run" / "summary.json").read_text(encoding="utf-8"))
    loose = sum(
        1
        for path in (folder / "scraped").rglob("*")
        if path.is_file() and path.suffix not in (".tar", ".parquet")
    )
    assert summary["members"] == loose + 1000
