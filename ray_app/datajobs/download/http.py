"""One request for one url behind the SSRF guard (`HttpClient`), within the limits of its host (`Host`).

No redirect is followed here: the next url is another host's, whose limit is not ours to spend.
"""

import asyncio
import re
import ssl
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urljoin

import aiohttp
from yarl import URL

from ray_app.datajobs.download.config import BAD_URL, FORBIDDEN_ADDRESS, CollectConfig, Politeness
from ray_app.errors import SourceError, Status
from ray_app.storage import ssrf

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_CHUNK = 64 * 2**10
_RAW_BYTE = re.compile("[\udc80-\udcff]")  # of a header that is not UTF-8; no row could be written of such a url
# Between the starts of two requests to a host that throttles: doubled each time, from the first to the last of these.
_SHORT_S, _LONGEST_PAUSE_S = 0.05, 10.0


class Failed(Exception):  # noqa: N818 - an outcome of one url, not of the program
    """One url did not give its image. `passing`: it may by itself; `wait_s`: not before so long; `answered`: its host said
    something; `asked`: there was a request at all; `sha256`: of the bytes that came.
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
        self.answered, self.asked, self.http_status, self.sha256 = answered, asked, http_status, sha256


@dataclass(frozen=True)
class HttpResponse:
    """A whole body, or the url that the host says instead (`moved`)."""

    data: bytes = b""
    content_type: str | None = None
    moved: str | None = None
    http_status: int = 200


class HttpClient:
    """`await HttpClient(config).get(url)`, made inside the event loop; `close()` it. Connections are kept, cookies are not."""

    def __init__(self, config: CollectConfig) -> None:
        self._limits, self._private = config.limits, config.allow_private
        resolver = ssrf.CheckedResolver(_resolver(config.resolve), self._is_allowed)
        limits = config.limits
        # A name is resolved anew after five minutes; what is dialled in between was checked when it was found.
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(resolver=resolver, limit=0, ttl_dns_cache=300, ssl=ssl.create_default_context()),
            timeout=aiohttp.ClientTimeout(
                total=limits.total_timeout_s,
                connect=limits.connect_timeout_s,
                sock_connect=limits.connect_timeout_s,
                sock_read=limits.read_timeout_s,
            ),
            headers={"User-Agent": config.politeness.agent, "Accept": "image/*,*/*;q=0.1", "Accept-Encoding": "identity"},
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trust_env=False,
        )
        self._session._retry_connection = False  # it would ask a second time by itself, uncounted; there is no public way to say so

    async def close(self) -> None:
        """End all connections."""
        await self._session.close()

    def checked(self, text: str) -> URL:
        """What is dialled for a url. Raises Failed."""
        try:  # an address is judged below, in other words
            url = ssrf.checked_url(text, schemes=("http", "https"), is_literal_allowed=ssrf.is_address, bare_names=self._private)
        except ssrf.UrlRefused as refused:
            raise Failed(BAD_URL, str(refused), asked=False) from None
        host = url.raw_host or ""
        if ssrf.is_address(host) and not self._is_allowed(host):
            raise Failed(FORBIDDEN_ADDRESS, "its address is not on the public Internet", asked=False)
        return url

    async def get(self, url: str) -> HttpResponse:
        """One request. Raises Failed."""
        target = self.checked(url)
        with _translated():
            async with self._session.get(target, allow_redirects=False) as answer:
                if answer.status in _REDIRECTS:
                    return HttpResponse(moved=_moved(target, answer), http_status=answer.status)
                _check_status(answer.status, answer.headers)
                return HttpResponse(await self._body(answer), answer.headers.get("Content-Type"))

    async def _body(self, answer: aiohttp.ClientResponse) -> bytes:
        if answer.headers.get("Content-Encoding", "identity").strip().lower() not in ("", "identity"):
            raise Failed(Status.SOURCE_DENIED, "the host compresses what it sends, though asked not to", http_status=200)
        announced, most = answer.content_length or 0, self._limits.max_bytes
        body = bytearray()
        if announced <= most:
            async for chunk in answer.content.iter_chunked(_CHUNK):
                body += chunk
                if len(body) > most:
                    break
        if max(announced, len(body)) > most:
            answer.close()  # else what is left would be read to keep the connection
            message = f"{announced:,} bytes" if announced > most else f"more than {most:,} bytes"
            raise Failed(Status.IMAGE_TOO_LARGE, f"{message}, over the limit of {most:,}", http_status=200)
        return bytes(body)

    def _is_allowed(self, address: str) -> bool:
        return self._private or ssrf.is_public_address(address)


def _resolver(known: Mapping[str, str]) -> ssrf.Resolver:
    async def resolve(host: str, port: int) -> list[tuple[str, int]]:
        return [(known[host], port)] if host in known else await ssrf.system_resolver(host, port)

    return resolve


def _moved(target: URL, answer: aiohttp.ClientResponse) -> str:
    location = answer.headers.get("Location")
    if not location:
        raise Failed(Status.SOURCE_DENIED, "the host redirects to nowhere", http_status=answer.status)
    try:
        return urljoin(str(target), _RAW_BYTE.sub(lambda found: f"%{ord(found[0]) - 0xDC00:02X}", location))
    except ValueError:
        raise Failed(BAD_URL, "it is redirected to what is not a URL", http_status=answer.status) from None


def _check_status(status: int, headers: Mapping[str, str]) -> None:
    if status == 200:
        return
    message = f"the host answered {status}"
    if status in (404, 410):
        raise Failed(Status.SOURCE_MISSING, message, http_status=status)
    wait_s = seconds_of(headers.get("Retry-After"), datetime.now(UTC))
    if status in (429, 503):
        raise Failed(Status.SOURCE_THROTTLED, message, passing=True, wait_s=wait_s, http_status=status)
    if status >= 500 or status in (408, 425):
        raise Failed(Status.SOURCE_TIMEOUT, message, passing=True, wait_s=wait_s, http_status=status)
    raise Failed(Status.SOURCE_DENIED, message, http_status=status)


@contextmanager
def _translated() -> Iterator[None]:
    """Foreign exceptions → `Failed`."""
    try:
        yield
    except ssrf.NoAddress:
        raise Failed(Status.SOURCE_MISSING, "there is no host of that name", answered=False) from None
    except ssrf.UrlRefused:
        raise Failed(FORBIDDEN_ADDRESS, "its host is not on the public Internet") from None
    except SourceError as error:  # of the name service, which may know later
        raise Failed(error.status, error.detail, passing=True, answered=False) from None
    except aiohttp.ClientSSLError:
        raise Failed(Status.SOURCE_DENIED, "its host has no certificate that is trusted for this name") from None
    except aiohttp.ClientPayloadError:
        raise Failed(Status.SOURCE_TIMEOUT, "the answer broke off", passing=True) from None
    except TimeoutError:
        raise Failed(Status.SOURCE_TIMEOUT, "the host did not answer in time", passing=True, answered=False) from None
    except (aiohttp.ClientConnectionError, OSError) as error:
        raise Failed(Status.SOURCE_TIMEOUT, f"no connection: {_kind(error)}", passing=True, answered=False) from None
    except aiohttp.ClientError as error:  # its own words name the url, secrets and all
        raise Failed(Status.SOURCE_DENIED, f"what the host answers is not HTTP: {type(error).__name__}") from None


def _kind(error: BaseException) -> str:
    cause = getattr(error, "os_error", None) or error
    return getattr(cause, "strerror", None) or type(cause).__name__


def seconds_of(retry_after: str | None, now: datetime) -> float | None:
    """The wait of a Retry-After, in seconds or as an HTTP date (RFC 9110 §10.2.3); None where it says nothing that is understood."""
    text = (retry_after or "").strip()
    if text.isascii() and text.isdigit():
        return float(text)
    try:
        until = parsedate_to_datetime(text)
    except (ValueError, OverflowError):
        return None
    until = until if until.tzinfo else until.replace(tzinfo=UTC)
    return max(0.0, (until - now).total_seconds())


class Host:
    """What is known of one host, and its limits. Within one event loop; pickled, it takes along what is known and none of its visitors."""

    def __init__(self, name: str, rules: Politeness, clock: Callable[[], float] = time.time) -> None:
        self.name, self._rules, self._clock = name, rules, clock
        self._not_before = self._next_start = 0.0
        self._pause_s = rules.pause_s
        self._silent = 0
        self._refused: tuple[Status, str] | None = None
        self._open()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in ("_places", "_starting")}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        vars(self).update(state)
        self._open()

    def _open(self) -> None:
        self._places, self._starting = asyncio.Semaphore(self._rules.per_host), asyncio.Lock()

    @asynccontextmanager
    async def visit(self) -> AsyncIterator[None]:
        """Inside, one request may be made. Raises Failed, without any request, once this host is given up."""
        async with self._places:
            async with self._starting:
                while self._refused is None and (wait := max(self._not_before, self._next_start) - self._clock()) > 0:
                    await asyncio.sleep(wait)
                if self._refused is not None:
                    raise Failed(*self._refused, asked=False)
                self._next_start = self._clock() + self._pause_s
            yield

    def answered(self) -> None:
        """It gave a useful answer: silence is forgotten, and pauses that it had requested grow shorter again."""
        self._silent = 0
        self._pause_s = max(self._rules.pause_s, 0.8 * self._pause_s if self._pause_s > _SHORT_S else 0.0)

    def silent(self) -> None:
        """One more url ended without any answer from this host."""
        self._silent += 1
        if self._silent >= self._rules.give_up_after and self._refused is None:
            message = f"not asked: {self.name} gave no answer to {self._silent} urls in a row"
            self._refused = (Status.SOURCE_TIMEOUT, message)

    def throttled(self, wait_s: float | None) -> None:
        """It has requested to slow down, perhaps to wait for so long. Where the rules do not bear that, it gets no more requests."""
        self._silent = 0
        self._pause_s = max(self._rules.pause_s, min(_LONGEST_PAUSE_S, max(2 * self._pause_s, _SHORT_S)))
        if wait_s is not None and wait_s > self._rules.longest_wait_s:
            message = f"{self.name} asks to wait {wait_s:.0f} s, and is asked nothing more in this session"
            self._refused = (Status.SOURCE_THROTTLED, message)
            return
        self._not_before = max(self._not_before, self._clock() + (wait_s or 0.0))
