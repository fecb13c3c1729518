"""A server of its own process that answers ListObjectsV2 for a bucket whose keys are given by a
formula or a list: `ListingServer`.

    python -m benchmarks.listing_server --keys 100000000 --latency 0.03     # prints its port

Keys of the formula: `photos/0000/img_000000000.jpg` to N - 1, 100,000 in a folder. A page costs the server a fraction of a
millisecond, whatever N. Every answer waits `latency` seconds, as many at once as ask. `GET
/.counts` tells how many requests there were, in all and at once.
"""

import argparse
import asyncio
import json
import os
import subprocess
import sys
import threading
import zlib
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from urllib.parse import parse_qs, quote, urlsplit
from xml.sax.saxutils import escape

PREFIX = "photos/"
_RUN = 1000  # keys whose text differs in their last three digits alone
_FOLDER_RUNS = 100
_FOLDER_MARK, _MARK = b"####", b"@@@@@@"
_CONTENTS = (
    b"<Contents><Key>%s</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified><ETag>&quot;%s&quot;</ETag>"
    b"<Size>%d</Size><StorageClass>STANDARD</StorageClass></Contents>"
)
_ANSWER = (
    b'<?xml version="1.0" encoding="UTF-8"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>bucket</Name>'
    b"<Prefix>%s</Prefix><KeyCount>%d</KeyCount><MaxKeys>%d</MaxKeys><EncodingType>url</EncodingType><IsTruncated>%s</IsTruncated>%s%s"
    b"</ListBucketResult>"
)
_THROTTLED = b'<?xml version="1.0" encoding="UTF-8"?><Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>'
_MISSING = b'<?xml version="1.0" encoding="UTF-8"?><Error><Code>NoSuchKey</Code><Message>There is none.</Message></Error>'


class FormulaKeys(Sequence[str]):
    """`count` keys below `photos/`, numbered."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._pieces = [
            _CONTENTS
            % (
                b"photos/" + _FOLDER_MARK + b"/img_" + _MARK + b"%03d.jpg" % n,
                b"0" * 23 + _MARK + b"%03d" % n,
                100_000 + n,
            )
            for n in range(_RUN)
        ]

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index):
        if not 0 <= index < self._count:
            raise IndexError(index)
        return f"{PREFIX}{index // (_RUN * _FOLDER_RUNS):04}/img_{index:09}.jpg"

    def rendered(self, start: int, end: int) -> bytes:
        """The XML of keys start … end - 1."""
        found = []
        while start < end:
            run, first = divmod(start, _RUN)
            last = min(_RUN, first + end - start)
            text = b"".join(self._pieces[first:last]).replace(_MARK, b"%06d" % run)
            found.append(text.replace(_FOLDER_MARK, b"%04d" % (run // _FOLDER_RUNS)))
            start += last - first
        return b"".join(found)


class GivenKeys(Sequence[str]):
    """Keys as a test gives them, in the order of their UTF-8."""

    def __init__(self, keys: Sequence[str]) -> None:
        self._keys = sorted(keys, key=lambda key: key.encode())

    def __len__(self) -> int:
        return len(self._keys)

    def __getitem__(self, index):
        return self._keys[index]

    def rendered(self, start: int, end: int) -> bytes:
        """The XML of keys start … end - 1."""
        keys = self._keys[start:end]
        return b"".join(
            _CONTENTS
            % (
                quote(key, safe="/").encode(),
                b"%032x" % zlib.crc32(key.encode()),
                0 if key.endswith("/") else 9,
            )
            for key in keys
        )


class ListingServer:
    """One bucket, whatever it is called. `page`: the most keys of an answer; `throttles(number of
    the request, how many are under way)`: whether it is answered by SlowDown.
    """

    def __init__(
        self,
        keys: "FormulaKeys | GivenKeys",
        *,
        latency: float = 0.0,
        page: int = 1000,
        throttles: Callable[[int, int], bool] = lambda number, under_way: False,
    ) -> None:
        self.keys, self.latency, self.page, self.throttles = keys, latency, page, throttles
        self.requests = self.throttled = self.under_way = self.most_under_way = 0
        self.asked: list[dict[str, str]] | None = None  # what was asked, where a test wants to know

    def _answer(self, target: str) -> tuple[int, bytes]:
        parts = urlsplit(target)
        if parts.path == "/.counts":
            counts = {
                "requests": self.requests,
                "throttled": self.throttled,
                "most_under_way": self.most_under_way,
            }
            return 200, json.dumps(counts).encode()
        query = {
            name: values[0]
            for name, values in parse_qs(parts.query, keep_blank_values=True).items()
        }
        self.requests += 1
        if self.asked is not None:
            self.asked.append(query)
        if self.throttles(self.requests, self.under_way):
            self.throttled += 1
            return 503, _THROTTLED
        return (200, self._listed(query)) if query.get("list-type") == "2" else (404, _MISSING)

    def _listed(self, query: dict[str, str]) -> bytes:
        prefix, delimiter, limit = (
            query.get("prefix", ""),
            query.get("delimiter", ""),
            min(self.page, int(query.get("max-keys", 1000))),
        )
        if token := query.get("continuation-token"):
            start = int(token)
        else:
            start = bisect_right(
                self.keys, max(query.get("start-after", ""), "").encode(), key=str.encode
            )
            start = max(start, self._first_at_or_after(prefix))
        end = self._first_at_or_after(_after_all(prefix)) if prefix else len(self.keys)
        if delimiter:
            return self._folded(prefix, delimiter, start, end, limit)
        stop = min(end, start + limit)
        return self._page(
            prefix,
            limit,
            stop - start,
            self.keys.rendered(start, stop),
            stop if stop < end else None,
        )

    def _folded(self, prefix: str, delimiter: str, start: int, end: int, limit: int) -> bytes:
        parts, count = [], 0
        while start < end and count < limit:
            key = self.keys[start]
            head, mark, _ = key[len(prefix) :].partition(delimiter)
            if mark:
                parts.append(
                    b"<CommonPrefixes><Prefix>%s</Prefix></CommonPrefixes>"
                    % quote(f"{prefix}{head}{mark}", safe="/").encode()
                )
                start = self._first_at_or_after(_after_all(prefix + head + mark))
            else:
                parts.append(self.keys.rendered(start, start + 1))
                start += 1
            count += 1
        return self._page(prefix, limit, count, b"".join(parts), start if start < end else None)

    def _page(
        self, prefix: str, limit: int, count: int, body: bytes, following: int | None
    ) -> bytes:
        token = (
            b""
            if following is None
            else b"<NextContinuationToken>%d</NextContinuationToken>" % following
        )
        return _ANSWER % (
            escape(prefix).encode(),
            count,
            limit,
            b"false" if following is None else b"true",
            token,
            body,
        )

    def _first_at_or_after(self, text: bytes | str) -> int:
        return bisect_left(
            self.keys, text.encode() if isinstance(text, str) else text, key=str.encode
        )

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, until it is closed."""
        try:
            while line := await reader.readline():
                method, target, _ = line.decode("latin-1").split(" ", 2)
                while await reader.readline() not in (b"\r\n", b""):
                    pass
                self.under_way += 1
                self.most_under_way = max(self.most_under_way, self.under_way)
                try:
                    status, body = self._answer(target)
                    if self.latency and "/.counts" not in target:
                        await asyncio.sleep(self.latency)
                finally:
                    self.under_way -= 1
                head = f"HTTP/1.1 {status} X\r\nContent-Type: application/xml\r\nContent-Length: {len(body)}\r\n\r\n"
                writer.write(head.encode() + (b"" if method == "HEAD" else body))
                await writer.drain()
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    async def begin(self) -> int:
        """Listen on a port of its own choosing; returns it."""
        self._server = await asyncio.start_server(self.serve, "127.0.0.1", 0)
        return int(self._server.sockets[0].getsockname()[1])

    @contextmanager
    def in_thread(self) -> Iterator[str]:
        """Serve from a thread of this process inside the block; gives the URL."""
        loop = asyncio.new_event_loop()
        port = loop.run_until_complete(self.begin())
        thread = threading.Thread(target=loop.run_forever, name="listing server", daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            loop.call_soon_threadsafe(self._server.close)
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            loop.run_until_complete(_end_connections())
            loop.close()


async def _end_connections() -> None:
    """Cancel what waits for requests, so that no coroutine outlives its loop."""
    connections = asyncio.all_tasks() - {asyncio.current_task()}
    for connection in connections:
        connection.cancel()
    await asyncio.gather(*connections, return_exceptions=True)


def _after_all(prefix: str) -> bytes:
    """What comes behind every key that begins so."""
    return prefix.encode() + b"\xff"


def started(keys: int, latency: float) -> tuple[subprocess.Popen[str], str]:
    """A server as a process, and its URL."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.listing_server",
        "--keys",
        str(keys),
        "--latency",
        str(latency),
    ]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, f"http://127.0.0.1:{int(process.stdout.readline())}"


def main() -> None:
    """Serve until standard input closes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keys", type=int, required=True)
    parser.add_argument("--latency", type=float, default=0.03)
    given = parser.parse_args()
    threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()

    async def run() -> None:
        print(
            await ListingServer(FormulaKeys(given.keys), latency=given.latency).begin(), flush=True
        )
        await asyncio.Event().wait()

    asyncio.run(run())


if __name__ == "__main__":
    main()
