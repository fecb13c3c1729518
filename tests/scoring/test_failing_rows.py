"""What one member costs whose header lies, or on which our own code fails: its own row, in both
layouts.
"""

import html
from dataclasses import replace
from pathlib import Path

import pytest

from ray_app.ensembles import Thresholds
from ray_app.images.provenance import Provenance, ProvenanceReader
from ray_app.images.provenance.containers import NOTHING, locate
from ray_app.images.provenance.statement import MetadataBlocks
from ray_app.reports import render_run_report, summary_lines
from ray_app.runs import RunDirectory, current_tables
from ray_app.scoring import ScoreConfig
from ray_app.scoring.guarantee import decide_rows
from ray_app.scoring.identity import resolve
from ray_app.scoring.report import bad_fraction
from tests.make import images
from tests.make.archives import write_photo
from tests.make.runs import score_here
from tests.make.stages import LAYOUTS

MARK = b"trips a bug"


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(4):
        write_photo(folder / f"{number}.jpg", number, (160, 120))
    for name, data in (
        ("bug.jpg", images.jpeg() + MARK),
        ("flat.png", images.encoded(images.flat(128, 160, 120), "PNG")),
        ("torn.png", images.top_bit_png()),
        ("bomb.png", images.bomb_png()),
        ("empty.png", b""),
        ("notes.txt", b"text"),
    ):
        (folder / name).write_bytes(data)
    return folder


def fails_while_reading(monkeypatch):
    monkeypatch.setattr(
        "ray_app.images.provenance.containers.locate",
        lambda data, *how: 1 / (MARK not in data) and locate(data, *how),
    )


def fails_while_writing(monkeypatch):
    """What the file says is one half of a character: no table can hold it."""
    monkeypatch.setattr(
        "ray_app.images.provenance.containers.locate",
        lambda data, *_: MetadataBlocks(iptc=b"\0") if MARK in data else NOTHING,
    )
    monkeypatch.setattr(
        ProvenanceReader,
        "read",
        lambda self, data, *_, **__: Provenance(ai_declared=False) if MARK in data else None,
    )
    monkeypatch.setattr(Provenance, "row", lambda self: '"\ud800"')


STATUSES = {
    "bug.jpg": "decoder_crashed",
    "torn.png": "corrupt_image",
    "bomb.png": "image_too_large",
    "empty.png": "empty_file",
    "notes.txt": "unsupported_format",
}


@pytest.mark.parametrize("fails", [fails_while_reading, fails_while_writing])
@pytest.mark.parametrize("kind", ["fused", "split"])
def test_own_bug_costs_one_row_and_is_reported_once(
    photos, tmp_path, monkeypatch, caplog, kind, fails
):
    fails(monkeypatch)
    finished, rows = score_here(tmp_path / "run", photos, precision="fp32", **LAYOUTS[kind])
    summary = finished.summary
    assert summary["session"]["layout"] == kind
    rows = {uri.rpartition("/")[2]: row for uri, row in rows.items()}
    assert len(rows) == summary["session"]["rows"] == len(list(photos.iterdir()))
    failed = {name: row["status"] for name, row in rows.items() if row["status"] != "ok"}
    assert failed == STATUSES
    bug, flat = rows["bug.jpg"], rows["flat.png"]
    assert bug["detail"].startswith("Touchstone's own code failed: ")
    assert bug["sha256"] is not None
    assert (flat["verdict"], flat["verdict_reason"]) == ("abstain", "no_content")
    [message] = [one.getMessage() for one in caplog.records if one.name.endswith("scoring.session")]
    assert "bug.jpg" in message
    assert "Traceback (most recent call last):" in message
    assert summary["own_failures"] == 1
    assert bad_fraction(summary) == pytest.approx(4 / len(rows)), "a text is no bad image"
    said = "1 row failed in Touchstone's own code; please report it"
    assert any(said in line for line in summary_lines(summary))
    assert said in html.unescape(render_run_report(summary))
    assert said not in html.unescape(render_run_report(summary | {"own_failures": 0}))


def test_decide_keeps_blank_images_abstained(photos, tmp_path):
    _, rows = score_here(tmp_path / "run", photos, precision="fp32")
    spec = resolve(ScoreConfig(ensemble="tiny", precision="fp32")).spec(gpus=0)
    [table] = current_tables(RunDirectory.open(str(tmp_path / "run")))
    assert decide_rows(table, spec).equals(table)
    thresholds = {"thresholds": Thresholds(fake_above=-20, real_below=-20)}
    bolder = replace(spec, ensemble=spec.ensemble.model_copy(update=thresholds))
    found = {row["uri"]: row for row in decide_rows(table, bolder).to_pylist()}
    [blank] = [uri for uri, row in rows.items() if row["flags"] and "no_content" in row["flags"]]
    row = found.pop(blank)
    assert Path(blank).name == "flat.png"
    assert (row["verdict"], row["verdict_reason"]) == ("abstain", "no_content")
    assert {one["verdict"] for one in found.values() if one["status"] == "ok"} == {"fake"}
