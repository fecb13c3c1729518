import gzip
import json
import os
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import pytest

from ray_app.errors import ConfigError, InputError, Status
from ray_app.storage import Fetcher, RetryPolicy, list_objects
from tests.make.servers import clouds
from tests.make.servers.faulty import ETAG, LOOPBACK, patient
from tests.make.servers.tls import authority

LIMIT = 1 << 20
DATA = b"0123456789" * 100


@dataclass(frozen=True)
class Wanted:
    uri: str
    version: str = ""
    size_bytes: int = -1


def serve(faulty, *faults: str) -> str:
    faulty.objects["/bucket/a.jpg"] = DATA
    faulty.faults["/bucket/a.jpg"] = list(faults)
    return "s3://bucket/a.jpg"


def refused(fetcher: Fetcher, uri: str, version: str = "", limit: int = LIMIT) -> InputError:
    with pytest.raises(InputError) as caught:
        fetcher.fetch(uri, version, limit)
    return caught.value


def test_s3_object_is_read_in_the_listed_version_only(s3):
    bucket = s3.bucket("fetch-plain")
    there = {"Bucket": "fetch-plain", "Key": "sub folder/ä#b?.jpg"}
    s3.client().put_object(**there, Body=DATA)
    [info] = list_objects(bucket)
    fetcher = Fetcher()
    assert fetcher.fetch(info.uri, info.version, LIMIT) == DATA
    assert fetcher.bytes_read == len(DATA)
    assert (fetcher.counts["retried"], fetcher.counts["throttled"]) == (0, 0)
    assert refused(fetcher, info.uri, limit=len(DATA) - 1).status is Status.IMAGE_TOO_LARGE
    s3.client().put_object(**there, Body=DATA[::-1])
    assert refused(fetcher, info.uri, info.version).status is Status.SOURCE_CHANGED
    s3.client().delete_object(**there)
    error = refused(fetcher, info.uri, info.version)
    assert error.status is Status.SOURCE_MISSING
    assert info.uri in error.detail


KEYS = ["a//b.jpg", "/a.jpg", "pct%41%.jpg", "😀.jpg", "q?versionId=1#f.jpg"]
KEYS += ['sp ace+plus&amp;<".jpg', "a/./b/../~'(a)!*.jpg"]


def test_s3_key_is_used_literally(s3):
    bucket = s3.bucket("fetch-odd-keys")
    for key in KEYS:
        s3.client().put_object(Bucket="fetch-odd-keys", Key=key, Body=key.encode())
    assert sorted(f"{bucket}/{key}" for key in KEYS) == [info.uri for info in list_objects(bucket)]
    for key in KEYS:
        assert Fetcher().fetch(f"{bucket}/{key}", "", LIMIT) == key.encode()


def test_throttled_fetch_waits_and_counts(faulty):
    pauses: list[float] = []
    fetcher = patient(pauses, base_s=0.5, cap_s=1.5)
    assert fetcher.fetch(serve(faulty, *["slow_down"] * 3), "", LIMIT) == DATA
    assert (fetcher.counts["throttled"], fetcher.counts["retried"]) == (3, 3)
    assert pauses == [0.5, 1.0, 1.5]
    fetcher, faulty.requests = patient(attempts=4), []
    assert refused(fetcher, serve(faulty, *["slow_down"] * 9)).status is Status.SOURCE_THROTTLED
    assert (fetcher.counts["throttled"], len(faulty.requests)) == (4, 4)


def test_denied_fetch_is_final_only_with_a_reason(faulty):
    fetcher = patient(attempts=3)
    assert fetcher.fetch(serve(faulty, *["denied_but_busy"] * 2), "", LIMIT) == DATA
    assert fetcher.counts["throttled"] == 2
    assert fetcher.fetch(serve(faulty, "bare_403"), "", LIMIT) == DATA
    assert refused(fetcher, serve(faulty, *["bare_403"] * 3)).status is Status.SOURCE_DENIED
    faulty.requests.clear()
    assert refused(fetcher, serve(faulty, "denied")).status is Status.SOURCE_DENIED
    assert len(faulty.requests) == 1


@pytest.mark.parametrize("fault", ["internal", "short"])
def test_failed_fetch_is_tried_again(faulty, fault):
    fetcher = patient(attempts=3)
    assert fetcher.fetch(serve(faulty, fault, fault), "", LIMIT) == DATA
    assert (fetcher.counts["retried"], fetcher.counts["throttled"]) == (2, 0)
    assert refused(fetcher, serve(faulty, *[fault] * 3)).status is Status.SOURCE_TIMEOUT


def test_endless_fetch_ends_at_the_deadline(faulty):
    error = refused(Fetcher(RetryPolicy(deadline_s=0.1)), serve(faulty, "drip"))
    assert error.status is Status.SOURCE_TIMEOUT
    assert "no answer in time" in error.detail


def test_store_that_ignores_the_version_is_noticed(faulty):
    assert Fetcher().fetch(serve(faulty), ETAG, LIMIT) == DATA
    assert refused(Fetcher(), serve(faulty, "other_etag"), ETAG).status is Status.SOURCE_CHANGED


def test_local_file_is_read_in_the_listed_version_only(tmp_path):
    path, fetcher = tmp_path / "a.jpg", Fetcher()
    path.write_bytes(DATA)
    [info] = list_objects(str(tmp_path))
    for uri in (info.uri, f"file://{info.uri}"):
        assert fetcher.fetch(uri, info.version, LIMIT) == DATA
    assert refused(fetcher, info.uri, limit=999).status is Status.IMAGE_TOO_LARGE
    path.write_bytes(DATA[::-1])
    os.utime(path, ns=(0, 0))
    assert refused(fetcher, info.uri, info.version).status is Status.SOURCE_CHANGED
    path.unlink()
    assert refused(fetcher, info.uri).status is Status.SOURCE_MISSING
    path.mkdir()
    assert refused(fetcher, info.uri).status is Status.SOURCE_CHANGED


def test_local_file_that_grows_while_it_is_read_is_changed(tmp_path, monkeypatch):
    path = tmp_path / "a.jpg"
    path.write_bytes(DATA)
    real_read = os.pread

    def read_then_append(descriptor, count, start):
        data = real_read(descriptor, count, start)
        with path.open("ab") as file:
            file.write(b"more")
        return data

    monkeypatch.setattr(os, "pread", read_then_append)
    assert refused(Fetcher(), str(path)).status is Status.SOURCE_CHANGED


def test_presigned_url_is_read_with_its_secrets_and_shows_none(faulty):
    path = "/a.jpg?size=large&X-Amz-Signature=s3cr3t&X-Amz-Credential=me"
    signed = f"{faulty.url}{path}"
    faulty.objects[path] = DATA
    [info] = list_objects(signed)
    assert info.uri == f"{faulty.url}/a.jpg?size=large"
    assert Fetcher(signed=[signed]).fetch(info.uri, info.version, LIMIT) == DATA
    error = refused(Fetcher(guard=LOOPBACK), info.uri, info.version)
    assert error.status is Status.SOURCE_MISSING
    faulty.faults[path] = ["denied"]
    assert "s3cr3t" not in refused(Fetcher(signed=[signed]), info.uri).detail


def test_presigned_urls_equal_without_secrets_are_refused():
    url = "https://host.test/image?sig="
    with pytest.raises(ConfigError, match="image: two URLs differ only in") as caught:
        Fetcher(signed=[f"{url}1", f"{url}2"])
    assert "sig" not in caught.value.message
    Fetcher(signed=[f"{url}1", f"{url}1"])


@pytest.mark.parametrize("store", ["s3", "google", "azure"])
def test_object_that_is_stored_packed_is_unsupported(faulty, store):
    data = gzip.compress(DATA)
    if store == "google":
        facts = {"name": "a.jpg", "bucket": "bucket", "size": len(data), "contentEncoding": "gzip"}
        faulty.objects["/storage/v1/b/bucket/o/a.jpg"] = json.dumps(facts).encode()
        uri, find = "gs://bucket/a.jpg", clouds.google_at(faulty.url)
    else:
        uri, find = serve(faulty), nullcontext()
        faulty.headers = {"Content-Encoding": "gzip"}
        faulty.objects["/bucket/a.jpg"] = data
    if store == "azure":
        faulty.objects["/devstoreaccount1/bucket/a.jpg"] = data
        uri, find = "az://bucket/a.jpg", clouds.azure_at(faulty.url)
    with find:
        error = refused(Fetcher(RetryPolicy(attempts=1)), uri)
    assert error.status is Status.UNSUPPORTED_FORMAT
    assert error.detail.startswith("stored with Content-Encoding gzip")


def test_object_whose_content_encoding_is_wrong_is_read(faulty):
    faulty.headers = {"Content-Encoding": "gzip"}
    assert Fetcher().fetch(serve(faulty), "", LIMIT) == DATA


def test_packed_answer_of_a_web_server_is_unpacked_up_to_the_limit(faulty):
    faulty.headers = {"Content-Encoding": "gzip"}
    faulty.objects["/a.jpg"] = gzip.compress(bytes(10 * LIMIT))
    fetcher, url = Fetcher(guard=LOOPBACK), f"{faulty.url}/a.jpg"
    assert refused(fetcher, url).status is Status.IMAGE_TOO_LARGE
    faulty.objects["/a.jpg"] = gzip.compress(DATA)
    assert fetcher.fetch(url, "", LIMIT) == DATA


def test_certificate_that_is_not_trusted_is_a_timeout(faulty):
    faulty.serve_tls(Path(authority()[0]).with_name("leaf.pem"))
    url = f"{faulty.url.replace('http:', 'https:')}/a.jpg"
    error = refused(Fetcher(RetryPolicy(attempts=1), guard=LOOPBACK), url)
    assert error.status is Status.SOURCE_TIMEOUT
    assert "certificate" in error.detail


def test_prefetch_keeps_the_order_and_names_failures(faulty):
    faulty.objects |= {f"/bucket/{number}": b"%d" % number for number in range(40)}
    wanted = [Wanted(f"s3://bucket/{number}", size_bytes=2) for number in range(40)]
    wanted.insert(7, Wanted("s3://bucket/gone", size_bytes=5))
    wanted.insert(9, Wanted("s3://bucket/huge", size_bytes=LIMIT + 1))
    got = list(Fetcher().prefetch(wanted, depth_bytes=100, max_bytes=LIMIT))
    assert got[7].status == Status.SOURCE_MISSING
    assert got[9].status == Status.IMAGE_TOO_LARGE
    assert [int(result) for result in got[:7] + got[8:9] + got[10:]] == list(range(40))
    assert "/bucket/huge" not in faulty.requests


def test_prefetch_reads_no_more_than_its_budget_ahead(tmp_path):
    started = []

    class Watched(Fetcher):
        def fetch(self, uri, *rest):
            started.append(uri)
            return super().fetch(uri, *rest)

    wanted = [Wanted(f"{tmp_path}/{number:02}", size_bytes=100) for number in range(20)]
    for item in wanted:
        Path(item.uri).write_bytes(bytes(100))
    for done, _ in enumerate(Watched().prefetch(wanted, depth_bytes=350, max_bytes=LIMIT)):
        assert len(started) <= done + 3
    assert started == [item.uri for item in wanted]


def test_prefetch_reads_a_file_larger_than_its_budget(tmp_path):
    (tmp_path / "a").write_bytes(DATA)
    wanted = [Wanted(str(tmp_path / "a"), size_bytes=len(DATA))] * 3
    assert list(Fetcher().prefetch(wanted, depth_bytes=10, max_bytes=LIMIT)) == [DATA] * 3
    assert list(Fetcher().prefetch([], depth_bytes=1, max_bytes=1)) == []
