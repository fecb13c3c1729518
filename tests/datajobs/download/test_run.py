"""Collect from a server that misbehaves in every way: outcomes, and what a second run requests."""

import signal
import threading

import pyarrow.parquet as pq
import pytest

from ray_app.datajobs.download.run import Records, collect
from ray_app.datajobs.download.sink import Sink
from ray_app.errors import RESUMABLE, IdentityError, StorageError
from ray_app.inference.decoder_pool import IsolatedDecoders
from ray_app.storage import Store
from tests.datajobs.download.lists import EXPECTED, check, config, outcomes, rows_for, write_list
from tests.make.servers.wild import picture
from tests.make.waiting import wait_until


def test_each_misbehaviour_has_its_status_and_is_not_asked_again(web, tmp_path, monkeypatch):
    # Decoders of its own, as outside of tests.
    monkeypatch.setattr("ray_app.datajobs.download.fetch.IsolatedDecoders", IsolatedDecoders)
    rows = rows_for(web, EXPECTED)
    settings = config(write_list(tmp_path, rows), tmp_path / "out")
    summary = collect(settings)
    check(rows, tmp_path / "out")
    seen = web.told()
    assert max(seen["most"].values()) <= 2
    [agent] = seen["agents"]
    assert agent.startswith("touchstone-collect/")
    assert "me@example.org" in agent
    assert summary["ok"] == 9
    asked = {path.split("/")[1]: count for path, count in seen["asked"].items()}
    # The host has torn bytes if it sends them twice.
    often = {"gone": 1, "denied": 1, "html": 1, "huge": 1}
    often |= {"flaky": 2, "cut": 2, "empty": 2, "reset": 3}
    assert {kind: asked[kind] for kind in often} == often
    _, failed = outcomes(tmp_path / "out")
    assert next(row["requests"] for name, row in failed.items() if name.endswith("reset")) == 3
    assert next(
        row["http_status"] for row in failed.values() if row["status"] == "source_missing"
    ) in (404, 410)
    web.forget()
    assert collect(settings)["session"]["urls"] == 0
    assert web.told()["asked"] == {}


def test_throttling_host_is_asked_again_only_by_retry(web, tmp_path):
    rows = [{"id": str(number), "url": web.url("tired", f"later/{number}")} for number in range(40)]
    rows += [{"id": f"g{number}", "url": web.url("h1", f"good/{number}")} for number in range(5)]
    settings = config(write_list(tmp_path, rows), tmp_path / "out")
    assert collect(settings)["statuses"] == {"source_throttled": 40, "ok": 5}
    assert (
        sum(count for path, count in web.told()["asked"].items() if path.startswith("tired")) <= 2
    )
    web.forget()
    summary = collect(settings, retry=["source_throttled"])
    assert summary["session"]["urls"] == 40
    assert all(path.startswith("tired") for path in web.told()["asked"])


@pytest.mark.parametrize("form", ["parquet", "webdataset"])
def test_shards_hold_images_with_their_columns(web, tmp_path, form):
    rows = rows_for(web, ["good", "html", "moved", "good"] * 4)
    settings = config(write_list(tmp_path, rows), tmp_path / "out", form=form, shard_mb=0.01)
    collect(settings)
    collected, _ = outcomes(tmp_path / "out")
    assert len(collected) == 12
    shards = {row["shard"] for row in collected.values()}
    assert len(shards) > 1
    assert {f"data/{path.name}" for path in (tmp_path / "out" / "data").iterdir()} == shards
    if form == "parquet":
        found = [
            row for path in shards for row in pq.read_table(tmp_path / "out" / path).to_pylist()
        ]
        assert sorted(row["id"] for row in found) == sorted(collected)
        for row in found:
            assert row["image"]["bytes"] == picture(int(row["id"][:5]))[0]
            assert row["prompt"] == f"a {row['id'].partition('.')[2]} thing"
    web.forget()
    assert collect(settings)["session"]["urls"] == 0
    assert web.told()["asked"] == {}


def test_good_files_of_a_killed_session_are_not_asked_again(web, tmp_path):
    rows = rows_for(web, ["good"] * 4)
    images = tmp_path / "out" / "images"
    images.mkdir(parents=True)
    data, subtype = picture(0)
    (images / f"00000.good.{subtype}").write_bytes(data)
    (images / "00001.good.png").write_bytes(picture(1)[0][:-30])
    (images / "00002.good.txt").write_text("my own notes")
    collect(config(write_list(tmp_path, rows), tmp_path / "out"))
    (images / "00002.good.txt").unlink()
    check(rows, tmp_path / "out")
    assert set(web.told()["asked"]) == {f"h{number}.test/good/{number}.x" for number in (1, 2, 3)}


def test_missing_torn_or_relisted_image_is_fetched_again(web, tmp_path):
    rows = rows_for(web, ["good"] * 4)
    settings = config(write_list(tmp_path, rows), tmp_path / "out")
    collect(settings)
    files = sorted((tmp_path / "out" / "images").iterdir())
    files[0].unlink()
    files[1].write_bytes(files[1].read_bytes()[:100])
    web.forget()
    assert collect(settings)["session"]["urls"] == 2
    check(rows, tmp_path / "out")
    rows[0]["url"] = web.url("h3", "good/4")
    write_list(tmp_path, rows)
    assert collect(settings)["session"]["urls"] == 1
    [other] = (tmp_path / "out" / "images").glob("00000.good.*")
    assert other.read_bytes() == picture(4)[0]


def test_private_addresses_are_refused_by_default(web, tmp_path):
    rows = [
        {"id": "name", "url": web.url("h1", "good/1")},
        {"id": "number", "url": f"http://127.0.0.1:{web.port}/good/1"},
        {"id": "mapped", "url": f"http://[::ffff:7f00:1]:{web.port}/good/1"},
        {"id": "decimal", "url": f"http://2130706433:{web.port}/good/1"},
        {"id": "bare", "url": "http://localhost/x.png"},
        {"id": "file", "url": "file:///etc/passwd"},
        {"id": "password", "url": "http://me:secret@example.org/x.png"},
        {"id": "none", "url": "no url at all"},
    ]
    collect(config(write_list(tmp_path, rows), tmp_path / "out", allow_private=False))
    _, failed = outcomes(tmp_path / "out")
    forbidden = {name for name, row in failed.items() if row["status"] == "forbidden_address"}
    assert forbidden == {"name", "number", "mapped"}
    assert {row["status"] for name, row in failed.items() if name not in forbidden} == {"bad_url"}
    assert web.told()["asked"] == {}


def test_names_never_leave_the_folder(web, tmp_path):
    ids = ["../up", "/etc/x", "a/b", ".hidden", "A", "a", "con", "x" * 400, "ü b", "..", "1.2.3"]
    rows = [
        {"id": name, "url": web.url("h1", f"good/{number * 3}")} for number, name in enumerate(ids)
    ]
    summary = collect(config(write_list(tmp_path, rows), tmp_path / "out"))
    names = sorted(path.name for path in (tmp_path / "out" / "images").iterdir())
    assert len(names) == len(ids) == summary["ok"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["list.jsonl", "out"]
    assert {"A.jpeg", "1.2.3.jpeg"} <= set(names)
    assert len({name.casefold() for name in names}) == len(ids)
    assert (summary["mended_names"], summary["names_alike"]) == (8, 1)


def test_a_directory_keeps_its_form(web, tmp_path):
    meta = write_list(tmp_path, rows_for(web, ["good"]))
    collect(config(meta, tmp_path / "out"))
    with pytest.raises(IdentityError, match="form"):
        collect(config(meta, tmp_path / "out", form="parquet"))


def test_output_on_s3(web, tmp_path, s3):
    rows = rows_for(web, ["good", "gone", "tornonce"])
    bucket = s3.bucket("collected")
    settings = config(write_list(tmp_path, rows), bucket)
    assert collect(settings)["ok"] == 2
    assert Store.open(bucket).names("images") == ["00000.good.jpeg", "00002.tornonce.webp"]
    web.forget()
    assert collect(settings)["session"]["urls"] == 0
    assert web.told()["asked"] == {}


def interrupted(settings, web, asked):
    """Collect, and interrupt as by Ctrl-C after `asked` URLs were requested."""

    def watch():
        wait_until(lambda: len(web.told()["asked"]) >= asked)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        collect(settings)
    finally:
        watcher.join()
        signal.signal(signal.SIGINT, before)


def test_interrupt_commits_what_has_ended_and_resumes(web, tmp_path):
    rows = rows_for(web, ["slow"] * 10, host="one")
    meta, out = write_list(tmp_path, rows), tmp_path / "out"
    # With one request at a time, some URLs have ended when the fifth is asked.
    with pytest.raises(KeyboardInterrupt) as caught:
        interrupted(config(meta, out, politeness={"per_host": 1}, commit_s=300), web, 5)
    assert RESUMABLE in caught.value.__notes__
    settings = config(meta, out, politeness={"per_host": 8})
    committed = {row["id"]: row["place"] for row in Records(settings).read().rows.to_pylist()}
    assert 0 < len(committed) < 10
    web.forget()
    assert collect(settings)["session"]["urls"] == 10 - len(committed)
    asked = {path.split("/")[2] for path in web.told()["asked"]}
    assert not asked & {f"{int(name[:5])}.x" for name in committed}
    assert len(outcomes(out)[0]) == 10


def test_failing_store_ends_the_session_and_keeps_what_ended(web, tmp_path, monkeypatch):
    meta = write_list(tmp_path, rows_for(web, ["good"] * 24))
    settings = config(meta, tmp_path / "out", form="parquet")
    real, ended = Sink.add, []

    def fails(self, row, data, task):
        if len(ended) == 10:
            raise StorageError("the disk is full")
        real(self, row, data, task)
        ended.append(row["id"])

    with monkeypatch.context() as patch:
        patch.setattr(Sink, "add", fails)
        with pytest.raises(StorageError, match="the disk is full") as caught:
            collect(settings)
    assert RESUMABLE in caught.value.__notes__
    committed = set(Records(settings).read().rows["id"].to_pylist())
    assert committed == set(ended)
    web.forget()
    assert collect(settings)["session"]["urls"] == 14
    assert len(web.told()["asked"]) <= 14
    assert len(outcomes(tmp_path / "out")[0]) == 24


def test_retry_replaces_the_row_of_a_failure(web, tmp_path):
    rows = rows_for(web, ["flaky"] * 12)
    settings = config(write_list(tmp_path, rows), tmp_path / "out", retry={"attempts": 1})
    assert collect(settings)["statuses"] == {"source_timeout": 12}
    assert collect(settings)["session"]["urls"] == 0
    assert collect(settings, retry=["source_timeout"])["statuses"] == {"ok": 12}
