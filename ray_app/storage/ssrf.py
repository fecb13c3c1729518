"""SSRF protection: `checked_url` and `public_url` for URLs of strangers, `guarded_session` to
request them; only public addresses pass.

The addresses are checked where they are dialled: the resolver that aiohttp uses checks every
address of a name and hands those on, so there is no second lookup; the URL keeps its name, so TLS,
SNI and Host are the name's.
"""

import asyncio
import re
import socket
from collections.abc import Awaitable, Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Address, IPv4Network, IPv6Network, ip_address
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import fsspec
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from ray_app.errors import SourceError, Status

Resolver = Callable[[str, int], Awaitable[Sequence[tuple[str, int]]]]
"""(host, port) → every (address, port) of it; OSError where there is none."""

MAX_URL = 2048
_MAX_LISTED = 8192  # what lists and redirects lead to may be signed at length
_NOT_PUBLIC = "its host is not on the public Internet, nor a source that you named; if you trust the list that names it: --set allow_private=true"

# Labels of letters, digits, hyphens; the last starts with a letter. So no address passes in any
# notation (127.0.0.1, 2130706433, 0x7f.1, 0177.0.0.1, [::1]) and every host goes through the
# resolver; and no bare name that a search domain would complete.
_LABEL = r"(?!-)[a-z0-9_-]{1,63}(?<!-)"
_NAME = re.compile(rf"(?=.{{1,253}}\Z)(?:{_LABEL}\.)+(?=[a-z]){_LABEL}")
_NOT_IN_URLS = re.compile(r"[\x00-\x20\x7f\\]")

# https://www.iana.org/assignments/iana-ipv4-special-registry: all that is not for the public
# Internet, and multicast.
_CLOSED_4 = [
    IPv4Network(network)
    for network in (
        *(
            "0.0.0.0/8",
            "10.0.0.0/8",
            "100.64.0.0/10",
            "127.0.0.0/8",
            "169.254.0.0/16",
            "172.16.0.0/12",
            "192.0.0.0/24",
            "192.0.2.0/24",
        ),
        *(
            "192.88.99.0/24",
            "192.168.0.0/16",
            "198.18.0.0/15",
            "198.51.100.0/24",
            "203.0.113.0/24",
            "224.0.0.0/4",
            "240.0.0.0/4",
        ),
        # https://learn.microsoft.com/azure/virtual-network/what-is-ip-address-168-63-129-16: each
        # Azure host's own agent
        "168.63.129.16/32",
    )
]
# https://www.iana.org/assignments/ipv6-unicast-address-assignments: only this is the public
# Internet. It leaves out loopback, link-local, site-local, unique-local, multicast, IPv4-compatible
# and the local-use NAT64 64:ff9b:1::/48.
_OPEN_6 = IPv6Network("2000::/3")
# Of it, Teredo (inside 2001::/23) and 6to4 (2002::/16) are tunnels to an IPv4 address; the others
# are for documents and protocols.
_CLOSED_6 = [
    IPv6Network(network) for network in ("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20")
]
_NAT64 = IPv6Network("64:ff9b::/96")  # RFC 6052: what DNS64 answers on networks without IPv4
_ISATAP = 0x00005EFE  # RFC 5214: upper half of an interface identifier, its two flag bits aside

# not asyncio's own threads: a slow name server would stop all else there
_lookups = ThreadPoolExecutor(16, thread_name_prefix="lookup")


def is_address(text: str) -> bool:
    """Whether a host is an address, which no resolver sees."""
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def is_public_address(text: str) -> bool:
    """Whether an address belongs to the public Internet; IPv4 inside IPv6 is judged as what it is,
    scoped addresses never pass.
    """
    try:
        address = ip_address(text)
    except ValueError:
        return False
    if not isinstance(address, IPv4Address):
        if address.scope_id is not None:
            return False
        embedded = (
            IPv4Address(int(address) & 0xFFFFFFFF) if address in _NAT64 else address.ipv4_mapped
        )
        if embedded is None:
            tunnel = (int(address) >> 32) & 0xFCFFFFFF == _ISATAP
            return (
                address in _OPEN_6
                and not tunnel
                and not any(address in network for network in _CLOSED_6)
            )
        address = embedded
    return not any(address in network for network in _CLOSED_4)


async def system_resolver(host: str, port: int) -> list[tuple[str, int]]:
    """Every (address, port) that this machine's name service knows of a full domain name. Raises
    OSError.
    """
    # else the machine's search domains apply: `db.prod` would find `db.prod.svc.cluster.local`
    absolute = f"{host}."
    lookup = asyncio.get_running_loop().run_in_executor(
        _lookups, lambda: socket.getaddrinfo(absolute, port, type=socket.SOCK_STREAM)
    )
    return [(str(found[4][0]), port) for found in await lookup]


class CheckedResolver(AbstractResolver):
    """What aiohttp asks before it dials, once per connection. One bad address refuses the name."""

    def __init__(self, resolver: Resolver, is_allowed: Callable[[str], bool]) -> None:
        self._resolver, self._is_allowed = resolver, is_allowed

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Every address of `host`, each allowed. Raises UrlRefused without words, NoAddress where
        there is none.
        """
        try:
            found = await self._resolver(host, port)
        except OSError as error:
            if isinstance(error, socket.gaierror) and error.errno == socket.EAI_AGAIN:
                raise SourceError(
                    Status.SOURCE_TIMEOUT, "the name of its server could not be looked up"
                ) from None
            found = []
        if not found:
            raise NoAddress
        if not all(self._is_allowed(address) for address, _ in found):
            raise UrlRefused
        numeric = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
        return [
            ResolveResult(hostname=host, host=at, port=on, family=family, proto=0, flags=numeric)
            for at, on in found
        ]

    async def close(self) -> None:
        """Holds nothing."""


class UrlRefused(Exception):  # noqa: N818 - the name of a decision, not of a fault
    """A URL that is not requested. `message` is None where no reason may be given; `limit` and
    `observed` where it is about a number.
    """

    def __init__(
        self,
        message: str | None = None,
        *,
        limit: float | None = None,
        observed: float | None = None,
    ) -> None:
        self.message, self.limit, self.observed = message, limit, observed
        super().__init__(message or "this address may not be fetched")


class NoAddress(UrlRefused):
    """A name that the name service knows no address of."""


def checked_url(
    text: str,
    *,
    schemes: Collection[str] = ("https",),
    port: int | None = None,
    is_literal_allowed: Callable[[str], bool] = lambda address: False,
    bare_names: bool = False,
    max_length: int = MAX_URL,
) -> URL:
    """The URL to request: the very object that is dialled, so that no second parser can read
    another host in it. Without its fragment.

    `port`: the only one that is allowed (None = any). `is_literal_allowed`: of an address in the
    host's place, which no resolver sees. `bare_names`: also a host without a dot. Raises
    UrlRefused.
    """
    if len(text) > max_length:
        raise UrlRefused("the URL is too long", limit=max_length, observed=len(text))
    try:
        if _NOT_IN_URLS.search(text):
            raise ValueError
        url, authority = URL(text).with_fragment(None), urlsplit(text).netloc
        host, url_port = (url.raw_host or "").removesuffix("."), url.port
    except ValueError:
        raise UrlRefused("this is not a URL") from None
    if url.scheme not in schemes:
        raise UrlRefused(f"only {' and '.join(schemes)} URLs are fetched")
    if "@" in authority:
        raise UrlRefused("a URL with a user name or password is not fetched")
    if port is not None and url_port != port:
        raise UrlRefused(f"only port {port} is used")
    if not _is_name(host, bare_names=bare_names) and not is_literal_allowed(host):
        raise UrlRefused("its host is not a full domain name")
    return url.with_host(host)


def public_url(text: str) -> URL:
    """The URL to request where a list, a label or a redirect names a URL of any port; spaces may
    stand in it. Raises SourceError (`source_denied`).
    """
    quoted = text.replace(" ", "%20")
    try:  # of any host: it is judged here, in other words
        url = checked_url(
            quoted, schemes=("http", "https"), is_literal_allowed=bool, max_length=_MAX_LISTED
        )
    except UrlRefused as refused:
        raise SourceError(Status.SOURCE_DENIED, str(refused)) from None
    host = url.raw_host or ""
    if not (is_public_address(host) or _is_name(host, bare_names=False)):
        raise SourceError(Status.SOURCE_DENIED, _NOT_PUBLIC)
    return url


async def guarded_session() -> aiohttp.ClientSession:
    """The session that asks for such URLs, one per process, without cookies and without what fsspec
    is set to; call it in fsspec's loop.
    """
    fs = fsspec.filesystem("http", get_client=_guarded_client)
    session: aiohttp.ClientSession = await fs.set_session()
    return session


async def _guarded_client(**_: Any) -> aiohttp.ClientSession:
    connector = aiohttp.TCPConnector(resolver=_PublicResolver(system_resolver, is_public_address))
    return aiohttp.ClientSession(
        connector=connector, cookie_jar=aiohttp.DummyCookieJar(), trust_env=False
    )


class _PublicResolver(CheckedResolver):
    """In the words of storage."""

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Raises SourceError."""
        try:
            return await super().resolve(host, port, family)
        except NoAddress:
            raise SourceError(Status.SOURCE_MISSING, "there is no host of that name") from None
        except UrlRefused:
            raise SourceError(Status.SOURCE_DENIED, _NOT_PUBLIC) from None


def _is_name(host: str, *, bare_names: bool) -> bool:
    return bool(_NAME.fullmatch(host)) or (
        bare_names and bool(re.fullmatch(rf"(?=[a-z]){_LABEL}", host))
    )
