"""What a terminal is told: the table of verdicts, and the lines at the end of a run."""

import math

import pytest

from ray_app.errors import Status
from ray_app.reports import summary_lines, verdict_table
from ray_app.reports.format import columns
from ray_app.reports.text import table
from tests.reports import hostile
from tests.reports.example import example_summary


def row(uri, score=None, verdict=None, status="ok", member=None, calibrated=True):
    known = {"probability": None, "calibrated": None}
    if score is not None:
        known = {"probability": 1 / (1 + math.exp(-score)), "calibrated": calibrated}
    named = {"uri": uri, "member": member, "status": status}
    return named | known | {"score": score, "verdict": verdict}


ROWS = [
    row("s3://desk/in/camera/a.jpg", -4.25, "real"),
    row("s3://desk/in/made/b.png", 3.5, "fake"),
    row("s3://desk/in/box.tar", 0.5, "abstain", member="x/c.webp"),
    row("s3://desk/in/notes.txt", status="unsupported_format"),
]


def test_verdict_table_aligns_its_columns():
    assert verdict_table(ROWS, 80).splitlines() == [
        "in s3://desk/in/",
        "file                verdict      probability  score  status",
        "camera/a.jpg        no evidence       0.0141  -4.25  ok",
        "made/b.png          fake              0.9707  +3.50  ok",
        "box.tar › x/c.webp  abstain           0.6225  +0.50  ok",
        "notes.txt           –                      –      –  unsupported_format",
    ]
    assert "s3://desk/in/camera/a.jpg" in verdict_table(ROWS[:1], 100)  # one file is named in full
    # of equal names their own part stays
    assert verdict_table(ROWS[:1] * 2, 80).splitlines()[2].startswith("a.jpg ")
    assert verdict_table([], 80) == "no rows"


def test_verdict_table_marks_uncalibrated_probabilities():
    text = verdict_table([row("a.jpg", 1.0, "fake", calibrated=False)], 80)
    assert "probability*" in text
    assert text.splitlines()[-1] == "* the plain sigmoid of the score, not calibrated"
    assert "*" not in verdict_table(ROWS, 80)


def test_verdict_table_begins_with_the_finding():
    rows = [
        row("a.jpg", 1.0, "fake") | {"finding": one}
        for one in ("says that ComfyUI made it", None, "camera, signed by " + "x" * 90)
    ]
    heads, *lines = verdict_table(rows, 130).splitlines()
    assert heads.split() == ["file", "finding", "verdict", "probability", "score", "status"]
    assert lines[0].startswith("a.jpg  says that ComfyUI made it ")
    assert lines[1].split()[1] == "–"
    assert "…" in lines[2]
    assert all(line.endswith("fake          0.7311  +1.00  ok") for line in lines)


def test_verdict_has_a_column_only_if_findings_differ():
    plain = [row("a.jpg", 1.0, "fake") | {"finding": "flagged by detectors"}]
    heads = verdict_table(plain, 130).splitlines()[0].split()
    assert heads[:3] == ["file", "finding", "probability"]
    declared = row("b.jpg", -3.0, "real") | {"finding": "says that ComfyUI made it"}
    heads, flagged, differing = verdict_table([*plain, declared], 130).splitlines()
    assert heads.split()[:3] == ["file", "finding", "verdict"]
    assert flagged.split() == ["a.jpg", "flagged", "by", "detectors", "0.7311", "+1.00", "ok"]
    assert "says that ComfyUI made it  no evidence  " in differing


@pytest.mark.parametrize("width", [80, 200])
def test_verdict_table_fits_the_terminal(width):
    rows = [row(name, 1.25, "fake") for name in hostile.NAMES.values()]
    lines = verdict_table(rows, width).splitlines()
    assert len(lines) == len(rows) + 1
    assert all(columns(line) <= width for line in lines)
    assert all(line.endswith("fake          0.7773  +1.25  ok") for line in lines[1:])
    long = row("s3://desk/" + "x" * 90 + "/end.jpg", 1.0, "fake")
    assert "end.jpg" in verdict_table([long], 20).splitlines()[1]


NAMES = [["クラゲ.jpg", "12", "a sentence of several words"], ["b.jpg", "1,234", "short"]]


def test_table_aligns_east_asian_text_and_numbers():
    assert table(["file", "images", "note"], NAMES, right={1}) == [
        "file        images  note",
        "クラゲ.jpg      12  a sentence of several words",
        "b.jpg        1,234  short",
    ]
    assert table([], NAMES, right={1})[1] == "b.jpg       1,234  short"
    assert table(["file", "images"], []) == ["file  images"]
    assert table([], []) == []


def test_table_wraps_text_between_words_and_never_numbers():
    lines = table(["file", "images", "note"], NAMES, 34, right={1})
    assert lines == [
        "file        images  note",
        "クラゲ.jpg      12  a sentence of",
        "                    several words",
        "b.jpg        1,234  short",
    ]


def test_table_breaks_long_words_if_nothing_else_fits():
    lines = table(["path", "images"], [["x" * 30, "1,234,567"]], 20, right={1})
    assert lines[1].split() == ["x" * 9, "1,234,567"]
    assert all(columns(line) <= 20 for line in lines)


def test_table_has_no_colours_on_a_terminal(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert table(["[bold]file"], [["[red]a.jpg :smile:"]]) == ["[bold]file", "[red]a.jpg :smile:"]


def test_summary_lines_of_a_finished_run():
    lines = summary_lines(example_summary(run="/data/my run"))
    text = "\n".join(lines)
    for said in (
        "3,000 files: 150 flagged as fake, 40 left open, 2,800 with no evidence found, 10 could not be scored.",
        Status.CORRUPT_IMAGE.meaning,
        "e.g. s3://picture-desk/harbour/1987/scan-0012.jpg: broken data stream when reading image file",
        "e.g. s3://picture-desk/harbour/boxes/box-07.tar › box-07/0419.png",
        "the score is between the two thresholds (38)",
        "flags about 1 % of real images and finds",
        "bottleneck: score (51.8 % of the workers' time): The cores are busy",
        "not calibrated",
        "report: /data/my run/report.html",
    ):
        assert said in text
    assert lines[-1] == "rows: touchstone results '/data/my run'"  # it can be pasted


def test_summary_lines_of_unfinished_idle_and_empty_runs():
    unfinished = "\n".join(summary_lines(example_summary(complete=False, members=9000)))
    assert "not finished: 3,000 of 9,000 files have a row; run the same command again" in unfinished
    assert "6,000 not reached yet" in unfinished
    idle = "\n".join(summary_lines(example_summary(session={"rows": 0})))
    assert "no file was scored" in idle
    assert "images/s" not in idle
    assert summary_lines({}) == ["No files: there was nothing to score."]
