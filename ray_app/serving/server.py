"""One machine's endpoint without Ray (`touchstone serve`): uvicorn with our limits, the
application, the detectors in the same process.

With several workers each is such a process on the same port; one that dies is started anew. What
only Ray can do: docs/serving.md.
"""

import json
import logging
import os
import signal
import socket
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from typing import Any, Literal

import uvicorn
from fastapi import FastAPI
from uvicorn.config import STARTUP_FAILURE
from uvicorn.supervisors import Multiprocess

from ray_app.config import Frozen, validate
from ray_app.detectors import resolve_weights
from ray_app.errors import DetectorError, TouchstoneError
from ray_app.serving import address, engine, metrics, release
from ray_app.serving.config import QUIET, ServeConfig
from ray_app.serving.http.app import create_app
from ray_app.serving.http.connections import LimitedProtocol, connection_limits
from ray_app.serving.replica import DetectorGroup
from ray_app.storage.node_budget import usable_cores

SHUTDOWN_MARGIN_S = 10  # requests at work when it ends have `deadline_s` and this
KEEP_ALIVE_S = 90  # longer than a front proxy keeps idle connections, so that the proxy closes them
# a worker that answers nothing for so long is replaced; importing takes seconds in which it cannot
HUNG_S = 60
THREADS = "OMP_NUM_THREADS"
_log = logging.getLogger(__name__)


class LogSettings(Frozen):
    """Those of Serve's `logging_config` that there are here too. Lines go to stderr."""

    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"] = "WARNING"
    encoding: Literal["TEXT", "JSON"] = "TEXT"
    enable_access_log: bool = False


def serve(
    config: ServeConfig,
    host: str,
    port: int,
    announce: Callable[[str], object],
    *,
    workers: int = 1,
    logs: Any = QUIET,
) -> None:
    """Answer until SIGINT or SIGTERM, then finish the requests at work. `announce(url)` is called
    once images are scored.

    Raises ConfigError for a host, port or `logs` that it must not take, DetectorError for licences
    and weights.
    """
    address.refuse_open_host(config, host)
    settings = validate(logs, LogSettings, where="logging_config")
    LimitedProtocol.limits = connection_limits()
    with ExitStack() as ending:
        listener = ending.enter_context(address.listening(host, port))
        url = address.url_of(host, port)
        for card in release.plan_release(config)[0].cards.values():
            resolve_weights(card)  # fetched here and once; what is missing is an error here
        # Networks of one worker after another's: more threads than cores would only be in each
        # other's way. One core decodes.
        os.environ.setdefault(THREADS, str(max(1, usable_cores() // workers - 1)))
        _log_to_stderr(settings)
        options: dict[str, Any] = {
            "http": LimitedProtocol, "ws": "none", "lifespan": "on", "log_config": None, "access_log": settings.enable_access_log,
            "proxy_headers": False, "server_header": False, "timeout_keep_alive": KEEP_ALIVE_S,
            "timeout_graceful_shutdown": int(config.limits.deadline_s) + SHUTDOWN_MARGIN_S,
        }  # fmt: skip
        if workers == 1:
            server = _Server(uvicorn.Config(application(config), **options), partial(announce, url))
            # uvicorn ends by these and raises them once more for the handlers before: none
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, lambda *_: None)
            server.run([listener])
            return
        os.environ[metrics.SHARED] = ending.enter_context(
            tempfile.TemporaryDirectory(prefix="ts-metrics-")
        )
        several = uvicorn.Config(
            partial(_of_worker, config, settings),
            factory=True,
            workers=workers,
            timeout_worker_healthcheck=HUNG_S,
            **options,
        )
        _Workers(several, [listener], partial(announce, url)).run()


def application(config: ServeConfig) -> FastAPI:
    """The whole application with its detectors loaded and its decoders up. Raises ConfigError,
    DetectorError and TouchstoneError.
    """
    meter = metrics.Meter()
    with ThreadPoolExecutor(1) as beside:
        # their imports run beside torch's
        starting = beside.submit(engine.started_decoders, config)
        groups = {
            name: DetectorGroup(name, meter)
            for name in release.groups_of(release.plan_release(config)[0])
        }
        try:
            for group in groups.values():
                group.load(config)
        except BaseException:
            starting.result().close()
            raise
    scorer = engine.EndpointScorer(config, groups, starting.result(), meter)
    return create_app(config, scorer, meter)


class _Server(uvicorn.Server):
    """Says when it accepts requests."""

    def __init__(self, config: uvicorn.Config, announce: Callable[[], object]) -> None:
        super().__init__(config)
        self._announce = announce

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._announce()


class _Workers(Multiprocess):
    """Says when all workers accept requests, and forgets what one that died was counting just then."""

    def __init__(
        self, config: uvicorn.Config, sockets: list[socket.socket], announce: Callable[[], object]
    ) -> None:
        super().__init__(config, sockets)
        self._announce: Callable[[], object] | None = announce

    def run(self) -> None:
        """Raises DetectorError where a worker could not load what it should serve; it has said why."""
        super().run()
        if any(process.exitcode == STARTUP_FAILURE for process in self.processes):
            raise DetectorError("a worker could not start", hint="see its own message above")

    def keep_subprocess_alive(self) -> None:
        before = {process.pid for process in self.processes}
        for process in self.processes:
            # the worker has its own: with ours open, one that ends while it is pinged is waited
            # for, HUNG_S
            process.child_conn.close()
        super().keep_subprocess_alive()
        for gone in before - {process.pid for process in self.processes}:
            from prometheus_client.multiprocess import mark_process_dead

            mark_process_dead(gone)  # type: ignore[no-untyped-call]
        if (
            self._announce is not None
            and not self.should_exit.is_set()
            and all(process.is_ready(HUNG_S) for process in self.processes)
        ):
            self._announce()
            self._announce = None


def _of_worker(config: ServeConfig, settings: LogSettings) -> FastAPI:
    """The application of one worker; uvicorn gives up where the exit code says that it could not
    start.
    """
    _log_to_stderr(settings)
    LimitedProtocol.limits = connection_limits()
    try:
        return application(config)
    except TouchstoneError as error:
        _log.error("%s%s", error.message, f"; {error.hint}" if error.hint else "")
        raise SystemExit(STARTUP_FAILURE) from None


class _JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {
            "asctime": self.formatTime(record),
            "levelname": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exc_text"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def _log_to_stderr(settings: LogSettings) -> None:
    handler = logging.StreamHandler()
    text = logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s")
    handler.setFormatter(_JsonLines() if settings.encoding == "JSON" else text)
    for name in ("ray_app", "uvicorn", "uvicorn.error", "uvicorn.access"):
        one = logging.getLogger(name)
        one.setLevel(settings.log_level)
        one.propagate = "." in name
        one.handlers = [] if one.propagate else [handler]
