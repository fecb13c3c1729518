"""One request to a host that answers what no host should: nothing of it ends the session or carries a secret into a row.

What a host's Retry-After says, and when the next request may start.
"""

import asyncio
from datetime import UTC, datetime

import pytest

from ray_app.datajobs.download.config import Failed, Politeness
from ray_app.datajobs.download.http import Host, HttpClient, seconds_of
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


def test_a_wait_that_no_clock_knows_is_none():
    with pytest.raises(Failed) as caught:
        asked(b"HTTP/1.1 429 X\r\nContent-Length: 0\r\nRetry-After: Fri, 02 Jan 2026 03:05:99999999999999999999 GMT\r\n\r\n")
    assert (caught.value.status, caught.value.wait_s) == ("source_throttled", None)


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


class Clock:
    """Time that passes only when it is told to."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def visits(host, count):
    """How many of `count` visits are inside at once before any leaves."""

    async def scenario():
        inside, most, gate = 0, 0, asyncio.Event()

        async def one():
            nonlocal inside, most
            async with host.visit():
                inside += 1
                most = max(most, inside)
                await gate.wait()
                inside -= 1

        tasks = [asyncio.ensure_future(one()) for _ in range(count)]
        while most < min(count, 3):
            await asyncio.sleep(0)
        for _ in range(20):
            await asyncio.sleep(0)
        gate.set()
        await asyncio.gather(*tasks)
        return most

    return asyncio.run(scenario())


def test_no_more_at_once_than_the_rules_say():
    assert visits(Host("a", Politeness(per_host=3)), 10) == 3


def test_a_long_wait_closes_the_host_and_a_short_one_does_not():
    async def visit(host):
        async with host.visit():
            return True

    host = Host("a", Politeness(longest_wait_s=10), Clock())
    host.throttled(None)
    assert asyncio.run(visit(host))
    host.throttled(11)
    with pytest.raises(Failed, match="asks to wait 11 s") as caught:
        asyncio.run(visit(host))
    assert not caught.value.asked
    assert caught.value.status == "source_throttled"


def test_a_host_that_throttles_is_not_asked_sooner_than_the_rules_say():
    async def waits(host, clock):
        async with host.visit():
            pass
        clock.now += 29
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05), host.visit():
                pass
        return True

    clock = Clock()
    host = Host("a", Politeness(per_host=1, pause_s=30), clock)
    host.throttled(None)
    assert asyncio.run(waits(host, clock))


def test_silence_counts_only_in_a_row():
    async def visit(host):
        async with host.visit():
            return True

    host = Host("a", Politeness(give_up_after=2))
    for _ in range(3):
        host.silent()
        host.answered()
    assert asyncio.run(visit(host))
    host.silent()
    host.silent()
    with pytest.raises(Failed, match="2 urls in a row"):
        asyncio.run(visit(host))


@pytest.mark.parametrize("name", ["0012345", "a.b.c", "x-1_2", "ünïcode", "a=b,c@d+e"])
def test_harmless_ids_keep_their_names(name):
    assert safe_name(name) == name


@pytest.mark.parametrize(
    "name",
    ["COM¹", "lpt3", "", ".", "..", "../x", "/etc/passwd", "a/b", "a\\b", "a\0b", "C:x", ".x", "x.", "NUL", "com1.png", "é" * 200, "a\nb"],
)
def test_harmful_ids_are_marked(name):
    safe = safe_name(name)
    assert safe != name
    assert not {"/", "\\", "\0", ":", "\n"} & set(safe)
    assert safe[0] != "."
    assert len(safe.encode()) < 200
    assert safe.count("~") == 1


def test_names_that_differ_only_in_case_or_are_mended_alike_are_told_apart():
    chosen, cases = file_stems(["A", "a", "b", "a/b", "a_b", "B"])
    assert len({name.casefold() for name in chosen}) == 6
    assert chosen[0] == "A"
    assert chosen[2] == "b"
    assert cases == 2


def test_an_id_that_is_spelt_as_the_mark_of_another_gets_a_name_of_its_own():
    chosen, _ = file_stems([marked("a", "a"), "A", "a"])
    assert len({name.casefold() for name in chosen}) == 3


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
