"""The guard against real servers: TLS on loopback with a throw-away authority, asked through names
that only an injected resolver knows.

Most cases run twice: as `touchstone check URL` fetches, and as `data collect` does.
"""

import asyncio
import gzip
import socket
from contextlib import asynccontextmanager
from datetime import UTC, datetime

import pytest

from ray_app import __version__
from ray_app.errors import InputError, SourceError, Status
from ray_app.storage.errors import BAD_URL, FORBIDDEN_ADDRESS
from ray_app.storage.guarded_http import (
    FetchFailed,
    FetchRules,
    GuardedClient,
    fetch_image,
    parse_retry_after,
)
from ray_app.storage.ssrf import is_public_address, system_resolver
from tests.make.forking import run_in_fork
from tests.make.servers.tls import IMAGE, Loopback, Names, answer, authority, redirect

URL = "https://images.test/a.png"
NOT_PUBLIC = "its host is not on the public Internet"


@pytest.fixture(autouse=True)
def _trusted_authority(monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", authority()[0])


def only_the_test_server(address: str) -> bool:
    return address == "127.0.0.1" or is_public_address(address)


def collect_rules(max_bytes=2**20, timeout_s=5.0):
    """The rules of `data collect`."""
    limits = max_bytes, timeout_s, timeout_s, timeout_s
    schemes = ("http", "https")
    return FetchRules("collect/1", *limits, schemes, None, is_literal_allowed=True, keep_alive=True)


async def collect(url, max_bytes, *, timeout_s=5.0, **guards):
    """Fetch as `data collect` does, redirects included."""
    async with closing_client(collect_rules(max_bytes, timeout_s), **guards) as client:
        return (await client.follow(url, 3)).data


@asynccontextmanager
async def closing_client(rules, **guards):
    client = GuardedClient(rules, **guards)
    try:
        yield client
    finally:
        await client.close()


@pytest.fixture(params=[fetch_image, collect], ids=["check", "collect"])
def way(request):
    return request.param


def fetch(routes, url=URL, *, way=fetch_image, max_bytes=2**20, resolver=None, **options):
    """(bytes, server) of one fetch; `resolver` receives the server's address, and by default every
    name is the server.
    """
    options = {"is_allowed_address": only_the_test_server, **options}

    async def scenario():
        async with Loopback(routes) as server:
            here = ("127.0.0.1", server.port)

            async def everything_is_here(_host, _port):
                return [here]

            options["resolver"] = resolver(here) if resolver else everything_is_here
            try:
                return await way(url, max_bytes, **options), server
            except (InputError, FetchFailed) as error:
                error.server = server
                raise

    return asyncio.run(asyncio.wait_for(scenario(), 8))


def failure(*arguments, **options):
    """What a fetch raises: InputError or, as `data collect`, FetchFailed. No address is in its
    text.
    """
    with pytest.raises((InputError, FetchFailed)) as caught:
        fetch(*arguments, **options)
    assert "127.0" not in caught.value.detail
    return caught.value


def refusal(*arguments, **options):
    """The same, for a URL or an address that is refused."""
    error = failure(*arguments, **options)
    if isinstance(error, FetchFailed):
        assert error.status in (BAD_URL, FORBIDDEN_ADDRESS)
    else:
        assert error.status is Status.SOURCE_DENIED
        assert error.detail.startswith("not fetched: ")
    return error


def test_fetch_returns_the_image_and_sends_nothing_private(monkeypatch, tmp_path):
    (tmp_path / ".netrc").write_text("machine images.test login me password secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    for proxy in ("https_proxy", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(proxy, "http://127.0.0.1:9")
    routes = {"/a.png": redirect("/b?x=1", Set_Cookie="id=7; Secure"), "/b?x=1": answer()}
    body, server = fetch(routes, URL + "#part")
    assert body == IMAGE
    heads = [head for head, _, _ in server.requests]
    assert heads == ["GET /a.png HTTP/1.1", "GET /b?x=1 HTTP/1.1"]
    who = {"Host": "images.test", "User-Agent": f"touchstone/{__version__}"}
    what = {"Accept": "image/*,*/*;q=0.1", "Accept-Encoding": "identity", "Connection": "close"}
    assert [headers for _, headers, _ in server.requests] == [who | what] * 2
    assert server.names == ["images.test"] * 2


PLAIN_FORMS = {
    "https://IMAGES.test.:443/a.png": "images.test",
    "https://exämple.test/a.png": "xn--exmple-cua.test",
    "https://ｉmages。test/a.png": "images.test",
    "HTTPS://a.images.test/a.png": "a.images.test",
}


def test_name_is_requested_in_its_plain_form():
    for url, host in PLAIN_FORMS.items():
        body, server = fetch({"/a.png": answer()}, url)
        assert (body, server.requests[0][1]["Host"], server.names) == (IMAGE, host, [host])


NEVER_ASKED = r"""
    http://images.test/a http://images.test:443/a ftp://images.test/a file:///etc/passwd images.test/a //images.test/a https:///a
    https:images.test https://images.test:80/ https://images.test:8443/ https://images.test:99999/ https://me@images.test/ https://:@images.test/
    https://2130706433/ https://0x7f.1/ https://0177.0.0.1/ https://127.1/ https://127.0.0.1./ https://127%2e0.0.1/ https://①②⑦.0.0.1/
    https://8.8.8.8/ https://images.0x1/ https://[::ffff:127.0.0.1]/ https://[64:ff9b::7f00:1]/ https://[fe80::1%25eth0]/ https://[::1/
    https://localhost./ https://images..test/ https://-a.test/ https://images.test\@10.0.0.1/ https://images%00.test/ https://a_b!.test/
"""
ODD = ["", "https://ima\tges.test/", "https://images.test/\r\nHost:x", " https://images.test/"]
REFUSED = [*NEVER_ASKED.split(), *ODD, URL + "a" * 2048]
# `data collect` may request these, if their addresses are public.
ASKED_BY_COLLECT = ("http://images.test", "https://images.test:8", "https://8.8.8.8/")
PRIVATE = ["http://10.0.0.1/", "http://[::1]/", "http://169.254.169.254/", "http://localhost/"]


def test_url_that_is_refused_by_check_connects_to_nothing():
    for url in REFUSED:
        assert refusal({}, url).server.connections == 0, url


def test_url_that_is_refused_by_collect_connects_to_nothing():
    for url in [url for url in REFUSED if not url.startswith(ASKED_BY_COLLECT)] + PRIVATE:
        error = refusal({}, url, way=collect, is_allowed_address=is_public_address)
        assert (error.server.connections, error.asked) == (0, False), url


def test_literal_address_is_fetched_only_if_allowed():
    async def scenario():
        async with Loopback(answer(), tls=False) as server:
            url = f"http://127.0.0.1:{server.port}/a.png"
            assert await collect(url, 2**20, is_allowed_address=only_the_test_server) == IMAGE
            with pytest.raises(FetchFailed) as caught:
                await collect(url, 2**20)
            return caught.value, server

    error, server = asyncio.run(scenario())
    assert (error.status, server.connections) == (FORBIDDEN_ADDRESS, 1)


def test_name_is_looked_up_once_against_rebinding(way):
    names = None

    def rebinding(here):
        nonlocal names
        names = Names(images_test=[[here], [("10.0.0.1", 443)]])
        return names

    assert fetch(answer(), way=way, resolver=rebinding)[0] == IMAGE
    assert names.asked == [("images.test", 443)]


def here_then_private(here):
    return Names(images_test=[[here], [("127.0.0.2", here[1])]])


def test_redirect_to_the_same_name_is_checked_again():
    error = refusal({"/a.png": redirect("/b")}, resolver=here_then_private)
    assert NOT_PUBLIC in error.detail
    assert error.server.connections == 1


def test_kept_address_of_a_name_is_the_one_that_was_checked():
    routes = {"/a.png": redirect("/b", Connection="close"), "/b": answer()}
    body, server = fetch(routes, way=collect, resolver=here_then_private)
    assert (body, server.connections) == (IMAGE, 2)


@pytest.mark.parametrize("place", [0, 2])
def test_name_with_one_private_address_is_refused(way, place):
    def resolver(here):
        found = [here, ("1.1.1.1", 443)]
        found.insert(place, ("192.168.1.1", 443))
        return Names(images_test=[found])

    error = refusal(answer(), way=way, resolver=resolver)
    assert NOT_PUBLIC in error.detail
    assert error.server.connections == 0


def test_name_with_an_ipv4_address_inside_ipv6_is_refused(way):
    def resolver(here):
        return Names(images_test=[[("::ffff:127.0.0.1", here[1])]])

    error = refusal(answer(), way=way, resolver=resolver, is_allowed_address=is_public_address)
    assert error.server.connections == 0


def test_name_that_is_missing_or_internal_has_its_own_reason(way):
    names = Names(images_test=[[("10.1.2.3", 443)]])
    internal = refusal(answer(), way=way, resolver=lambda _: names)
    assert NOT_PUBLIC in internal.detail
    assert "10.1" not in internal.detail
    for names in (Names(), Names(images_test=[[]])):
        missing = failure(answer(), way=way, resolver=lambda _, names=names: names)
        assert missing.status == Status.SOURCE_MISSING
        assert missing.detail == "there is no host of that name"


def test_name_server_that_is_down_is_a_timeout(way):
    async def away(_host, _port):
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    assert failure(answer(), way=way, resolver=lambda _: away).status == Status.SOURCE_TIMEOUT


def test_name_is_looked_up_absolute(monkeypatch):
    asked = []

    def lookup(*name, **_):
        asked.append(name)
        return [(0, 0, 0, "", ("fe80::1%eth0", 443, 0, 2))]

    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    with pytest.raises(SourceError, match=NOT_PUBLIC):
        asyncio.run(fetch_image("https://db.prod/", 1))
    assert asked == [("db.prod.", 443)]


def test_forked_process_looks_names_up_after_its_parent(monkeypatch):
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [(0, 0, 0, "", ("10.0.0.1", 80))])

    def look_up():
        return asyncio.run(system_resolver("internal.test", 80))

    assert look_up() == run_in_fork(look_up) == [("10.0.0.1", 80)]


INTERNAL = r"""
    https://169.254.169.254/latest/meta-data/ //10.0.0.1/ https://internal.test/ file:///etc/passwd https://[ \\internal.test\a
"""


@pytest.mark.parametrize("place", [*INTERNAL.split(), "https://images.test/" + "a" * 2048])
def test_redirect_is_checked_like_the_first_url(way, place):
    def resolver(here):
        return Names(images_test=[[here]], internal_test=[[("127.0.0.2", here[1])]])

    error = refusal({"/a.png": redirect(place, Connection="close")}, way=way, resolver=resolver)
    assert error.server.connections == 1


@pytest.mark.parametrize("place", ["http://images.test/", "https://images.test:8443/"])
def test_redirect_to_another_scheme_or_port_is_refused_by_check(place):
    assert refusal({"/a.png": redirect(place)}).server.connections == 1


def test_redirect_with_a_nul_is_refused(way):
    error = failure({"/a.png": redirect("ht\x00tps://images.test/")}, way=way)
    assert (error.status, error.server.connections) == (Status.SOURCE_DENIED, 1)


def test_redirect_that_is_not_utf8_keeps_its_bytes():
    moved = b"HTTP/1.1 302 X\r\nContent-Length: 0\r\nLocation: http://h1.test/caf\xe9.png\r\n\r\n"

    async def scenario():
        async with Loopback(moved, tls=False) as server:
            guard = {"is_allowed_address": only_the_test_server}
            async with closing_client(collect_rules(), **guard) as client:
                return await client.get(f"http://127.0.0.1:{server.port}/")

    response = asyncio.run(scenario())
    assert (response.moved, response.http_status) == ("http://h1.test/caf%E9.png", 302)


def test_redirects_are_followed_three_times(way):
    routes = {f"/{n}": redirect(f"{n + 1}", Connection="close") for n in range(9)}
    error = failure(routes, "https://images.test/0", way=way)
    assert (error.status, len(error.server.requests)) == (Status.SOURCE_DENIED, 4)
    assert error.detail == "redirected more than 3 times"
    routes |= {"/3": answer(), "/a.png": redirect("/a.png", Connection="close")}
    assert fetch(routes, "https://images.test/0", way=way)[0] == IMAGE
    assert len(failure(routes, way=way).server.requests) == 4


def test_redirect_without_a_location_is_refused(way):
    assert failure(answer(b"", "303 x"), way=way).status == Status.SOURCE_DENIED


async def never(_server, _writer):
    await asyncio.Event().wait()


def dripping(beginning, piece):
    async def drip(_server, writer):
        writer.write(beginning)
        while not writer.transport.is_closing():
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0.01)

    return drip


SLOW = {
    "never": never,
    "a body": dripping(answer(b"", Content_Length="100000"), b"x"),
    "headers": dripping(b"HTTP/1.1 200 OK\r\nX: ", b"x"),
    "interim for ever": dripping(b"", b"HTTP/1.1 102 Processing\r\n\r\n"),
}


@pytest.mark.parametrize("server", SLOW.values(), ids=SLOW)
def test_slow_server_is_cut_at_the_total(way, server):
    error = failure(server, way=way, timeout_s=0.3)
    assert error.status == Status.SOURCE_TIMEOUT
    assert error.server.connections == 1


def test_total_time_includes_all_redirects():
    async def late(_server, writer):
        await asyncio.sleep(0.2)
        writer.write(redirect("/a.png"))

    error = failure(late, timeout_s=0.5)
    assert error.status is Status.SOURCE_TIMEOUT
    assert len(error.server.requests) <= 3


def test_host_that_does_not_answer_is_a_timeout(way):
    async def unnamed(_host, _port):
        await asyncio.Event().wait()

    # One host never shakes hands, one accepts no connection.
    with socket.create_server(("127.0.0.1", 0)) as silent, socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        there = [Names(images_test=[[host.getsockname()]]) for host in (silent, closed)]
        errors = [
            failure({}, way=way, resolver=lambda _, names=names: names, timeout_s=0.4)
            for names in (unnamed, *there)
        ]
    assert {error.status for error in errors} == {Status.SOURCE_TIMEOUT}
    silence = "the host did not answer in time"
    refused = "no connection: Connection refused"
    assert [error.detail for error in errors] == [silence, silence, refused]


async def endless(server, writer):
    writer.write(answer(b"", Content_Length="", Transfer_Encoding="chunked"))
    while server.written < 2**28 and not writer.transport.is_closing():
        writer.write(b"10000\r\n" + bytes(2**16) + b"\r\n")
        await writer.drain()
        await asyncio.sleep(0)  # drain alone lets nobody else run
        server.written += 2**16


def test_endless_body_is_cut_at_the_limit(way):
    error = failure(endless, way=way, max_bytes=2**20)
    assert error.status == Status.IMAGE_TOO_LARGE
    assert error.detail == "more than 1,048,576 bytes, over the limit of 1,048,576"
    assert error.server.written < 2**20 + 2**24  # what the sockets' own buffers hold


def test_body_of_exactly_the_limit_is_returned(way):
    assert fetch(answer(bytes(1000)), way=way, max_bytes=1000)[0] == bytes(1000)
    error = failure(answer(bytes(1001)), way=way, max_bytes=1000)
    assert error.status == Status.IMAGE_TOO_LARGE
    assert error.detail == "1,001 bytes, over the limit of 1,000"


def test_announced_size_over_the_limit_is_refused_at_once(way):
    async def announces(_server, writer):
        writer.write(answer(b"", Content_Length=str(10 * 2**30)))
        await asyncio.Event().wait()

    error = failure(announces, way=way)
    assert error.status == Status.IMAGE_TOO_LARGE
    assert error.detail == "10,737,418,240 bytes, over the limit of 1,048,576"


@pytest.mark.parametrize(
    ("reply", "status"),
    [
        (answer(Content_Length=str(len(IMAGE) + 1)), Status.SOURCE_TIMEOUT),
        (b"", Status.SOURCE_TIMEOUT),
        *((answer(Content_Length=odd), Status.SOURCE_DENIED) for odd in ("-1", "many", "1, 2")),
    ],
    ids=["longer", "nothing", "-1", "many", "two"],
)
def test_length_that_lies_is_refused(way, reply, status):
    assert failure(reply, way=way).status == status


def test_bytes_after_the_announced_length_are_refused_by_check():
    assert failure(answer(Content_Length="4")).status is Status.SOURCE_DENIED


def test_compressed_answer_is_refused(way):
    for coding in ("GZIP", "identity, zstd"):
        error = failure(answer(gzip.compress(bytes(2**24)), Content_Encoding=coding), way=way)
        assert error.status == Status.SOURCE_DENIED
        assert "compresses" in error.detail
    assert fetch(answer(Content_Encoding="Identity"), way=way)[0] == IMAGE


SECRET = "https://images.test/x.png?X-Amz-Signature=hush"


@pytest.mark.parametrize(
    "raw",
    [
        answer(X=20_000 * "x"),
        answer(**{f"X{n}": "x" for n in range(500)}),
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"HTTP/1.1 OK OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n",
        redirect("http://[/x"),
    ],
    ids=["long header", "many headers", "ssh", "status", "length", "location"],
)
def test_answer_that_is_not_http_is_refused_without_the_url(way, raw):
    error = failure(raw, SECRET, way=way)
    assert "hush" not in str(error)
    is_redirect = raw.startswith(b"HTTP/1.1 302")
    assert error.status == (BAD_URL if way is collect and is_redirect else Status.SOURCE_DENIED)


STATUSES = {
    Status.SOURCE_MISSING: (404, 410),
    Status.SOURCE_DENIED: (403, 418, 206, 304),
    Status.SOURCE_THROTTLED: (429, 503),
    Status.SOURCE_TIMEOUT: (500, 408, 425),
}


@pytest.mark.parametrize("status", STATUSES)
def test_http_status_maps_to_source_status(way, status):
    for code in STATUSES[status]:
        body = b"" if code == 304 else b"<secret words of theirs>"
        error = failure(answer(body, f"{code} theirs"), way=way)
        assert (error.status, error.detail) == (status, f"the host answered {code}")


def test_certificate_must_be_for_the_name_and_trusted(way, monkeypatch):
    assert failure(answer(), "https://elsewhere.test/", way=way).status == Status.SOURCE_DENIED
    monkeypatch.delenv("SSL_CERT_FILE")
    error = failure(answer(), way=way)
    assert error.status == Status.SOURCE_DENIED
    assert error.server.requests == []


NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


RETRY_AFTER = {
    "120": 120,
    "0": 0,
    " 7 ": 7,
    "Fri, 02 Jan 2026 03:05:05 GMT": 60,
    "Fri, 02 Jan 2026 03:00:00 GMT": 0,
    "Fri, 02 Jan 2026 03:05:99999999999999999999 GMT": None,
} | dict.fromkeys(["", None, "soon", "-5", "1.5", "٣"])


def test_retry_after_is_seconds_or_a_date():
    assert {text: parse_retry_after(text, NOW) for text in RETRY_AFTER} == RETRY_AFTER
