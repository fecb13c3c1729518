"""One request to a host that answers what no host should: nothing of it ends the session or carries a secret into a row."""

import asyncio

import pytest

from ray_app.collecting.asking import Asker
from ray_app.collecting.statuses import Failed
from tests.collecting.conftest import config

SECRET = "/x.png?X-Amz-Signature=hush"


def asked(answer):
    """What `Asker` makes of these bytes on a connection."""

    async def serve(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()
        writer.close()

    async def scenario():
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        asker = Asker(config("list.csv", "out"))
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
