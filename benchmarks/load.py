"""A closed loop of clients that send photographs to a server, each the next as soon as the last is
answered, and check every answer.

    python -m benchmarks.load URL FOLDER --clients 32 --seconds 60 --json

Knows status codes and JSON. Knows nothing about what is behind the URL.
"""

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

from benchmarks.exchange import Connection, ExchangeError, header, post
from benchmarks.tally import Loaded, Tally, agree, loaded

BACK_PRESSURE = (429, 503)
MOST_TROUBLES = 1000  # of which the times are kept
MOST_IDLE_S = 1.0  # then a connection is opened anew: a server may close one that is idle
MOST_PAUSE_S = 30.0  # of a Retry-After that is honoured


@dataclass(frozen=True)
class Photograph:
    """One file to send, and the score that it must get; None = any, as long as it is always the
    same.
    """

    name: str
    data: bytes
    expected: float | None = None


@dataclass(frozen=True)
class Load:
    """How the server is asked. `field`: dotted place of the score in an answer. `precision`: what
    scores may differ by, see `agree`.

    `seconds` begin after `warm_up_s`; `timeout_s` bounds one request. `honour_retry_after`: a
    client that is told so pauses, else it asks again at once. `attempts`: how often one photograph
    is asked about before it counts as lost; other than back-pressure only.
    """

    url: str
    clients: int = 32
    seconds: float = 60.0
    warm_up_s: float = 0.0
    form: Literal["multipart", "raw"] = "multipart"
    field: str = "score"
    precision: Literal["fp32", "bf16"] = "fp32"
    token: str | None = None
    honour_retry_after: bool = True
    attempts: int = 1
    timeout_s: float = 90.0


OnSecond = Callable[[int, Tally], object]


def load(
    asked: Load,
    photographs: Sequence[Photograph],
    *,
    on_second: OnSecond | None = None,
    until: Callable[[Tally], bool] | None = None,
) -> Loaded:
    """Run the closed loop to its end: when `seconds` are over, or `until` says so after a second.

    `on_second` is called once a second, in a thread of its own so that it may take its time (kill a
    replica, ask for metrics); what it raises ends the load. Requests that are under way at the end
    are waited for, and counted, but are not in `rate`.
    """
    return asyncio.run(_Loop(asked, photographs).run(on_second, until))


def load_apart(asked: Load, photographs: Sequence[Photograph]) -> Loaded:
    """The same in a process of its own, so that what else this one does is not measured."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(load, asked, photographs).result()


def photographs_in(folder: Path, expected: Mapping[str, float] | None = None) -> list[Photograph]:
    """The files of a folder, in order of names, with the scores that are expected of them by name."""
    return [
        Photograph(path.name, path.read_bytes(), (expected or {}).get(path.name))
        for path in sorted(folder.iterdir())
    ]


class _Loop:
    def __init__(self, asked: Load, photographs: Sequence[Photograph]) -> None:
        self._asked, self._photographs = asked, photographs
        self._requests = [
            post(asked.url, photograph.name, photograph.data, asked.form, asked.token)
            for photograph in photographs
        ]
        self._tally = Tally()
        self._next = 0
        self._stopped = asyncio.Event()
        self._begin = self._window = time.monotonic()

    async def run(
        self, on_second: OnSecond | None, until: Callable[[Tally], bool] | None
    ) -> Loaded:
        cpu = time.process_time()
        self._begin = time.monotonic()
        self._window = self._begin + self._asked.warm_up_s
        clients = [asyncio.create_task(self._client()) for _ in range(self._asked.clients)]
        try:
            await self._watch(on_second, until)
        finally:
            ended = time.monotonic()
            self._stopped.set()
            await asyncio.gather(*clients)
        return loaded(self._tally, max(ended - self._window, 1e-9), time.process_time() - cpu)

    async def _watch(
        self, on_second: OnSecond | None, until: Callable[[Tally], bool] | None
    ) -> None:
        """Sleep until the end; once a second, let the caller know."""
        end, second = self._window + self._asked.seconds, 0
        while (now := time.monotonic()) < end:
            await asyncio.sleep(max(min(self._begin + second + 1, end) - now, 0))
            second += 1
            if on_second is not None:
                await asyncio.to_thread(on_second, second, self._tally)
            if until is not None and until(self._tally):
                return

    async def _client(self) -> None:
        """One photograph after another over one connection, opened anew where the server closes it."""
        connection = Connection(self._asked.url, self._asked.timeout_s)
        while not self._stopped.is_set():
            index, self._next = self._next % len(self._photographs), self._next + 1
            await self._photograph(connection, index)
        connection.close()

    async def _photograph(self, connection: Connection, index: int) -> None:
        failures = 0
        while failures < self._asked.attempts:
            begin = time.monotonic()
            try:
                status, head, body = await connection.ask(self._requests[index])
                pause = self._judge(self._photographs[index], status, head, body)
            except ExchangeError as failed:
                failures += 1
                self._note(failed)
                await self._pause(0.05 * failures if failed.connection else 0.0)
                continue
            if pause is None:
                self._answered(begin, time.monotonic())
                self._tally.recovered += failures > 0
                return
            if pause >= MOST_IDLE_S:
                connection.close()
            await self._pause(pause)
            if self._stopped.is_set():
                return
        self._tally.lost += 1

    def _judge(self, photograph: Photograph, status: int, head: bytes, body: bytes) -> float | None:
        """None where it was accepted and is right, else the seconds of the pause that back-pressure
        asks for. Raises ExchangeError.
        """
        self._tally.statuses[str(status)] += 1
        if status in BACK_PRESSURE and (asked := header(head, b"retry-after")) is not None:
            self._tally.back_pressure += 1
            return min(float(asked), MOST_PAUSE_S) if self._asked.honour_retry_after else 0.0
        if status != 200:
            raise ExchangeError(f"{status} {body[:200]!r}")
        score = _score(body, self._asked.field)
        seen = self._tally.answers.setdefault(photograph.name, set())
        if len(seen) < 10:
            seen.add(score)
        expected = min(seen) if photograph.expected is None else photograph.expected
        if not agree(score, expected, self._asked.precision):
            self._tally.wrong += 1
            raise ExchangeError(f"wrong score {score} for {photograph.name}, expected {expected}")
        return None

    def _answered(self, begin: float, end: float) -> None:
        self._tally.ok += 1
        if end >= self._window and not self._stopped.is_set():
            self._tally.in_window += 1
            self._tally.latencies_s.append(end - begin)

    def _note(self, failed: ExchangeError) -> None:
        self._tally.other += 1
        self._tally.connection_errors += failed.connection
        if len(self._tally.troubles) < MOST_TROUBLES:
            self._tally.troubles.append((time.monotonic() - self._begin, failed.kind))

    async def _pause(self, seconds: float) -> None:
        try:
            await asyncio.wait_for(self._stopped.wait(), seconds)
        except TimeoutError:
            return


def _score(body: bytes, place: str) -> float:
    """The number at a dotted place of a JSON answer. Raises ExchangeError."""
    try:
        found: Any = json.loads(body)
        for key in place.split("."):
            found = found[key]
        return float(found)
    except (ValueError, KeyError, TypeError, IndexError):
        raise ExchangeError(f"no number at {place} in {body[:200]!r}") from None


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options(arguments)
    expected = json.loads(options.expected.read_text()) if options.expected else None
    settings = {
        key: value
        for key, value in vars(options).items()
        if key not in ("folder", "expected", "json")
    }
    found = asdict(load(Load(**settings), photographs_in(options.folder, expected)))
    if options.json:
        print(json.dumps(found))
    else:
        print(
            "\n".join(
                f"{key:<18}{value}"
                for key, value in found.items()
                if key not in ("troubles", "scores")
            )
        )
    return 1 if found["other"] else 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.load", description=__doc__.partition("\n")[0]
    )
    parser.add_argument(
        "url", help="where photographs are sent, for example http://localhost:8000/v1/score"
    )
    parser.add_argument("folder", type=Path, help="with nothing but photographs")
    parser.add_argument(
        "--clients", type=int, default=Load.clients, help="that ask at once  [%(default)s]"
    )
    parser.add_argument(
        "--seconds", type=float, default=Load.seconds, help="after the warm-up  [%(default)s]"
    )
    parser.add_argument(
        "--warm-up",
        type=float,
        default=Load.warm_up_s,
        dest="warm_up_s",
        metavar="SECONDS",
        help="[%(default)s]",
    )
    parser.add_argument(
        "--form", choices=["multipart", "raw"], default=Load.form, help="[%(default)s]"
    )
    parser.add_argument(
        "--field", default=Load.field, help="dotted place of the score in an answer  [%(default)s]"
    )
    parser.add_argument(
        "--precision",
        choices=["fp32", "bf16"],
        default=Load.precision,
        help="how much scores may differ  [%(default)s]",
    )
    parser.add_argument(
        "--attempts",
        type=int,
        default=Load.attempts,
        help="per photograph, back-pressure apart  [%(default)s]",
    )
    parser.add_argument("--expected", type=Path, metavar="FILE", help='JSON {"file name": score}')
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
