"""Serve an endpoint on one machine without Ray (`touchstone serve`).

One HTTP process runs under Granian, and worker processes load all detectors. `docs/serving.md` lists
what only an endpoint on Ray can do.
"""

import gc
import json
import logging
import math
import multiprocessing
import os
import resource
import signal
import sys
import threading
from collections.abc import Callable
from functools import partial
from multiprocessing.synchronize import Event
from typing import Any, Literal

from fastapi import FastAPI
from granian import Granian
from granian.constants import HTTPModes, Interfaces, RuntimeModes
from granian.http import HTTP1Settings
from granian.log import LogLevels

from ray_app.config import Frozen, validate
from ray_app.errors import DetectorError, TouchstoneError
from ray_app.serving import address
from ray_app.serving.config import QUIET, ServeConfig
from ray_app.serving.ensembles import fetch_weights
from ray_app.serving.http.app import create_app
from ray_app.serving.metrics import Meter
from ray_app.serving.pool import WorkerPool, start_workers
from ray_app.storage.node_budget import usable_cores

# When the server stops, running requests have `deadline_s` and this many seconds.
SHUTDOWN_MARGIN_S = 10
THREADS = "OMP_NUM_THREADS"
MAX_DEFAULT_WORKERS = 4
# Open files that are not connections of clients.
_SPARE_FILES = 256
_log = logging.getLogger(__name__)


class LogSettings(Frozen):
    """The keys of Ray Serve's `logging_config` that an endpoint without Ray supports.

    Such an endpoint logs to stderr.
    """

    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"] = "WARNING"
    encoding: Literal["TEXT", "JSON"] = "TEXT"
    enable_access_log: bool = False


def serve(
    config: ServeConfig,
    host: str,
    port: int,
    announce: Callable[[str], object],
    *,
    workers: int | None = None,
    logs: Any = QUIET,
) -> None:
    """Run an endpoint until SIGINT or SIGTERM, then finish the running requests.

    Args:
        config: The settings of the endpoint.
        host: Address to listen on.
        port: Port to listen on.
        announce: A function that is called with the URL when the endpoint is ready.
        workers: The number of worker processes, each with all detectors. None uses
            `default_workers`.
        logs: A `logging_config` of Ray Serve.

    Raises:
        ConfigError: The host, the port, or `logs` is not allowed, or the ensembles cannot be served
            together.
        DetectorError: A licence is not accepted, weights are missing, or a worker could not start.
    """
    address.require_tokens_or_loopback(config, host)
    settings = validate(logs, LogSettings, where="logging_config")
    address.bind_socket(host, port).close()
    # Fetch weights once, and fail early if weights are missing.
    fetch_weights(config)
    count = workers or default_workers(config)
    # All workers together have one thread per core.
    os.environ.setdefault(THREADS, str(max(1, usable_cores() // count)))
    _raise_file_limit(config.limits.max_connections + _SPARE_FILES)
    # Granian would fork this process, which has threads.
    multiprocessing.set_start_method("spawn", force=True)
    server = _make_server(config, host, port, settings)
    loaded = multiprocessing.Event()

    def announce_when_ready() -> None:
        loaded.wait()
        url = address.make_url(host, port)
        address.await_ready(url)
        # If the HTTP process fails before this, the command ends, after its own message.
        server.respawn_failed_workers = True
        announce(url)

    threading.Thread(target=announce_when_ready, daemon=True).start()
    try:
        server.serve(target_loader=partial(_load_app, config, count, loaded), wrap_loader=False)
    except SystemExit:
        raise DetectorError(
            "a worker could not start", hint="read the worker's message above"
        ) from None


def default_workers(config: ServeConfig) -> int:
    """Return the default number of workers: one per core, but up to 4, and one if a GPU is used.

    The number is limited because each worker loads all detectors.
    """
    return min(usable_cores(), MAX_DEFAULT_WORKERS) if config.device == "cpu" else 1


def _make_server(config: ServeConfig, host: str, port: int, settings: LogSettings) -> Any:
    limits = config.limits
    return Granian(
        "touchstone",
        address="127.0.0.1" if host == "localhost" else host,
        port=port,
        interface=Interfaces.ASGI,
        workers=1,
        http=HTTPModes.http1,
        websockets=False,
        # One thread for all connections. A pool of threads takes more time per request.
        runtime_mode=RuntimeModes.st,
        backlog=limits.max_connections,
        backpressure=limits.max_connections,
        http1_settings=HTTP1Settings(
            header_read_timeout=math.ceil(limits.header_timeout_s * 1000),
            max_buffer_size=limits.max_header_bytes,
        ),
        workers_kill_timeout=int(limits.deadline_s) + SHUTDOWN_MARGIN_S,
        log_level=LogLevels(settings.log_level.lower()),
        log_dictconfig=_logging_config(settings),
        log_access=settings.enable_access_log,
    )


def _load_app(config: ServeConfig, workers: int, loaded: Event) -> FastAPI:
    """Return the application of the HTTP process, and set `loaded`.

    If a worker does not start, log the reason and end the process.
    """
    # Ctrl-C also reaches the parent, which ends this process.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        processes, served = start_workers(config, workers)
    except TouchstoneError as error:
        _log.error("%s%s", error.message, f"; {error.hint}" if error.hint else "")
        sys.exit(1)
    meter = Meter()
    app = create_app(config, WorkerPool(config, processes, served, meter), meter)
    # Freeze the loaded modules, so that the garbage collector does not scan them again.
    gc.collect()
    gc.freeze()
    loaded.set()
    return app


def _end_with_parent() -> None:
    """End this process if its parent was killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "Granian started this process"
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)


def _raise_file_limit(files: int) -> None:
    """Allow this process and its children to open `files` files, or the maximum of the system."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = files if hard == resource.RLIM_INFINITY else min(files, hard)
    if soft != resource.RLIM_INFINITY and soft < limit:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))


class JsonLines(logging.Formatter):
    """Format a log record as one line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        """Return a record as one line of JSON."""
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
    """Return the `logging.config` dictionary that Granian applies in every process.

    Log lines go to stderr.
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
