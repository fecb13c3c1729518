"""Who pays for requests, which checksums they carry, and what a refusal says, before stores that
insist on either.
"""

import http.client
import json
import os
import subprocess
import sys
from pathlib import Path

import fsspec.config
import pytest

from ray_app.cli.main import main
from ray_app.errors import ConfigError, SourceError, StorageError
from ray_app.storage import Fetcher, S3Config, Store, list_objects, places, with_s3_settings
from ray_app.storage.object_store import retrying_fsspec_for
from ray_app.storage.s3 import filesystem, fsspec_options, page
from tests.archives.given import files_below
from tests.scoring import faulty_proxy
from tests.storage.faulty_server import LOOPBACK, error_body

ROOT = Path(__file__).resolve().parent.parent.parent
DENIED = 403, error_body("AccessDenied", "Access Denied")
UNKNOWN_CHECKSUM = (
    400,
    error_body(
        "InvalidArgument",
        "Unsupported header x-amz-sdk-checksum-algorithm received for this API call.",
    ),
)
NO_MD5 = 400, error_body("InvalidRequest", "Missing required header for this request: Content-Md5")
NO_CHECKSUM = (
    400,
    error_body(
        "InvalidRequest",
        "Content-MD5 OR x-amz-checksum- HTTP header is required for Put Object requests",
    ),
)
ARCHIVED = (
    403,
    error_body("InvalidObjectState", "The operation is not valid for the object's storage class"),
)


def is_unpaid(method: str, path: str, headers: http.client.HTTPMessage) -> bool:
    return headers.get("x-amz-request-payer") != "requester"


def has_new_checksum(method: str, path: str, headers: http.client.HTTPMessage) -> bool:
    return method in ("PUT", "POST") and any("checksum" in name.lower() for name in headers)


def lacks_md5(method: str, path: str, headers: http.client.HTTPMessage) -> bool:
    return method == "POST" and "delete" in path and "content-md5" not in headers


def lacks_checksum(method: str, path: str, headers: http.client.HTTPMessage) -> bool:
    return method == "PUT" and not any(
        name.lower().startswith(("x-amz-checksum-", "content-md5")) for name in headers
    )


def is_archived(method: str, path: str, headers: http.client.HTTPMessage) -> bool:
    return method == "GET" and path.startswith("/strict/cold")


class StrictStore(faulty_proxy.FaultyProxy):
    """Before a real S3 server: what `refuses` gets `answer`. `seen`: method, path and headers of
    each request.
    """

    def __init__(self, upstream, refuses, answer):
        self.refuses, self.answer, self.seen = refuses, answer, []
        super().__init__(upstream, share=0.0, handler=_Handler)


class _Handler(faulty_proxy.Handler):
    def _asked(self, body):
        owner = self.server.owner
        owner.seen.append((self.command, self.path, dict(self.headers)))
        if owner.refuses(self.command, self.path, self.headers):
            return *owner.answer, {"content-type": "application/xml"}
        return super()._asked(body)


@pytest.fixture(scope="module")
def bucket(s3):
    url = s3.bucket("strict")
    for key in ("in/1.jpg", "in/2.jpg", "cold/1.jpg"):
        s3.client().put_object(Bucket="strict", Key=key, Body=b"data")
    return url


@pytest.fixture
def strict(s3, bucket, monkeypatch):
    """Puts a strict store before the server, for this process and its children."""
    for name in ("AWS_REQUEST_PAYER", "AWS_REQUEST_CHECKSUM_CALCULATION"):
        monkeypatch.delenv(name, raising=False)

    def before(refuses, answer):
        store = StrictStore(s3.url, refuses, answer)
        monkeypatch.setenv("AWS_ENDPOINT_URL", store.url)
        return store

    return before


def use_every_request(bucket: str, tmp_path: Path, monkeypatch) -> None:
    """List, look, read, read a range, write, create, write in parts, delete one and delete many."""
    monkeypatch.setattr(places, "PART_BYTES", 5 * 2**20)  # the minimum of S3
    (tmp_path / "large").write_bytes(bytes(11 * 2**20))
    store = Store.open(f"{bucket}/out")
    store.write("a", b"a")
    assert store.create("b", b"b")
    assert not store.create("b", b"c")
    store.write_file("large", tmp_path / "large")
    assert (store.read("a"), store.exists("a"), store.names("")) == (
        b"a",
        True,
        ["a", "b", "large"],
    )
    assert [info.uri for info in list_objects(f"{bucket}/in")] == [
        f"{bucket}/in/1.jpg",
        f"{bucket}/in/2.jpg",
    ]
    fetcher = Fetcher(guard=LOOPBACK)
    assert (
        fetcher.fetch_range(f"{bucket}/in/1.jpg", "", 1, 2),
        fetcher.size(f"{bucket}/in/1.jpg", ""),
    ) == (b"at", 4)
    own, path = retrying_fsspec_for(f"{bucket}/out/weights")
    own.pipe_file(path, b"weights")
    assert own.cat_file(path) == b"weights"
    store.delete("a")
    store.delete_all(["b", "large", "weights"])
    assert store.names("") == []


def test_times_of_answers_are_times(bucket, strict):
    with strict(lambda *_: False, DENIED):
        listed = filesystem().info(f"{bucket}/in/1.jpg".removeprefix("s3://"))["LastModified"]
        [found, _] = page("strict", "in/", timeout_s=20)["Contents"]
    assert listed.tzinfo is not None
    assert found["LastModified"].replace(microsecond=0) == listed.replace(microsecond=0)


def test_every_request_says_that_the_requester_pays(bucket, strict, tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_REQUEST_PAYER", "requester")
    with strict(is_unpaid, DENIED) as store:
        use_every_request(bucket, tmp_path, monkeypatch)
        assert {method for method, _, _ in store.seen} == {"GET", "HEAD", "PUT", "POST", "DELETE"}


def test_a_config_makes_the_requester_pay_in_its_function(bucket, strict, monkeypatch):
    class Config:
        def __init__(self, payer):
            self.s3 = S3Config(request_payer=payer)

    @with_s3_settings
    def listed(config, prefix):
        child = subprocess.run(
            [sys.executable, "-c", "import os; print(os.environ.get('AWS_REQUEST_PAYER'))"],
            capture_output=True,
        )
        return [info.uri for info in list_objects(f"{bucket}/{prefix}")], child.stdout.strip()

    with strict(is_unpaid, DENIED):
        assert listed(Config("requester"), "cold") == ([f"{bucket}/cold/1.jpg"], b"requester")
        with pytest.raises(StorageError, match="Access Denied") as caught:
            listed(Config(None), "cold")
    assert (
        "set FSSPEC_S3_ANON=true for a public bucket, AWS_REQUEST_PAYER=requester for one whose requester pays"
        in caught.value.hint
    )
    assert "AWS_REQUEST_PAYER" not in os.environ


def test_a_run_pays_as_its_config_says_and_keeps_no_secret(
    s3, bucket, strict, off_ray, capsys, monkeypatch
):
    command = ["score", f"{bucket}/in", "--out", f"{bucket}/run", "--ensemble", "tiny"]
    with strict(is_unpaid, DENIED):
        assert main(command) == 5
        assert "AWS_REQUEST_PAYER=requester" in capsys.readouterr().err
        assert main([*command, "--set", "s3.request_payer=requester"]) == 0
    said = "".join(capsys.readouterr())
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3.url)
    written = b"".join(files_below(Store.open(f"{bucket}/run"), "sessions").values()) + Store.open(
        f"{bucket}/run"
    ).read("run.json")
    assert b"request_payer" in written
    assert "testing-secret" not in said
    assert b"testing-secret" not in written


def test_another_payer_is_refused(bucket, strict, monkeypatch):
    monkeypatch.setenv("AWS_REQUEST_PAYER", "true")
    with pytest.raises(
        ConfigError, match="AWS_REQUEST_PAYER is 'true', the only value is 'requester'"
    ):
        list(list_objects(bucket))


@pytest.mark.parametrize(
    "variable", ["AWS_REQUEST_CHECKSUM_CALCULATION", "AWS_RESPONSE_CHECKSUM_VALIDATION"]
)
def test_unknown_use_of_checksums_is_refused(bucket, strict, monkeypatch, variable):
    monkeypatch.setenv(variable, "sometimes")
    with pytest.raises(
        ConfigError,
        match=f"{variable} is 'sometimes', the values are 'when_required' and 'when_supported'",
    ):
        list(list_objects(bucket))


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("config_kwargs", "a=b", "FSSPEC_S3_CONFIG_KWARGS is not a JSON object"),
        ("config_kwargs", {"a": 1}, "FSSPEC_S3_CONFIG_KWARGS: Got unexpected keyword argument 'a'"),
        (
            "config_kwargs",
            {"request_checksum_calculation": "no"},
            "request_checksum_calculation is 'no', the values are",
        ),
        ("s3_additional_kwargs", "a=b", "FSSPEC_S3_S3_ADDITIONAL_KWARGS is not a JSON object"),
    ],
)
def test_options_of_fsspec_that_cannot_be_used_are_refused(monkeypatch, name, value, said):
    monkeypatch.setitem(fsspec.config.conf, "s3", {name: value})
    with pytest.raises(ConfigError, match=said):
        fsspec_options()


def test_checksums_in_capitals_are_understood(bucket, strict, monkeypatch):
    monkeypatch.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", "WHEN_REQUIRED")
    with strict(lacks_md5, NO_MD5) as store:
        Store.open(f"{bucket}/capitals").delete_all(["a", "b"])
        assert [method for method, _, _ in store.seen] == ["POST"], "the request was not refused"


def in_child(bucket: str, **variables: str) -> str:
    """What a process with these variables lists, or says."""
    program = f"""
from ray_app.errors import TouchstoneError
from ray_app.storage import list_objects
try:
    print([info.uri for info in list_objects({f"{bucket}/cold"!r})])
except TouchstoneError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env=os.environ | variables,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def test_options_of_fsspec_hold_for_every_request(bucket, strict):
    with strict(is_unpaid, DENIED) as store:
        assert "Access Denied" in in_child(bucket)
        assert in_child(bucket, FSSPEC_S3_REQUESTER_PAYS="true") == f"['{bucket}/cold/1.jpg']"
        extra = json.dumps({"RequestPayer": "requester"})
        assert in_child(bucket, FSSPEC_S3_S3_ADDITIONAL_KWARGS=extra) == f"['{bucket}/cold/1.jpg']"
        elsewhere = {
            "AWS_ENDPOINT_URL": "",
            "FSSPEC_S3_ENDPOINT_URL": store.url,
            "FSSPEC_S3_REQUESTER_PAYS": "true",
        }
        assert in_child(bucket, **elsewhere) == f"['{bucket}/cold/1.jpg']"
        agent = json.dumps({"user_agent_extra": "of-the-test"})
        in_child(bucket, FSSPEC_S3_CONFIG_KWARGS=agent)
        assert "of-the-test" in store.seen[-1][2]["User-Agent"]


def test_copies_in_other_processes_request_alike_without_secrets(strict, monkeypatch):
    import pickle

    monkeypatch.setenv("AWS_REQUEST_PAYER", "requester")
    with strict(is_unpaid, DENIED) as store:
        pickled = pickle.dumps(filesystem())
        assert b"testing-secret" not in pickled
        copy = pickle.loads(pickled)
        copy.pipe_file("strict/copied", b"x")
        assert copy.cat_file("strict/copied") == b"x"
        copy.rm_file("strict/copied")
        assert not any(
            has_new_checksum(method, path, headers) for method, path, headers in store.seen
        )


@pytest.mark.parametrize(
    ("refuses", "answer"),
    [(has_new_checksum, UNKNOWN_CHECKSUM), (lacks_md5, NO_MD5)],
    ids=["checksum", "md5"],
)
def test_stores_without_new_checksums_take_every_request(
    bucket, strict, tmp_path, monkeypatch, refuses, answer
):
    with strict(refuses, answer) as store:
        use_every_request(bucket, tmp_path, monkeypatch)
        assert (
            len([path for method, path, _ in store.seen if method == "POST" and "delete" in path])
            == 1
        ), "none was refused"
        signed = {
            headers["X-Amz-Content-SHA256"] for method, _, headers in store.seen if method == "PUT"
        }
        assert "UNSIGNED-PAYLOAD" not in signed, "the signature protects what is uploaded"


@pytest.mark.parametrize("where", ["environment", "file"])
def test_a_user_switches_checksums_on(bucket, strict, monkeypatch, tmp_path, where):
    if where == "environment":
        monkeypatch.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", "when_supported")
    else:
        (tmp_path / "config").write_text(
            "[profile strict]\nrequest_checksum_calculation = when_supported\n"
        )
        monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
        monkeypatch.setenv("AWS_PROFILE", "strict")
    with strict(lacks_checksum, NO_CHECKSUM):
        Store.open(f"{bucket}/locked").write("a", b"x")
        Store.open(f"{bucket}/locked").delete_all(["a"])


def test_a_bucket_that_requires_checksums_names_the_switch(bucket, strict, monkeypatch):
    with (
        strict(lacks_checksum, NO_CHECKSUM),
        pytest.raises(StorageError, match="is required for Put Object") as caught,
    ):
        Store.open(f"{bucket}/locked").write("a", b"x")
    assert (
        caught.value.hint
        == "set AWS_REQUEST_CHECKSUM_CALCULATION=when_supported: bucket 'strict' requires checksums"
    )
    monkeypatch.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", "WHEN_SUPPORTED")
    with (
        strict(has_new_checksum, UNKNOWN_CHECKSUM),
        pytest.raises(StorageError, match="Unsupported header") as caught,
    ):
        Store.open(f"{bucket}/locked").write("a", b"x")
    assert caught.value.hint.startswith("unset AWS_REQUEST_CHECKSUM_CALCULATION")


def test_an_archived_object_says_what_to_do(bucket, strict):
    with strict(is_archived, ARCHIVED):
        with pytest.raises(SourceError, match="archive storage class: restore it first"):
            Fetcher(guard=LOOPBACK).fetch(f"{bucket}/cold/1.jpg", "", 10)
        with pytest.raises(StorageError) as caught:
            Store.open(f"{bucket}/cold").read("1.jpg")
    assert caught.value.hint.startswith("restore the objects of bucket 'strict'")
