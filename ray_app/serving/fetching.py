"""Images by URL, without becoming a way into our own network. Knows addresses and HTTP; knows no image, no route, no job.

What is checked is what is connected to: the resolver that aiohttp dials through checks every address of a name and hands those
on, so there is no second lookup; the URL keeps its name, so TLS, SNI and Host are the name's. Redirects come back here, as new URLs.
"""

import asyncio
import re
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from ipaddress import IPv4Address, IPv4Network, IPv6Network, ip_address
from urllib.parse import urljoin, urlsplit

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from ray_app import __version__
from ray_app.errors import InputError, SourceError, Status
from ray_app.serving.config import UrlFetching
from ray_app.serving.http.errors import Refusal

Resolver = Callable[[str, int], Awaitable[Sequence[tuple[str, int]]]]
"""(host, port) → every (address, port) of it; OSError where there is none."""

MAX_URL = 2048
_HTTPS_PORT = 443  # https alone is spoken, so this is the only port of the web; any other would make us a port scanner
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_CHUNK = 64 * 2**10

# Labels of letters, digits, hyphens; the last starts with a letter. So no address passes in any notation (127.0.0.1, 2130706433,
# 0x7f.1, 0177.0.0.1, [::1]) and every host goes through the resolver; and no bare name that a search domain would complete.
_LABEL = r"(?!-)[a-z0-9_-]{1,63}(?<!-)"
_NAME = re.compile(rf"(?=.{{1,253}}\Z)(?:{_LABEL}\.)+(?=[a-z]){_LABEL}")
_NOT_IN_URLS = re.compile(r"[\x00-\x20\x7f\\]")

# https://www.iana.org/assignments/iana-ipv4-special-registry: all that is not for the public Internet, and multicast.
_CLOSED_4 = [
    IPv4Network(network)
    for network in (
        *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24", "192.0.2.0/24"),
        *("192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4"),
        # https://learn.microsoft.com/azure/virtual-network/what-is-ip-address-168-63-129-16: each Azure host's own agent
        "168.63.129.16/32",
    )
]
# https://www.iana.org/assignments/ipv6-unicast-address-assignments: only this is the public Internet. It leaves out loopback, link-local,
# site-local, unique-local, multicast, IPv4-compatible and the local-use NAT64 64:ff9b:1::/48.
_OPEN_6 = IPv6Network("2000::/3")
# Of it, Teredo (inside 2001::/23) and 6to4 (2002::/16) are tunnels to an IPv4 address; the others are for documents and protocols.
_CLOSED_6 = [IPv6Network(network) for network in ("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20")]
_NAT64 = IPv6Network("64:ff9b::/96")  # RFC 6052: what DNS64 answers on networks without IPv4
_ISATAP = 0x00005EFE  # RFC 5214: upper half of an interface identifier, its two flag bits aside

_lookups = ThreadPoolExecutor(16, thread_name_prefix="lookup")  # not asyncio's own threads: a slow name server would stop all else there


def is_public_address(text: str) -> bool:
    """Whether an address belongs to the public Internet; IPv4 inside IPv6 is judged as what it is, scoped addresses never pass."""
    try:
        address = ip_address(text)
    except ValueError:
        return False
    if not isinstance(address, IPv4Address):
        if address.scope_id is not None:
            return False
        embedded = IPv4Address(int(address) & 0xFFFFFFFF) if address in _NAT64 else address.ipv4_mapped
        if embedded is None:
            tunnel = (int(address) >> 32) & 0xFCFFFFFF == _ISATAP
            return address in _OPEN_6 and not tunnel and not any(address in network for network in _CLOSED_6)
        address = embedded
    return not any(address in network for network in _CLOSED_4)


async def _system_resolver(host: str, port: int) -> list[tuple[str, int]]:
    absolute = f"{host}."  # else the machine's search domains apply: `db.prod` would find `db.prod.svc.cluster.local`
    asked = asyncio.get_running_loop().run_in_executor(_lookups, lambda: socket.getaddrinfo(absolute, port, type=socket.SOCK_STREAM))
    return [(str(found[4][0]), port) for found in await asked]


class _CheckedResolver(AbstractResolver):
    """What aiohttp asks before it dials, once per connection. One bad address refuses the name."""

    def __init__(self, resolver: Resolver, is_allowed: Callable[[str], bool]) -> None:
        self._resolver, self._is_allowed = resolver, is_allowed

    async def resolve(self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC) -> list[ResolveResult]:
        """Every address of `host`, each allowed. Raises Refusal, in the same words for a bad address and for none: else it maps our DNS."""
        try:
            found = await self._resolver(host, port)
        except OSError as error:
            if isinstance(error, socket.gaierror) and error.errno == socket.EAI_AGAIN:
                raise SourceError(Status.SOURCE_TIMEOUT, "the name of its server could not be looked up") from None
            found = []
        if not found or not all(self._is_allowed(address) for address, _ in found):
            raise Refusal("url_refused")
        numeric = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
        return [ResolveResult(hostname=host, host=at, port=on, family=family, proto=0, flags=numeric) for at, on in found]

    async def close(self) -> None:
        """Holds nothing."""


class GuardedFetcher:
    """Reads what a stranger's URL names, and posts to it, on the public Internet alone. One per process; for one event loop or several.

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
        self._resolver = _CheckedResolver(resolver or _system_resolver, is_allowed_address)
        self._tls = ssl.create_default_context()

    async def fetch(self, url: str) -> bytes:
        """The bytes behind an https URL, after `max_redirects` at most.

        Raises Refusal (`url_refused`), SourceError (a `source_*` status), or InputError (`image_too_large`).
        """
        with _in_our_words():
            async with asyncio.timeout(self._rules.total_timeout_s), self._session() as session:
                target = self._checked(url)
                for _ in range(self._rules.max_redirects + 1):
                    async with session.get(target, allow_redirects=False) as answer:
                        if answer.status not in _REDIRECTS:
                            return await self._body(answer)
                        target = self._checked(_next_place(target, answer))
        limit = self._rules.max_redirects
        raise Refusal("url_refused", "it is redirected too often", limit=limit, observed=limit + 1)

    async def post(self, url: str, body: bytes, headers: Mapping[str, str]) -> int:
        """Sends `body` behind the same guard and returns the status; follows no redirect, reads no answer.

        Raises Refusal (`url_refused`) or SourceError (a `source_*` status).
        """
        with _in_our_words():
            async with (
                asyncio.timeout(self._rules.total_timeout_s),
                self._session() as session,
                session.post(self._checked(url), data=body, headers=headers, allow_redirects=False) as answer,
            ):
                return answer.status

    def check(self, url: str) -> None:
        """Raises Refusal (`url_refused`) where the text of a URL alone says that it will never be asked; looks nothing up."""
        self._checked(url)

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
        """What is asked for: the very object that is dialled, so that no second parser can read another host in it."""
        if len(text) > MAX_URL:
            raise Refusal("url_refused", "the URL is too long", limit=MAX_URL, observed=len(text))
        try:
            if _NOT_IN_URLS.search(text):
                raise ValueError
            url, authority = URL(text).with_fragment(None), urlsplit(text).netloc
            host, port = (url.raw_host or "").removesuffix("."), url.port
        except ValueError:
            raise Refusal("url_refused", "this is not a URL") from None
        if url.scheme != "https":
            raise Refusal("url_refused", "only https URLs are fetched")
        if "@" in authority:
            raise Refusal("url_refused", "a URL with a user name or password is not fetched")
        if port != _HTTPS_PORT:
            raise Refusal("url_refused", f"only port {_HTTPS_PORT} is asked")
        if not _NAME.fullmatch(host):
            raise Refusal("url_refused", "its host is not a full domain name")
        if self._rules.allowed_hosts and not any(_matches(host, allowed) for allowed in self._rules.allowed_hosts):
            raise Refusal("url_refused", "its host is not among those that this endpoint fetches from")
        return url.with_host(host)

    async def _body(self, answer: aiohttp.ClientResponse) -> bytes:
        """The body, cut at `max_bytes` whatever its Content-Length says."""
        _check_status(answer.status)
        if answer.headers.get("Content-Encoding", "identity").strip().lower() not in ("", "identity"):
            # We asked for it as it is; an image gains nothing by it, and what it unpacks to is unknown until it is unpacked.
            raise Refusal("url_refused", "its server compresses what it sends, though asked not to")
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


def _matches(host: str, allowed: str) -> bool:
    """`allowed` is a name, or `*.` and a name: that matches what is below the name, at any depth, not the name itself."""
    pattern = allowed.strip().lower().removesuffix(".")
    return host.endswith(pattern[1:]) if pattern.startswith("*.") else host == pattern


def _next_place(target: URL, answer: aiohttp.ClientResponse) -> str:
    location = answer.headers.get("Location")
    if not location:
        raise SourceError(Status.SOURCE_DENIED, "the server redirects to nowhere")
    try:
        return urljoin(str(target), location)
    except ValueError:
        raise Refusal("url_refused", "it is redirected to what is not a URL") from None


def _check_status(status: int) -> None:
    if status == 200:
        return
    if status in (404, 410):
        raise SourceError(Status.SOURCE_MISSING, f"the server answered {status}")
    if status in (429, 503):
        raise SourceError(Status.SOURCE_THROTTLED, f"the server answered {status}")
    raise SourceError(Status.SOURCE_TIMEOUT if status >= 500 else Status.SOURCE_DENIED, f"the server answered {status}")


@contextmanager
def _in_our_words() -> Iterator[None]:
    """Foreign exceptions → ours; no word of theirs, which name addresses. Refused, unreachable and silent are told in the same words."""
    try:
        yield
    except aiohttp.ClientSSLError:
        raise SourceError(Status.SOURCE_DENIED, "its server has no certificate that is trusted for this name") from None
    except (TimeoutError, aiohttp.ClientConnectorError):
        raise SourceError(Status.SOURCE_TIMEOUT, "its server did not answer in time") from None
    except (aiohttp.ClientPayloadError, aiohttp.ClientConnectionError, OSError):
        raise SourceError(Status.SOURCE_TIMEOUT, "its server broke off") from None
    except aiohttp.ClientError:
        raise SourceError(Status.SOURCE_DENIED, "what its server answers is not HTTP") from None
