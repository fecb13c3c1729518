"""The log of a replica: what this package logs is in Ray Serve's log."""

import logging

import pytest

from ray_app.serving.app import _log_to_serve


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
