"""The log of an endpoint: what this package logs is in Ray Serve's log, and what a worker process
logs is in the log of its HTTP process.
"""

import json
import logging
import socket

import pytest

from ray_app.serving.app import _log_to_serve
from ray_app.serving.frames import FrameSocket
from ray_app.serving.server import JsonLines
from ray_app.serving.worker_log import FrameLogHandler, write_worker_record


@pytest.fixture
def serve_records(monkeypatch):
    """Records that reach a handler of Ray Serve, whose level is WARNING."""
    package_log, serve_log = logging.getLogger("ray_app"), logging.getLogger("ray.serve")
    handler, records = logging.Handler(), []
    handler.emit = records.append
    for name in ("handlers", "propagate", "level"):
        monkeypatch.setattr(package_log, name, getattr(package_log, name))
    package_log.handlers = package_log.handlers[:]
    monkeypatch.setattr(serve_log, "handlers", [*serve_log.handlers, handler])
    monkeypatch.setattr(serve_log, "level", serve_log.level)
    serve_log.setLevel(logging.WARNING)
    yield records
    monkeypatch.undo()
    serve_log.setLevel(serve_log.level)  # It empties the cache of every logger.


def test_package_log_follows_the_level_of_serve(serve_records):
    package_log = logging.getLogger("ray_app.serving.any")
    _log_to_serve()
    _log_to_serve()
    package_log.info("not this")
    package_log.warning("this")
    logging.getLogger("ray.serve").setLevel(logging.INFO)
    package_log.info("and this")
    assert [record.getMessage() for record in serve_records] == ["this", "and this"]


@pytest.fixture
def worker_log():
    """The logger of a worker process, and the end of its socket in the HTTP process."""
    ours, theirs = map(FrameSocket, socket.socketpair())
    logger = logging.Logger("ray_app.serving.engine")
    logger.addHandler(FrameLogHandler(theirs))
    yield logger, ours
    ours.close()
    theirs.close()


def test_record_of_a_worker_is_logged_with_its_traceback(worker_log, caplog):
    logger, connection = worker_log
    try:
        raise ValueError("no such thing")
    except ValueError:
        logger.exception("request %s failed: 100 %%", "1234")
    write_worker_record(connection.receive().header["log"])
    (record,) = caplog.records
    assert (record.name, record.levelname) == ("ray_app.serving.engine", "ERROR")
    message, *traceback = json.loads(JsonLines().format(record))["message"].splitlines()
    assert message == "request 1234 failed: 100 %"
    assert traceback[0].startswith("Traceback")
    assert traceback[-1] == "ValueError: no such thing"
