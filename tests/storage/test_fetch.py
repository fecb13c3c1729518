import os
from dataclasses import dataclass
from pathlib import Path

import pytest

from ray_app.errors import InputError, SourceError, Status
from ray_app.storage import Fetcher, RetryPolicy, list_objects
from tests.storage.faulty_server import ETAG, LOOPBACK, patient
from tests.storage.tls_server import authority

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


def refused(fetcher: Fetcher, uri: str, version: str = "") -> SourceError:
    with pytest.raises(SourceError) as caught:
        fetcher.fetch(uri, version, LIMIT)
    return caught.value


class TestS3:
    def test_reads_the_listed_version_and_no_other(self, s3):
        bucket = s3.bucket("fetch-plain")
        s3.client().put_object(Bucket="fetch-plain", Key="sub folder/ä#b?.jpg", Body=DATA)
        [info] = list_objects(bucket)
        fetcher = Fetcher()
        assert fetcher.fetch(info.uri, info.version, LIMIT) == DATA
        assert (fetcher.bytes_read, fetcher.counts["retried"], fetcher.counts["throttled"]) == (
            len(DATA),
            0,
            0,
        )
        with pytest.raises(InputError) as caught:
            fetcher.fetch(info.uri, "", len(DATA) - 1)
        assert caught.value.status is Status.IMAGE_TOO_LARGE
        s3.client().put_object(Bucket="fetch-plain", Key="sub folder/ä#b?.jpg", Body=DATA[::-1])
        assert refused(fetcher, info.uri, info.version).status is Status.SOURCE_CHANGED
        s3.client().delete_object(Bucket="fetch-plain", Key="sub folder/ä#b?.jpg")
        error = refused(fetcher, info.uri, info.version)
        assert error.status is Status.SOURCE_MISSING
        assert info.uri in error.detail

    @pytest.mark.parametrize(
        "key",
        [
            "a//b.jpg",
            "/a.jpg",
            'sp ace+plus&amp;<".jpg',
            "pct%41%.jpg",
            "😀.jpg",
            "q?versionId=1#f.jpg",
            "a/./b/../~'(a)!*.jpg",
        ],
    )
    def test_a_key_is_taken_as_it_is(self, s3, key):
        bucket = s3.bucket("fetch-odd-keys")
        s3.client().put_object(Bucket="fetch-odd-keys", Key=key, Body=key.encode())
        assert Fetcher().fetch(f"{bucket}/{key}", "", LIMIT) == key.encode()
        assert f"{bucket}/{key}" in [info.uri for info in list_objects(bucket)]


class TestFaults:
    def test_throttling_is_waited_out_and_counted(self, faulty):
        pauses: list[float] = []
        fetcher = patient(pauses, base_s=0.5, cap_s=1.5)
        assert (
            fetcher.fetch(serve(faulty, "slow_down", "slow_down", "slow_down"), "", LIMIT) == DATA
        )
        assert (fetcher.counts["throttled"], fetcher.counts["retried"]) == (3, 3)
        assert pauses == [0.5, 1.0, 1.5]
        fetcher, faulty.requests = patient(attempts=4), []
        assert refused(fetcher, serve(faulty, *["slow_down"] * 9)).status is Status.SOURCE_THROTTLED
        assert (fetcher.counts["throttled"], len(faulty.requests)) == (4, 4)

    def test_a_denial_is_final_where_it_has_a_reason_of_its_own(self, faulty):
        fetcher = patient(attempts=3)
        assert fetcher.fetch(serve(faulty, "denied_but_busy", "denied_but_busy"), "", LIMIT) == DATA
        assert fetcher.counts["throttled"] == 2
        assert fetcher.fetch(serve(faulty, "bare_403"), "", LIMIT) == DATA
        assert refused(fetcher, serve(faulty, *["bare_403"] * 3)).status is Status.SOURCE_DENIED
        faulty.requests.clear()
        assert refused(fetcher, serve(faulty, "denied")).status is Status.SOURCE_DENIED
        assert len(faulty.requests) == 1

    @pytest.mark.parametrize("fault", ["internal", "short"])
    def test_a_passing_fault_is_asked_again(self, faulty, fault):
        fetcher = patient(attempts=3)
        assert fetcher.fetch(serve(faulty, fault, fault), "", LIMIT) == DATA
        assert (fetcher.counts["retried"], fetcher.counts["throttled"]) == (2, 0)
        assert refused(fetcher, serve(faulty, *[fault] * 3)).status is Status.SOURCE_TIMEOUT

    def test_an_answer_that_never_ends_meets_the_deadline(self, faulty):
        fetcher = Fetcher(RetryPolicy(deadline_s=0.1))
        error = refused(fetcher, serve(faulty, "drip"))
        assert error.status is Status.SOURCE_TIMEOUT
        assert "no answer in time" in error.detail

    def test_a_store_that_ignores_the_condition_is_found_out(self, faulty):
        assert Fetcher().fetch(serve(faulty), ETAG, LIMIT) == DATA
        assert refused(Fetcher(), serve(faulty, "other_etag"), ETAG).status is Status.SOURCE_CHANGED


class TestLocal:
    def test_reads_the_listed_version_and_no_other(self, tmp_path):
        path = tmp_path / "a.jpg"
        path.write_bytes(DATA)
        [info] = list_objects(str(tmp_path))
        assert (
            Fetcher().fetch(info.uri, info.version, LIMIT)
            == Fetcher().fetch(f"file://{info.uri}", info.version, LIMIT)
            == DATA
        )
        with pytest.raises(InputError) as caught:
            Fetcher().fetch(info.uri, "", 999)
        assert caught.value.status is Status.IMAGE_TOO_LARGE
        path.write_bytes(DATA[::-1])
        os.utime(path, ns=(0, 0))
        assert refused(Fetcher(), info.uri, info.version).status is Status.SOURCE_CHANGED
        path.unlink()
        assert refused(Fetcher(), info.uri).status is Status.SOURCE_MISSING
        path.mkdir()
        assert refused(Fetcher(), info.uri).status is Status.SOURCE_CHANGED

    def test_a_file_that_grows_while_it_is_read_has_changed(self, tmp_path, monkeypatch):
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


class TestWeb:
    def test_reads_and_checks_the_version(self, faulty):
        faulty.objects["/a.jpg"] = DATA
        [info] = list_objects(f"{faulty.url}/a.jpg")
        assert (info.size_bytes, info.version) == (len(DATA), ETAG)
        assert Fetcher(signed=[faulty.url]).fetch(info.uri, info.version, LIMIT) == DATA
        faulty.faults["/a.jpg"] = ["other_etag"]
        assert (
            refused(Fetcher(signed=[faulty.url]), info.uri, info.version).status
            is Status.SOURCE_CHANGED
        )

    def test_a_presigned_url_is_shown_without_and_read_with_its_secrets(self, faulty):
        signed = f"{faulty.url}/a.jpg?size=large&X-Amz-Signature=s3cr3t&X-Amz-Credential=me"
        faulty.objects["/a.jpg?size=large&X-Amz-Signature=s3cr3t&X-Amz-Credential=me"] = DATA
        [info] = list_objects(signed)
        assert info.uri == f"{faulty.url}/a.jpg?size=large"
        assert Fetcher(signed=[signed]).fetch(info.uri, info.version, LIMIT) == DATA
        error = refused(Fetcher(guard=LOOPBACK), info.uri, info.version)
        assert error.status is Status.SOURCE_MISSING
        faulty.faults[signed.removeprefix(faulty.url)] = ["denied"]
        assert "s3cr3t" not in refused(Fetcher(signed=[signed]), info.uri).detail

    def test_a_certificate_that_is_not_accepted_says_nothing_of_the_file(self, faulty):
        faulty.serve_tls(Path(authority()[0]).with_name("leaf.pem"))
        error = refused(
            Fetcher(RetryPolicy(attempts=1), guard=LOOPBACK),
            f"{faulty.url.replace('http:', 'https:')}/a.jpg",
        )
        assert error.status is Status.SOURCE_TIMEOUT
        assert "certificate" in error.detail

    def test_a_body_that_goes_on_and_on_is_cut(self, faulty):
        faulty.objects["/a.jpg"] = DATA * 100
        with pytest.raises(InputError) as caught:
            Fetcher(guard=LOOPBACK).fetch(f"{faulty.url}/a.jpg", "", 999)
        assert caught.value.status is Status.IMAGE_TOO_LARGE


class TestPrefetch:
    def test_keeps_the_order_and_tells_what_failed(self, faulty):
        wanted = []
        for number in range(40):
            faulty.objects[f"/bucket/{number}"] = b"%d" % number
            wanted.append(Wanted(f"s3://bucket/{number}", size_bytes=2))
        wanted.insert(7, Wanted("s3://bucket/gone", size_bytes=5))
        wanted.insert(9, Wanted("s3://bucket/huge", size_bytes=LIMIT + 1))
        got = list(Fetcher().prefetch(wanted, depth_bytes=100, max_bytes=LIMIT))
        statuses = {
            member.uri: result.status
            for member, result in zip(wanted, got, strict=True)
            if isinstance(result, InputError)
        }
        assert statuses == {
            "s3://bucket/gone": Status.SOURCE_MISSING,
            "s3://bucket/huge": Status.IMAGE_TOO_LARGE,
        }
        assert [int(result) for result in got if isinstance(result, bytes)] == list(range(40))
        assert "/bucket/huge" not in faulty.requests

    def test_reads_ahead_no_more_than_the_budget(self, tmp_path):
        started = []

        class Watched(Fetcher):
            def fetch(self, uri, *rest):
                started.append(uri)
                return super().fetch(uri, *rest)

        wanted = []
        for number in range(20):
            path = tmp_path / f"{number:02}"
            path.write_bytes(bytes(100))
            wanted.append(Wanted(str(path), size_bytes=100))
        reading = Watched().prefetch(wanted, depth_bytes=350, max_bytes=LIMIT)
        for done, _ in enumerate(reading):
            assert len(started) <= done + 3
        assert started == [one.uri for one in wanted]

    def test_one_that_is_larger_than_the_budget_passes_alone(self, tmp_path):
        (tmp_path / "a").write_bytes(DATA)
        wanted = [Wanted(str(tmp_path / "a"), size_bytes=len(DATA))] * 3
        assert list(Fetcher().prefetch(wanted, depth_bytes=10, max_bytes=LIMIT)) == [DATA] * 3
        assert list(Fetcher().prefetch([], depth_bytes=1, max_bytes=1)) == []
