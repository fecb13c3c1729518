"""Protect against server-side request forgery (SSRF) for URLs from untrusted sources.

`check_url` and `check_public_url` check URLs. `open_guarded_session` opens the session that
requests them. Only public addresses are allowed. Addresses are checked at connection time.
The resolver (`CheckedResolver`) checks every address of a host name. aiohttp connects to the
checked addresses without a second lookup. The URL keeps its host name, so TLS, SNI, and the Host
header use the name.
"""

import asyncio
import os
import re
import socket
from collections.abc import Awaitable, Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Network, ip_address
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import fsspec
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from ray_app.errors import SourceError, Status
from ray_app.storage import object_store

Resolver = Callable[[str, int], Awaitable[Sequence[tuple[str, int]]]]
"""A coroutine function that looks up a host name.

It takes the name and a port, and returns all pairs of an address and the port. It raises OSError
if the name has no address.
"""

MAX_URL = 2048
_MAX_LISTED = 8192  # URLs in lists and redirects may have long signatures.
_NOT_PUBLIC = (
    "its host is not on the public Internet, and not a source that you named; "
    "if you trust the list with this URL, use --set allow_private=true"
)

# A name has labels of letters, digits, and hyphens, and the last label starts with a letter.
# Therefore no address matches in any notation (127.0.0.1, 2130706433, 0x7f.1, 0177.0.0.1, [::1]),
# and every host goes through the resolver. A bare name, which a search domain would complete, does
# not match either.
_LABEL = r"(?!-)[a-z0-9_-]{1,63}(?<!-)"
_NAME = re.compile(rf"(?=.{{1,253}}\Z)(?:{_LABEL}\.)+(?=[a-z]){_LABEL}")
_NOT_IN_URLS = re.compile(r"[\x00-\x20\x7f\\]")

# https://www.iana.org/assignments/iana-ipv4-special-registry: all networks that are not for the
# public Internet, and multicast.
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
        # https://learn.microsoft.com/azure/virtual-network/what-is-ip-address-168-63-129-16: the
        # agent of each Azure host.
        "168.63.129.16/32",
    )
]
# https://www.iana.org/assignments/ipv6-unicast-address-assignments: only this network is the public
# Internet. It excludes loopback, link-local, site-local, unique-local, multicast, IPv4-compatible,
# and the local-use NAT64 64:ff9b:1::/48.
_OPEN_6 = IPv6Network("2000::/3")
# In that network, Teredo (inside 2001::/23) and 6to4 (2002::/16) are tunnels to an IPv4 address.
# The other networks are for documentation and protocols.
_CLOSED_6 = [
    IPv6Network(network) for network in ("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20")
]
_NAT64 = IPv6Network("64:ff9b::/96")  # RFC 6052: the answers of DNS64 on networks without IPv4.
_ISATAP = 0x00005EFE  # RFC 5214: upper half of an interface identifier, without its two flag bits.


@lru_cache(maxsize=1)
def _get_lookup_threads(pid: int) -> ThreadPoolExecutor:
    """Return the threads for lookups, since a slow name server would block those of asyncio.

    A forked process does not have the threads of its parent.
    """
    return ThreadPoolExecutor(16, thread_name_prefix="lookup")


def is_address(text: str) -> bool:
    """Return whether the host of a URL is an IP address, not a name.

    aiohttp calls no resolver for an address, so it must be checked separately.
    """
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def is_public_address(text: str) -> bool:
    """Return whether an IP address belongs to the public Internet.

    An IPv4 address that is embedded in an IPv6 address is checked as IPv4. Addresses with a scope
    are not public.
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
    """Return every (address, port) of a domain name from the name service of this machine."""
    # Without the dot, search domains apply: `db.prod` would find `db.prod.svc.cluster.local`.
    absolute = f"{host}."
    lookup = asyncio.get_running_loop().run_in_executor(
        _get_lookup_threads(os.getpid()),
        lambda: socket.getaddrinfo(absolute, port, type=socket.SOCK_STREAM),
    )
    return [(str(entry[4][0]), port) for entry in await lookup]


class CheckedResolver(AbstractResolver):
    """The resolver that aiohttp calls before it connects, which checks all addresses of a host.

    If one address of a host is not allowed, the host is refused.
    """

    def __init__(self, resolver: Resolver, is_allowed: Callable[[str], bool]) -> None:
        self._resolver, self._is_allowed = resolver, is_allowed

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Return every address of `host`, if all are allowed.

        Raises UrlRefused without a message if an address is not allowed, NoAddress if the name has
        no address, and SourceError if the name service does not answer.
        """
        try:
            addresses = await self._resolver(host, port)
        except OSError as error:
            if isinstance(error, socket.gaierror) and error.errno == socket.EAI_AGAIN:
                raise SourceError(
                    Status.SOURCE_TIMEOUT, "the name of its server could not be looked up"
                ) from None
            addresses = []
        if not addresses:
            raise NoAddress
        if not all(self._is_allowed(address) for address, _ in addresses):
            raise UrlRefused
        numeric = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
        return [
            ResolveResult(
                hostname=host,
                host=address,
                port=address_port,
                family=family,
                proto=0,
                flags=numeric,
            )
            for address, address_port in addresses
        ]

    async def close(self) -> None:
        """Do nothing, since there is nothing to close."""


class UrlRefused(Exception):  # noqa: N818 - The name is that of a decision, not of an error.
    """The error for a URL that is refused before a request is made.

    The message is None if the reason must not be shown. `observed` exceeded `limit`, such as the
    maximum length of a URL. Both are None if the reason is not a limit.
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
    """The error for a host name that has no address in the name service."""


def check_url(
    text: str,
    *,
    schemes: Collection[str] = ("https",),
    port: int | None = None,
    is_literal_allowed: Callable[[str], bool] = lambda address: False,
    bare_names: bool = False,
    max_length: int = MAX_URL,
) -> URL:
    """Check a URL from an untrusted source, and return it without its fragment.

    Make the request with the returned object, so that no second parser can find another host in the
    text. No `port` allows any port. `is_literal_allowed` decides on an IP address as the host,
    because resolvers are not called for addresses. If `bare_names`, a host name may have no dot.
    Raises UrlRefused if the URL is not allowed.
    """
    if len(text) > max_length:
        raise UrlRefused(
            f"the URL has {len(text)} characters, the maximum is {max_length}",
            limit=max_length,
            observed=len(text),
        )
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
        raise UrlRefused(f"port {url_port} is refused, only port {port} is allowed")
    if not _is_name(host, bare_names=bare_names) and not is_literal_allowed(host):
        raise UrlRefused("its host is not a full domain name")
    return url.with_host(host)


def check_public_url(text: str) -> URL:
    """Check a URL that the user did not write, and return the URL to request.

    Such URLs come from a list of images, a file of labels, or a redirect.

    The scheme must be http or https. The host must be a full domain name or a public IP address.
    The URL may have any port, and may have spaces. Raises SourceError (`source_denied`) if the URL
    is not allowed.
    """
    quoted = text.replace(" ", "%20")
    try:  # The host is checked below, with another message.
        url = check_url(
            quoted, schemes=("http", "https"), is_literal_allowed=bool, max_length=_MAX_LISTED
        )
    except UrlRefused as error:
        raise SourceError(Status.SOURCE_DENIED, str(error)) from None
    host = url.raw_host or ""
    if not (is_public_address(host) or _is_name(host, bare_names=False)):
        raise SourceError(Status.SOURCE_DENIED, _NOT_PUBLIC)
    return url


async def open_guarded_session() -> aiohttp.ClientSession:
    """Return this process's aiohttp session for URLs from untrusted sources.

    Call this function in fsspec's event loop, because the session belongs to that loop. The session
    has no cookies. It ignores proxy variables, and the client settings of fsspec.
    """
    fs = fsspec.filesystem("http", get_client=_guarded_client)
    object_store.keep_open(fs)
    session: aiohttp.ClientSession = await fs.set_session()
    return session


async def _guarded_client(**_: Any) -> aiohttp.ClientSession:
    connector = aiohttp.TCPConnector(resolver=_PublicResolver(system_resolver, is_public_address))
    return aiohttp.ClientSession(
        connector=connector, cookie_jar=aiohttp.DummyCookieJar(), trust_env=False
    )


class _PublicResolver(CheckedResolver):
    """A `CheckedResolver` that raises SourceError."""

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Return every address of `host`, if all are public; otherwise raise SourceError."""
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
