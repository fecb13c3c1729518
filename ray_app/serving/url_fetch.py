"""Images by URL, without becoming a way into our own network: `GuardedFetcher`.

Which addresses are allowed is the guard's decision (`storage.ssrf`). Redirects come back here, as new URLs.
"""

import asyncio
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from urllib.parse import urljoin

import aiohttp
from yarl import URL

from ray_app import __version__
from ray_app.errors import InputError, SourceError, Status
from ray_app.serving.config import UrlFetching
from ray_app.serving.http.errors import Refusal
from ray_app.storage.ssrf import CheckedResolver, Resolver, UrlRefused, checked_url, is_public_address, system_resolver

_HTTPS_PORT = 443  # https alone, and this port alone: any other would make us a port scanner
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_CHUNK = 64 * 2**10


class GuardedFetcher:
    """Reads what a stranger's URL names, on the public Internet alone. One per process; for one event loop or several.

    `rules.enabled` is the caller's to look at. `max_bytes` is of one body. `resolver` and `is_allowed_address` are injected in tests.
    """

    def __init__(
        self,
        rules: UrlFetching,
        max_bytes: int,
        *,
        resolver: Resolver | None = None,
        is_allowed_address: Callable[[str], bool] = is_public_address,
    ) -> None:
        self._rules, self._max_bytes = rules, max_bytes
        self._resolver = CheckedResolver(resolver or system_resolver, is_allowed_address)
        self._tls = ssl.create_default_context()

    async def fetch(self, url: str) -> bytes:
        """The bytes behind an https URL, after `max_redirects` at most.

        Raises Refusal (`url_refused`), SourceError (a `source_*` status), or InputError (`image_too_large`).
        """
        with _translated():
            async with asyncio.timeout(self._rules.total_timeout_s), self._session() as session:
                target = self._checked(url)
                for _ in range(self._rules.max_redirects + 1):
                    async with session.get(target, allow_redirects=False) as answer:
                        if answer.status not in _REDIRECTS:
                            return await self._body(answer)
                        target = self._checked(_next_place(target, answer))
        limit = self._rules.max_redirects
        raise Refusal("url_refused", "it is redirected too often", limit=limit, observed=limit + 1)

    def _session(self) -> aiohttp.ClientSession:
        """New for each fetch: nothing of one stranger's fetch (connection, lookup, cookie) is there in the next one's."""
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(resolver=self._resolver, use_dns_cache=False, force_close=True, ssl=self._tls),
            timeout=aiohttp.ClientTimeout(total=None, connect=self._rules.connect_timeout_s),
            headers={"User-Agent": f"touchstone/{__version__}", "Accept-Encoding": "identity"},
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trust_env=False,
        )

    def _checked(self, text: str) -> URL:
        """The URL that is dialled: https, its own port, a host of the public Internet that the rules let in."""
        try:
            url = checked_url(text, port=_HTTPS_PORT)
        except UrlRefused as refused:
            raise _refusal(refused) from None
        host = url.raw_host or ""
        if self._rules.allowed_hosts and not any(_matches(host, allowed) for allowed in self._rules.allowed_hosts):
            raise Refusal("url_refused", "its host is not among those that this endpoint fetches from")
        return url

    async def _body(self, answer: aiohttp.ClientResponse) -> bytes:
        """The body, cut at `max_bytes` whatever its Content-Length says."""
        _check_status(answer.status)
        if answer.headers.get("Content-Encoding", "identity").strip().lower() not in ("", "identity"):
            # We requested it as it is; an image gains nothing by it, and what it unpacks to is unknown until it is unpacked.
            raise Refusal("url_refused", "its server sends compressed data, although it was asked not to")
        body, announced = bytearray(), answer.content_length or 0
        if announced > self._max_bytes:
            raise self._too_large(announced)
        async for chunk in answer.content.iter_chunked(_CHUNK):
            body += chunk
            if len(body) > self._max_bytes:
                raise self._too_large(len(body))
        return bytes(body)

    def _too_large(self, observed: int) -> InputError:
        detail = f"{observed} bytes or more, over the limit of {self._max_bytes}"
        return InputError(Status.IMAGE_TOO_LARGE, detail, limit=self._max_bytes, observed=observed)


def _refusal(refused: UrlRefused) -> Refusal:
    return Refusal("url_refused", refused.message, limit=refused.limit, observed=refused.observed)


def _matches(host: str, allowed: str) -> bool:
    """`allowed` is a name, or `*.` and a name: that matches what is below the name, at any depth, not the name itself."""
    pattern = allowed.strip().lower().removesuffix(".")
    return host.endswith(pattern[1:]) if pattern.startswith("*.") else host == pattern


def _next_place(target: URL, answer: aiohttp.ClientResponse) -> str:
    location = answer.headers.get("Location")
    if not location:
        raise SourceError(Status.SOURCE_DENIED, "the server redirects without saying where")
    try:
        return urljoin(str(target), location)
    except ValueError:
        raise Refusal("url_refused", "it is redirected to something that is not a URL") from None


def _check_status(status: int) -> None:
    if status == 200:
        return
    if status in (404, 410):
        raise SourceError(Status.SOURCE_MISSING, f"the server answered {status}")
    if status in (429, 503):
        raise SourceError(Status.SOURCE_THROTTLED, f"the server answered {status}")
    raise SourceError(Status.SOURCE_TIMEOUT if status >= 500 else Status.SOURCE_DENIED, f"the server answered {status}")


@contextmanager
def _translated() -> Iterator[None]:
    """Foreign exceptions → ours; no word of theirs, which name addresses. Refused, unreachable and silent get the same message."""
    try:
        yield
    except UrlRefused as refused:
        raise _refusal(refused) from None
    except aiohttp.ClientSSLError:
        raise SourceError(Status.SOURCE_DENIED, "its server has no certificate that is trusted for this name") from None
    except (TimeoutError, aiohttp.ClientConnectorError):
        raise SourceError(Status.SOURCE_TIMEOUT, "its server did not answer in time") from None
    except (aiohttp.ClientPayloadError, aiohttp.ClientConnectionError, OSError):
        raise SourceError(Status.SOURCE_TIMEOUT, "its server closed the connection early") from None
    except aiohttp.ClientError:
        raise SourceError(Status.SOURCE_DENIED, "its server does not answer in HTTP") from None
