import errno
import pickle

import pytest
from botocore.exceptions import (
    ClientError,
    CredentialRetrievalError,
    EndpointConnectionError,
    NoCredentialsError,
)
from gcsfs.retry import HttpError
from google.auth.exceptions import RefreshError
from requests.exceptions import ProxyError

from ray_app.errors import SourceError, Status
from ray_app.storage.errors import is_transient, too_large, translate


def s3_error(code: str, http: int, message: str = "said so") -> ClientError:
    return ClientError(
        {"Error": {"Code": code, "Message": message}, "ResponseMetadata": {"HTTPStatusCode": http}},
        "GetObject",
    )


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
    (NoCredentialsError(), Status.SOURCE_DENIED, False),
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
def test_status(error, status, passes):
    translated = translate(error, "s3://bucket/a.jpg?x")
    assert (translated.status, is_transient(error)) == (status, passes)
    assert translated.detail.startswith("s3://bucket/a.jpg?x: ")
    assert "\n" not in translated.detail


def test_an_error_that_s3fs_wrapped_is_seen_through():
    with pytest.raises(OSError, match="reduce") as caught:
        raise OSError(errno.EBUSY, "reduce") from s3_error("SlowDown", 503)
    assert translate(caught.value, "s3://b/a").status is Status.SOURCE_THROTTLED


def test_secrets_of_urls_in_messages_do_not_show():
    text = "GET https://host/a.jpg?X-Amz-Signature=s3cr3t failed"
    assert (
        "s3cr3t"
        not in translate(ConnectionError(text), "https://host/a.jpg?X-Amz-Signature=s3cr3t").detail
    )


def test_they_cross_processes():
    error = pickle.loads(pickle.dumps(too_large(1001, 1000)))
    assert (error.status, error.limit, error.observed) == (Status.IMAGE_TOO_LARGE, 1000, 1001)
    error = pickle.loads(pickle.dumps(translate(s3_error("SlowDown", 503), "s3://b/a")))
    assert isinstance(error, SourceError)
    assert error.status is Status.SOURCE_THROTTLED
