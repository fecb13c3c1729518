"""What the tests of jobs need around a JobBook: a scorer over the real small detector, images, a clock that is turned by hand."""

import asyncio
import inspect
import io
import json
import threading
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler

import httpx
import pytest
from PIL import Image

from ray_app.errors import SourceError, Status
from ray_app.images import ImageRefused, inspect_bytes
from ray_app.serving import ServeConfig
from ray_app.serving.http.errors import Refusal
from ray_app.serving.http.responses import facts_answer
from ray_app.serving.http.schemas import EnsembleName, ImageAnswer, Timings
from ray_app.serving.jobs.book import JobBook
from tests.http_server import HttpServer

TINY = EnsembleName(name="tiny", fingerprint="f" * 64)


def jpeg(number):
    """A small photograph-like file that no other number gives."""
    file = io.BytesIO()
    Image.effect_mandelbrot((96, 64), (-2 + number / 100, -1.5, 1, 1.5), 20).convert("RGB").save(file, "JPEG")
    return file.getvalue()


def jpegs(count, first=0):
    return [(f"{number}.jpg", jpeg(number)) for number in range(first, first + count)]


class Scorer:
    """Scores with a real ensemble, one image at a time. `trouble` is raised first, exception by exception; `gate` holds images back."""

    def __init__(self, ensemble):
        self._ensemble, self._lock = ensemble, threading.Lock()
        self.trouble, self.started = [], []
        self.at_once = self.most_at_once = 0
        self.gate = asyncio.Event()
        self.gate.set()

    async def ensemble(self, name):
        if name not in (None, TINY.name):
            raise Refusal("malformed_request", "no such ensemble")
        return TINY

    async def score(self, data, *, name=None, ensemble=None, request_id=""):
        self.started.append(name)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            await self.gate.wait()
            if self.trouble:
                raise self.trouble.pop(0)
            await self.ensemble(ensemble)
            return await asyncio.to_thread(self._score, data, name, request_id)
        finally:
            self.at_once -= 1

    def _score(self, data, name, request_id):
        with self._lock:
            result = self._ensemble.score([data])[0]
        if result.status is not Status.OK:
            raise ImageRefused(result.status, result.detail, result.facts)
        return scored(result.facts, data, name, request_id, verdict=result.verdict, verdict_reason=result.verdict_reason,
                      verdict_detail=result.verdict_detail, probability=result.probability, calibrated=result.calibrated,
                      score=result.score, scores=dict(result.scores))  # fmt: skip


class LightScorer(Scorer):
    """Says `real` of whatever bytes it gets: for tests of processes, which would else import torch."""

    def __init__(self):
        super().__init__(None)

    def _score(self, data, name, request_id):
        real = {"verdict": "real", "verdict_reason": None, "probability": 0.1, "calibrated": False, "score": -2.0, "scores": {"tiny": -2.0}}
        return scored(inspect_bytes(data), data, name, request_id, **real)


def scored(facts, data, name, request_id, **decision):
    """An image's answer."""
    return ImageAnswer(name=name, status="ok", detectors={}, sha256=facts.sha256, image=facts_answer(facts, len(data)), ensemble=TINY,
                       timings=Timings(decode=0, wait=0, score=0, total=0), request_id=request_id, **decision)  # fmt: skip


class LoopbackFetcher:
    """Fetches `https://<anything>/path` from a server of the test, which the guarded one would rightly refuse."""

    def __init__(self, base):
        self._client = httpx.AsyncClient(base_url=base, trust_env=False, timeout=30)

    def check(self, url):
        if not url.startswith("https://"):
            raise Refusal("url_refused", "only https URLs are fetched")

    async def fetch(self, url):
        self.check(url)
        answer = await self._client.get("/" + url.split("/", 3)[3])
        if answer.status_code == 404:
            raise SourceError(Status.SOURCE_MISSING, "nothing is there")
        return answer.content


class PictureServer(HttpServer):
    """A real HTTP server: `/3.jpg` is `jpeg(3)`. It counts what is asked, and from `held_from` on lets clients wait until `open`."""

    def __init__(self, held_from=10**9):
        self.asked, self.open, self.arrived = [], threading.Event(), threading.Semaphore(0)
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                number = self.path.strip("/").partition(".")[0]
                outer.asked.append(self.path)
                outer.arrived.release()
                if number.isdigit() and int(number) >= held_from:
                    outer.open.wait(60)
                body = jpeg(int(number)) if number.isdigit() else b""
                self.send_response(200 if body else 404)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        super().__init__(Handler)

    def __exit__(self, *_):
        self.open.set()
        super().__exit__()


class Clock:
    """Time that passes when the test says so."""

    def __init__(self):
        self.now = datetime(2031, 5, 4, tzinfo=UTC)

    def __call__(self):
        return self.now

    def pass_hours(self, hours):
        self.now += timedelta(hours=hours)


class Sleeper:
    """Notes the pauses and takes none."""

    def __init__(self):
        self.pauses = []

    async def __call__(self, seconds):
        self.pauses.append(seconds)
        await asyncio.sleep(0)


def settings(urls=False, **jobs):
    return ServeConfig(ensembles=("tiny",), jobs=jobs, urls={"enabled": urls})


@asynccontextmanager
async def book_of(config, scorer, fetcher=None, **parts):
    """A book while it is open."""
    book = JobBook(config, scorer, fetcher, sleep=parts.pop("sleep", Sleeper()), **parts)
    book.start()
    try:
        yield book
    finally:
        await book.close()


async def until(condition, seconds=20.0):
    """Wait until a condition, plain or async, holds, and what it gave."""
    deadline = asyncio.get_running_loop().time() + seconds
    while True:
        found = condition()
        if inspect.isawaitable(found):
            found = await found
        if found:
            return found
        assert asyncio.get_running_loop().time() < deadline, "waited in vain"
        await asyncio.sleep(0.005)


async def ended(book, owner, job):
    """The job, once it has ended."""

    async def has_ended():
        now = await book.status(owner, job)
        return now if now.finished_at else None

    return await until(has_ended)


def lines(results):
    return [json.loads(line) for line in results.decode().splitlines()]


async def refusal_of(asked):
    with pytest.raises(Refusal) as caught:
        await asked
    return caught.value


def kept_files(root):
    found = (path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())
    return sorted(name for name in found if not name.startswith("lease"))
