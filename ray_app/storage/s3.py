"""S3: `filesystem` is the process's s3fs, and the requests that s3fs does not make as Touchstone
needs them: `get` and `get_range` of one version, `head`, `found`, `delete_some`, `page`, `pages`.

The client of s3fs makes all requests (credentials, AWS_ENDPOINT_URL, FSSPEC_S3_*, one event loop
per process). The retries of both are switched off: retries inside retries multiply and hide from
the counts. Exceptions are botocore's and aiohttp's, for `storage.errors`.

`S3Config` and `with_s3_settings`: what a config says about requests. `worker_variables`: what
processes elsewhere need to request alike.
"""

import asyncio
import base64
import hashlib
import os
import threading
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from functools import lru_cache, wraps
from http import HTTPStatus
from typing import Any, Concatenate, Literal, ParamSpec, Protocol, TypeVar

from pydantic import Field

from ray_app.config import Frozen
from ray_app.errors import ConfigError
from ray_app.storage import errors, ranged
from ray_app.storage.retry import Gate, Retrier

T = TypeVar("T")
P = ParamSpec("P")

# GDAL has the first variable, botocore the second one.
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
_IDENTITY = ("AWS_ACCESS_KEY_ID", "AWS_PROFILE", "AWS_DEFAULT_REGION", *_FOR_WORKERS)

# Seconds of silence before a request counts as lost; a slow but living answer is bounded by the
# retry policy's deadline.
_CONNECT_S, _READ_S = 5, 20
_CONNECTIONS = 64
_PIECE = 2**20
_opening = threading.Lock()

MOST_DELETED = 1000  # objects in one DeleteObjects


class S3Config(Frozen):
    """How S3 is requested. Operational: none of it changes a row, so a resumed run may set it anew."""

    request_payer: Literal["requester"] | None = Field(
        default=None,
        description="requester = pay for requests to buckets whose owner does not; null = as AWS_REQUEST_PAYER says",
    )


class HasS3Config(Protocol):
    """A config with a section about S3."""

    @property
    def s3(self) -> S3Config:
        """The section."""


C = TypeVar("C", bound=HasS3Config)


def with_s3_settings(function: Callable[Concatenate[C, P], T]) -> Callable[Concatenate[C, P], T]:
    """Make a function that takes a config request S3 as the config says, also in the processes that
    it starts.
    """

    @wraps(function)
    def configured(config: C, /, *args: P.args, **kwargs: P.kwargs) -> T:
        payer, before = config.s3.request_payer, os.environ.get(PAYER_VARIABLE)
        if payer is None or payer == before:
            return function(config, *args, **kwargs)
        os.environ[PAYER_VARIABLE] = payer
        try:
            return function(config, *args, **kwargs)
        finally:
            if before is None:
                del os.environ[PAYER_VARIABLE]
            else:
                os.environ[PAYER_VARIABLE] = before

    return configured


def worker_variables() -> dict[str, str]:
    """Return the environment variables with which a process on another machine requests S3 as this
    process does; none is a secret.
    """
    return {name: os.environ[name] for name in _FOR_WORKERS if name in os.environ}


def filesystem() -> Any:
    """The process's s3fs file system for the present AWS environment; it carries no secret in its
    options, so it can be pickled.
    """
    identity = tuple(map(os.environ.get, _IDENTITY))
    with _opening:  # sixteen threads that start together must not make sixteen clients
        return _filesystem(os.getpid(), errors.endpoint_url(), identity)


def fsspec_options() -> dict[str, Any]:
    """Return options for another s3fs that requests as `filesystem` does: where, who pays, which
    checksums. None is a secret.
    """
    given = _given_options()
    session = _session(given.get("profile"))
    config = {
        _CHECKSUM_SETTING: session.get_config_variable(_CHECKSUM_SETTING),
        **given.get("config_kwargs", {}),
    }
    config[_CHECKSUM_SETTING] = _checked_checksum(
        config[_CHECKSUM_SETTING], _CHECKSUM_SETTING, CHECKSUM_VARIABLE
    )
    _checked_checksum(
        config.get(_RESPONSE_SETTING) or session.get_config_variable(_RESPONSE_SETTING),
        _RESPONSE_SETTING,
        _RESPONSE_VARIABLE,
    )
    return {
        "endpoint_url": errors.endpoint_url() or given.get("endpoint_url"),
        "requester_pays": _requester_pays(given),
        "config_kwargs": config,
    }


@lru_cache(maxsize=8)
def _filesystem(pid: int, endpoint: str | None, identity: tuple[str | None, ...]) -> Any:
    import s3fs  # half a second, only for s3://

    options = fsspec_options()
    options["config_kwargs"] |= {
        "connect_timeout": _CONNECT_S,
        "read_timeout": _READ_S,
        "max_pool_connections": _CONNECTIONS,
        "retries": {"total_max_attempts": 1},
    }
    fs = s3fs.S3FileSystem(use_listings_cache=False, skip_instance_cache=True, **options)
    session = _session(_given_options().get("profile"))
    _add_parameters(session, {**fs.s3_additional_kwargs, **fs.req_kw})
    is_aws = not fs.endpoint_url or ".amazonaws.com" in fs.endpoint_url
    if not is_aws and fs.config_kwargs[_CHECKSUM_SETTING] == _WHEN_REQUIRED:
        session.register("before-sign.s3.DeleteObjects", _use_md5)
    # Not an argument: s3fs pickles its arguments, and a session cannot be pickled.
    fs.session, fs.retries = session, 1
    return fs


def _given_options() -> Mapping[str, Any]:
    """Return the options in FSSPEC_S3_* and in fsspec's configuration files, which s3fs uses for
    arguments that it does not get.

    Raises:
        ConfigError: An option of several settings is not a JSON object, or has settings that
            botocore does not accept.
    """
    import fsspec.config
    from aiobotocore.config import AioConfig  # type: ignore[import-untyped]
    from botocore.exceptions import BotoCoreError

    given: Mapping[str, Any] = fsspec.config.conf.get("s3", {})
    for name in ("config_kwargs", "client_kwargs", "s3_additional_kwargs"):
        if not isinstance(given.get(name, {}), Mapping):
            raise ConfigError(
                f"FSSPEC_S3_{name.upper()} is not a JSON object",
                hint='write it as in \'{"NAME": "VALUE"}\'',
            )
    try:
        AioConfig(**given.get("config_kwargs", {}))
    except (TypeError, BotoCoreError) as error:
        raise ConfigError(
            f"FSSPEC_S3_CONFIG_KWARGS: {error}",
            hint="set it to arguments of botocore.config.Config",
        ) from None
    return given


def _checked_checksum(value: Any, setting: str, variable: str) -> str:
    """Return the value of a setting of checksums in lower case. Raises ConfigError for a value that
    botocore does not know.
    """
    mode = str(value).lower()
    if mode not in _CHECKSUM_VALUES:
        name = variable if os.environ.get(variable) == value else setting
        values = " and ".join(f"'{known}'" for known in _CHECKSUM_VALUES)
        raise ConfigError(
            f"{name} is '{value}', the values are {values}",
            hint=f"set {name} to one of these, or remove it",
        )
    return mode


def _requester_pays(options: Mapping[str, Any]) -> bool:
    """Return whether requests carry `x-amz-request-payer`. Raises ConfigError for a value that is
    not known.
    """
    payer = os.environ.get(PAYER_VARIABLE, "")
    if payer not in ("", _REQUESTER):
        raise ConfigError(
            f"{PAYER_VARIABLE} is '{payer}', the only value is '{_REQUESTER}'",
            hint=f"set {PAYER_VARIABLE}={_REQUESTER}",
        )
    return payer == _REQUESTER or str(options.get("requester_pays", False)).lower() in ("true", "1")


def _session(profile: str | None) -> Any:
    """Make a session of aiobotocore that sends CRC checksums only if an operation requires them,
    since many stores refuse the headers.

    Uploads stay protected: without a CRC, botocore signs their SHA-256. The variable and the
    configuration file of botocore change that.
    """
    from aiobotocore.session import AioSession  # type: ignore[import-untyped]

    variables = {_CHECKSUM_SETTING: (_CHECKSUM_SETTING, CHECKSUM_VARIABLE, _WHEN_REQUIRED, None)}
    session = AioSession(session_vars=variables, profile=profile)
    parsers = session.get_component("response_parser_factory")
    parsers.set_parser_defaults(timestamp_parser=_parse_time)
    return session


def _parse_time(value: Any) -> datetime:
    """Return a time of an answer. botocore's parser takes four fifths of the time of a listing."""
    if isinstance(value, str) and value.endswith("Z"):
        with suppress(ValueError):
            return datetime.fromisoformat(value)
    from botocore.utils import parse_timestamp

    time: datetime = parse_timestamp(value)
    return time


def _add_parameters(session: Any, parameters: Mapping[str, Any]) -> None:
    """Add to each request what s3fs adds to its own requests."""

    def add(params: dict[str, Any], model: Any, **_: Any) -> None:
        known = model.input_shape.members if model.input_shape else {}
        for name in parameters.keys() & known.keys():
            params.setdefault(name, parameters[name])

    if parameters:
        session.register("before-parameter-build.s3", add)


def _use_md5(request: Any, **_: Any) -> None:
    """Give a request that needs a checksum the one that all stores know, in place of botocore's
    CRC.

    Source: https://github.com/aws/aws-sdk-js-v3/issues/6920 (a store that answers
    MissingContentMD5).
    """
    for name in [
        name
        for name in request.headers
        if name.lower().startswith(("x-amz-checksum-", "x-amz-sdk-checksum-"))
    ]:
        del request.headers[name]
    request.headers["Content-Type"] = "application/xml"  # or a proxy may treat the body as a form
    request.headers["Content-MD5"] = base64.b64encode(
        hashlib.md5(request.data, usedforsecurity=False).digest()
    ).decode()


def _ask(request: Callable[[Any], Coroutine[Any, Any, T]], timeout_s: float) -> T:
    """Run `request(client)` on s3fs's loop. Raises TimeoutError when the whole of it takes longer."""
    fs = filesystem()

    async def timed() -> T:
        async with asyncio.timeout(timeout_s):
            return await request(await fs.set_session())

    return asyncio.run_coroutine_threadsafe(timed(), fs.loop).result()


def get(
    bucket: str, key: str, *, timeout_s: float, etag: str = "", max_bytes: int | None = None
) -> bytes:
    """A whole object, only if its ETag is still `etag`. Raises InputError before the body is read
    when it is over `max_bytes`.
    """
    condition = {"IfMatch": f'"{etag}"'} if etag else {}

    async def request(client: Any) -> bytes:
        answer = await client.get_object(Bucket=bucket, Key=key, **condition)
        body, size = answer["Body"], answer["ContentLength"]
        if max_bytes is not None and size > max_bytes:
            body.close()
            raise errors.too_large(size, max_bytes)
        async with body:
            data: bytes = await body.read()
        # A store that does not know If-Match answers as if it had not been sent.
        errors.require_version(etag, answer["ETag"].strip('"'))
        errors.require_length(len(data), size)
        return data

    return _ask(request, timeout_s)


def get_range(
    bucket: str, key: str, start: int, length: int, *, timeout_s: float, etag: str = ""
) -> bytes:
    """`length` bytes from `start`, fewer where the object ends, only if its ETag is still `etag`."""
    condition = {"IfMatch": f'"{etag}"'} if etag else {}

    async def request(client: Any) -> bytes:
        try:
            answer = await client.get_object(
                Bucket=bucket, Key=key, Range=ranged.range_header(start, length), **condition
            )
        except client.exceptions.ClientError as error:
            if (
                error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
                == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE
            ):
                return b""  # the object ends before
            raise
        content_range = answer.get("ContentRange")
        async with answer["Body"] as body:
            errors.require_version(etag, answer["ETag"].strip('"'))
            return await ranged.take(
                body.iter_chunks(_PIECE),
                content_range,
                ranged.total_size(content_range, answer["ContentLength"]),
                start,
                length,
            )

    return _ask(request, timeout_s)


def head(bucket: str, key: str, *, timeout_s: float) -> dict[str, Any]:
    """An object's size and ETag, as botocore gives them."""
    return _ask(lambda client: client.head_object(Bucket=bucket, Key=key), timeout_s)


def found(bucket: str, key: str, *, timeout_s: float) -> dict[str, Any] | None:
    """An object's size and ETag; None where there is none of that key. Raises where there is no
    such bucket.
    """
    try:
        return head(bucket, key, timeout_s=timeout_s)
    except Exception as error:
        if errors.is_missing(error):
            return None
        raise


def delete_some(bucket: str, keys: Sequence[str], *, timeout_s: float) -> None:
    """Remove up to `MOST_DELETED` objects with one request; those that are not there are removed
    already.

    An answer can be a success that names objects which stayed: of these the first is raised, one
    that no repetition helps before others. Source:
    https://docs.aws.amazon.com/AmazonS3/latest/API/API_DeleteObjects.html
    """

    async def request(client: Any) -> None:
        wanted = {"Objects": [{"Key": key} for key in keys], "Quiet": True}
        answer = await client.delete_objects(Bucket=bucket, Delete=wanted)
        stayed = [one for one in answer.get("Errors", ()) if one.get("Code") != "NoSuchKey"]
        if stayed:
            said = [
                {
                    "Code": one.get("Code", ""),
                    "Message": f"{one.get('Message', '')}: {one.get('Key', '')}",
                }
                for one in stayed
            ]
            refused = [
                client.exceptions.ClientError({"Error": one}, "DeleteObjects") for one in said
            ]
            raise min(refused, key=errors.is_transient)

    _ask(request, timeout_s)


def page(
    bucket: str,
    prefix: str,
    *,
    timeout_s: float,
    delimiter: str = "",
    after: str | None = None,
    above: str | None = None,
    limit: int = 1000,
) -> dict[str, Any]:
    """One page of the listing in key order; `after` is the former page's NextContinuationToken,
    `above` the key to begin behind.
    """
    more = {"ContinuationToken": after} if after else {"StartAfter": above} if above else {}
    return _ask(
        lambda client: client.list_objects_v2(
            Bucket=bucket, Prefix=prefix, Delimiter=delimiter, MaxKeys=limit, **more
        ),
        timeout_s,
    )


def pages(
    bucket: str,
    prefix: str,
    retrier: Retrier,
    *,
    gate: Gate | None = None,
    delimiter: str = "",
    above: str | None = None,
) -> Iterator[dict[str, Any]]:
    """Yield all pages of a listing. Each page has attempts of its own, so that a late failure does
    not start the listing again.
    """
    after: str | None = None
    while True:
        for attempt in retrier.attempts(gate=gate):
            with attempt as left:
                answer = page(
                    bucket, prefix, timeout_s=left, delimiter=delimiter, after=after, above=above
                )
        yield answer
        if not answer.get("IsTruncated"):
            return
        after = answer["NextContinuationToken"]
