"""Request URLs from untrusted sources without access to the internal network (`GuardedClient`).

An untrusted URL could name a server of the internal network (SSRF). `fetch_image` fetches the image
for `touchstone check URL`. `storage.ssrf` decides which URLs and addresses are allowed. aiohttp
does not follow redirects by itself here, because the target of each redirect must be checked. The
host of the target may also have its own limit on concurrent requests.
"""

import asyncio
import os
import re
import ssl
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from urllib.parse import urljoin

import aiohttp
from yarl import URL

from ray_app import __version__
from ray_app.errors import InputError, SourceError, Status
from ray_app.storage import ssrf
from ray_app.storage.errors import BAD_URL, FORBIDDEN_ADDRESS

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_CHUNK_BYTES = 64 * 2**10
_DNS_CACHE_S = 300
_MAX_IMAGE_REDIRECTS = 3
_IMAGE_TIMEOUT_S = 10.0
# A byte of a header that is not UTF-8. No row could hold such a URL.
_RAW_BYTE = re.compile("[\udc80-\udcff]")


class FetchFailed(Exception):  # noqa: N818 - An outcome of one URL, not of the program.
    """The error for a URL whose content was not received.

    Attributes:
        status: The kind of failure: `image_too_large`, `bad_url`, `forbidden_address` (the host is
            not on the public Internet), or a value of `Status` such as `source_timeout`.
        detail: The reason, without the URL and without addresses.
        passing: Whether the failure may be temporary, so that a later request may succeed.
        wait_s: Seconds that the host requests to wait before the next request. None if it does not
            state a time.
        answered: Whether the host answered at all.
        asked: Whether a request was made. It is False if the URL is refused before any request.
        http_status: The HTTP status of the response, None without a response.
        sha256: The SHA-256 of the received bytes, if these do not decode as an image. None for any
            other failure.
    """

    def __init__(
        self,
        status: str,
        detail: str,
        *,
        passing: bool = False,
        wait_s: float | None = None,
        answered: bool = True,
        asked: bool = True,
        http_status: int | None = None,
        sha256: str | None = None,
    ) -> None:
        super().__init__(f"{status}: {detail}")
        self.status, self.detail, self.passing, self.wait_s = str(status), detail, passing, wait_s
        self.answered, self.asked, self.http_status, self.sha256 = (
            answered,
            asked,
            http_status,
            sha256,
        )


@dataclass(frozen=True)
class FetchRules:
    """The URLs that a `GuardedClient` may request, and the limits of one request.

    Attributes:
        user_agent: The value of the User-Agent header.
        max_bytes: The maximum size of a response's body.
        connect_timeout_s: The maximum seconds until the server is connected.
        read_timeout_s: The maximum seconds between two chunks of a response.
        total_timeout_s: The maximum seconds for one request, including its body.
        schemes: The allowed schemes of URLs.
        port: The only allowed port, or None for any port.
        is_literal_allowed: Whether a URL may have an IP address as its host. The address itself
            must also be allowed.
        bare_names: Whether a host name may have no dot, as in `localhost`.
        keep_alive: Whether to keep connections open, and to keep the checked addresses of a name
            for five minutes.
    """

    user_agent: str
    max_bytes: int
    connect_timeout_s: float
    read_timeout_s: float
    total_timeout_s: float
    schemes: tuple[str, ...] = ("https",)
    port: int | None = 443  # Any other port would make Touchstone a port scanner.
    is_literal_allowed: bool = False
    bare_names: bool = False
    keep_alive: bool = False


@dataclass(frozen=True)
class HttpResponse:
    """The response to a request: the complete body, or the target URL of a redirect.

    Attributes:
        data: The body. It is empty for a redirect.
        content_type: The Content-Type header of the body, None without one.
        moved: The target URL of a redirect, None if the response has the body.
        http_status: The HTTP status of the response.
    """

    data: bytes = b""
    content_type: str | None = None
    moved: str | None = None
    http_status: int = 200


class GuardedClient:
    """Requests URLs from untrusted sources without access to the internal network.

    Create the client inside an event loop, and `close` it at the end. It keeps no cookies, and uses
    no credentials, proxies, or settings of the environment.

    Args:
        rules: The URLs that may be requested, and the limits of one request.
        resolver: A function that finds the addresses of a host name.
        is_allowed_address: A function that decides whether the client may connect to an address.
            Every address of a name must be allowed.
    """

    def __init__(
        self,
        rules: FetchRules,
        *,
        resolver: ssrf.Resolver = ssrf.system_resolver,
        is_allowed_address: Callable[[str], bool] = ssrf.is_public_address,
    ) -> None:
        self._rules, self._is_allowed_address = rules, is_allowed_address
        # The connector dials an address that the resolver checked, also if the address comes from
        # its cache.
        connector = aiohttp.TCPConnector(
            resolver=ssrf.CheckedResolver(resolver, is_allowed_address),
            limit=0,
            use_dns_cache=rules.keep_alive,
            ttl_dns_cache=_DNS_CACHE_S,
            force_close=not rules.keep_alive,
            ssl=ssl.create_default_context(),
        )
        self._session = aiohttp.ClientSession(
            connector=connector,
            timeout=aiohttp.ClientTimeout(
                total=rules.total_timeout_s,
                connect=rules.connect_timeout_s,
                sock_connect=rules.connect_timeout_s,
                sock_read=rules.read_timeout_s,
            ),
            headers={
                "User-Agent": rules.user_agent,
                "Accept": "image/*,*/*;q=0.1",
                "Accept-Encoding": "identity",
            },
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trust_env=False,
        )
        # aiohttp would send a second, uncounted request. It has no public option.
        self._session._retry_connection = False

    async def close(self) -> None:
        """Close all connections of the client."""
        await self._session.close()

    async def get(self, url: str) -> HttpResponse:
        """Make one GET request, and return the response. Redirects are not followed.

        Raises:
            FetchFailed: The request failed.
        """
        target = self._check(url)
        with _translate_errors():
            async with self._session.get(target, allow_redirects=False) as response:
                if response.status in _REDIRECTS:
                    return HttpResponse(
                        moved=_next_url(target, response), http_status=response.status
                    )
                _check_status(response.status, response.headers)
                return HttpResponse(
                    await self._read_body(response), response.headers.get("Content-Type")
                )

    async def follow(self, url: str, max_redirects: int) -> HttpResponse:
        """Request a URL and follow redirects. Each redirect is checked like the first URL.

        Raises:
            FetchFailed: A request failed, or there are too many redirects.
        """
        for _ in range(max_redirects + 1):
            response = await self.get(url)
            if response.moved is None:
                return response
            url = response.moved
        raise FetchFailed(
            Status.SOURCE_DENIED,
            f"redirected more than {max_redirects} times",
            http_status=response.http_status,
        )

    def _check(self, text: str) -> URL:
        """Return the URL to dial.

        Raises:
            FetchFailed: The URL is not allowed.
        """
        rules = self._rules
        # The address itself is checked below.
        is_literal_allowed = ssrf.is_address if rules.is_literal_allowed else _refuse_literal
        try:
            url = ssrf.check_url(
                text,
                schemes=rules.schemes,
                port=rules.port,
                is_literal_allowed=is_literal_allowed,
                bare_names=rules.bare_names,
            )
        except ssrf.UrlRefused as error:
            raise FetchFailed(BAD_URL, str(error), asked=False) from None
        host = url.raw_host or ""
        if ssrf.is_address(host) and not self._is_allowed_address(host):
            raise FetchFailed(
                FORBIDDEN_ADDRESS, "its address is not on the public Internet", asked=False
            )
        return url

    async def _read_body(self, response: aiohttp.ClientResponse) -> bytes:
        """Return the body, limited to `max_bytes` even if Content-Length is wrong."""
        if response.headers.get("Content-Encoding", "identity").strip().lower() not in (
            "",
            "identity",
        ):
            # Compression does not shrink an image, and the size of the content is unknown until it
            # is unpacked.
            raise FetchFailed(
                Status.SOURCE_DENIED,
                "the host compresses its answer, although the request forbids it",
                http_status=200,
            )
        announced, max_bytes = response.content_length or 0, self._rules.max_bytes
        body = bytearray()
        if announced <= max_bytes:
            async for chunk in response.content.iter_chunked(_CHUNK_BYTES):
                body += chunk
                if len(body) > max_bytes:
                    break
        if max(announced, len(body)) > max_bytes:
            response.close()  # Otherwise the rest would be read to keep the connection.
            message = (
                f"{announced:,} bytes"
                if announced > max_bytes
                else f"more than {max_bytes:,} bytes"
            )
            raise FetchFailed(
                Status.IMAGE_TOO_LARGE,
                f"{message}, over the limit of {max_bytes:,}",
                http_status=200,
            )
        return bytes(body)


async def fetch_image(
    url: str,
    max_bytes: int,
    *,
    timeout_s: float = _IMAGE_TIMEOUT_S,
    resolver: ssrf.Resolver = ssrf.system_resolver,
    is_allowed_address: Callable[[str], bool] = ssrf.is_public_address,
) -> bytes:
    """Fetch an image over https from the public Internet, following at most three redirects.

    Args:
        url: The URL. It must have port 443 and a domain name.
        max_bytes: The maximum size of the image.
        timeout_s: The maximum seconds for all requests together.
        resolver: See `GuardedClient`.
        is_allowed_address: See `GuardedClient`.

    Raises:
        SourceError: The URL is not allowed, or its server does not return the image.
        InputError: The body is over `max_bytes`.
    """
    agent = f"touchstone/{__version__}"
    rules = FetchRules(
        agent,
        max_bytes,
        connect_timeout_s=timeout_s / 2,
        read_timeout_s=timeout_s,
        total_timeout_s=timeout_s,
    )
    client = GuardedClient(rules, resolver=resolver, is_allowed_address=is_allowed_address)
    try:
        with _translate_errors():
            async with asyncio.timeout(timeout_s):
                return (await client.follow(url, _MAX_IMAGE_REDIRECTS)).data
    except FetchFailed as failure:
        if failure.status == Status.IMAGE_TOO_LARGE:
            raise InputError(Status.IMAGE_TOO_LARGE, failure.detail, limit=max_bytes) from None
        if failure.status in (BAD_URL, FORBIDDEN_ADDRESS):
            raise SourceError(Status.SOURCE_DENIED, f"not fetched: {failure.detail}") from None
        raise SourceError(Status(failure.status), failure.detail) from None
    finally:
        await client.close()


def parse_retry_after(retry_after: str | None, now: datetime) -> float | None:
    """Return the seconds to wait according to a Retry-After header, or None.

    The header has a number of seconds or an HTTP date (RFC 9110 §10.2.3).

    Args:
        retry_after: The value of the header, None if it is missing.
        now: The current time, which is subtracted from a date.

    Returns:
        The seconds, or None if the header is missing or invalid.
    """
    text = (retry_after or "").strip()
    if text.isascii() and text.isdigit():
        return float(text)
    try:
        retry_at = parsedate_to_datetime(text)
    except (ValueError, OverflowError):
        return None
    retry_at = retry_at if retry_at.tzinfo else retry_at.replace(tzinfo=UTC)
    return max(0.0, (retry_at - now).total_seconds())


def _refuse_literal(address: str) -> bool:
    return False


def _next_url(target: URL, response: aiohttp.ClientResponse) -> str:
    location = response.headers.get("Location")
    if not location:
        raise FetchFailed(
            Status.SOURCE_DENIED,
            "the host sent a redirect without a Location header",
            http_status=response.status,
        )
    try:
        return urljoin(
            str(target), _RAW_BYTE.sub(lambda match: f"%{ord(match[0]) - 0xDC00:02X}", location)
        )
    except ValueError:
        raise FetchFailed(
            BAD_URL,
            "the host sent a redirect whose Location header is not a URL",
            http_status=response.status,
        ) from None


def _check_status(status: int, headers: Mapping[str, str]) -> None:
    if status == 200:
        return
    message = f"the host answered {status}"
    if status in (404, 410):
        raise FetchFailed(Status.SOURCE_MISSING, message, http_status=status)
    wait_s = parse_retry_after(headers.get("Retry-After"), datetime.now(UTC))
    if status in (429, 503):
        raise FetchFailed(
            Status.SOURCE_THROTTLED, message, passing=True, wait_s=wait_s, http_status=status
        )
    if status >= 500 or status in (408, 425):
        raise FetchFailed(
            Status.SOURCE_TIMEOUT, message, passing=True, wait_s=wait_s, http_status=status
        )
    raise FetchFailed(Status.SOURCE_DENIED, message, http_status=status)


@contextmanager
def _translate_errors() -> Iterator[None]:
    """Raise FetchFailed for exceptions of libraries, without their text.

    The text contains URLs, addresses, and secrets.
    """
    try:
        yield
    except ssrf.NoAddress:
        raise FetchFailed(
            Status.SOURCE_MISSING, "there is no host of that name", answered=False
        ) from None
    except ssrf.UrlRefused:
        raise FetchFailed(FORBIDDEN_ADDRESS, "its host is not on the public Internet") from None
    except SourceError as error:  # The name service may know the name later.
        raise FetchFailed(error.status, error.detail, passing=True, answered=False) from None
    except aiohttp.ClientSSLError:
        raise FetchFailed(
            Status.SOURCE_DENIED, "its host has no trusted certificate for this name"
        ) from None
    except aiohttp.ClientPayloadError:
        raise FetchFailed(
            Status.SOURCE_TIMEOUT,
            "the connection ended before the whole answer was received",
            passing=True,
        ) from None
    except TimeoutError:
        raise FetchFailed(
            Status.SOURCE_TIMEOUT, "the host did not answer in time", passing=True, answered=False
        ) from None
    except (aiohttp.ClientConnectionError, OSError) as error:
        raise FetchFailed(
            Status.SOURCE_TIMEOUT,
            f"no connection: {_describe(error)}",
            passing=True,
            answered=False,
        ) from None
    except aiohttp.ClientError as error:
        raise FetchFailed(
            Status.SOURCE_DENIED, f"the answer of the host is not HTTP: {type(error).__name__}"
        ) from None


def _describe(error: BaseException) -> str:
    """Return the operating system's text for the error number.

    The text of asyncio contains the address.
    """
    cause = getattr(error, "os_error", None) or error
    number = getattr(cause, "errno", None)
    return os.strerror(number) if number and number > 0 else type(cause).__name__
