"""What `plan` and `score` fetch is what their user named, whatever the archive says."""

from functools import partial
from http.server import SimpleHTTPRequestHandler

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ray_app.errors import TouchstoneError
from ray_app.scoring import ScoreConfig
from ray_app.scoring.plan import plan_run
from ray_app.scoring.run import score_archive
from tests.archives.test_addresses import Pages
from tests.http_server import HttpServer
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
    plan = plan_run(ScoreConfig(source=(str(folder / "in"),), ensemble="tiny"), probe=8).to_dict()
    assert plan["members"] == 3
    assert plan["probe"]["statuses"] == {"ok": 1, "unsupported_format": 2}
    listed = plan_run(
        ScoreConfig(source=(str(folder / "l.csv"),), ensemble="tiny"), probe=8
    ).to_dict()
    assert listed["probe"]["statuses"] == {"ok": 1, "source_denied": 2, "unsupported_format": 1}
    assert server.asked == []
    allowed = plan_run(
        ScoreConfig(source=(str(folder / "l.csv"),), ensemble="tiny", allow_private=True), probe=2
    ).to_dict()
    assert allowed["members"] == 4


def test_a_run_asks_for_nothing_that_a_table_names(hostile, off_ray):
    folder, server = hostile
    source, out = (str(folder / "in"), str(folder / "l.csv")), str(folder / "run")
    score_archive(ScoreConfig(source=source, ensemble="tiny", out=out, block_members=8))
    rows = rows_of(out)
    assert server.asked == []
    statuses = {uri.rpartition("/")[2]: row["status"] for uri, row in rows.items()}
    unread = dict.fromkeys(
        ("t.parquet", "u.csv", "hostname"), "unsupported_format"
    ) | dict.fromkeys(("hook", "meta-data"), "source_denied")
    assert statuses == {"a.jpg": "ok"} | unread
    assert "allow_private=true" in rows[f"{server.url}/hook"]["detail"]
    for name in ("t.parquet", "u.csv"):
        assert f"list::{folder}/in/{name}" in rows[f"{folder}/in/{name}"]["detail"]
    retried = ScoreConfig(
        source=source,
        ensemble="tiny",
        out=out,
        rescore=("source_denied",),
        allow_private=True,
        retry={"deadline_s": 1},
        block_members=8,
    )
    score_archive(retried)
    assert server.asked == ["/hook"]
    # it was read, and is no picture
    assert rows_of(out)[f"{server.url}/hook"]["status"] == "unsupported_format"


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *_) -> None:
        """Print nothing."""


def test_secrets_of_sources_are_not_kept(off_ray, tmp_path, capfd):
    files = tmp_path / "files"
    files.mkdir()
    with HttpServer(partial(QuietHandler, directory=str(files))) as server:
        for number, name in enumerate(("a.jpg", "b.jpg")):
            (files / name).write_bytes(encoded(photo(seed=number), "JPEG"))
        listed = f"uri\n{server.url}/b.jpg\n{server.url}/c.jpg?X-Amz-Signature=SIGNATURE\n"
        (files / "list.csv").write_text(listed)
        signed = f"{server.url}/a.jpg?X-Amz-Signature=SIGNATURE"
        sources = (signed, f"list::{server.url}/list.csv?X-Amz-Signature=SIGNATURE")
        out = tmp_path / "run"
        score_archive(
            ScoreConfig(source=sources, ensemble="tiny", out=str(out), allow_private=True)
        )
        missing = f"list::{server.url}/none.csv?X-Amz-Signature=SIGNATURE"
        with pytest.raises(TouchstoneError) as caught:
            score_archive(
                ScoreConfig(
                    source=(missing,),
                    ensemble="tiny",
                    out=str(tmp_path / "other"),
                    allow_private=True,
                )
            )
    assert "SIGNATURE" not in str(caught.value)
    statuses = {uri[-5:]: row["status"] for uri, row in rows_of(out).items()}
    assert statuses == {"a.jpg": "ok", "b.jpg": "ok", "c.jpg": "source_denied"}
    paths = [path for path in out.rglob("*") if path.is_file()]
    assert [path for path in paths if b"SIGNATURE" in path.read_bytes()] == []
    tables = [pq.read_table(path).to_pylist() for path in paths if path.suffix == ".parquet"]
    assert "SIGNATURE" not in repr(tables) + "".join(capfd.readouterr())
