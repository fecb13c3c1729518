"""Translate exceptions of libraries and the operating system into those of Touchstone.

`translate` is for errors of one member (one file of the archive). `make_unreachable_error` is for
errors of a whole source or store. Exceptions of botocore, aiohttp, httpx, and fsspec are
distinguished by code, HTTP status, and class *name*, so that a local error does not import
botocore.
"""

import errno
import os
import re
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path

from ray_app.errors import ConfigError, InputError, SourceError, Status, StorageError
from ray_app.storage.urls import get_scheme, split_bucket, strip_secrets

BAD_URL = "bad_url"
"""The status of a URL that `storage.guarded_http` does not request."""
FORBIDDEN_ADDRESS = "forbidden_address"
"""The status of a URL whose host is not on the public Internet."""

# See https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html. Other S3 servers and GCS
# use further codes for the same errors.
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
# Exceptions for a name that is invalid in every store.
_IMPOSSIBLE_CLASSES = frozenset({"InvalidURL", "ParamValidationError"})
_CHANGED_CODES = frozenset({"PreconditionFailed"})
_ARCHIVED = "InvalidObjectState"  # The object is in Glacier or a similar storage class.
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
    # Exceptions of botocore.
    {
        "EndpointConnectionError",
        "ConnectTimeoutError",
        "ReadTimeoutError",
        "ConnectionClosedError",
        "HTTPClientError",
        "FlexibleChecksumError",
    }
    # Exceptions of urllib3.
    | {
        "ResponseStreamingError",
        "IncompleteReadError",
        "ResponseParserError",
        "IncompleteRead",
        "ProtocolError",
    }
    # Exceptions of aiohttp and other clients.
    | {
        "ClientConnectionError",
        "ClientPayloadError",
        "ServerTimeoutError",
        "FSTimeoutError",
        "TransportError",
        "gaierror",
    }
    # Exceptions of the Azure client, and of gcsfs for a 502.
    | {"ServiceRequestError", "ServiceResponseError", "ProxyError"}
)
_SSO_CLASSES = frozenset({"SSOError", "TokenRetrievalError"})
_CREDENTIAL_CLASSES = frozenset(
    {
        "NoCredentialsError",
        "PartialCredentialsError",
        "ProfileNotFound",
        "LoginError",
        "CredentialRetrievalError",
    }
    | _SSO_CLASSES
)
# The credential service of an instance refuses requests of many workers at the same time. This rate
# limit looks like missing permissions.
_CREDENTIAL_RUSH_CLASSES = frozenset(
    {"CredentialRetrievalError", "MetadataRetrievalError", "RefreshError"}
)
_CREDENTIAL_PROCESS = "custom-process"  # botocore's name of `credential_process`.
_PACKED = frozenset({"gzip", "x-gzip", "deflate", "br", "zstd"})
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
    """The error for a file whose version is not the requested one, because it has changed."""


class ShortReadError(OSError):
    """The error for a response whose bytes are incomplete, or not those that were requested."""


def require_version(listed: str, current: str) -> None:
    """Raise ObjectChangedError if a file changed since it was listed; "" accepts any version."""
    if listed and current != listed:
        raise ObjectChangedError(
            f"changed since listing: version {listed} was listed, now {current or 'without a version'}"
        )


def require_length(received: int, announced: int | None) -> None:
    """Raise ShortReadError if a response is not as long as its headers announced.

    None checks nothing.
    """
    if announced is not None and received != announced:
        raise ShortReadError(f"received {received} of {announced} bytes")


def refuse_packed(content_encoding: str | None) -> None:
    """Raise SourceError if an object is stored compressed, as its Content-Encoding shows.

    Its bytes are not those of the listed file. The clients of Google and Azure unpack it without a
    limit, and that of S3 does not unpack it.
    """
    encodings = (content_encoding or "").lower().replace(" ", "").split(",")
    if not _PACKED.isdisjoint(encodings):
        raise SourceError(
            Status.UNSUPPORTED_FORMAT,
            f"stored with Content-Encoding {content_encoding}: store it uncompressed, without this header",
        )


def make_too_large_error(size: int, max_bytes: int) -> InputError:
    """Return the error for a file that is larger than `max_bytes`."""
    return InputError(
        Status.IMAGE_TOO_LARGE,
        f"{size} bytes is over max_bytes ({max_bytes})",
        limit=max_bytes,
        observed=size,
    )


def translate(error: BaseException, uri: str) -> SourceError:
    """Convert an exception of a library into the error for one file that cannot be read.

    The result row of the file shows the status and the text of this error. The text begins with the
    uri. An exception that is not about storage is raised.
    """
    if isinstance(error, SourceError):
        return error
    status = _classify(error)
    if status is None:
        raise error
    return SourceError(status, f"{strip_secrets(uri)}: {_describe(error)}")


def make_folder_error(error: BaseException) -> SourceError:
    """Convert an exception of a library into the error for a folder that cannot be listed.

    The text does not begin with the name of the folder. An exception that is not about storage is
    raised.
    """
    status = _classify(error)
    if status is None:
        raise error
    return SourceError(status, f"{CLOSED_FOLDER}: {_describe(error)}")


def is_transient(error: BaseException) -> bool:
    """Return whether the same request may succeed later, after it failed with this exception."""
    status = _classify(error)
    if status is Status.SOURCE_DENIED:
        # Under load S3 and its proxies answer 403 without a code. A real refusal has a reason.
        if _get_http_status(error) == HTTPStatus.UNAUTHORIZED:
            # A token of Google expired during the request. The next request has a new token.
            return "Invalid Credentials" in str(error)
        return _get_http_status(error) == HTTPStatus.FORBIDDEN and _get_code(error) in (
            "403",
            "Forbidden",
        )
    if status is Status.SOURCE_TIMEOUT:
        if _is_local(error):
            return any(
                getattr(cause, "errno", None) in _LOCAL_PASSING for cause in _iter_causes(error)
            )
        return _get_certificate_error(error) is None
    return status is Status.SOURCE_THROTTLED


def is_throttle(error: BaseException) -> bool:
    """Return whether the exception shows that the store asks for fewer requests."""
    return _classify(error) is Status.SOURCE_THROTTLED


def is_missing(error: BaseException) -> bool:
    """Return whether the exception shows that an object does not exist.

    A missing bucket does not count. `make_unreachable_error` explains a missing bucket.
    """
    return _classify(error) is Status.SOURCE_MISSING and _get_code(error) != "NoSuchBucket"


def is_conflict(error: BaseException) -> bool:
    """Return whether the exception shows that the condition of a write was not met.

    Conditional writes (If-None-Match, If-Match) require that a file does not exist yet, or that it
    has a certain version.
    """
    return isinstance(error, FileExistsError) or _classify(error) is Status.SOURCE_CHANGED


def refuses_condition(error: BaseException | None) -> bool:
    """Return whether the exception shows that the store does not support conditional writes.

    A conditional write succeeds only if a file does not exist yet, or has a certain version. Call
    this function with the exception of such a write, after a read from the store has succeeded.
    Otherwise the HTTP status 400 may have another cause.
    """
    return error is not None and _get_http_status(error) in (
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
    """Return whether the exception shows that a store may not support batch deletion.

    Stores that cannot delete many objects with one request (GCS, some Ceph) refuse the whole
    request.
    """
    return _get_http_status(error) in _NO_BATCHES


def make_unreachable_error(error: BaseException, url: str, doing: str) -> StorageError:
    """Convert an exception into the error that a command raises for an unreachable source or store.

    The message is one line. The hint states what the user can do, for example which environment
    variable to set. `doing` is the verb for the failed operation, such as `read`. An exception that
    is not about storage is raised.
    """
    status = _classify(error)
    if status is None:
        raise error
    location = strip_secrets(url)
    return StorageError(
        f"cannot {doing} {location}: {_describe(error)}",
        hint=_make_hint(error, status, location, doing),
    )


def make_settings_error(error: BaseException) -> ConfigError:
    """Convert an exception that botocore raises before any request into one about its settings.

    Any other exception is raised: a service that has the credentials may answer later.
    """
    if isinstance(error, ConfigError) or is_transient(error):
        raise error
    reason = _describe(error)
    # The file that is missing, or the line that cannot be parsed.
    detail = getattr(error, "filename", None) or getattr(error, "kwargs", {}).get("error")
    if detail:
        reason += f": {' '.join(str(detail).split())}"
    return ConfigError(f"cannot use the AWS settings: {reason}", hint=_make_settings_hint(error))


def _classify(error: BaseException) -> Status | None:
    if isinstance(error, SourceError):
        return error.status
    code, http = _get_code(error), _get_http_status(error)
    names = _get_class_names(error)
    if isinstance(error, ObjectChangedError):
        return Status.SOURCE_CHANGED
    if (
        code in _THROTTLE_CODES
        or http in _THROTTLE_HTTP
        or (names & _CREDENTIAL_RUSH_CLASSES and not _is_credential_process(error))
        or _sounds_throttled(error)
    ):
        return Status.SOURCE_THROTTLED
    if code in _CHANGED_CODES or http == HTTPStatus.PRECONDITION_FAILED:
        return Status.SOURCE_CHANGED
    if (
        code in _MISSING_CODES
        or http in (HTTPStatus.NOT_FOUND, HTTPStatus.GONE)
        or isinstance(error, (FileNotFoundError, NotADirectoryError))
        or _get_errno(error) == errno.ELOOP  # The links form a cycle.
        or names & _IMPOSSIBLE_CLASSES
    ):
        return Status.SOURCE_MISSING
    if (
        http in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN)
        or names & _CREDENTIAL_CLASSES
        or isinstance(error, PermissionError)
        or _get_errno(error)
        == errno.ENAMETOOLONG  # It is nested too deeply to be opened by its path.
    ):
        return Status.SOURCE_DENIED
    if (
        code in _TRANSIENT_CODES
        or HTTPStatus.INTERNAL_SERVER_ERROR <= http != HTTPStatus.NOT_IMPLEMENTED
        or names & _NETWORK_CLASSES
    ):
        return Status.SOURCE_TIMEOUT
    # For any other 4xx, the store understood and refuses. Any other exception of botocore is about
    # its settings.
    if http or code or "BotoCoreError" in names:
        return Status.SOURCE_DENIED
    return Status.SOURCE_TIMEOUT if isinstance(error, OSError) else None


def _iter_causes(error: BaseException, *, contexts: bool = False) -> Iterator[BaseException]:
    """Yield an exception and its causes, since s3fs and botocore wrap the informative exception."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or (cause.__context__ if contexts else None)


def _get_class_names(error: BaseException, *, contexts: bool = False) -> set[str]:
    return {
        cls.__name__
        for cause in _iter_causes(error, contexts=contexts)
        for cls in type(cause).__mro__
    }


def _get_code(error: BaseException) -> str:
    for cause in _iter_causes(error):
        response = getattr(cause, "response", None)
        if isinstance(response, dict):
            return str(response.get("Error", {}).get("Code", ""))
    return ""


def _get_http_status(error: BaseException) -> int:
    """Return the HTTP status of an exception, 0 if there is none.

    botocore has it in a dict, aiohttp in `status`, httpx in `response`, gcsfs in `code`.
    """
    for cause in _iter_causes(error):
        response = getattr(cause, "response", None)
        if isinstance(response, dict):
            return int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        for owner, name in ((cause, "status"), (response, "status_code"), (cause, "code")):
            value = getattr(owner, name, None)
            if isinstance(value, int) and value >= HTTPStatus.BAD_REQUEST:
                return value
    return 0


def _get_errno(error: BaseException) -> int | None:
    return error.errno if isinstance(error, OSError) else None


def _is_local(error: BaseException) -> bool:
    remote = (
        isinstance(error, (ConnectionError, TimeoutError, ShortReadError))
        or _get_http_status(error)
        or _get_class_names(error) & _NETWORK_CLASSES
    )
    return isinstance(error, OSError) and not remote


def _is_credential_process(error: BaseException) -> bool:
    return any(
        getattr(cause, "kwargs", {}).get("provider") == _CREDENTIAL_PROCESS
        for cause in _iter_causes(error)
    )


def _get_certificate_error(error: BaseException) -> BaseException | None:
    """Return the exception of Python's `ssl` for a rejected certificate, None if there is none."""
    causes = _iter_causes(error, contexts=True)
    return next((cause for cause in causes if hasattr(cause, "verify_message")), None)


def _sounds_throttled(error: BaseException) -> bool:
    return bool(_get_http_status(error)) and any(
        word in str(error).lower() for word in _THROTTLE_WORDS
    )


def _describe(error: BaseException) -> str:
    """Describe an exception in one line, without library jargon and without secrets of URLs."""
    if isinstance(error, SourceError):
        return error.detail
    text = _URL.sub(lambda match: strip_secrets(match.group()), " ".join(str(error).split()))
    code, http = _get_code(error), _get_http_status(error)
    names = _get_class_names(error, contexts=True)
    if code or http:
        archived = (
            "; it is in an archive storage class: restore it first" if code == _ARCHIVED else ""
        )
        return f"{_get_message(error) or text} ({code if code and code != str(http) else 'HTTP'} {http}){archived}"
    if names & _CREDENTIAL_CLASSES:
        reason = text.replace(_CREDENTIAL_PROCESS, "credential_process").rstrip(":")
        return f"no usable credentials ({reason})"
    if any("gaierror" in name or "DNSError" in name for name in names):
        return f"its host name does not resolve{_note_endpoint()}"
    if certificate_error := _get_certificate_error(error):
        return f"its certificate is not accepted ({certificate_error.verify_message})"  # type: ignore[attr-defined]
    if names & {"EndpointConnectionError", "ClientConnectorError", "ConnectionRefusedError"}:
        return f"no server answers at this address{_note_endpoint()}"
    if isinstance(error, TimeoutError) or names & {
        "ConnectTimeoutError",
        "ReadTimeoutError",
        "FSTimeoutError",
    }:
        return "no answer in time"
    if isinstance(error, FileExistsError | NotADirectoryError) and isinstance(error.filename, str):
        paths = [error.filename, *map(str, Path(error.filename).parents)]
        file = next((path for path in paths if os.path.isfile(path)), None)
        return f"{file} is a file, not a folder" if file else "a file is in the path of the folder"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return text or type(error).__name__


def _get_message(error: BaseException) -> str:
    for cause in _iter_causes(error):
        response = getattr(cause, "response", None)
        if isinstance(response, dict):
            return str(response.get("Error", {}).get("Message", ""))
        if isinstance(getattr(cause, "message", None), str):
            return str(cause.message)  # type: ignore[attr-defined]
    return ""


def _find_region(error: BaseException) -> str | None:
    """Return the region that S3 names in its answer to a request for another region."""
    match = _EXPECTED_REGION.search(_get_message(error))
    return match and match[1]


def _note_endpoint() -> str:
    endpoint = get_endpoint_url()
    return f" (AWS_ENDPOINT_URL is {strip_secrets(endpoint)})" if endpoint else ""


def get_endpoint_url() -> str | None:
    """Return the S3 endpoint that the environment variables set, or None."""
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or None


_GOOGLE = "check the Google credentials (GOOGLE_APPLICATION_CREDENTIALS, `gcloud auth application-default login`, or those of the machine)"
_AZURE = "set AZURE_STORAGE_CONNECTION_STRING, or AZURE_STORAGE_ACCOUNT_NAME with a key, a SAS, or AZURE_STORAGE_ANON=false"
# The codes of OpenSSL for a certificate whose authority is unknown. Others are for an expired
# certificate, or one of another host.
_UNKNOWN_AUTHORITY = range(18, 22)
_AWS_FILES = {
    "AWS_CONFIG_FILE": "~/.aws/config",
    "AWS_SHARED_CREDENTIALS_FILE": "~/.aws/credentials",
}
# Hints by the code of an answer of S3.
_S3_HINTS = {
    "NoSuchBucket": "create bucket '{bucket}', or check its spelling, AWS_DEFAULT_REGION and AWS_ENDPOINT_URL",
    _ARCHIVED: "restore the objects of bucket '{bucket}' from their archive storage class, then run the same command again",
    "RequestTimeTooSkewed": "set the clock of this machine to the current time",
    "ExpiredToken": "renew the temporary credentials, such as AWS_SESSION_TOKEN",
}
_EXPECTED_REGION = re.compile(r"expecting '([a-z0-9-]+)'")
_CLOUDS = dict.fromkeys(("gs", "gcs"), _GOOGLE) | dict.fromkeys(("az", "abfs", "abfss"), _AZURE)


def _make_hint(error: BaseException, status: Status, location: str, doing: str) -> str | None:
    certificate_error = _get_certificate_error(error)
    if getattr(certificate_error, "verify_code", None) in _UNKNOWN_AUTHORITY:
        variable = "AWS_CA_BUNDLE" if get_scheme(location) == "s3" else "SSL_CERT_FILE"
        return f"set {variable} to a PEM file with the certificate authority of this server"
    if get_scheme(location) == "hf":
        return "check the network and HF_ENDPOINT; private and gated repositories need HF_TOKEN, or `hf auth login`"
    if get_scheme(location) in _CLOUDS:
        return _CLOUDS[get_scheme(location)]
    if get_scheme(location) != "s3":
        if isinstance(error, OSError) and error.errno in FULL:
            return "free space on that disk, then run the same command again"
        if isinstance(error, FileExistsError | NotADirectoryError):
            return "name a folder"
        local = {
            Status.SOURCE_DENIED: "check the permissions of that path",
            Status.SOURCE_MISSING: "check the spelling",
        }
        return local.get(status)
    return _make_s3_hint(error, status, split_bucket(location)[0], doing)


def _make_settings_hint(error: BaseException) -> str:
    """Return the hint for an exception of botocore about its settings.

    It names the environment variables whose values the exception quotes, or the configuration files.
    """
    names = _get_class_names(error)
    profile = os.environ.get("AWS_PROFILE")
    if names & _SSO_CLASSES:
        return f"run aws sso login{f' --profile {profile}' if profile else ''}"
    if "LoginError" in names:
        return f"run aws login{f' --profile {profile}' if profile else ''}"
    files = [
        path
        for variable, default in _AWS_FILES.items()
        if os.path.isfile(path := os.path.expanduser(os.environ.get(variable, default)))
    ]
    if _is_credential_process(error):
        return (
            f"run the command credential_process of {' or '.join(files)} by itself, and correct it"
        )
    variables = [
        name
        for name, value in sorted(os.environ.items())
        if name.startswith(("AWS_", "FSSPEC_S3_"))
        and name not in _AWS_FILES
        and value
        and re.search(rf"(?<![\w-]){re.escape(value)}(?![\w-])", str(error))
    ]
    if all("PROFILE" in name for name in variables):
        variables += files
    example = ", as in https://HOST:PORT" * any("ENDPOINT_URL" in name for name in variables)
    return f"correct {' or '.join(variables) or 'the variables AWS_* and FSSPEC_S3_*'}{example}"


def _make_s3_hint(error: BaseException, status: Status, bucket: str, doing: str) -> str:
    code = _get_code(error)
    if code in _S3_HINTS:
        return _S3_HINTS[code].format(bucket=bucket)
    if code == "AuthorizationHeaderMalformed" and (region := _find_region(error)):
        return f"set AWS_DEFAULT_REGION={region}"
    names = _get_class_names(error)
    if names & _CREDENTIAL_RUSH_CLASSES and status is Status.SOURCE_THROTTLED:
        return "run the same command again later, or with fewer workers: the service that has the credentials of this machine does not answer"
    if isinstance(error, FileNotFoundError) and error.filename and not code:
        return f"check {error.filename}, which the AWS settings name"
    if (
        status is Status.SOURCE_DENIED
        and "BotoCoreError" in names
        and "NoCredentialsError" not in names
    ):
        return _make_settings_hint(error)
    if status is Status.SOURCE_DENIED and any(
        word in _get_message(error).lower() for word in _CHECKSUM_WORDS
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
        Status.SOURCE_THROTTLED: f"run the same command again later, or with fewer workers: bucket '{bucket}' limits the rate of requests",
    }.get(status, f"check bucket '{bucket}' and the spelling of the path")
