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
from ray_app.scoring.guarantee import decided
from ray_app.scoring.identity import resolve
from ray_app.scoring.report import bad_fraction
from tests.images import factory
from tests.scoring.conftest import score_here
from tests.scoring.stages import LAYOUTS

MARK = b"trips a bug"


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(4):
        (folder / f"{number}.jpg").write_bytes(
            factory.encoded(factory.photo(160, 120, number), "JPEG")
        )
    (folder / "bug.jpg").write_bytes(factory.jpeg() + MARK)
    (folder / "flat.png").write_bytes(factory.encoded(factory.flat(128, 160, 120), "PNG"))
    for name, data in (
        ("torn.png", factory.top_bit_png()),
        ("bomb.png", factory.bomb_png()),
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


@pytest.mark.parametrize("fails", [fails_while_reading, fails_while_writing])
@pytest.mark.parametrize("kind", ["fused", "split"])
def test_a_bug_of_ours_costs_one_row_and_is_told_once(
    photos, tmp_path, monkeypatch, caplog, kind, fails
):
    fails(monkeypatch)
    finished, rows = score_here(tmp_path / "run", photos, precision="fp32", **LAYOUTS[kind])
    summary = finished.summary
    assert summary["session"]["layout"] == kind
    rows = {uri.rpartition("/")[2]: row for uri, row in rows.items()}
    assert len(rows) == summary["session"]["rows"] == len(list(photos.iterdir()))
    failed = {name: row["status"] for name, row in rows.items() if row["status"] != "ok"}
    assert failed == {"bug.jpg": "decoder_crashed", "torn.png": "corrupt_image", "bomb.png": "image_too_large", "empty.png": "empty_file",
                      "notes.txt": "unsupported_format"}  # fmt: skip
    assert rows["bug.jpg"]["detail"].startswith("Touchstone's own code failed: ")
    assert rows["bug.jpg"]["sha256"] is not None
    assert (rows["flat.png"]["verdict"], rows["flat.png"]["verdict_reason"]) == (
        "abstain",
        "no_content",
    )
    [told] = [
        record.getMessage() for record in caplog.records if record.name == "ray_app.scoring.session"
    ]
    assert "bug.jpg" in told
    assert "Traceback (most recent call last):" in told

    assert summary["own_failures"] == 1
    assert bad_fraction(summary) == pytest.approx(4 / len(rows)), "a text is no bad image"
    said = "1 row failed in Touchstone's own code; please report it"
    assert any(said in line for line in summary_lines(summary))
    assert said in html.unescape(render_run_report(summary))
    assert said not in html.unescape(render_run_report(summary | {"own_failures": 0}))


def test_decide_gives_a_blank_picture_what_it_had(photos, tmp_path):
    _, rows = score_here(tmp_path / "run", photos, precision="fp32")
    spec = resolve(ScoreConfig(ensemble="tiny", precision="fp32")).spec(gpus=0)
    [table] = current_tables(RunDirectory.open(str(tmp_path / "run")))
    assert decided(table, spec).equals(table)
    bolder = spec.ensemble.model_copy(
        update={"thresholds": Thresholds(fake_above=-20, real_below=-20)}
    )
    found = {row["uri"]: row for row in decided(table, replace(spec, ensemble=bolder)).to_pylist()}
    blank = [uri for uri, row in rows.items() if row["flags"] and "no_content" in row["flags"]]
    assert [Path(uri).name for uri in blank] == ["flat.png"]
    assert {
        row["verdict"] for uri, row in found.items() if row["status"] == "ok" and uri not in blank
    } == {"fake"}
    assert (found[blank[0]]["verdict"], found[blank[0]]["verdict_reason"]) == (
        "abstain",
        "no_content",
    )
