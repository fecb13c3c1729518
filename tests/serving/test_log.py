"""The log of an endpoint: what this package logs is in Ray Serve's log, and what a worker process
logs is in the log of its HTTP process.
"""

import json
import logging
import socket

import pytest
import yaml

from ray_app.serving.app import _log_to_serve
from ray_app.serving.frames import FrameSocket
from ray_app.serving.server import JsonLines
from ray_app.serving.worker_log import FrameLogHandler, write_worker_record
from tests.serving.served import served


@pytest.fixture
def serve_records():
    """Records that reach a handler of Ray Serve, whose level is WARNING."""
    package_log, serve_log, records = (
        logging.getLogger("ray_app"),
        logging.getLogger("ray.serve"),
        [],
    )
    before = package_log.handlers[:], package_log.propagate, package_log.level, serve_log.level
    handler = logging.Handler()
    handler.emit = records.append
    serve_log.addHandler(handler)
    serve_log.setLevel(logging.WARNING)
    yield records
    serve_log.removeHandler(handler)
    package_log.handlers[:], package_log.propagate = before[0], before[1]
    package_log.setLevel(before[2])
    serve_log.setLevel(before[3])


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


def test_a_record_of_a_worker_is_in_the_log_with_its_traceback(worker_log, caplog):
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


def test_records_of_other_packages_name_them(worker_log, caplog):
    logger, connection = worker_log
    logger.name = "transformers.models"
    logger.warning("a setting is old")
    write_worker_record(connection.receive().header["log"])
    assert caplog.messages == ["transformers.models: a setting is old"]
    assert caplog.records[0].name == "ray_app.serving.worker_log"


def test_a_record_of_a_worker_whose_endpoint_has_ended_is_lost_without_an_error(worker_log):
    logger, connection = worker_log
    connection.close()
    logger.error("nobody reads this")


def test_a_worker_of_a_running_endpoint_logs_in_its_encoding(tmp_path):
    config = tmp_path / "serve.yaml"
    args = {"ensembles": ["tiny"]}
    config.write_text(
        yaml.safe_dump(
            {
                "applications": [{"import_path": "ray_app.serving.app:build", "args": args}],
                "logging_config": {"encoding": "JSON", "log_level": "INFO"},
            }
        )
    )
    with served("--config", str(config), "--workers", "1") as endpoint:
        (worker,) = endpoint.workers()
        lines = endpoint.logs()["stderr"].splitlines()
    records = [json.loads(line) for line in lines if line.startswith("{")]
    (loaded,) = [record for record in records if "has loaded" in record["message"]]
    assert loaded["message"] == f"process {worker.pid} has loaded tiny"
    assert (loaded["logger"], loaded["levelname"]) == ("ray_app.serving.worker", "INFO")
