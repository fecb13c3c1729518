"""What `plan` and `score` fetch is what their user named, whatever the archive says."""

from functools import partial
from http.server import SimpleHTTPRequestHandler

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ray_app.errors import TouchstoneError
from ray_app.scoring import ScoreConfig
from ray_app.scoring.run import score_archive
from tests.make.images import encoded, photo
from tests.make.runs import rows_of
from tests.make.servers.http_server import HttpServer
from tests.make.servers.pages import Pages
from tests.make.stages import plan_here


@pytest.fixture
def hostile(tmp_path):
    """A folder with a picture and a table of addresses; the server that must not be asked."""
    with Pages() as server:
        (tmp_path / "in").mkdir()
        (tmp_path / "in/a.jpg").write_bytes(encoded(photo(), "JPEG"))
        uris = [f"{server.url}/hook", "/etc/hostname", "http://169.254.169.254/latest/meta-data"]
        pq.write_table(pa.table({"url": uris}), tmp_path / "in/t.parquet")
        (tmp_path / "in/s.tar.ab").write_bytes(b"\1\2\3")
        (tmp_path / "in/u.csv").write_text("\n".join(["uri", *uris]))
        (tmp_path / "l.csv").write_text("\n".join(["uri", "in/a.jpg", *uris]))
        yield tmp_path, server


def config_of(*sources, **settings):
    return ScoreConfig(source=tuple(map(str, sources)), ensemble="tiny", **settings)


def test_plan_requests_nothing_that_a_table_names(hostile):
    folder, server = hostile
    for name, members, statuses in (
        ("in", 4, {"ok": 1, "unsupported_format": 3}),
        ("l.csv", 4, {"ok": 1, "source_denied": 2, "unsupported_format": 1}),
    ):
        plan = plan_here(config_of(folder / name), probe=8).to_dict()
        assert (plan["members"], plan["probe"]["statuses"]) == (members, statuses), name
    assert server.asked == []


def test_run_requests_addresses_only_if_allowed(hostile, off_ray):
    folder, server = hostile
    source, out = (folder / "in", folder / "l.csv"), str(folder / "run")
    settings = {"out": out, "block_members": 8}
    score_archive(config_of(*source, **settings))
    rows = rows_of(out)
    assert server.asked == []
    statuses = {uri.rpartition("/")[2]: row["status"] for uri, row in rows.items()}
    unread = dict.fromkeys(("s.tar.ab", "t.parquet", "u.csv", "hostname"), "unsupported_format")
    denied = dict.fromkeys(("hook", "meta-data"), "source_denied")
    assert statuses == {"a.jpg": "ok"} | unread | denied
    assert "allow_private=true" in rows[f"{server.url}/hook"]["detail"]
    for name in ("t.parquet", "u.csv"):
        assert f"list::{folder}/in/{name}" in rows[f"{folder}/in/{name}"]["detail"]
    assert "(cat s.tar.* > s.tar)" in rows[f"{folder}/in/s.tar.ab"]["detail"]
    settings |= {"allow_private": True, "retry": {"deadline_s": 1}}
    score_archive(config_of(*source, rescore=("source_denied",), **settings))
    assert server.asked == ["/hook"]
    status = rows_of(out)[f"{server.url}/hook"]["status"]
    assert status == "unsupported_format", "it was read, and is not an image"


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *_) -> None:
        """Print nothing."""


def test_run_keeps_no_secret_of_its_sources(off_ray, tmp_path, capfd):
    files, out, secret = tmp_path / "files", tmp_path / "run", "?X-Amz-Signature=SIGNATURE"
    files.mkdir()
    with HttpServer(partial(QuietHandler, directory=str(files))) as server:
        for number, name in enumerate(("a.jpg", "b.jpg")):
            (files / name).write_bytes(encoded(photo(seed=number), "JPEG"))
        listed = f"uri\n{server.url}/b.jpg\n{server.url}/c.jpg{secret}\n"
        (files / "list.csv").write_text(listed)
        sources = (f"{server.url}/a.jpg{secret}", f"list::{server.url}/list.csv{secret}")
        score_archive(config_of(*sources, out=str(out), allow_private=True))
        missing, other = f"list::{server.url}/none.csv{secret}", str(tmp_path / "other")
        with pytest.raises(TouchstoneError) as caught:
            score_archive(config_of(missing, out=other, allow_private=True))
    assert "SIGNATURE" not in str(caught.value)
    statuses = {uri[-5:]: row["status"] for uri, row in rows_of(out).items()}
    assert statuses == {"a.jpg": "ok", "b.jpg": "ok", "c.jpg": "source_denied"}
    paths = [path for path in out.rglob("*") if path.is_file()]
    assert [path for path in paths if b"SIGNATURE" in path.read_bytes()] == []
    tables = [pq.read_table(path).to_pylist() for path in paths if path.suffix == ".parquet"]
    assert "SIGNATURE" not in repr(tables) + "".join(capfd.readouterr())
