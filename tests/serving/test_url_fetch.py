"""The guard against real servers: TLS on loopback with a throw-away authority, asked through names that only an injected resolver knows."""

import asyncio
import gzip
import socket

import pytest

from ray_app import __version__
from ray_app.errors import InputError, SourceError, Status
from ray_app.serving.config import UrlFetching
from ray_app.serving.http.errors import MESSAGES, Refusal
from ray_app.serving.url_fetch import GuardedFetcher
from ray_app.storage.ssrf import is_public_address
from tests.serving.tls_server import IMAGE, Loopback, Names, answer, authority, redirect

URL = "https://images.test/a.png"
REFUSED_ADDRESS = MESSAGES["url_refused"][1]


@pytest.fixture(autouse=True)
def _trusted_authority(monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", authority()[0])


def only_the_test_server(address: str) -> bool:
    return address == "127.0.0.1" or is_public_address(address)


def fetch(routes, url=URL, *, max_bytes=2**20, resolver=None, is_allowed=only_the_test_server, **rules):
    """(bytes, server) of one fetch; `resolver` is told the server's port, and by default every name is the server."""

    async def scenario():
        async with Loopback(routes) as server:
            here = ("127.0.0.1", server.port)

            async def everything_is_here(_host, _port):
                return [here]

            asked = resolver(here) if resolver else everything_is_here
            fetcher = GuardedFetcher(UrlFetching(**rules), max_bytes, resolver=asked, is_allowed_address=is_allowed)
            try:
                return await fetcher.fetch(url), server
            except (InputError, Refusal) as error:
                error.server = server
                raise

    return asyncio.run(asyncio.wait_for(scenario(), 8))


def refusal(*arguments, **options) -> Refusal:
    with pytest.raises(Refusal) as caught:
        fetch(*arguments, **options)
    assert caught.value.code == "url_refused"
    assert caught.value.status == 422
    return caught.value


def failure(*arguments, **options) -> InputError:
    with pytest.raises(InputError) as caught:
        fetch(*arguments, **options)
    assert "127.0" not in caught.value.detail
    return caught.value


def test_image_arrives_whole_and_the_request_tells_nothing_but_who_asks(monkeypatch, tmp_path):
    (tmp_path / ".netrc").write_text("machine images.test login me password secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    for proxy in ("https_proxy", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(proxy, "http://127.0.0.1:9")
    routes = {"/a.png": redirect("/b?x=1", Set_Cookie="id=7; Secure"), "/b?x=1": answer()}
    body, server = fetch(routes, URL + "#part")
    assert body == IMAGE
    assert [head for head, _, _ in server.requests] == ["GET /a.png HTTP/1.1", "GET /b?x=1 HTTP/1.1"]
    plain = {"Accept": "*/*", "Accept-Encoding": "identity", "Connection": "close"}
    for _, headers, _ in server.requests:
        assert headers == {"Host": "images.test", "User-Agent": f"touchstone/{__version__}", **plain}
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
ODD = ["", "https://ima\tges.test/", "https://images.test/\r\nHost:x", " https://images.test/", URL + "a" * 2048]


@pytest.mark.parametrize("url", [*NEVER_ASKED.split(), *ODD])
def test_url_that_is_never_asked(url):
    error = refusal({}, url)
    assert error.server.connections == 0
    assert error.message


def test_name_is_looked_up_once_so_that_a_second_answer_changes_nothing():
    names = None

    def rebinding(here):
        nonlocal names
        names = Names(images_test=[[here], [("10.0.0.1", 443)]])
        return names

    assert fetch(answer(), resolver=rebinding)[0] == IMAGE
    assert names.asked == [("images.test", 443)]


def test_redirect_to_the_same_name_is_looked_up_and_checked_again():
    error = refusal({"/a.png": redirect("/b")}, resolver=lambda here: Names(images_test=[[here], [("127.0.0.2", here[1])]]))
    assert error.message == REFUSED_ADDRESS
    assert error.server.connections == 1


@pytest.mark.parametrize("place", [0, 2])
def test_one_bad_address_refuses_the_name(place):
    def resolver(here):
        found = [here, ("1.1.1.1", 443)]
        found.insert(place, ("192.168.1.1", 443))
        return Names(images_test=[found])

    error = refusal(answer(), resolver=resolver)
    assert error.message == REFUSED_ADDRESS
    assert error.server.connections == 0


def test_real_rule_sees_ipv4_inside_ipv6():
    error = refusal(answer(), resolver=lambda here: Names(images_test=[[("::ffff:127.0.0.1", here[1])]]), is_allowed=is_public_address)
    assert error.server.connections == 0


def test_no_such_name_and_an_internal_one_read_the_same():
    def told(resolver):
        error = refusal(answer(), resolver=resolver)
        return error.message, error.limit, error.observed, error.headers

    internal = told(lambda _: Names(images_test=[[("10.1.2.3", 443)]]))
    assert told(lambda _: Names()) == told(lambda _: Names(images_test=[[]])) == internal
    assert "10.1" not in internal[0]


def test_name_server_that_is_away_is_told_as_passing():
    async def away(_host, _port):
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    assert failure(answer(), resolver=lambda _: away).status is Status.SOURCE_TIMEOUT


def test_names_are_looked_up_absolute(monkeypatch):
    asked = []
    monkeypatch.setattr(socket, "getaddrinfo", lambda *a, **_: asked.append(a) or [(0, 0, 0, "", ("fe80::1%eth0", 443, 0, 2))])
    with pytest.raises(Refusal, match=REFUSED_ADDRESS):
        asyncio.run(GuardedFetcher(UrlFetching(), 1).fetch("https://db.prod/"))
    assert asked == [("db.prod.", 443)]


ELSEWHERE = r"""
    http://images.test/ https://169.254.169.254/latest/meta-data/ //10.0.0.1/ https://internal.test/ file:///etc/passwd https://[
    \\internal.test\a
"""


@pytest.mark.parametrize("place", [*ELSEWHERE.split(), "https://images.test/" + "a" * 2048, "ht\x00tps://images.test/"])
def test_redirect_is_checked_like_the_first_url(place):
    def resolver(here):
        return Names(images_test=[[here]], internal_test=[[("127.0.0.2", here[1])]])

    with pytest.raises((Refusal, SourceError)) as caught:
        fetch({"/a.png": redirect(place)}, resolver=resolver)
    error = caught.value
    assert isinstance(error, Refusal) or "\x00" in place  # with a NUL the header itself is no HTTP
    assert error.server.connections == 1


def test_redirects_end():
    routes = {f"/{n}": redirect(f"{n + 1}") for n in range(9)}
    error = refusal(routes, "https://images.test/0")
    assert (error.limit, error.observed, len(error.server.requests)) == (3, 4, 4)
    assert len(refusal({"/a.png": redirect("/a.png")}).server.requests) == 4
    routes["/3"] = answer()
    assert fetch(routes, "https://images.test/0")[0] == IMAGE
    assert len(refusal({"/a.png": redirect("/b")}, max_redirects=0).server.requests) == 1


def test_redirect_without_a_place():
    assert failure(answer(b"", "303 x")).status is Status.SOURCE_DENIED


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
def test_slow_server_is_cut_at_the_total(server):
    error = failure(server, total_timeout_s=0.3)
    assert error.status is Status.SOURCE_TIMEOUT
    assert error.server.connections == 1


def test_total_holds_over_all_redirects_together():
    async def late(_server, writer):
        await asyncio.sleep(0.2)
        writer.write(redirect("/a.png"))

    error = failure(late, total_timeout_s=0.5, max_redirects=10)
    assert error.status is Status.SOURCE_TIMEOUT
    assert len(error.server.requests) <= 3


def test_closed_silent_and_slowly_named_servers_read_the_same():
    async def unnamed(_host, _port):
        await asyncio.Event().wait()

    with socket.create_server(("127.0.0.1", 0)) as silent, socket.socket() as closed:  # one never shakes hands, one takes no connection
        closed.bind(("127.0.0.1", 0))
        resolvers = [unnamed, *(Names(images_test=[[one.getsockname()]]) for one in (silent, closed))]
        errors = [failure({}, resolver=lambda _, asked=asked: asked, connect_timeout_s=0.2, total_timeout_s=7) for asked in resolvers]
    assert {(error.status, error.detail) for error in errors} == {(Status.SOURCE_TIMEOUT, "its server did not answer in time")}


async def endless(server, writer):
    writer.write(answer(b"", Content_Length="", Transfer_Encoding="chunked"))
    while server.written < 2**28 and not writer.transport.is_closing():
        writer.write(b"10000\r\n" + bytes(2**16) + b"\r\n")
        await writer.drain()
        await asyncio.sleep(0)  # drain alone lets nobody else run
        server.written += 2**16


def test_endless_body_is_cut_at_the_limit():
    error = failure(endless, max_bytes=2**20)
    assert error.status is Status.IMAGE_TOO_LARGE
    assert error.limit == 2**20 < error.observed <= 2**20 + 2**17
    assert error.server.written < 2**20 + 2**24  # what the sockets' own buffers hold


def test_exactly_the_limit_is_let_in():
    assert fetch(answer(bytes(1000)), max_bytes=1000)[0] == bytes(1000)
    error = failure(answer(bytes(1001)), max_bytes=1000)
    assert (error.status, error.limit, error.observed) == (Status.IMAGE_TOO_LARGE, 1000, 1001)


def test_announced_size_over_the_limit_is_believed_at_once():
    async def announces(_server, writer):
        writer.write(answer(b"", Content_Length=str(10 * 2**30)))
        await asyncio.Event().wait()

    error = failure(announces)
    assert (error.status, error.observed) == (Status.IMAGE_TOO_LARGE, 10 * 2**30)


def test_lying_lengths():
    assert failure(answer(Content_Length=str(len(IMAGE) + 1))).status is Status.SOURCE_TIMEOUT  # it broke off
    assert failure(b"").status is Status.SOURCE_TIMEOUT
    assert failure(answer(Content_Length="4")).status is Status.SOURCE_DENIED  # what follows is no HTTP
    for odd in ("-1", "many", "1, 2"):
        assert failure(answer(Content_Length=odd)).status is Status.SOURCE_DENIED


def test_compressed_answer_is_refused_unpacked_or_not():
    for coding in ("GZIP", "identity, zstd"):
        assert "compressed data" in refusal(answer(gzip.compress(bytes(2**24)), Content_Encoding=coding)).message
    assert fetch(answer(Content_Encoding="Identity"))[0] == IMAGE


def test_what_is_not_http_or_too_much_of_it():
    for raw in (answer(X=20_000 * "x"), answer(**{f"X{n}": "x" for n in range(500)}), b"SSH-2.0-OpenSSH_9.6\r\n"):
        error = failure(raw)
        assert (error.status, error.detail) == (Status.SOURCE_DENIED, "its server does not answer in HTTP"), raw[:20]


def test_status_of_the_server_becomes_ours():
    ours = {Status.SOURCE_MISSING: (404, 410), Status.SOURCE_DENIED: (403, 418, 206, 304), Status.SOURCE_THROTTLED: (429, 503)}
    for expected, given in (ours | {Status.SOURCE_TIMEOUT: (500,)}).items():
        for status in given:
            error = failure(answer(b"" if status == 304 else b"<secret words of theirs>", f"{status} theirs"))
            assert (error.status, error.detail) == (expected, f"the server answered {status}")


def test_certificate_must_be_for_the_name_and_trusted(monkeypatch):
    assert failure(answer(), "https://elsewhere.test/").status is Status.SOURCE_DENIED
    monkeypatch.delenv("SSL_CERT_FILE")
    error = failure(answer())
    assert error.status is Status.SOURCE_DENIED
    assert error.server.requests == []


def test_only_allowed_hosts():
    rules = UrlFetching(allowed_hosts=("Images.test.", "*.OTHER.test"))
    for host in ("images.test", "a.b.other.test"):
        GuardedFetcher(rules, 1)._checked(f"https://{host}/")
    for host in ("a.images.test", "other.test", "another.test", "images.test.evil.test"):
        with pytest.raises(Refusal, match="not among those"):
            GuardedFetcher(rules, 1)._checked(f"https://{host}/")


def test_allowed_host_is_still_checked_by_address_and_by_redirect():
    allowed = {"allowed_hosts": ("images.test",)}
    assert fetch(answer(), **allowed)[0] == IMAGE
    assert refusal(answer(), resolver=lambda _: Names(images_test=[[("10.0.0.1", 443)]]), **allowed).message == REFUSED_ADDRESS
    assert "not among" in refusal({"/a.png": redirect("https://other.test/")}, **allowed).message
