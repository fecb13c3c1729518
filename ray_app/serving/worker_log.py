"""The log of worker processes, which the HTTP process writes with its own: to stderr, or to the file
of a Ray Serve replica.
"""

import logging
from contextlib import suppress
from typing import Any

from ray_app.serving.frames import FrameSocket, WorkerFrame

_PACKAGE = "ray_app"


class FrameLogHandler(logging.Handler):
    """Send log records to the HTTP process. They are lost once it has ended."""

    def __init__(self, connection: FrameSocket) -> None:
        super().__init__()
        self._connection = connection
        # With the traceback: Ray Serve's JSON has no traceback of a record without an exception.
        self.setFormatter(logging.Formatter("%(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        """Send one record."""
        sent = {
            "name": record.name,
            "levelno": record.levelno,
            "levelname": record.levelname,
            "msg": self.format(record),
            "created": record.created,
            "msecs": record.msecs,
            "process": record.process,
        }
        with suppress(OSError):
            self._connection.send(WorkerFrame({"log": sent}))


def write_worker_record(sent: dict[str, Any]) -> None:
    """Write a record to the log of this process.

    Args:
        sent: The fields of the record, as `FrameLogHandler` sends them.
    """
    if sent["name"].partition(".")[0] != _PACKAGE:
        # Loggers of other packages have no handler in this process.
        sent |= {"name": __name__, "msg": f"{sent['name']}: {sent['msg']}"}
    logger = logging.getLogger(sent["name"])
    if logger.isEnabledFor(sent["levelno"]):
        logger.handle(logging.makeLogRecord(sent))
