"""What `plan` and `score` fetch is what their user named, whatever the archive says."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ray_app.scoring import ScoreConfig
from ray_app.scoring.forecasting import forecast
from tests.archives.test_addresses import Pages
from tests.images.factory import encoded, photo


@pytest.fixture
def hostile(tmp_path):
    """A folder with a picture and a table of addresses; the server that must not be asked."""
    with Pages() as server:
        (tmp_path / "in").mkdir()
        (tmp_path / "in/a.jpg").write_bytes(encoded(photo(), "JPEG"))
        uris = [f"{server.url}/hook", "/etc/hostname", "http://169.254.169.254/latest/meta-data"]
        pq.write_table(pa.table({"url": uris}), tmp_path / "in/t.parquet")
        (tmp_path / "l.csv").write_text("\n".join(["uri", "in/a.jpg", *uris]))
        yield tmp_path, server


def test_a_plan_asks_for_nothing_that_a_table_names(hostile):
    folder, server = hostile
    plan = forecast(ScoreConfig(source=(str(folder / "in"),)), probe=8)
    assert plan["members"] == 2
    assert plan["probe"]["statuses"] == {"ok": 1, "unsupported_format": 1}
    listed = forecast(ScoreConfig(source=(str(folder / "l.csv"),)), probe=8)
    assert listed["probe"]["statuses"] == {"ok": 1, "source_denied": 2, "unsupported_format": 1}
    assert server.asked == []
    allowed = forecast(ScoreConfig(source=(str(folder / "l.csv"),), allow_private=True), probe=2)
    assert allowed["members"] == 4


@pytest.mark.ray
def test_a_run_asks_for_nothing_that_a_table_names(hostile, score):
    folder, server = hostile
    _, rows = score(folder / "in", out=folder / "run")
    assert {uri.rpartition("/")[2]: row["status"] for uri, row in rows.items()} == {"a.jpg": "ok", "t.parquet": "unsupported_format"}
    _, rows = score(folder / "l.csv", out=folder / "listed")
    assert sorted(row["status"] for row in rows.values()) == ["ok", "source_denied", "source_denied", "unsupported_format"]
    assert server.asked == []
    assert "allow_private=true" in rows[f"{server.url}/hook"]["detail"]
    _, rows = score(folder / "l.csv", out=folder / "listed", rescore=("source_denied",), allow_private=True, retry={"deadline_s": 1})
    assert server.asked == ["/hook"]
    assert rows[f"{server.url}/hook"]["status"] == "unsupported_format"  # it was read: no picture
