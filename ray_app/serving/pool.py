"""Manage the worker processes of an endpoint from its HTTP process (`WorkerPool`).

Images wait in one queue, in order of arrival. Each worker gets as many images as it can decode and
score at a time. If a worker dies, a new worker starts, and the images go to the front of the queue.
Importing this module imports neither torch nor Ray.
"""

import asyncio
import logging
import os
import pickle
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass, field
from math import isclose
from typing import Any

from ray_app.child_process import SECRETS
from ray_app.errors import ConfigError, DetectorError, ExitCode, TouchstoneError
from ray_app.import_path import safe_variables
from ray_app.serving import frames
from ray_app.serving.config import Access, ServeConfig
from ray_app.serving.ensembles import plan_ensembles
from ray_app.serving.frames import FrameSocket, WorkerFrame
from ray_app.serving.http import schemas
from ray_app.serving.metrics import Meter
from ray_app.serving.refusal import Refusal
from ray_app.serving.worker_log import write_worker_record

START_TIMEOUT_S = 600.0
STOP_TIMEOUT_S = 10.0
# An image is refused after this many workers have died while processing it.
MAX_DEATHS = 3
# Readiness is checked again after this many seconds, so that probes do not load a busy endpoint.
READY_S, UNREADY_S = 10.0, 1.0
# A replica without a worker for this many seconds is unhealthy. A worker starts within seconds.
MAX_DOWN_S = 120.0
_RESTART_PAUSE_S = 1.0
_SECRET_WORDS = ("TOKEN", "SECRET", "PASSWORD", "CREDENTIAL", "ACCESS_KEY", "API_KEY")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ImageQuery:
    """The options that a client set for one image, as in `ScoreRequest`.

    The HTTP process sends them to a worker, which adds the file to make a `ScoreRequest`.
    """

    name: str | None = None
    ensemble: str | None = None
    fpr: float | None = None
    detectors: Sequence[str] = ()
    masks: bool = False
    request_id: str = ""
    is_alone: bool = True


@dataclass(frozen=True)
class ImageReply:
    """The answer of a worker for one image: an HTTP status and the JSON for the client.

    `refused` is the reason for a refusal as a code, such as `corrupt_image`. None for a scored
    image.
    """

    status: int
    body: bytes
    refused: str | None = None


@dataclass(frozen=True)
class Served:
    """The ensembles and detectors of an endpoint, as its workers describe them.

    Attributes:
        slots: The maximum number of images in a batch of a worker.
        ensembles: The ensembles. The first one is the default.
        optional: The names of the optional detectors, which score only if a request names them.
        detectors: The properties of each detector, as in `GET /v1/detectors`.
    """

    slots: int
    ensembles: Sequence[schemas.EnsembleInfo]
    optional: Sequence[str]
    detectors: Sequence[schemas.DetectorInfo]

    @property
    def names(self) -> list[schemas.EnsembleName]:
        """The name, SHA-256 of the settings, and false-positive rate of each ensemble."""
        return [
            schemas.EnsembleName(name=info.name, fingerprint=info.fingerprint, fpr=info.fpr)
            for info in self.ensembles
        ]

    def check(self, request: ImageQuery) -> None:
        """Raise Refusal if the endpoint cannot score an image with the requested options.

        This is the case if the ensemble is not served, or if a detector is not an optional detector
        of the endpoint. It is also the case if the ensemble has no thresholds for `fpr`.
        """
        names = [info.name for info in self.ensembles]
        if request.ensemble is not None and request.ensemble not in names:
            raise Refusal(
                "malformed_request",
                f"the ensemble is not served; this endpoint serves: {', '.join(names)}",
            )
        if not set(request.detectors) <= set(self.optional):
            served = ", ".join(self.optional) or "none"
            raise Refusal(
                "malformed_request",
                f"an optional detector is not served; this endpoint serves: {served}",
            )
        info = self.ensembles[names.index(request.ensemble) if request.ensemble else 0]
        rates = [point.fpr for point in info.operating_points]
        if request.fpr is not None and not any(isclose(request.fpr, rate) for rate in rates):
            served = ", ".join(f"{rate:g}" for rate in rates) or "none"
            raise Refusal(
                "malformed_request",
                f"{info.name} has no operating point for this fpr; the endpoint serves: {served}",
            )


@dataclass
class _Item:
    """An image in the queue or in a worker."""

    header: dict[str, Any]
    data: bytes
    reply: "asyncio.Future[WorkerFrame]"
    deaths: int = 0


class WorkerProcess:
    """A worker process of the endpoint, and the socket to it. Creating an object starts the process.

    `plan` is the pickled `EnsemblePlan`: a worker has no credentials to read cards from a bucket.
    """

    def __init__(self, config: ServeConfig, plan: bytes) -> None:
        self.plan = plan
        own_socket, worker_socket = socket.socketpair()
        self.frames = FrameSocket(own_socket)
        with worker_socket:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "ray_app.serving.worker", str(worker_socket.fileno())],
                pass_fds=[worker_socket.fileno()],
                stdin=subprocess.DEVNULL,
                env=_worker_environment(config.access),
            )
        header = {
            # A worker has no tokens, and needs none.
            "config": config.model_copy(update={"access": Access()}).model_dump(mode="json"),
            "log_level": logging.getLogger("ray_app").getEffectiveLevel(),
        }
        with suppress(OSError):
            self.frames.send(WorkerFrame(header, plan))

    def await_ready(self) -> Served:
        """Wait until the worker has loaded its detectors, and return what it serves.

        Raises ConfigError if the ensembles cannot be served together, and DetectorError if the
        worker could not load the detectors.
        """
        self.frames.connection.settimeout(START_TIMEOUT_S)
        try:
            frame = self.frames.receive()
            while frame is not None and "log" in frame.header:
                write_worker_record(frame.header["log"])
                frame = self.frames.receive()
        except TimeoutError:
            frame = None
        self.frames.connection.settimeout(None)
        if frame is None:
            raise DetectorError("a worker could not start", hint="read the worker's message above")
        if (failure := frame.header.get("failure")) is not None:
            kind = ConfigError if failure["exit_code"] == ExitCode.USAGE else DetectorError
            raise kind(failure["message"], hint=failure["hint"])
        header = frame.header
        return Served(
            header["slots"],
            [schemas.EnsembleInfo.model_validate(info) for info in header["ensembles"]],
            header["optional"],
            [schemas.DetectorInfo.model_validate(info) for info in header["detectors"]],
        )

    def close(self) -> None:
        """End the worker by closing its socket. If it does not end in time, send it a signal."""
        self.frames.close()
        try:
            self.process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def start_workers(config: ServeConfig, count: int) -> tuple[list[WorkerProcess], Served]:
    """Start worker processes, and wait until all have loaded their detectors, which are returned.

    The errors are those of `WorkerProcess.await_ready`.
    """
    plan = pickle.dumps(plan_ensembles(config))
    workers = [WorkerProcess(config, plan) for _ in range(count)]
    try:
        served = [worker.await_ready() for worker in workers]
    except BaseException:
        for worker in workers:
            worker.process.kill()
            worker.close()
        raise
    return workers, served[0]


@dataclass(eq=False)
class _AttachedWorker:
    """A worker that the event loop reads from, and the images that it has, by number."""

    process: WorkerProcess
    writer: asyncio.StreamWriter
    items: dict[int, _Item] = field(default_factory=dict)


class WorkerPool:
    """Score images in worker processes that are ready, and replace workers that die.

    `meter` counts images and batches.
    """

    def __init__(
        self, config: ServeConfig, workers: Sequence[WorkerProcess], served: Served, meter: Meter
    ) -> None:
        self._config, self._started, self._meter = config, list(workers), meter
        self.served = served
        self._capacity = 2 * served.slots
        self._queue: deque[_Item] = deque()
        self._attached: list[_AttachedWorker] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._sent = self._in_flight = 0
        self._down_since: float | None = None
        self._checking = asyncio.Lock()
        self._ready_until = self._unready_until = 0.0

    @property
    def is_healthy(self) -> bool:
        """Whether a worker is running, or was running in the last `MAX_DOWN_S` seconds."""
        return self._down_since is None or time.monotonic() - self._down_since < MAX_DOWN_S

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Connect to the workers for the `async with` block, in which `answer` may be called.

        The workers are ended with the block.
        """
        for process in self._started:
            await self._attach(process)
        try:
            yield
        finally:
            for task in self._tasks:
                task.cancel()
            attached, self._attached = self._attached, []
            for worker in attached:
                worker.writer.close()
            await asyncio.gather(*(asyncio.to_thread(worker.process.close) for worker in attached))

    async def answer(self, data: bytes, request: ImageQuery) -> ImageReply:
        """Score one image, and return its answer. There is no time limit.

        Raises Refusal if `Served.check` refuses the options, or `MAX_DEATHS` workers have died
        while they processed the image.
        """
        self.served.check(request)
        self._count_in_flight(+1)
        try:
            frame = await self._ask(data, asdict(request))
        finally:
            self._count_in_flight(-1)
        header = frame.header
        if header["timings"] is not None:
            for stage, seconds in header["timings"].items():
                self._meter.stage(stage, seconds)
            self._meter.verdict(header["ensemble"], header["verdict"])
            self._ready_until = time.monotonic() + READY_S
        elif not request.is_alone:
            self._meter.refused(header["refused"])
        return ImageReply(header["status"], frame.data, header["refused"])

    async def require_ready(self) -> None:
        """Raise Refusal if the endpoint cannot score images now. `/readyz` calls this.

        If no image was scored in the last `READY_S` seconds, a built-in test image is scored.
        """
        async with self._checking:
            now = time.monotonic()
            if now < self._ready_until:
                return
            if now < self._unready_until or not self._attached:
                raise Refusal("not_ready")
            # This also applies if the caller leaves before the answer.
            self._unready_until = now + UNREADY_S
            frame = await self._ask(b"", asdict(ImageQuery()) | {"is_golden": True})
            if frame.header["timings"] is None:
                raise Refusal("not_ready", "the built-in test image has no score")
            self._ready_until, self._unready_until = time.monotonic() + READY_S, 0.0

    async def _ask(self, data: bytes, request: dict[str, Any]) -> WorkerFrame:
        reply: asyncio.Future[WorkerFrame] = asyncio.get_running_loop().create_future()
        request["arrived_s"] = time.monotonic()
        self._queue.append(_Item(request, data, reply))
        self._send_waiting()
        return await reply

    def _send_waiting(self) -> None:
        """Send images to the workers with the fewest images, until all workers are full."""
        while self._queue:
            if self._queue[0].reply.done():  # Its caller has left.
                self._queue.popleft()
                continue
            worker = self._find_worker(self._queue[0])
            if worker is None:
                return
            item = self._queue.popleft()
            self._sent += 1
            worker.items[self._sent] = item
            header = {"number": self._sent, "request": item.header}
            frame = WorkerFrame(header, item.data)
            worker.writer.writelines((frames.pack_header(frame), item.data))

    def _find_worker(self, item: _Item) -> _AttachedWorker | None:
        """Return the worker with the fewest images, or None if all workers are full.

        An image whose worker died gets a worker alone, so that no other image is blamed.
        """
        capacity = 1 if item.deaths else self._capacity
        available = [
            worker
            for worker in self._attached
            if len(worker.items) < capacity
            and not any(other.deaths for other in worker.items.values())
        ]
        return min(available, key=lambda worker: len(worker.items), default=None)

    async def _attach(self, process: WorkerProcess) -> None:
        reader, writer = await asyncio.open_connection(sock=process.frames.connection)
        worker = _AttachedWorker(process, writer)
        self._attached.append(worker)
        self._down_since = None
        self._start_task(self._read_answers(worker, reader))
        self._send_waiting()

    async def _read_answers(self, worker: _AttachedWorker, reader: asyncio.StreamReader) -> None:
        """Return the answers of a worker to their callers. Start the worker again when it ends."""
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                frame = await frames.read_frame(reader)
                if "log" in frame.header:
                    write_worker_record(frame.header["log"])
                    continue
                item = worker.items.pop(frame.header["number"])
                if frame.header["batch_images"]:
                    waited_s = (frame.header["timings"] or {}).get("wait", 0.0)
                    self._meter.batch(frame.header["batch_images"], waited_s)
                if not item.reply.done():
                    item.reply.set_result(frame)
                self._send_waiting()
        worker.writer.close()
        self._attached.remove(worker)
        if not self._attached:
            self._down_since = time.monotonic()
        for item in reversed(worker.items.values()):
            self._requeue(item)
        _log.error(
            "worker ended with exit code %s: starting a new worker", worker.process.process.poll()
        )
        await self._restart(worker.process)

    def _requeue(self, item: _Item) -> None:
        """Put an image whose worker has died at the front of the queue."""
        item.deaths += 1
        if item.deaths < MAX_DEATHS:
            self._queue.appendleft(item)
        elif not item.reply.done():
            reason = f"{MAX_DEATHS} workers died while they processed the image"
            item.reply.set_exception(Refusal("detector_failed", reason))

    async def _restart(self, dead: WorkerProcess) -> None:
        await asyncio.to_thread(dead.close)
        while True:
            process = await asyncio.to_thread(WorkerProcess, self._config, dead.plan)
            try:
                await asyncio.to_thread(process.await_ready)
            except TouchstoneError as error:
                _log.error("a worker could not start: %s", error.message)
                await asyncio.to_thread(process.close)
                await asyncio.sleep(_RESTART_PAUSE_S)
            except asyncio.CancelledError:
                process.process.kill()
                raise
            else:
                await self._attach(process)
                return

    def _start_task(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _count_in_flight(self, change: int) -> None:
        self._in_flight += change
        self._meter.in_flight(self._in_flight)


def _worker_environment(access: Access) -> dict[str, str]:
    """Return the environment of this process without tokens and other secrets."""
    secrets = {*SECRETS, access.tokens_variable}
    variables = {
        name: value
        for name, value in os.environ.items()
        if name not in secrets and not any(word in name.upper() for word in _SECRET_WORDS)
    }
    return variables | safe_variables()
