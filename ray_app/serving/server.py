"""Serve an endpoint on one machine without Ray (`touchstone serve`): Granian with worker processes,
each with the application and all detectors.

A worker that dies is started again. `docs/serving.md` says what only Ray can do.
"""

import json
import logging
import math
import multiprocessing
import os
import resource
import signal
import sys
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from multiprocessing.synchronize import Semaphore
from pathlib import Path
from typing import Any, Literal

from fastapi import FastAPI
from granian import Granian
from granian.constants import HTTPModes, Interfaces, RuntimeModes
from granian.http import HTTP1Settings
from granian.log import LogLevels

from ray_app.config import Frozen, validate
from ray_app.detectors import resolve_weights
from ray_app.errors import DetectorError, TouchstoneError
from ray_app.serving import address, engine, metrics, release
from ray_app.serving.config import QUIET, ServeConfig
from ray_app.serving.http.app import create_app
from ray_app.serving.replica import DetectorGroup
from ray_app.storage.node_budget import usable_cores

# Requests at work have `deadline_s` and this many seconds when the server ends.
SHUTDOWN_MARGIN_S = 10
THREADS = "OMP_NUM_THREADS"
# Files of a worker that are not connections of clients.
_SPARE_FILES = 256
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
    """Answer until SIGINT or SIGTERM, then finish the requests at work.

    Args:
        config: The endpoint.
        host: Address to listen on.
        port: Port to listen on.
        announce: Called with the URL of the endpoint once it scores images.
        workers: Processes that share the port.
        logs: A `logging_config` of Ray Serve.

    Raises:
        ConfigError: The host, the port, or `logs` is not allowed.
        DetectorError: Licences or weights are missing, or a worker could not start.
    """
    address.refuse_open_host(config, host)
    settings = validate(logs, LogSettings, where="logging_config")
    # Workers share the port, so they would also share it with another endpoint.
    address.listening(host, port).close()
    # Weights are fetched once, and missing ones are an error here.
    for card in release.plan_release(config)[0].cards.values():
        resolve_weights(card)
    # More threads than cores would be in each other's way. One core decodes.
    os.environ.setdefault(THREADS, str(max(1, usable_cores() // workers - 1)))
    _raise_file_limit(config.limits.max_connections + _SPARE_FILES)
    # Granian would fork this process, which has threads.
    multiprocessing.set_start_method("spawn", force=True)
    with ExitStack() as ending:
        if workers > 1:
            os.environ[metrics.SHARED] = ending.enter_context(
                tempfile.TemporaryDirectory(prefix="ts-metrics-")
            )
        server = _make_server(config, host, port, workers, settings)
        loaded = multiprocessing.Semaphore(0)

        def announce_when_ready() -> None:
            for _ in range(workers):
                loaded.acquire()
            url = address.url_of(host, port)
            address.await_ready(url)
            # A worker that fails before this ends the command, after its own message.
            server.respawn_failed_workers = True
            announce(url)

        threading.Thread(target=announce_when_ready, daemon=True).start()
        try:
            server.serve(target_loader=partial(_load_worker, config, loaded), wrap_loader=False)
        except SystemExit:
            raise DetectorError(
                "a worker could not start", hint="see its own message above"
            ) from None


def application(config: ServeConfig) -> FastAPI:
    """Return the application with its detectors loaded and its decoders started. Raises
    ConfigError, DetectorError, TouchstoneError.
    """
    meter = metrics.Meter()
    with ThreadPoolExecutor(1) as beside:
        # The imports of the decoders run beside torch's.
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


def _make_server(
    config: ServeConfig, host: str, port: int, workers: int, settings: LogSettings
) -> Any:
    limits = config.limits
    return Granian(
        "touchstone",
        address="127.0.0.1" if host == "localhost" else host,
        port=port,
        interface=Interfaces.ASGI,
        workers=workers,
        http=HTTPModes.http1,
        websockets=False,
        # Each worker has one thread for connections. A pool of threads takes more time per request.
        runtime_mode=RuntimeModes.st,
        backlog=limits.max_connections,
        backpressure=limits.max_connections,  # of each worker
        http1_settings=HTTP1Settings(
            header_read_timeout=math.ceil(limits.header_timeout_s * 1000),
            max_buffer_size=limits.max_header_bytes,
        ),
        workers_kill_timeout=int(limits.deadline_s) + SHUTDOWN_MARGIN_S,
        log_level=LogLevels(settings.log_level.lower()),
        log_dictconfig=_logging_config(settings),
        log_access=settings.enable_access_log,
    )


def _load_worker(config: ServeConfig, loaded: Semaphore) -> FastAPI:
    """Return the application of one worker process and release `loaded`, or end the process with
    the reason in its log.
    """
    # Ctrl-C goes to the parent too, which ends its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if metrics.SHARED in os.environ:
        _forget_dead_workers(Path(os.environ[metrics.SHARED]))
    try:
        app = application(config)
    except TouchstoneError as error:
        _log.error("%s%s", error.message, f"; {error.hint}" if error.hint else "")
        sys.exit(1)
    loaded.release()
    return app


def _end_with_parent() -> None:
    """End this worker if its parent was killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "a worker has a parent"
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)


def _forget_dead_workers(folder: Path) -> None:
    """Remove the images in flight of workers that have died."""
    from prometheus_client.multiprocess import mark_process_dead

    for file in folder.glob("gauge_live*_*.db"):
        pid = int(file.stem.rpartition("_")[2])
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            mark_process_dead(pid)  # type: ignore[no-untyped-call]


def _raise_file_limit(files: int) -> None:
    """Let this process and its workers open that many files, or as many as the system allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = files if hard == resource.RLIM_INFINITY else min(files, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


class JsonLines(logging.Formatter):
    """Format a log record as one line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        line = {
            "asctime": self.formatTime(record),
            "levelname": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exc_text"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def _logging_config(settings: LogSettings) -> dict[str, Any]:
    """Return the `logging.config` dictionary that Granian applies in every process: lines on
    stderr.
    """
    text = {"format": "%(asctime)s %(levelname)s %(name)s: %(message)s"}
    json_lines = {"()": f"{__name__}.{JsonLines.__name__}"}
    logger = {"handlers": ["stderr"], "level": settings.log_level, "propagate": False}
    return {
        "formatters": {"line": json_lines if settings.encoding == "JSON" else text},
        "handlers": {
            "stderr": {
                "class": "logging.StreamHandler",
                "stream": "ext://sys.stderr",
                "formatter": "line",
            }
        },
        "loggers": {
            "ray_app": logger,
            "_granian": dict(logger),
            "granian.access": {**logger, "level": "INFO"},
        },
    }
