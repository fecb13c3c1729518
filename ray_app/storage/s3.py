"""Make requests to S3 that s3fs does not make in the way that Touchstone needs.

`get` and `get_range` read one version of an object, `head` and `find` return its size and ETag,
`delete_objects` deletes many objects, and `page` and `pages` list objects. `filesystem` returns the
s3fs file system of this process. Its client makes all requests. So they have the same credentials,
settings (AWS_ENDPOINT_URL, FSSPEC_S3_*), and event loop. The retries of the client and of s3fs are
switched off, since nested retries multiply and are not counted. Exceptions are those of botocore
and aiohttp, which `storage.errors` translates.

`S3Config` has the S3 settings of a config, such as who pays for requests. `apply_s3_settings`
applies these settings while a function runs. `get_worker_variables` returns the environment
variables with which other processes make the same requests.
"""

import asyncio
import base64
import hashlib
import logging
import os
import re
import ssl
import threading
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from functools import lru_cache, partial, wraps
from http import HTTPStatus
from itertools import pairwise
from typing import Any, Concatenate, Literal, ParamSpec, Protocol, TypeVar

from pydantic import Field

from ray_app.config import Frozen
from ray_app.errors import ConfigError, StorageError
from ray_app.storage import errors, ranged, urls
from ray_app.storage.retry import AdaptiveLimiter, Retrier

T = TypeVar("T")
P = ParamSpec("P")

# GDAL defines the first variable, botocore the second.
PAYER_VARIABLE, CHECKSUM_VARIABLE = "AWS_REQUEST_PAYER", "AWS_REQUEST_CHECKSUM_CALCULATION"
_REQUESTER, _WHEN_REQUIRED, _CHECKSUM_SETTING = (
    "requester",
    "when_required",
    "request_checksum_calculation",
)
_RESPONSE_VARIABLE, _RESPONSE_SETTING = (
    "AWS_RESPONSE_CHECKSUM_VALIDATION",
    "response_checksum_validation",
)
_FOR_WORKERS = (
    PAYER_VARIABLE,
    CHECKSUM_VARIABLE,
    _RESPONSE_VARIABLE,
    "FSSPEC_S3_ANON",
    "FSSPEC_S3_REQUESTER_PAYS",
)
_CHECKSUM_VALUES = (_WHEN_REQUIRED, "when_supported")
# Variables whose values have no white space.
_SPACELESS = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_DEFAULT_REGION",
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
)
_IDENTITY = ("AWS_ACCESS_KEY_ID", "AWS_PROFILE", "AWS_DEFAULT_REGION", *_FOR_WORKERS)

# Seconds without data after which a request counts as lost. The deadline of the retry policy limits
# a slow answer.
_CONNECT_S, _READ_S = 5, 20
_CONNECTIONS = 64
_CHUNK_BYTES = 2**20
_GZIP = b"\x1f\x8b"
_opening = threading.Lock()

MAX_DELETED = 1000  # Maximum number of objects in one DeleteObjects request.
MAX_LISTED = 1000  # Maximum number of keys and folders on a page of a listing.
_LAST = "\U0010ffff"  # Sorts after all other characters.
_LISTING_HINT = "write the URLs of the files to a table, and give list::TABLE as source"


class S3Config(Frozen):
    """Settings for requests to S3. They do not affect results, so a resumed run may change them."""

    request_payer: Literal["requester"] | None = Field(
        default=None,
        description="requester = pay for requests to buckets whose owner does not pay for them; null = use AWS_REQUEST_PAYER",
    )


class HasS3Config(Protocol):
    """A config that has a section `s3`."""

    @property
    def s3(self) -> S3Config:
        """The section of the config with the settings for S3."""


C = TypeVar("C", bound=HasS3Config)


def apply_s3_settings(function: Callable[Concatenate[C, P], T]) -> Callable[Concatenate[C, P], T]:
    """Decorate a function whose first argument is a config with a section `s3`.

    While the function runs, its requests to S3 use the settings of this section. The settings also
    apply to processes that the function starts.
    """

    @wraps(function)
    def configured(config: C, /, *args: P.args, **kwargs: P.kwargs) -> T:
        payer, previous = config.s3.request_payer, os.environ.get(PAYER_VARIABLE)
        if payer is None or payer == previous:
            return function(config, *args, **kwargs)
        os.environ[PAYER_VARIABLE] = payer
        try:
            return function(config, *args, **kwargs)
        finally:
            if previous is None:
                del os.environ[PAYER_VARIABLE]
            else:
                os.environ[PAYER_VARIABLE] = previous

    return configured


def get_worker_variables() -> dict[str, str]:
    """Return the set environment variables with which other processes make the same S3 requests.

    An example is AWS_REQUEST_PAYER. Pass them to workers on other machines. They contain no
    secrets.
    """
    return {name: os.environ[name] for name in _FOR_WORKERS if name in os.environ}


def filesystem() -> Any:
    """Return this process's s3fs file system for the current AWS environment variables.

    Its options contain no secrets, so it can be pickled. Raises ConfigError if an environment
    variable or a configuration file has an invalid value.
    """
    identity = tuple(map(os.environ.get, _IDENTITY))
    with _opening:  # Threads that start at the same time must share one client.
        return _filesystem(os.getpid(), errors.get_endpoint_url(), identity)


def fsspec_options() -> dict[str, Any]:
    """Return the options for creating an s3fs file system with the settings of `filesystem`.

    The options contain no secrets.
    """
    _refuse_white_space()
    options = _get_configured_options()
    session = _make_session(options.get("profile"))
    with _settings_errors():
        settings = {
            name: session.get_config_variable(name)
            for name in (_CHECKSUM_SETTING, _RESPONSE_SETTING, "ca_bundle")
        }
    config = {_CHECKSUM_SETTING: settings[_CHECKSUM_SETTING], **options.get("config_kwargs", {})}
    config[_CHECKSUM_SETTING] = _validate_checksum(
        config[_CHECKSUM_SETTING], _CHECKSUM_SETTING, CHECKSUM_VARIABLE
    )
    _validate_checksum(
        config.get(_RESPONSE_SETTING) or settings[_RESPONSE_SETTING],
        _RESPONSE_SETTING,
        _RESPONSE_VARIABLE,
    )
    if settings["ca_bundle"]:
        _require_certificates(settings["ca_bundle"])
    return {
        "endpoint_url": errors.get_endpoint_url() or options.get("endpoint_url"),
        "requester_pays": _requester_pays(options),
        "config_kwargs": config,
    }


@lru_cache(maxsize=8)
def _filesystem(pid: int, endpoint: str | None, identity: tuple[str | None, ...]) -> Any:
    import s3fs  # The import takes half a second.

    options = fsspec_options()
    options["config_kwargs"] |= {
        "connect_timeout": _CONNECT_S,
        "read_timeout": _READ_S,
        "max_pool_connections": _CONNECTIONS,
        "retries": {"total_max_attempts": 1},
    }
    fs = s3fs.S3FileSystem(use_listings_cache=False, skip_instance_cache=True, **options)
    session = _make_session(_get_configured_options().get("profile"))
    _add_parameters(session, {**fs.s3_additional_kwargs, **fs.req_kw})
    is_aws = not fs.endpoint_url or ".amazonaws.com" in fs.endpoint_url
    if not is_aws and fs.config_kwargs[_CHECKSUM_SETTING] == _WHEN_REQUIRED:
        session.register("before-sign.s3.DeleteObjects", _use_md5)
    # Not an argument: s3fs pickles its arguments, and a session cannot be pickled.
    fs.session, fs.retries = session, 1
    # Before each request, s3fs calls this method, too.
    fs.set_session = partial(_connect, fs.set_session)
    return fs


async def _connect(set_session: Callable[..., Coroutine[Any, Any, T]], *args: Any) -> T:
    """Return the client of s3fs, which its `set_session` creates for the first request."""
    with _settings_errors():
        return await set_session(*args)


@contextmanager
def _settings_errors() -> Iterator[None]:
    """Convert exceptions of botocore that are raised before a request."""
    try:
        yield
    except Exception as error:
        raise errors.make_settings_error(error) from None


def _refuse_white_space() -> None:
    """Raise ConfigError if the value of a variable has white space, which no store accepts.

    Secrets of Kubernetes and files with Windows line ends often add a line break.
    """
    for name in _SPACELESS:
        value = os.environ.get(name, "")
        if "".join(value.split()) != value:
            kind = "line break" if {"\n", "\r"} & set(value) else "blank"
            raise ConfigError(
                f"{name} has a {kind}", hint=f"remove the {kind} where the value of {name} is set"
            )


def _require_certificates(path: str) -> None:
    """Raise ConfigError if a file has no certificates. botocore reports it at each request."""
    try:
        ssl.create_default_context(cafile=path)
    except OSError as error:
        raise ConfigError(
            f"AWS_CA_BUNDLE: cannot read certificates from {path}: {error}",
            hint="set AWS_CA_BUNDLE to a PEM file of certificates",
        ) from None


def _get_configured_options() -> Mapping[str, Any]:
    """Return the options in FSSPEC_S3_* and in fsspec's configuration files.

    s3fs uses them for arguments that it does not get. Raises ConfigError if an option is not a JSON
    object, or has settings that botocore does not accept.
    """
    import fsspec.config
    from aiobotocore.config import AioConfig  # type: ignore[import-untyped]
    from botocore.exceptions import BotoCoreError

    options: Mapping[str, Any] = fsspec.config.conf.get("s3", {})
    for name in ("config_kwargs", "client_kwargs", "s3_additional_kwargs"):
        if not isinstance(options.get(name, {}), Mapping):
            raise ConfigError(
                f"FSSPEC_S3_{name.upper()} is not a JSON object",
                hint='write it as in \'{"NAME": "VALUE"}\'',
            )
    try:
        AioConfig(**options.get("config_kwargs", {}))
    except (TypeError, BotoCoreError) as error:
        raise ConfigError(
            f"FSSPEC_S3_CONFIG_KWARGS: {error}",
            hint="set it to a JSON object with arguments of botocore.config.Config",
        ) from None
    return options


def _validate_checksum(value: Any, setting: str, variable: str) -> str:
    """Return the value of a checksum setting in lower case."""
    mode = str(value).lower()
    if mode not in _CHECKSUM_VALUES:
        name = variable if os.environ.get(variable) == value else setting
        values = " and ".join(f"'{valid_value}'" for valid_value in _CHECKSUM_VALUES)
        raise ConfigError(
            f"{name} is '{value}', the values are {values}",
            hint=f"set {name} to one of these values, or remove it",
        )
    return mode


def _requester_pays(options: Mapping[str, Any]) -> bool:
    """Return whether requests have the header `x-amz-request-payer`."""
    payer = os.environ.get(PAYER_VARIABLE, "")
    if payer not in ("", _REQUESTER):
        raise ConfigError(
            f"{PAYER_VARIABLE} is '{payer}', the only value is '{_REQUESTER}'",
            hint=f"set {PAYER_VARIABLE}={_REQUESTER}",
        )
    return payer == _REQUESTER or str(options.get("requester_pays", False)).lower() in ("true", "1")


def _make_session(profile: str | None) -> Any:
    """Return an aiobotocore session that sends CRC checksums only if an operation requires them.

    Many stores refuse the headers. Uploads stay protected, since botocore signs their SHA-256
    without a CRC. The variable and the configuration file of botocore override this.
    """
    from aiobotocore.session import AioSession  # type: ignore[import-untyped]

    for name in ("aiobotocore.credentials", "aiobotocore.tokens"):
        # They log the traceback of an exception that they raise.
        logging.getLogger(name).setLevel(logging.ERROR)
    variables = {_CHECKSUM_SETTING: (_CHECKSUM_SETTING, CHECKSUM_VARIABLE, _WHEN_REQUIRED, None)}
    session = AioSession(session_vars=variables, profile=profile)
    parsers = session.get_component("response_parser_factory")
    parsers.set_parser_defaults(timestamp_parser=_parse_time)
    return session


def _parse_time(value: Any) -> datetime:
    """Parse a time of an answer. botocore's parser takes four fifths of the time of a listing."""
    if isinstance(value, str) and value.endswith("Z"):
        with suppress(ValueError):
            return datetime.fromisoformat(value)
    from botocore.utils import parse_timestamp

    time: datetime = parse_timestamp(value)
    return time


def _add_parameters(session: Any, parameters: Mapping[str, Any]) -> None:
    """Add to each request the parameters that s3fs adds to its own requests."""

    def add(params: dict[str, Any], model: Any, **_: Any) -> None:
        accepted = model.input_shape.members if model.input_shape else {}
        for name in parameters.keys() & accepted.keys():
            params.setdefault(name, parameters[name])

    if parameters:
        session.register("before-parameter-build.s3", add)


def _use_md5(request: Any, **_: Any) -> None:
    """Replace botocore's CRC with the checksum that all stores support.

    Source: https://github.com/aws/aws-sdk-js-v3/issues/6920 (a store that answers
    MissingContentMD5).
    """
    for name in [
        name
        for name in request.headers
        if name.lower().startswith(("x-amz-checksum-", "x-amz-sdk-checksum-"))
    ]:
        del request.headers[name]
    request.headers["Content-Type"] = (
        "application/xml"  # Otherwise a proxy may treat the body as a form.
    )
    request.headers["Content-MD5"] = base64.b64encode(
        hashlib.md5(request.data, usedforsecurity=False).digest()
    ).decode()


def _send_request(request: Callable[[Any], Coroutine[Any, Any, T]], timeout_s: float) -> T:
    """Run `request(client)` on the loop of s3fs.

    Raises TimeoutError after `timeout_s`.
    """
    fs = filesystem()

    async def timed() -> T:
        async with asyncio.timeout(timeout_s):
            return await request(await fs.set_session())

    return asyncio.run_coroutine_threadsafe(timed(), fs.loop).result()


def get(
    bucket: str, key: str, *, timeout_s: float, version: str = "", max_bytes: int | None = None
) -> bytes:
    """Read a whole object, whose version must be that of `get_version`; "" accepts any.

    Raises InputError, before the body is read, if the object is over `max_bytes`. None is no limit.
    """
    condition = _make_condition(version)

    async def request(client: Any) -> bytes:
        response = await client.get_object(Bucket=bucket, Key=key, **condition)
        body, size = response["Body"], response["ContentLength"]
        if max_bytes is not None and size > max_bytes:
            body.close()
            raise errors.make_too_large_error(size, max_bytes)
        async with body:
            data: bytes = await body.read()
        # A store without support for If-Match ignores it.
        require_version(version, response, size)
        errors.require_length(len(data), size)
        if data.startswith(_GZIP):  # Other objects may have this header, too.
            errors.refuse_packed(response.get("ContentEncoding"))
        return data

    return _send_request(request, timeout_s)


def get_range(
    bucket: str, key: str, start: int, length: int, *, timeout_s: float, version: str = ""
) -> bytes:
    """Read `length` bytes of an object from `start`, fewer if the object ends.

    A version "" accepts any.
    """
    condition = _make_condition(version)

    async def request(client: Any) -> bytes:
        try:
            response = await client.get_object(
                Bucket=bucket, Key=key, Range=ranged.range_header(start, length), **condition
            )
        except client.exceptions.ClientError as error:
            if (
                error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
                == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE
            ):
                return b""  # The object ends before `start`.
            raise
        content_range = response.get("ContentRange")
        size = ranged.total_size(content_range, response["ContentLength"])
        async with response["Body"] as body:
            require_version(version, response, size)
            return await ranged.take(
                body.iter_chunks(_CHUNK_BYTES), content_range, size, start, length
            )

    return _send_request(request, timeout_s)


def head(bucket: str, key: str, *, timeout_s: float) -> dict[str, Any]:
    """Return the response to a HEAD request for an object, which has its size and ETag."""
    return _send_request(lambda client: client.head_object(Bucket=bucket, Key=key), timeout_s)


def find(bucket: str, key: str, *, timeout_s: float) -> dict[str, Any] | None:
    """Return the response of `head`, or None if the object does not exist.

    If the bucket does not exist, an exception is raised.
    """
    try:
        return head(bucket, key, timeout_s=timeout_s)
    except Exception as error:
        if errors.is_missing(error):
            return None
        raise


def delete_objects(bucket: str, keys: Sequence[str], *, timeout_s: float) -> None:
    """Delete up to `MAX_DELETED` objects with one request. Missing objects count as deleted.

    Even a successful response can name objects that were not deleted. An exception is then raised
    for one of these objects, preferably one for which a retry does not help. Source:
    https://docs.aws.amazon.com/AmazonS3/latest/API/API_DeleteObjects.html
    """

    async def request(client: Any) -> None:
        objects = {"Objects": [{"Key": key} for key in keys], "Quiet": True}
        response = await client.delete_objects(Bucket=bucket, Delete=objects)
        remaining = [item for item in response.get("Errors", ()) if item.get("Code") != "NoSuchKey"]
        if remaining:
            messages = [
                {
                    "Code": item.get("Code", ""),
                    "Message": f"{item.get('Message', '')}: {item.get('Key', '')}",
                }
                for item in remaining
            ]
            exceptions = [
                client.exceptions.ClientError({"Error": message}, "DeleteObjects")
                for message in messages
            ]
            raise min(exceptions, key=errors.is_transient)

    _send_request(request, timeout_s)


# Where a listing continues: the parameter of the next request with a continuation token or a key.
Position = dict[str, str]


def page(
    bucket: str,
    prefix: str,
    *,
    timeout_s: float,
    delimiter: str = "",
    position: Position | None = None,
) -> dict[str, Any]:
    """Return one page of the listing of a prefix: the response to ListObjectsV2.

    "/" as delimiter lists one level. The page begins at `position` (`find_next`). Raises
    StorageError if the page has keys of earlier pages.
    """
    position = position or {}
    response: dict[str, Any] = _send_request(
        lambda client: client.list_objects_v2(
            Bucket=bucket, Prefix=prefix, Delimiter=delimiter, MaxKeys=MAX_LISTED, **position
        ),
        timeout_s,
    )
    token, after = position.get("ContinuationToken"), position.get("StartAfter", "")
    repeats_token = token is not None and response.get("NextContinuationToken") == token
    if repeats_token or any(name <= after for name in _list_names(response)):
        raise StorageError(
            f"s3://{bucket}/{prefix}: the store lists keys twice or out of order",
            hint=_LISTING_HINT,
        )
    return response


def _list_names(response: Mapping[str, Any]) -> list[str]:
    """Return the keys of a page, followed by texts that sort after all keys in its folders."""
    keys = [item["Key"] for item in response.get("Contents", ())]
    return keys + [item["Prefix"] + _LAST for item in response.get("CommonPrefixes", ())]


def find_next(bucket: str, prefix: str, response: Mapping[str, Any]) -> Position | None:
    """Return where the page after `response` begins, or None if it is the last page.

    Stores that answer as in version 1 of the protocol name no continuation token. The listing then
    continues after the last key, if the keys are in the order of their bytes. Python compares texts
    by code points, which is the order of their UTF-8. Raises StorageError if nothing shows where
    the next page begins.
    """
    if not response.get("IsTruncated"):
        return None
    if token := response.get("NextContinuationToken"):
        return {"ContinuationToken": token}
    names = _list_names(response)
    n_keys = len(response.get("Contents", ()))
    is_sorted = all(
        first < second
        for part in (names[:n_keys], names[n_keys:])
        for first, second in pairwise(part)
    )
    if not names or not is_sorted:
        raise StorageError(
            f"s3://{bucket}/{prefix}: the store lists keys out of order, and names no continuation token",
            hint=_LISTING_HINT,
        )
    return {"StartAfter": max(names)}


def pages(
    bucket: str,
    prefix: str,
    retrier: Retrier,
    *,
    gate: AdaptiveLimiter | None = None,
    delimiter: str = "",
    position: Position | None = None,
) -> Iterator[tuple[dict[str, Any], Position | None]]:
    """Yield the pages of the listing of a prefix, each with the position of the next page.

    Each page is retried by itself, so that a late failure does not restart the listing. "/" as
    delimiter lists one level.
    """
    while True:
        for attempt in retrier.attempts(gate=gate):
            with attempt as timeout_s:
                response = page(
                    bucket, prefix, timeout_s=timeout_s, delimiter=delimiter, position=position
                )
        position = find_next(bucket, prefix, response)
        yield response, position
        if position is None:
            return


def get_version(response: Mapping[str, Any], size_bytes: int | None) -> str:
    """Return the version of an object: its ETag, otherwise its size and the second of its mtime.

    A listing states fractions of seconds, which the HTTP header of the object does not have.
    """
    time = response.get("LastModified")
    return urls.get_version(
        {
            "ETag": response.get("ETag"),
            "LastModified": time.replace(microsecond=0) if time is not None else None,
            "size": size_bytes,
        }
    )


# Size and nanoseconds since 1970. The ETag of an object in parts ends with their number instead,
# which has up to five digits.
_TIMED_VERSION = re.compile(r"\d+-\d{19}")


def require_version(listed: str, response: Mapping[str, Any], size_bytes: int | None) -> None:
    """Raise ObjectChangedError if an object changed since it was listed. "" accepts any version."""
    if _TIMED_VERSION.fullmatch(listed):
        response = {**response, "ETag": None}
    errors.require_version(listed, get_version(response, size_bytes))


def _make_condition(version: str) -> dict[str, str]:
    """Return the parameter with which a store itself refuses an object of another version."""
    is_etag = version and not _TIMED_VERSION.fullmatch(version)
    return {"IfMatch": f'"{version}"'} if is_etag else {}
