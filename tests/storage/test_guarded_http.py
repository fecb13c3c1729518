"""The guard against real servers: TLS on loopback with a throw-away authority, asked through names
that only an injected resolver knows.

Most cases run twice: as `touchstone check URL` fetches, and as `data collect` does.
"""

import asyncio
import gzip
import socket
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
from ray_app.storage.ssrf import is_public_address
from tests.storage.tls_server import IMAGE, Loopback, Names, answer, authority, redirect

URL = "https://images.test/a.png"
NOT_PUBLIC = "its host is not on the public Internet"


@pytest.fixture(autouse=True)
def _trusted_authority(monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", authority()[0])


def only_the_test_server(address: str) -> bool:
    return address == "127.0.0.1" or is_public_address(address)


def collect_rules(max_bytes=2**20, timeout_s=5.0):
    """The rules of `data collect`."""
    return FetchRules(
        "collect/1",
        max_bytes,
        timeout_s,
        timeout_s,
        timeout_s,
        ("http", "https"),
        None,
        is_literal_allowed=True,
        keep_alive=True,
    )


async def collect(url, max_bytes, *, timeout_s=5.0, **guards):
    """Fetch as `data collect` does, redirects included."""
    client = GuardedClient(collect_rules(max_bytes, timeout_s), **guards)
    try:
        return (await client.follow(url, 3)).data
    finally:
        await client.close()


@pytest.fixture(params=[fetch_image, collect], ids=["check", "collect"])
def way(request):
    return request.param


def fetch(
    routes,
    url=URL,
    *,
    way=fetch_image,
    max_bytes=2**20,
    resolver=None,
    is_allowed=only_the_test_server,
    **options,
):
    """(bytes, server) of one fetch; `resolver` is told the server's port, and by default every name
    is the server.
    """

    async def scenario():
        async with Loopback(routes) as server:
            here = ("127.0.0.1", server.port)

            async def everything_is_here(_host, _port):
                return [here]

            asked = resolver(here) if resolver else everything_is_here
            try:
                return await way(
                    url, max_bytes, resolver=asked, is_allowed_address=is_allowed, **options
                ), server
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


def test_image_arrives_whole_and_the_request_tells_nothing_but_who_asks(monkeypatch, tmp_path):
    (tmp_path / ".netrc").write_text("machine images.test login me password secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    for proxy in ("https_proxy", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(proxy, "http://127.0.0.1:9")
    routes = {"/a.png": redirect("/b?x=1", Set_Cookie="id=7; Secure"), "/b?x=1": answer()}
    body, server = fetch(routes, URL + "#part")
    assert body == IMAGE
    assert [head for head, _, _ in server.requests] == [
        "GET /a.png HTTP/1.1",
        "GET /b?x=1 HTTP/1.1",
    ]
    plain = {"Accept": "image/*,*/*;q=0.1", "Accept-Encoding": "identity", "Connection": "close"}
    for _, headers, _ in server.requests:
        assert headers == {
            "Host": "images.test",
            "User-Agent": f"touchstone/{__version__}",
            **plain,
        }
    assert server.names == ["images.test"] * 2


PLAIN_FORMS = {
    "https://IMAGES.test.:443/a.png": "images.test",
    "https://exämple.test/a.png": "xn--exmple-cua.test",
    "https://ｉmages。test/a.png": "images.test",
    "HTTPS://a.images.test/a.png": "a.images.test",
}


def test_name_is_asked_for_in_its_plain_form():
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
ODD = [
    "",
    "https://ima\tges.test/",
    "https://images.test/\r\nHost:x",
    " https://images.test/",
    URL + "a" * 2048,
]


# `data collect` may request these, if their addresses are public.
ASKED_BY_COLLECT = (
    "http://images.test",
    "https://images.test:80/",
    "https://images.test:8443/",
    "https://8.8.8.8/",
)
NOT_BY_COLLECT = [
    url for url in [*NEVER_ASKED.split(), *ODD] if not url.startswith(ASKED_BY_COLLECT)
]


@pytest.mark.parametrize("url", [*NEVER_ASKED.split(), *ODD])
def test_url_that_check_never_asks(url):
    assert refusal({}, url).server.connections == 0


@pytest.mark.parametrize(
    "url",
    [
        *NOT_BY_COLLECT,
        "http://10.0.0.1/",
        "http://[::1]/",
        "http://169.254.169.254/",
        "http://localhost/",
    ],
)
def test_url_that_collect_never_asks(url):
    error = refusal({}, url, way=collect, is_allowed=is_public_address)
    assert (error.server.connections, error.asked) == (0, False)


def test_literal_address_is_asked_only_if_it_is_allowed():
    async def scenario():
        async with Loopback(answer(), tls=False) as server:
            url = f"http://127.0.0.1:{server.port}/a.png"
            assert await collect(url, 2**20, is_allowed_address=only_the_test_server) == IMAGE
            with pytest.raises(FetchFailed) as caught:
                await collect(url, 2**20)
            return caught.value, server

    error, server = asyncio.run(scenario())
    assert (error.status, server.connections) == (FORBIDDEN_ADDRESS, 1)


def test_name_is_looked_up_once_so_that_a_second_answer_changes_nothing(way):
    names = None

    def rebinding(here):
        nonlocal names
        names = Names(images_test=[[here], [("10.0.0.1", 443)]])
        return names

    assert fetch(answer(), way=way, resolver=rebinding)[0] == IMAGE
    assert names.asked == [("images.test", 443)]


def test_redirect_to_the_same_name_is_looked_up_and_checked_again():
    error = refusal(
        {"/a.png": redirect("/b")},
        resolver=lambda here: Names(images_test=[[here], [("127.0.0.2", here[1])]]),
    )
    assert NOT_PUBLIC in error.detail
    assert error.server.connections == 1


def test_kept_address_of_a_name_is_the_one_that_was_checked():
    routes = {"/a.png": redirect("/b", Connection="close"), "/b": answer()}
    body, server = fetch(
        routes,
        way=collect,
        resolver=lambda here: Names(images_test=[[here], [("127.0.0.2", here[1])]]),
    )
    assert (body, server.connections) == (IMAGE, 2)


@pytest.mark.parametrize("place", [0, 2])
def test_one_bad_address_refuses_the_name(way, place):
    def resolver(here):
        found = [here, ("1.1.1.1", 443)]
        found.insert(place, ("192.168.1.1", 443))
        return Names(images_test=[found])

    error = refusal(answer(), way=way, resolver=resolver)
    assert NOT_PUBLIC in error.detail
    assert error.server.connections == 0


def test_real_rule_sees_ipv4_inside_ipv6(way):
    inside = lambda here: Names(images_test=[[("::ffff:127.0.0.1", here[1])]])  # noqa: E731
    error = refusal(answer(), way=way, resolver=inside, is_allowed=is_public_address)
    assert error.server.connections == 0


def test_missing_name_and_internal_name_have_their_own_reasons(way):
    internal = refusal(
        answer(), way=way, resolver=lambda _: Names(images_test=[[("10.1.2.3", 443)]])
    )
    assert NOT_PUBLIC in internal.detail
    assert "10.1" not in internal.detail
    for names in (Names(), Names(images_test=[[]])):
        missing = failure(answer(), way=way, resolver=lambda _, names=names: names)
        assert (missing.status, missing.detail) == (
            Status.SOURCE_MISSING,
            "there is no host of that name",
        )


def test_name_server_that_is_away_is_told_as_passing(way):
    async def away(_host, _port):
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    assert failure(answer(), way=way, resolver=lambda _: away).status == Status.SOURCE_TIMEOUT


def test_names_are_looked_up_absolute(monkeypatch):
    asked = []
    monkeypatch.setattr(
        socket,
        "getaddrinfo",
        lambda *a, **_: asked.append(a) or [(0, 0, 0, "", ("fe80::1%eth0", 443, 0, 2))],
    )
    with pytest.raises(SourceError, match=NOT_PUBLIC):
        asyncio.run(fetch_image("https://db.prod/", 1))
    assert asked == [("db.prod.", 443)]


INTERNAL = r"""
    https://169.254.169.254/latest/meta-data/ //10.0.0.1/ https://internal.test/ file:///etc/passwd https://[ \\internal.test\a
"""


@pytest.mark.parametrize("place", [*INTERNAL.split(), "https://images.test/" + "a" * 2048])
def test_redirect_is_checked_like_the_first_url(way, place):
    def resolver(here):
        return Names(images_test=[[here]], internal_test=[[("127.0.0.2", here[1])]])

    error = refusal({"/a.png": redirect(place, Connection="close")}, way=way, resolver=resolver)
    assert error.server.connections == 1


def test_redirect_to_another_scheme_or_port_is_refused_by_check():
    for place in ("http://images.test/", "https://images.test:8443/"):
        assert refusal({"/a.png": redirect(place)}).server.connections == 1


def test_redirect_with_a_nul_is_no_http(way):
    error = failure({"/a.png": redirect("ht\x00tps://images.test/")}, way=way)
    assert (error.status, error.server.connections) == (Status.SOURCE_DENIED, 1)


def test_redirect_that_is_not_utf8_leads_to_what_its_bytes_say():
    async def scenario():
        async with Loopback(
            b"HTTP/1.1 302 X\r\nContent-Length: 0\r\nLocation: http://h1.test/caf\xe9.png\r\n\r\n",
            tls=False,
        ) as server:
            client = GuardedClient(collect_rules(), is_allowed_address=only_the_test_server)
            try:
                return await client.get(f"http://127.0.0.1:{server.port}/")
            finally:
                await client.close()

    response = asyncio.run(scenario())
    assert (response.moved, response.http_status) == ("http://h1.test/caf%E9.png", 302)


def test_redirects_end(way):
    routes = {f"/{n}": redirect(f"{n + 1}", Connection="close") for n in range(9)}
    error = failure(routes, "https://images.test/0", way=way)
    assert (error.status, error.detail) == (Status.SOURCE_DENIED, "redirected more than 3 times")
    assert len(error.server.requests) == 4
    assert (
        len(failure({"/a.png": redirect("/a.png", Connection="close")}, way=way).server.requests)
        == 4
    )
    routes["/3"] = answer()
    assert fetch(routes, "https://images.test/0", way=way)[0] == IMAGE


def test_redirect_without_a_place(way):
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


def test_total_holds_over_all_redirects_together():
    async def late(_server, writer):
        await asyncio.sleep(0.2)
        writer.write(redirect("/a.png"))

    error = failure(late, timeout_s=0.5)
    assert error.status is Status.SOURCE_TIMEOUT
    assert len(error.server.requests) <= 3


def test_closed_silent_and_slowly_named_servers_are_timeouts(way):
    async def unnamed(_host, _port):
        await asyncio.Event().wait()

    # one never shakes hands, one takes no connection
    with socket.create_server(("127.0.0.1", 0)) as silent, socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        resolvers = [
            unnamed,
            *(Names(images_test=[[one.getsockname()]]) for one in (silent, closed)),
        ]
        errors = [
            failure({}, way=way, resolver=lambda _, asked=asked: asked, timeout_s=0.4)
            for asked in resolvers
        ]
    assert {error.status for error in errors} == {Status.SOURCE_TIMEOUT}
    assert [error.detail for error in errors[:2]] == ["the host did not answer in time"] * 2
    assert errors[2].detail == "no connection: Connection refused"


async def endless(server, writer):
    writer.write(answer(b"", Content_Length="", Transfer_Encoding="chunked"))
    while server.written < 2**28 and not writer.transport.is_closing():
        writer.write(b"10000\r\n" + bytes(2**16) + b"\r\n")
        await writer.drain()
        await asyncio.sleep(0)  # drain alone lets nobody else run
        server.written += 2**16


def test_endless_body_is_cut_at_the_limit(way):
    error = failure(endless, way=way, max_bytes=2**20)
    assert (error.status, error.detail) == (
        Status.IMAGE_TOO_LARGE,
        "more than 1,048,576 bytes, over the limit of 1,048,576",
    )
    assert error.server.written < 2**20 + 2**24  # what the sockets' own buffers hold


def test_exactly_the_limit_is_let_in(way):
    assert fetch(answer(bytes(1000)), way=way, max_bytes=1000)[0] == bytes(1000)
    error = failure(answer(bytes(1001)), way=way, max_bytes=1000)
    assert (error.status, error.detail) == (
        Status.IMAGE_TOO_LARGE,
        "1,001 bytes, over the limit of 1,000",
    )


def test_announced_size_over_the_limit_is_believed_at_once(way):
    async def announces(_server, writer):
        writer.write(answer(b"", Content_Length=str(10 * 2**30)))
        await asyncio.Event().wait()

    error = failure(announces, way=way)
    assert (error.status, error.detail) == (
        Status.IMAGE_TOO_LARGE,
        "10,737,418,240 bytes, over the limit of 1,048,576",
    )


def test_lying_lengths(way):
    # it broke off
    assert (
        failure(answer(Content_Length=str(len(IMAGE) + 1)), way=way).status == Status.SOURCE_TIMEOUT
    )
    assert failure(b"", way=way).status == Status.SOURCE_TIMEOUT
    for odd in ("-1", "many", "1, 2"):
        assert failure(answer(Content_Length=odd), way=way).status == Status.SOURCE_DENIED


def test_bytes_after_the_announced_length_are_refused_by_check():
    assert failure(answer(Content_Length="4")).status is Status.SOURCE_DENIED


def test_compressed_answer_is_refused_unpacked_or_not(way):
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
def test_what_is_no_answer_is_told_without_the_url(way, raw):
    error = failure(raw, SECRET, way=way)
    assert "hush" not in str(error)
    assert error.status == (
        BAD_URL if way is collect and raw.startswith(b"HTTP/1.1 302") else Status.SOURCE_DENIED
    )


STATUSES = {
    Status.SOURCE_MISSING: (404, 410),
    Status.SOURCE_DENIED: (403, 418, 206, 304),
    Status.SOURCE_THROTTLED: (429, 503),
}


def test_http_status_maps_to_source_status(way):
    for expected, statuses in (STATUSES | {Status.SOURCE_TIMEOUT: (500, 408, 425)}).items():
        for status in statuses:
            error = failure(
                answer(b"" if status == 304 else b"<secret words of theirs>", f"{status} theirs"),
                way=way,
            )
            assert (error.status, error.detail) == (expected, f"the host answered {status}")


def test_certificate_must_be_for_the_name_and_trusted(way, monkeypatch):
    assert failure(answer(), "https://elsewhere.test/", way=way).status == Status.SOURCE_DENIED
    monkeypatch.delenv("SSL_CERT_FILE")
    error = failure(answer(), way=way)
    assert error.status == Status.SOURCE_DENIED
    assert error.server.requests == []


NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("120", 120), ("0", 0), (" 7 ", 7), ("Fri, 02 Jan 2026 03:05:05 GMT", 60), ("Fri, 02 Jan 2026 03:00:00 GMT", 0),
        ("", None), (None, None), ("soon", None), ("-5", None), ("1.5", None), ("٣", None),
        ("Fri, 02 Jan 2026 03:05:99999999999999999999 GMT", None),
    ],
)  # fmt: skip
def test_retry_after(text, seconds):
    assert parse_retry_after(text, NOW) == seconds
