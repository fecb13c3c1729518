"""A web as it is, in a process of its own on loopback: what a host does is in the path. It counts
requests at once per host.

`python -m tests.make.servers.wild PORT_FILE`. /_told answers {"most": {host: n},
"asked": {host/path: n}}; /_forget begins anew.
"""

import asyncio
import io
import json
import subprocess
import sys
import urllib.request
from collections import Counter
from contextlib import contextmanager
from email.utils import formatdate
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from tests.make.waiting import wait_until

ROOT = Path(__file__).resolve().parents[3]
HOSTS = [f"h{number}" for number in range(7)]
OTHERS = ["tired", "dead", "one", "two"]
RESOLVE = {f"{host}.test": "127.0.0.1" for host in [*HOSTS, *OTHERS]}
FORMATS = ("JPEG", "PNG", "WEBP")
HTML = b"<!DOCTYPE html><html><body>this image has moved</body></html>"
TWO_GB = 2 * 10**9


class Web:
    """The server, seen from a test."""

    def __init__(self, port):
        self.port = port

    def url(self, host, path):
        return f"http://{host}.test:{self.port}/{path}"

    def told(self):
        return self._get("/_told")

    def forget(self):
        self._get("/_forget")

    def _get(self, path):
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=60) as answer:
            return json.load(answer)


@contextmanager
def wild_web(folder):
    """The server while it runs; its port is told in `folder`."""
    port_file = folder / "port"
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.make.servers.wild", str(port_file)], cwd=ROOT
    )
    try:
        wait_until(port_file.exists, 120)
        yield Web(int(port_file.read_text()))
    finally:
        process.kill()
        process.wait()


@cache
def picture(number):
    """(bytes, subtype): no two are equal."""
    rng = np.random.default_rng(number)
    image = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize(
        (64, 48), Image.Resampling.BICUBIC
    )
    file = io.BytesIO()
    image.save(file, FORMATS[number % 3])
    return file.getvalue(), FORMATS[number % 3].lower()


class Wild:
    def __init__(self):
        self.forget()
        self.open = Counter()

    def forget(self):
        self.most, self.asked, self.agents = Counter(), Counter(), set()

    async def serve(self, reader, writer):
        try:
            while await self.one(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def one(self, reader, writer):
        """Whether the connection stays open."""
        lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        path = lines[0].split(" ")[1]
        headers = {
            name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:])
        }
        if path in ("/_told", "/_forget"):
            told = {
                "most": dict(self.most),
                "asked": dict(self.asked),
                "agents": sorted(self.agents),
            }
            if path == "/_forget":
                self.forget()
            return await self.answer(writer, json.dumps(told).encode(), "application/json")
        host = headers["host"].partition(":")[0]
        self.asked[host + path] += 1
        self.agents.add(headers.get("user-agent"))
        running = (host, reader, writer)
        self.running = {
            one
            for one in getattr(self, "running", set())
            if not one[2].is_closing() and not one[1].at_eof()
        } | {running}
        self.most[host] = max(self.most[host], sum(one[0] == host for one in self.running))
        try:
            return await self.behave(path, self.asked[host + path], headers["host"], writer)
        finally:
            self.running.discard(running)

    async def behave(self, path, time, host, writer):
        _, what, name = path.split("/", 2)
        number = int(name.partition(".")[0])
        data, subtype = picture(number)
        kind = f"image/{subtype}; charset=binary"
        # mostly a host that another worker owns
        elsewhere = f"Location: http://h{number % 5}.test:{host.partition(':')[2]}"
        plain = {
            "moved": (b"", None, 302, f"{elsewhere}/good/{name}"),
            "inside": (b"", None, 301, f"{elsewhere}/html/{name}"),
            "loop": (b"", None, 302, f"Location: {path}"),
            "gone": (b"no", "text/plain", 404 + 6 * (number % 2)),
            "denied": (b"no", "text/plain", 403),
            "later": (b"", None, 429, "Retry-After: 3600"),
            "html": (HTML, "image/jpeg"),
            "empty": (b"", "image/jpeg"),
            "cut": (data[: len(data) // 2], kind),
            "zipped": (data, kind, 200, "Content-Encoding: gzip"),
            "misnamed": (data, "image/gif"),
        }
        first = {
            "busy": (b"", None, 429, "Retry-After: 1"),
            "busydate": (b"", None, 503, f"Retry-After: {formatdate(usegmt=True)}"),
            "flaky": (b"", None, 500),
        }
        if what in ("huge", "endless"):
            return await self.endless(writer, announced=what == "huge")
        if what == "reset" or (what == "resetonce" and time == 1):
            writer.transport.abort()
            return False
        if what == "torn" or (what == "tornonce" and time == 1):
            return await self.answer(writer, data[: len(data) // 2], kind, announced=len(data))
        if what == "slow":
            await asyncio.sleep(0.2)
        return await self.answer(
            writer,
            *(first.get(what) if time == 1 and what in first else plain.get(what, (data, kind))),
        )

    async def answer(self, writer, body, kind, status=200, *headers, announced=None):
        size = len(body) if announced is None else announced
        kinds = [f"Content-Type: {kind}"] if kind else []
        writer.write(
            "\r\n".join(
                [f"HTTP/1.1 {status} X", f"Content-Length: {size}", *kinds, *headers, "", ""]
            ).encode()
            + body
        )
        await writer.drain()
        return size == len(body)

    async def endless(self, writer, *, announced):
        length = f"Content-Length: {TWO_GB}\r\n" if announced else ""
        writer.write(f"HTTP/1.1 200 OK\r\nContent-Type: image/png\r\n{length}\r\n".encode())
        piece = bytes(2**16)
        for _ in range(TWO_GB // len(piece)):
            writer.write(piece)
            await writer.drain()
        return False


async def main(port_file):
    server = await asyncio.start_server(Wild().serve, "127.0.0.1", 0, backlog=512)
    port = server.sockets[0].getsockname()[1]
    aside = Path(f"{port_file}.aside")
    aside.write_text(str(port))
    aside.rename(port_file)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
