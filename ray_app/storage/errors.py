"""Foreign exceptions (botocore, aiohttp, httpx, fsspec, operating system) → ours: `translate` for
one member, `unreachable` for a whole place.

They are distinguished by code, HTTP status and class *name*, so that a local error does not import
botocore.
"""

import errno
import os
import re
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path

from ray_app.errors import InputError, SourceError, Status, StorageError
from ray_app.storage.urls import bucket_and_key, scheme_of, strip_secrets

BAD_URL = "bad_url"
"""Status of a URL that `storage.guarded_http` does not request."""
FORBIDDEN_ADDRESS = "forbidden_address"
"""Status of a URL whose host is not on the public Internet."""

# https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html, and what other S3 servers and
# GCS say for the same.
_THROTTLE_CODES = frozenset(
    {
        "SlowDown",
        "ServiceUnavailable",
        "Throttling",
        "ThrottlingException",
        "RequestThrottled",
        "RequestLimitExceeded",
    }
    | {
        "BandwidthLimitExceeded",
        "TooManyRequests",
        "TooManyRequestsException",
        "ProvisionedThroughputExceededException",
    }
)
_THROTTLE_WORDS = (
    "slow down",
    "slowdown",
    "reduce your request rate",
    "rate exceeded",
    "rate limit",
    "too many requests",
    "throttl",
)
_THROTTLE_HTTP = frozenset({HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE})
_MISSING_CODES = frozenset({"NoSuchKey", "NoSuchBucket", "NoSuchVersion"})
# of a name that no store could have
_IMPOSSIBLE_CLASSES = frozenset({"InvalidURL", "ParamValidationError"})
_CHANGED_CODES = frozenset({"PreconditionFailed"})
_ARCHIVED = "InvalidObjectState"  # of objects in Glacier and similar classes
_CHECKSUM_WORDS = ("checksum", "content-md5")
_TRANSIENT_CODES = frozenset(
    {
        "InternalError",
        "RequestTimeout",
        "OperationAborted",
        "ConditionalRequestConflict",
        "IncompleteBody",
    }
)
_NETWORK_CLASSES = frozenset(
    # botocore
    {
        "EndpointConnectionError",
        "ConnectTimeoutError",
        "ReadTimeoutError",
        "ConnectionClosedError",
        "HTTPClientError",
    }
    # and urllib3
    | {
        "ResponseStreamingError",
        "IncompleteReadError",
        "ResponseParserError",
        "IncompleteRead",
        "ProtocolError",
    }
    # aiohttp, …
    | {
        "ClientConnectionError",
        "ClientPayloadError",
        "ServerTimeoutError",
        "FSTimeoutError",
        "TransportError",
        "gaierror",
    }
    | {"ServiceRequestError", "ServiceResponseError", "ProxyError"}  # azure; gcsfs, of a 502
)
_CREDENTIAL_CLASSES = frozenset(
    {
        "NoCredentialsError",
        "PartialCredentialsError",
        "ProfileNotFound",
        "TokenRetrievalError",
        "SSOError",
    }
)
# The instance's credential service refuses when many workers ask at once: a rate limit that looks
# like missing rights.
_CREDENTIAL_RUSH_CLASSES = frozenset(
    {"CredentialRetrievalError", "MetadataRetrievalError", "RefreshError"}
)
_LOCAL_PASSING = frozenset(
    {
        errno.EAGAIN,
        errno.EINTR,
        errno.ETIMEDOUT,
        errno.ESTALE,
        errno.EBUSY,
        errno.EMFILE,
        errno.ENFILE,
        errno.EIO,
    }
)


CLOSED_FOLDER = "this folder cannot be listed"
FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_URL = re.compile(r"https?://[^\s'\"]+")


class ObjectChangedError(OSError):
    """The object is not the requested version."""


class ShortReadError(OSError):
    """Fewer bytes came than the store had announced."""


def require_version(listed: str, found: str) -> None:
    """Raises ObjectChangedError where what was found is not the version that was listed ("" =
    whichever).
    """
    if listed and found != listed:
        raise ObjectChangedError(f"listed as {listed}, found as {found or 'no version'}")


def require_length(found: int, announced: int | None) -> None:
    """Raises ShortReadError where fewer or more bytes came than the store had announced (None: it
    did not).
    """
    if announced is not None and found != announced:
        raise ShortReadError(f"{found} of {announced} bytes came")


def too_large(size: int, max_bytes: int) -> InputError:
    """What a row says of a file over the intake limit."""
    return InputError(
        Status.IMAGE_TOO_LARGE,
        f"{size} bytes is over max_bytes ({max_bytes})",
        limit=max_bytes,
        observed=size,
    )


def translate(error: BaseException, uri: str) -> SourceError:
    """What one member's row says about a foreign exception. Raises the exception itself where it is
    not about storage.
    """
    if isinstance(error, SourceError):
        return error
    status = _status(error)
    if status is None:
        raise error
    return SourceError(status, f"{strip_secrets(uri)}: {_in_words(error)}")


def closed_folder(error: BaseException) -> SourceError:
    """Return what a row shows for a folder that cannot be listed. Raises the exception itself if it
    is not about storage.
    """
    status = _status(error)
    if status is None:
        raise error
    return SourceError(status, f"{CLOSED_FOLDER}: {_in_words(error)}")


def is_transient(error: BaseException) -> bool:
    """Whether the same request may succeed a moment later."""
    status = _status(error)
    if status is Status.SOURCE_DENIED:
        # Under load S3 and its proxies answer 403 without a code; a real refusal names its reason.
        if _http_status(error) == HTTPStatus.UNAUTHORIZED:
            # a token of Google's that ended on its way: the next request has a new one
            return "Invalid Credentials" in str(error)
        return _http_status(error) == HTTPStatus.FORBIDDEN and _code(error) in ("403", "Forbidden")
    if status is Status.SOURCE_TIMEOUT:
        return not _is_local(error) or any(
            getattr(cause, "errno", None) in _LOCAL_PASSING for cause in _causes(error)
        )
    return status is Status.SOURCE_THROTTLED


def is_throttle(error: BaseException) -> bool:
    """Whether the store asks to slow down, in whatever words."""
    return _status(error) is Status.SOURCE_THROTTLED


def is_missing(error: BaseException) -> bool:
    """Whether there is nothing at that place. A missing bucket is not meant: `unreachable` explains
    that one.
    """
    return _status(error) is Status.SOURCE_MISSING and _code(error) != "NoSuchBucket"


def is_conflict(error: BaseException) -> bool:
    """Whether a conditional request found its condition not to hold."""
    return isinstance(error, FileExistsError) or _status(error) is Status.SOURCE_CHANGED


def refuses_condition(error: BaseException | None) -> bool:
    """Whether a store that answers otherwise does not take a conditional write: asked of the answer
    to one, after a read that succeeded.
    """
    return error is not None and _http_status(error) in (
        HTTPStatus.NOT_IMPLEMENTED,
        HTTPStatus.BAD_REQUEST,
    )


_NO_BATCHES = (
    HTTPStatus.BAD_REQUEST,
    HTTPStatus.METHOD_NOT_ALLOWED,
    HTTPStatus.LENGTH_REQUIRED,
    HTTPStatus.NOT_IMPLEMENTED,
)


def refuses_batches(error: BaseException) -> bool:
    """Whether a store may be one that does not take a request which removes many objects (GCS, some
    Ceph): it refused all of it.
    """
    return _http_status(error) in _NO_BATCHES


def unreachable(error: BaseException, url: str, doing: str) -> StorageError:
    """What a command says when a whole source or run directory is out of reach: one line, and a
    hint that names bucket and variable.

    Raises the exception itself where it is not about storage.
    """
    status = _status(error)
    if status is None:
        raise error
    place = strip_secrets(url)
    return StorageError(
        f"cannot {doing} {place}: {_in_words(error)}", hint=_hint(error, status, place, doing)
    )


def _status(error: BaseException) -> Status | None:
    if isinstance(error, SourceError):
        return error.status
    code, http = _code(error), _http_status(error)
    names = _class_names(error)
    if isinstance(error, ObjectChangedError):
        return Status.SOURCE_CHANGED
    if (
        code in _THROTTLE_CODES
        or http in _THROTTLE_HTTP
        or names & _CREDENTIAL_RUSH_CLASSES
        or _sounds_throttled(error)
    ):
        return Status.SOURCE_THROTTLED
    if code in _CHANGED_CODES or http == HTTPStatus.PRECONDITION_FAILED:
        return Status.SOURCE_CHANGED
    if (
        code in _MISSING_CODES
        or http in (HTTPStatus.NOT_FOUND, HTTPStatus.GONE)
        or isinstance(error, (FileNotFoundError, NotADirectoryError))
        or _errno(error) == errno.ELOOP  # links that lead to each other
        or names & _IMPOSSIBLE_CLASSES
    ):
        return Status.SOURCE_MISSING
    if (
        http in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN)
        or names & _CREDENTIAL_CLASSES
        or isinstance(error, PermissionError)
        or _errno(error) == errno.ENAMETOOLONG  # nested too deeply to be opened by its path
    ):
        return Status.SOURCE_DENIED
    if (
        code in _TRANSIENT_CODES
        or HTTPStatus.INTERNAL_SERVER_ERROR <= http != HTTPStatus.NOT_IMPLEMENTED
        or names & _NETWORK_CLASSES
    ):
        return Status.SOURCE_TIMEOUT
    if http or code:
        return Status.SOURCE_DENIED  # any other 4xx: the store understood and refuses
    return Status.SOURCE_TIMEOUT if isinstance(error, OSError) else None


def _causes(error: BaseException, *, contexts: bool = False) -> Iterator[BaseException]:
    """The exception and those it was made from: s3fs and botocore wrap the one that knows."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or (cause.__context__ if contexts else None)


def _class_names(error: BaseException, *, contexts: bool = False) -> set[str]:
    return {
        cls.__name__ for cause in _causes(error, contexts=contexts) for cls in type(cause).__mro__
    }


def _code(error: BaseException) -> str:
    for cause in _causes(error):
        response = getattr(cause, "response", None)
        if isinstance(response, dict):
            return str(response.get("Error", {}).get("Code", ""))
    return ""


def _http_status(error: BaseException) -> int:
    """The HTTP status: botocore keeps it in a dict, aiohttp in `status`, httpx in `response`, gcsfs
    in `code`. 0 where there is none.
    """
    for cause in _causes(error):
        response = getattr(cause, "response", None)
        if isinstance(response, dict):
            return int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        for owner, name in ((cause, "status"), (response, "status_code"), (cause, "code")):
            value = getattr(owner, name, None)
            if isinstance(value, int) and value >= HTTPStatus.BAD_REQUEST:
                return value
    return 0


def _errno(error: BaseException) -> int | None:
    return error.errno if isinstance(error, OSError) else None


def _is_local(error: BaseException) -> bool:
    remote = (
        isinstance(error, (ConnectionError, TimeoutError, ShortReadError))
        or _http_status(error)
        or _class_names(error) & _NETWORK_CLASSES
    )
    return isinstance(error, OSError) and not remote


def _sounds_throttled(error: BaseException) -> bool:
    return bool(_http_status(error)) and any(word in str(error).lower() for word in _THROTTLE_WORDS)


def _in_words(error: BaseException) -> str:
    """One line without a class's or a library's jargon, as far as the exception allows, and without
    the secrets of any URL in it.
    """
    if isinstance(error, SourceError):
        return error.detail
    text = _URL.sub(lambda match: strip_secrets(match.group()), " ".join(str(error).split()))
    code, http = _code(error), _http_status(error)
    names = _class_names(error, contexts=True)
    if code or http:
        archived = (
            "; it is in an archive storage class: restore it first" if code == _ARCHIVED else ""
        )
        return f"{_message(error) or text} ({code if code and code != str(http) else 'HTTP'} {http}){archived}"
    if any("gaierror" in name or "DNSError" in name for name in names):
        return f"its host name does not resolve{_endpoint_note()}"
    if "ClientConnectorCertificateError" in names:
        return "its certificate is not accepted"
    if names & {"EndpointConnectionError", "ClientConnectorError", "ConnectionRefusedError"}:
        return f"nothing answers there{_endpoint_note()}"
    if isinstance(error, TimeoutError) or names & {
        "ConnectTimeoutError",
        "ReadTimeoutError",
        "FSTimeoutError",
    }:
        return "no answer in time"
    if names & _CREDENTIAL_CLASSES:
        return f"no usable credentials ({text})"
    if isinstance(error, FileExistsError | NotADirectoryError) and isinstance(error.filename, str):
        above = [error.filename, *map(str, Path(error.filename).parents)]
        file = next((place for place in above if os.path.isfile(place)), None)
        return f"{file} is a file, not a folder" if file else "a file lies where a folder is needed"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return text or type(error).__name__


def _message(error: BaseException) -> str:
    for cause in _causes(error):
        response = getattr(cause, "response", None)
        if isinstance(response, dict):
            return str(response.get("Error", {}).get("Message", ""))
        if isinstance(getattr(cause, "message", None), str):
            return str(cause.message)  # type: ignore[attr-defined]
    return ""


def _endpoint_note() -> str:
    endpoint = endpoint_url()
    return f" (AWS_ENDPOINT_URL is {strip_secrets(endpoint)})" if endpoint else ""


def endpoint_url() -> str | None:
    """The S3 endpoint that the environment names, if any."""
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or None


_GOOGLE = "credentials are Google's usual ones (GOOGLE_APPLICATION_CREDENTIALS, `gcloud auth application-default login`, the machine's)"
_AZURE = "credentials come from AZURE_STORAGE_CONNECTION_STRING, or AZURE_STORAGE_ACCOUNT_NAME with a key, SAS or AZURE_STORAGE_ANON=false"
_CLOUDS = dict.fromkeys(("gs", "gcs"), _GOOGLE) | dict.fromkeys(("az", "abfs", "abfss"), _AZURE)


def _hint(error: BaseException, status: Status, place: str, doing: str) -> str | None:
    if scheme_of(place) == "hf":
        return "check the network and HF_ENDPOINT; private and gated repositories need HF_TOKEN, or `hf auth login`"
    if scheme_of(place) in _CLOUDS:
        return _CLOUDS[scheme_of(place)]
    if scheme_of(place) != "s3":
        if isinstance(error, OSError) and error.errno in FULL:
            return "make room there, then run the same command again"
        if isinstance(error, FileExistsError | NotADirectoryError):
            return "name a folder"
        local = {
            Status.SOURCE_DENIED: "check the permissions of that path",
            Status.SOURCE_MISSING: "check the spelling",
        }
        return local.get(status)
    return _s3_hint(error, status, bucket_and_key(place)[0], doing)


def _s3_hint(error: BaseException, status: Status, bucket: str, doing: str) -> str:
    if _code(error) == "NoSuchBucket":
        return f"create bucket '{bucket}', or check its spelling, AWS_DEFAULT_REGION and AWS_ENDPOINT_URL"
    if _code(error) == _ARCHIVED:
        return f"restore the objects of bucket '{bucket}' from their archive storage class, then run the same command again"
    if status is Status.SOURCE_DENIED and any(
        word in _message(error).lower() for word in _CHECKSUM_WORDS
    ):
        if os.environ.get("AWS_REQUEST_CHECKSUM_CALCULATION", "").lower() == "when_supported":
            return f"unset AWS_REQUEST_CHECKSUM_CALCULATION: the store of bucket '{bucket}' does not accept the checksums that it switches on"
        return f"set AWS_REQUEST_CHECKSUM_CALCULATION=when_supported: bucket '{bucket}' requires checksums"
    return {
        Status.SOURCE_DENIED: f"grant s3:ListBucket, s3:GetObject and (for --out) s3:PutObject and s3:DeleteObject on bucket '{bucket}'; "
        "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or use the instance profile; "
        "set FSSPEC_S3_ANON=true for a public bucket, AWS_REQUEST_PAYER=requester for one whose requester pays"
        + "; set AWS_REQUEST_CHECKSUM_CALCULATION=when_supported for one whose policy requires checksums"
        * (doing == "write"),
        Status.SOURCE_TIMEOUT: f"check the network to bucket '{bucket}' and AWS_ENDPOINT_URL",
        Status.SOURCE_THROTTLED: f"run the same command again later, or with fewer workers: bucket '{bucket}' is asked too often",
    }.get(status, f"check bucket '{bucket}' and the spelling of the path")
