"""One request to a host that answers what no host should: nothing of it ends the session or carries a secret into a row.

What a host's Retry-After says, and when the next request may start.
"""

import asyncio
from datetime import UTC, datetime

import pytest

from ray_app.datajobs.download.config import Politeness
from ray_app.datajobs.download.http import Failed, Host, HttpClient, seconds_of
from ray_app.datajobs.download.sink import ending, file_stems, host_of, marked, safe_name
from tests.datajobs.download.conftest import config

SECRET = "/x.png?X-Amz-Signature=hush"


def asked(answer):
    """What `HttpClient` makes of these bytes on a connection."""

    async def serve(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()
        writer.close()

    async def scenario():
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        asker = HttpClient(config("list.csv", "out"))
        try:
            return await asker.get(f"http://h0.test:{server.sockets[0].getsockname()[1]}{SECRET}")
        finally:
            await asker.close()
            server.close()

    return asyncio.run(scenario())


def redirect(location):
    return b"HTTP/1.1 302 X\r\nContent-Length: 0\r\nLocation: " + location + b"\r\n\r\n"


@pytest.mark.parametrize(
    "answer",
    [b"HTTP/1.1 OK OK\r\n\r\n", b"220 mail.test ESMTP\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n", redirect(b"http://[/x")],
)
def test_what_is_no_answer_is_told_without_the_url(answer):
    with pytest.raises(Failed) as caught:
        asked(answer)
    assert "hush" not in str(caught.value)


def test_a_redirect_that_is_not_utf8_leads_to_what_its_bytes_say():
    moved = asked(redirect(b"http://h1.test/caf\xe9.png")).moved
    assert moved == "http://h1.test/caf%E9.png"


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
    assert seconds_of(text, NOW) == seconds


def visit(host):
    async def inside():
        async with host.visit():
            return True

    return asyncio.run(inside())


def test_a_long_wait_closes_the_host_and_a_short_one_does_not():
    host = Host("a", Politeness(longest_wait_s=10), lambda: 0.0)
    host.throttled(None)
    assert visit(host)
    host.throttled(11)
    with pytest.raises(Failed, match="asks to wait 11 s") as caught:
        visit(host)
    assert (caught.value.asked, caught.value.status) == (False, "source_throttled")


def test_a_host_is_not_asked_sooner_than_the_rules_say():
    now = [0.0]

    async def waits(host):
        async with host.visit():
            pass
        now[0] += 29
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05), host.visit():
                pass
        return True

    host = Host("a", Politeness(per_host=1, pause_s=30), lambda: now[0])
    host.throttled(None)
    assert asyncio.run(waits(host))


def test_silence_counts_only_in_a_row():
    host = Host("a", Politeness(give_up_after=2))
    for _ in range(3):
        host.silent()
        host.answered()
    assert visit(host)
    host.silent()
    host.silent()
    with pytest.raises(Failed, match="2 urls in a row"):
        visit(host)


def test_harmful_ids_are_marked_and_others_keep_their_names():
    for name in ("0012345", "a.b.c", "x-1_2", "ünïcode", "a=b,c@d+e"):
        assert safe_name(name) == name
    for name in ("COM¹", "", ".", "..", "../x", "/etc/passwd", "a\\b", "a\0b", "C:x", ".x", "x.", "NUL", "com1.png", "é" * 200, "a\nb"):
        safe = safe_name(name)
        assert safe != name
        assert not {"/", "\\", "\0", ":", "\n"} & set(safe)
        assert safe[0] != "."
        assert len(safe.encode()) < 200
        assert safe.count("~") == 1


def test_names_that_differ_only_in_case_or_are_mended_alike_are_told_apart():
    chosen, cases = file_stems(["A", "a", "b", "a/b", "a_b", "B", marked("a", "a")])
    assert len({name.casefold() for name in chosen}) == 7
    assert (chosen[0], chosen[2], cases) == ("A", "b", 2)


@pytest.mark.parametrize("url", ["http://ａ.test/x", "http://A.test:80/x", "https://a.test./y", "http://a.test:8080/"])
def test_one_host_is_counted_once_however_it_is_spelt(url):
    assert host_of(url) == "a.test"


@pytest.mark.parametrize(
    ("content_type", "image_format", "expected"),
    [
        ("image/jpeg", "JPEG", "jpeg"), ("image/jpg; charset=utf-8", "JPEG", "jpg"), ("image/png", "WEBP", "webp"), (None, "PNG", "png"),
        ("application/octet-stream", "JPEG", "jpeg"), ("IMAGE/WEBP", "WEBP", "webp"), ("image/../../x", "PNG", "png"),
    ],
)  # fmt: skip
def test_the_ending_is_the_content_types_where_the_bytes_agree(content_type, image_format, expected):
    assert ending(content_type, image_format) == expected
