import errno
import pickle

import pytest
from botocore.exceptions import (
    CredentialRetrievalError,
    EndpointConnectionError,
    EndpointResolutionError,
    FlexibleChecksumError,
    InvalidConfigError,
    NoCredentialsError,
)
from gcsfs.retry import HttpError
from google.auth.exceptions import RefreshError
from requests.exceptions import ProxyError

from ray_app.errors import SourceError, Status
from ray_app.storage.errors import is_transient, make_too_large_error, translate
from tests.storage.client_errors import s3_error

CASES = [
    (s3_error("NoSuchKey", 404), Status.SOURCE_MISSING, False),
    (s3_error("AccessDenied", 403), Status.SOURCE_DENIED, False),
    (s3_error("403", 403, "Forbidden"), Status.SOURCE_DENIED, True),
    (s3_error("AccessDenied", 403, "Rate exceeded"), Status.SOURCE_THROTTLED, True),
    (s3_error("SlowDown", 503), Status.SOURCE_THROTTLED, True),
    (s3_error("TooManyRequests", 429), Status.SOURCE_THROTTLED, True),
    (s3_error("PreconditionFailed", 412), Status.SOURCE_CHANGED, False),
    (s3_error("InternalError", 500), Status.SOURCE_TIMEOUT, True),
    (s3_error("InvalidRequest", 400), Status.SOURCE_DENIED, False),
    (CredentialRetrievalError(provider="iam", error_msg="busy"), Status.SOURCE_THROTTLED, True),
    (
        CredentialRetrievalError(provider="custom-process", error_msg="no"),
        Status.SOURCE_DENIED,
        False,
    ),
    (NoCredentialsError(), Status.SOURCE_DENIED, False),
    (InvalidConfigError(error_msg="no such profile"), Status.SOURCE_DENIED, False),
    (EndpointResolutionError(msg="not a valid URI"), Status.SOURCE_DENIED, False),
    (FlexibleChecksumError(error_msg="differs"), Status.SOURCE_TIMEOUT, True),
    (EndpointConnectionError(endpoint_url="http://x"), Status.SOURCE_TIMEOUT, True),
    # What gcsfs raises of 502, of a token that ended on its way, and of a metadata server that is
    # busy.
    (ProxyError(), Status.SOURCE_TIMEOUT, True),
    (HttpError({"code": 401, "message": "Invalid Credentials"}), Status.SOURCE_DENIED, True),
    (HttpError({"code": 401, "message": "Anonymous caller"}), Status.SOURCE_DENIED, False),
    (HttpError({"code": 429, "message": "rateLimitExceeded"}), Status.SOURCE_THROTTLED, True),
    (RefreshError("metadata server: 503"), Status.SOURCE_THROTTLED, True),
    (ConnectionResetError(), Status.SOURCE_TIMEOUT, True),
    (FileNotFoundError(errno.ENOENT, "No such file"), Status.SOURCE_MISSING, False),
    (PermissionError(errno.EACCES, "Permission denied"), Status.SOURCE_DENIED, False),
    (OSError(errno.ESTALE, "Stale file handle"), Status.SOURCE_TIMEOUT, True),
    (OSError(errno.ENOSPC, "No space left on device"), Status.SOURCE_TIMEOUT, False),
]


@pytest.mark.parametrize(("error", "status", "passes"), CASES, ids=lambda value: repr(value)[:60])
def test_storage_error_has_a_status_and_may_be_transient(error, status, passes):
    translated = translate(error, "s3://bucket/a.jpg?x")
    assert (translated.status, is_transient(error)) == (status, passes)
    assert translated.detail.startswith("s3://bucket/a.jpg?x: ")
    assert "\n" not in translated.detail


def test_storage_error_that_s3fs_wrapped_keeps_its_status():
    wrapped = OSError(errno.EBUSY, "reduce")
    wrapped.__cause__ = s3_error("SlowDown", 503)
    assert translate(wrapped, "s3://b/a").status is Status.SOURCE_THROTTLED


def test_storage_error_shows_no_secret_of_a_url():
    url = "https://host/a.jpg?X-Amz-Signature=s3cr3t"
    assert "s3cr3t" not in translate(ConnectionError(f"GET {url} failed"), url).detail


def test_storage_errors_can_be_pickled():
    error = pickle.loads(pickle.dumps(make_too_large_error(1001, 1000)))
    assert (error.status, error.limit, error.observed) == (Status.IMAGE_TOO_LARGE, 1000, 1001)
    error = pickle.loads(pickle.dumps(translate(s3_error("SlowDown", 503), "s3://b/a")))
    assert isinstance(error, SourceError)
    assert error.status is Status.SOURCE_THROTTLED
