"""Who pays for requests, which checksums they carry, and what a refusal says, before stores that
insist on either.
"""

import os
import pickle
from pathlib import Path

import fsspec.config
import pytest

from ray_app.cli.main import main
from ray_app.errors import ConfigError, SourceError, StorageError
from ray_app.storage import Fetcher, S3Config, Store, apply_s3_settings, list_objects, places
from ray_app.storage import s3 as s3_requests
from ray_app.storage.object_store import open_fsspec, retrying_fsspec_for
from ray_app.storage.s3 import filesystem, fsspec_options, page
from tests.archives.given import files_below
from tests.make.servers import faulty_proxy
from tests.make.servers.faulty import LOOPBACK, FaultyServer, error_body
from tests.make.servers.tls import authority

DENIED = 403, error_body("AccessDenied", "Access Denied")
UNKNOWN_CHECKSUM = (
    400,
    error_body("InvalidArgument", "Unsupported header x-amz-sdk-checksum-algorithm received"),
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


SKEWED = 403, error_body("RequestTimeTooSkewed", "The difference between the times is too large")
EXPIRED = 400, error_body("ExpiredToken", "The provided token has expired.")
OTHER_REGION = (
    400,
    error_body(
        "AuthorizationHeaderMalformed",
        "the region 'us-east-1' is wrong; expecting 'eu-central-1'",
    ),
)
SSO = """[profile p]
sso_start_url = https://example.awsapps.com/start
sso_region = us-east-1
sso_account_id = 123456789012
sso_role_name = r
"""
ROLE = "[profile p]\nrole_arn = arn:aws:iam::123456789012:role/r\nsource_profile = q\n"


def is_unpaid(method, path, headers) -> bool:
    return headers.get("x-amz-request-payer") != "requester"


def has_new_checksum(method, path, headers) -> bool:
    return method in ("PUT", "POST") and any("checksum" in name.lower() for name in headers)


def lacks_md5(method, path, headers) -> bool:
    return method == "POST" and "delete" in path and "content-md5" not in headers


def lacks_checksum(method, path, headers) -> bool:
    return method == "PUT" and not any(
        name.lower().startswith(("x-amz-checksum-", "content-md5")) for name in headers
    )


def is_archived(method, path, headers) -> bool:
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
    assert (store.read("a"), store.exists("a")) == (b"a", True)
    assert store.names("") == ["a", "b", "large"]
    first, second = f"{bucket}/in/1.jpg", f"{bucket}/in/2.jpg"
    assert [info.uri for info in list_objects(f"{bucket}/in")] == [first, second]
    fetcher = Fetcher(guard=LOOPBACK)
    assert (fetcher.fetch_range(first, "", 1, 2), fetcher.size(first, "")) == (b"at", 4)
    own, path = retrying_fsspec_for(f"{bucket}/out/weights")
    own.pipe_file(path, b"weights")
    assert own.cat_file(path) == b"weights"
    store.delete("a")
    store.delete_all(["b", "large", "weights"])
    assert store.names("") == []


def test_s3_times_have_a_zone(bucket, strict):
    with strict(lambda *_: False, DENIED):
        listed = filesystem().info(f"{bucket}/in/1.jpg".removeprefix("s3://"))["LastModified"]
        [found, _] = page("strict", "in/", timeout_s=20)["Contents"]
    assert listed.tzinfo is not None
    assert found["LastModified"].replace(microsecond=0) == listed.replace(microsecond=0)


def test_s3_requester_pays_for_every_request(bucket, strict, tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_REQUEST_PAYER", "requester")
    with strict(is_unpaid, DENIED) as store:
        use_every_request(bucket, tmp_path, monkeypatch)
        assert {method for method, _, _ in store.seen} == {"GET", "HEAD", "PUT", "POST", "DELETE"}


def test_s3_requester_pays_if_the_config_says_so(bucket, strict):
    class Config:
        def __init__(self, payer):
            self.s3 = S3Config(request_payer=payer)

    @apply_s3_settings
    def listed(config, prefix):
        return os.environ["AWS_REQUEST_PAYER"], [
            info.uri for info in list_objects(f"{bucket}/{prefix}")
        ]

    with strict(is_unpaid, DENIED):
        found = listed(Config("requester"), "cold")
        assert found == ("requester", [f"{bucket}/cold/1.jpg"]), "child processes inherit it"
        assert "AWS_REQUEST_PAYER" not in os.environ
        with pytest.raises(StorageError, match="Access Denied") as caught:
            list(list_objects(f"{bucket}/cold"))
    assert "AWS_REQUEST_PAYER=requester for one whose requester pays" in caught.value.hint
    assert "FSSPEC_S3_ANON=true for a public bucket" in caught.value.hint


@pytest.mark.slow
def test_run_pays_as_its_config_says_and_keeps_no_secret(
    s3, bucket, strict, off_ray, capsys, monkeypatch
):
    command = ["score", f"{bucket}/in", "--out", f"{bucket}/run", "--ensemble", "tiny"]
    with strict(is_unpaid, DENIED):
        assert main(command) == 5
        assert "AWS_REQUEST_PAYER=requester" in capsys.readouterr().err
        assert main([*command, "--set", "s3.request_payer=requester"]) == 0
    said = "".join(capsys.readouterr())
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3.url)
    run = Store.open(f"{bucket}/run")
    written = b"".join(files_below(run, "sessions").values()) + run.read("run.json")
    assert b"request_payer" in written
    assert "testing-secret" not in said
    assert b"testing-secret" not in written


@pytest.mark.parametrize(
    ("variable", "reason"),
    [
        ("AWS_REQUEST_PAYER", "the only value is 'requester'"),
        ("AWS_REQUEST_CHECKSUM_CALCULATION", "'when_required' and 'when_supported'"),
        ("AWS_RESPONSE_CHECKSUM_VALIDATION", "'when_required' and 'when_supported'"),
    ],
)
def test_s3_setting_with_another_value_is_refused(bucket, strict, monkeypatch, variable, reason):
    monkeypatch.setenv(variable, "sometimes")
    with pytest.raises(ConfigError, match=f"{variable} is 'sometimes', .*{reason}"):
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
def test_fsspec_options_that_are_unusable_are_refused(monkeypatch, name, value, said):
    monkeypatch.setitem(fsspec.config.conf, "s3", {name: value})
    with pytest.raises(ConfigError, match=said):
        fsspec_options()


@pytest.mark.parametrize(
    "options",
    [{"requester_pays": True}, {"s3_additional_kwargs": {"RequestPayer": "requester"}}],
    ids=["requester pays", "additional arguments"],
)
def test_fsspec_options_hold_for_every_request(bucket, strict, monkeypatch, options):
    """fsspec reads them from FSSPEC_S3_… variables."""
    monkeypatch.setattr(s3_requests, "_filesystem", s3_requests._filesystem.__wrapped__)
    with strict(is_unpaid, DENIED) as store:
        monkeypatch.delenv("AWS_ENDPOINT_URL")
        agent = {"config_kwargs": {"user_agent_extra": "of-the-test"}, "endpoint_url": store.url}
        monkeypatch.setitem(fsspec.config.conf, "s3", options | agent)
        assert [info.uri for info in list_objects(f"{bucket}/cold")] == [f"{bucket}/cold/1.jpg"]
        assert "of-the-test" in store.seen[-1][2]["User-Agent"]


def test_s3_in_another_process_sends_the_same_without_secrets(strict, monkeypatch):
    monkeypatch.setenv("AWS_REQUEST_PAYER", "requester")
    with strict(is_unpaid, DENIED) as store:
        pickled = pickle.dumps(filesystem())
        assert b"testing-secret" not in pickled
        copy = pickle.loads(pickled)
        copy.pipe_file("strict/copied", b"x")
        assert copy.cat_file("strict/copied") == b"x"
        copy.rm_file("strict/copied")
        assert not any(has_new_checksum(*request) for request in store.seen)


@pytest.mark.parametrize(
    ("refuses", "answer"),
    [(has_new_checksum, UNKNOWN_CHECKSUM), (lacks_md5, NO_MD5)],
    ids=["checksum", "md5"],
)
def test_store_without_new_checksums_accepts_every_request(
    bucket, strict, tmp_path, monkeypatch, refuses, answer
):
    with strict(refuses, answer) as store:
        use_every_request(bucket, tmp_path, monkeypatch)
    deletes = [path for method, path, _ in store.seen if method == "POST" and "delete" in path]
    assert len(deletes) == 1, "none was refused"
    puts = [headers for method, _, headers in store.seen if method == "PUT"]
    assert "UNSIGNED-PAYLOAD" not in {headers["X-Amz-Content-SHA256"] for headers in puts}


@pytest.mark.parametrize("where", ["environment", "file"])
def test_s3_checksums_may_be_switched_on(bucket, strict, monkeypatch, tmp_path, where):
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


@pytest.mark.parametrize(
    ("setting", "refuses", "answer", "reason", "hint"),
    [
        (
            "when_required",
            lacks_checksum,
            NO_CHECKSUM,
            "is required for Put Object",
            "set AWS_REQUEST_CHECKSUM_CALCULATION=when_supported: bucket 'strict' requires",
        ),
        (
            "WHEN_SUPPORTED",
            has_new_checksum,
            UNKNOWN_CHECKSUM,
            "Unsupported header",
            "unset AWS_REQUEST_CHECKSUM_CALCULATION",
        ),
    ],
)
def test_s3_refusal_for_checksums_names_the_switch(
    bucket, strict, monkeypatch, setting, refuses, answer, reason, hint
):
    monkeypatch.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", setting)
    with strict(refuses, answer), pytest.raises(StorageError, match=reason) as caught:
        Store.open(f"{bucket}/locked").write("a", b"x")
    assert caught.value.hint.startswith(hint)


def test_s3_archived_object_shows_what_to_do(bucket, strict):
    with strict(is_archived, ARCHIVED):
        with pytest.raises(SourceError, match="archive storage class: restore it first"):
            Fetcher(guard=LOOPBACK).fetch(f"{bucket}/cold/1.jpg", "", 10)
        with pytest.raises(StorageError) as caught:
            Store.open(f"{bucket}/cold").read("1.jpg")
    assert caught.value.hint.startswith("restore the objects of bucket 'strict'")


@pytest.fixture
def settings(monkeypatch, tmp_path):
    """Sets variables and writes a configuration file that has the profile `p`, for new clients.
    Whatever they ask would get no answer.
    """
    monkeypatch.setattr(s3_requests, "_filesystem", s3_requests._filesystem.__wrapped__)

    def set_all(config="", **variables):
        (tmp_path / "config").write_text(config)
        monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION"):
            monkeypatch.delenv(name, raising=False)
        if config:
            monkeypatch.setenv("AWS_PROFILE", "p")
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        return str(tmp_path / "config")

    return set_all


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("AWS_ENDPOINT_URL", "localhost:9000", "Invalid endpoint: localhost:9000"),
        ("AWS_ENDPOINT_URL", "http://localhost:9000 ", "has a blank"),
        ("AWS_DEFAULT_REGION", "us east 1", "has a blank"),
        ("AWS_DEFAULT_REGION", "us_east_1", "doesn't match a supported format"),
        ("AWS_ACCESS_KEY_ID", "testing\n", "has a line break"),
        ("AWS_SECRET_ACCESS_KEY", "testing-secret\r", "has a line break"),
        ("AWS_PROFILE", "absent", "The config profile .absent. could not be found"),
        ("AWS_RETRY_MODE", "never", "must be one of"),
        ("AWS_METADATA_SERVICE_TIMEOUT", "soon", "invalid literal for int"),
        ("AWS_CA_BUNDLE", "/absent.pem", "No such file"),
    ],
)
def test_aws_variable_that_is_invalid_is_named(settings, name, value, reason):
    settings(**{name: value})
    for use in (lambda: list(list_objects("s3://b")), lambda: Store.open("s3://b").write("a", b"")):
        with pytest.raises(ConfigError, match=reason) as caught:
            use()
        assert name in caught.value.message + caught.value.hint
        assert "testing" not in caught.value.message + caught.value.hint


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ("[profile p]\n[profile p]\n", "line 2.: section 'profile p' already exists"),
        ("[profile p\n", "no section headers"),
        ("[profile p]\naws_access_key_id = testing\n", "missing: aws_secret_access_key"),
        (ROLE, 'The source_profile "q" referenced in the profile "p" does not exist'),
        ("[profile p]\ncredential_process = /bin/false\n", "credentials from credential_process"),
        ("[profile p]\ncredential_process = /absent\n", "No such file or directory: /absent"),
        ("[profile p]\ncredential_process = /bin/echo x\n", "Expecting value"),
        ("[profile p]\nendpoint_url = localhost:9000\n", "Invalid endpoint: localhost:9000"),
        ("[profile p]\ns3 =\n  addressing_style = x\n", "addressing style x is invalid"),
    ],
)
def test_aws_file_that_is_invalid_is_named(settings, monkeypatch, config, reason):
    path = settings(config)
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    with pytest.raises(ConfigError, match=reason) as caught:
        list(list_objects("s3://b"))
    assert path in caught.value.hint


def test_endpoint_with_a_query_is_named_at_the_first_request(settings):
    settings(AWS_ENDPOINT_URL="http://localhost:9/x?y")
    with pytest.raises(StorageError, match="was not a valid URI") as caught:
        list(list_objects("s3://b"))
    assert caught.value.hint.startswith("correct AWS_ENDPOINT_URL")


def test_sso_without_a_token_names_the_login(settings, caplog):
    settings(SSO)
    with pytest.raises(StorageError, match="no usable credentials") as caught:
        list(list_objects("s3://b"))
    assert caught.value.hint == "run aws sso login --profile p"
    assert not caplog.records


def test_web_identity_without_a_token_names_the_file(settings):
    role = "arn:aws:iam::123456789012:role/r"
    settings(AWS_WEB_IDENTITY_TOKEN_FILE="/absent/token", AWS_ROLE_ARN=role)
    with pytest.raises(StorageError) as caught:
        list(list_objects("s3://b"))
    assert "/absent/token" in caught.value.hint


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (SKEWED, "set the clock of this machine"),
        (EXPIRED, "renew the temporary credentials"),
        (OTHER_REGION, "set AWS_DEFAULT_REGION=eu-central-1"),
    ],
    ids=["skew", "expired", "region"],
)
def test_s3_refusal_names_what_to_set(bucket, strict, answer, hint):
    with strict(lambda *_: True, answer) as store:
        with pytest.raises(StorageError) as caught:
            list(list_objects(f"{bucket}/in"))
        assert len(store.seen) == 1, "without retries"
    assert caught.value.hint.startswith(hint)


def test_access_point_is_read_by_its_arn(settings):
    point = "s3://arn:aws:s3:us-east-1:123456789012:accesspoint/my-ap"
    with FaultyServer() as proxy:
        proxy.objects["http://my-ap-123456789012.store.test/photos/a.jpg"] = b"data"
        settings(
            AWS_ENDPOINT_URL="http://store.test",
            HTTP_PROXY=proxy.url,
            AWS_ACCESS_KEY_ID="testing",
            AWS_SECRET_ACCESS_KEY="testing-secret",
            AWS_DEFAULT_REGION="us-east-1",
        )
        assert Fetcher().fetch(f"{point}/photos/a.jpg", "", 10) == b"data"
        own, path = open_fsspec(f"{point}/photos/a.jpg")
        assert own.cat_file(path) == b"data"


@pytest.mark.parametrize(
    ("scheme", "variable"), [("s3", "AWS_CA_BUNDLE"), ("https", "SSL_CERT_FILE")]
)
def test_private_authority_is_named_by_a_variable(settings, scheme, variable):
    with FaultyServer() as server:
        server.serve_tls(Path(authority()[0]).with_name("leaf.pem"))
        server.objects["/b/a"] = b"data"
        url = server.url.replace("http://127.0.0.1", "https://localhost")
        keys = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing-secret"}
        settings(AWS_ENDPOINT_URL=url, AWS_DEFAULT_REGION="us-east-1", **keys)
        with pytest.raises(StorageError, match="certificate is not accepted") as caught:
            list(list_objects({"s3": "s3://b/a", "https": f"{url}/b/a"}[scheme]))
        assert caught.value.hint.startswith(f"set {variable} to a PEM file")
        if scheme == "s3":  # Python reads the other variable when it starts.
            settings(AWS_CA_BUNDLE=authority()[0], AWS_ENDPOINT_URL=url, **keys)
            assert Store.open("s3://b").read("a") == b"data"
