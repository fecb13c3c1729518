"""Send the log records of worker processes to the HTTP process.

The HTTP process writes them to its own log: to stderr, or to the file of a Ray Serve replica.
"""

import logging
from contextlib import suppress
from typing import Any

from ray_app.serving.frames import FrameSocket, WorkerFrame

_PACKAGE = "ray_app"


class FrameLogHandler(logging.Handler):
    """Send log records to the HTTP process. Records are lost after that process has ended."""

    def __init__(self, connection: FrameSocket) -> None:
        super().__init__()
        self._connection = connection
        # The message includes the traceback, because Ray Serve's JSON has no traceback for a record
        # without an exception object.
        self.setFormatter(logging.Formatter("%(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        """Send one log record to the HTTP process."""
        fields = {
            "name": record.name,
            "levelno": record.levelno,
            "levelname": record.levelname,
            "msg": self.format(record),
            "created": record.created,
            "msecs": record.msecs,
            "process": record.process,
        }
        with suppress(OSError):
            self._connection.send(WorkerFrame({"log": fields}))


def write_worker_record(fields: dict[str, Any]) -> None:
    """Write a log record from a worker to the log of this process, the HTTP process.

    Args:
        fields: The fields of the record, as `FrameLogHandler` sends them.
    """
    if fields["name"].partition(".")[0] != _PACKAGE:
        # Loggers of other packages have no handler in this process.
        fields |= {"name": __name__, "msg": f"{fields['name']}: {fields['msg']}"}
    logger = logging.getLogger(fields["name"])
    if logger.isEnabledFor(fields["levelno"]):
        logger.handle(logging.makeLogRecord(fields))
