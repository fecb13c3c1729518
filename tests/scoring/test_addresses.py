"""What `plan` and `score` fetch is what their user named, whatever the archive says."""

import hashlib
import io
import json
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from webdataset import TarWriter

from ray_app.runs import RunDirectory, current_rows
from ray_app.scoring import ScoreConfig
from ray_app.scoring.forecast.forecast import forecast
from ray_app.scoring.run import score_archive
from tests.archives.test_addresses import Pages
from tests.archives.test_img2dataset import IMAGES, image, put, written
from tests.images.factory import encoded, photo
from tests.scoring.conftest import rows_of


@pytest.fixture
def hostile(tmp_path):
    """A folder with a picture and a table of addresses; the server that must not be asked."""
    with Pages() as server:
        (tmp_path / "in").mkdir()
        (tmp_path / "in/a.jpg").write_bytes(encoded(photo(), "JPEG"))
        uris = [f"{server.url}/hook", "/etc/hostname", "http://169.254.169.254/latest/meta-data"]
        pq.write_table(pa.table({"url": uris}), tmp_path / "in/t.parquet")
        (tmp_path / "in/u.csv").write_text("\n".join(["uri", *uris]))
        (tmp_path / "l.csv").write_text("\n".join(["uri", "in/a.jpg", *uris]))
        yield tmp_path, server


def test_a_plan_asks_for_nothing_that_a_table_names(hostile):
    folder, server = hostile
    plan = forecast(ScoreConfig(source=(str(folder / "in"),), ensemble="tiny"), probe=8).written()
    assert plan["members"] == 3
    assert plan["probe"]["statuses"] == {"ok": 1, "unsupported_format": 2}
    listed = forecast(ScoreConfig(source=(str(folder / "l.csv"),), ensemble="tiny"), probe=8).written()
    assert listed["probe"]["statuses"] == {"ok": 1, "source_denied": 2, "unsupported_format": 1}
    assert server.asked == []
    allowed = forecast(ScoreConfig(source=(str(folder / "l.csv"),), ensemble="tiny", allow_private=True), probe=2).written()
    assert allowed["members"] == 4


def test_a_run_asks_for_nothing_that_a_table_names(hostile, off_ray):
    folder, server = hostile
    source, out = (str(folder / "in"), str(folder / "l.csv")), str(folder / "run")
    score_archive(ScoreConfig(source=source, ensemble="tiny", out=out, block_members=8))
    rows = rows_of(out)
    assert server.asked == []
    statuses = {uri.rpartition("/")[2]: row["status"] for uri, row in rows.items()}
    unread = dict.fromkeys(("t.parquet", "u.csv", "hostname"), "unsupported_format") | dict.fromkeys(("hook", "meta-data"), "source_denied")
    assert statuses == {"a.jpg": "ok"} | unread
    assert "allow_private=true" in rows[f"{server.url}/hook"]["detail"]
    for name in ("t.parquet", "u.csv"):
        assert f"list::{folder}/in/{name}" in rows[f"{folder}/in/{name}"]["detail"]
    retried = ScoreConfig(
        source=source, ensemble="tiny", out=out, rescore=("source_denied",), allow_private=True, retry={"deadline_s": 1}, block_members=8
    )
    score_archive(retried)
    assert server.asked == ["/hook"]
    assert rows_of(out)[f"{server.url}/hook"]["status"] == "unsupported_format"  # it was read, and is no picture


def test_a_folder_of_img2dataset_is_scored_once_with_its_captions(tmp_path, off_ray):
    pictures = {image(key): encoded(photo(seed=int(key)), "JPEG") for key in IMAGES}
    files = written("webdataset") | {f"{shard}.tar": tar_of(shard, pictures) for shard in ("00000", "00001")}
    score_archive(ScoreConfig(source=(put(tmp_path / "out", files),), ensemble="tiny", out=str(tmp_path / "run"), block_members=8))
    rows = list(current_rows(RunDirectory.open(str(tmp_path / "run"))))
    scored = [row for row in rows if row["status"] == "ok"]
    assert sorted(row["input"]["key"] for row in scored) == IMAGES
    assert all(row["input"]["caption"] == f"caption of {row['input']['key']}" for row in scored)
    assert all(row["sha256"] == hashlib.sha256(pictures[image(row["input"]["key"])]).hexdigest() for row in scored)
    assert Counter(row["status"] for row in rows) == {"ok": len(IMAGES), "unsupported_format": 4}  # two tables, two of statistics


def tar_of(shard, pictures):
    """A shard with real pictures."""
    out = io.BytesIO()
    with TarWriter(out) as writer:
        for key in (key for key in IMAGES if key.startswith(shard)):
            writer.write({"__key__": key, "jpg": pictures[image(key)], "txt": f"caption of {key}", "json": json.dumps({"key": key})})
    return out.getvalue()
