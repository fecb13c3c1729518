"""Import private names of Ray Data that have no public substitute.

`EXECUTION_CALLBACKS` is a list of callback classes for the settings of Ray Data. They add a pause
between the steps of Ray Data's scheduler. Without it, the scheduler takes a whole core while
results wait for the reader. A comment at each import states why the private name is needed, and
what happens if a version of Ray lacks it.
"""

import logging
import time
from typing import Any

_log = logging.getLogger(__name__)

POLL_INTERVAL_S = 0.02

# Reason: Ray Data's scheduler, a thread of the driver, polls without a pause while results wait for
# the reader, and takes a whole core. The setting `DataContext.custom_execution_callback_classes` is
# public, the base class of the callbacks is not. Fallback: no callback; the driver takes more CPU
# while the pools are ahead of it.
try:
    from ray.data._internal.execution.execution_callback import ExecutionCallback
except ImportError as error:
    _log.warning("this version of Ray Data has no execution callbacks: %s", error)
    EXECUTION_CALLBACKS: list[type[Any]] = []
else:

    class PacedScheduler(ExecutionCallback):
        """Pause after each step of Ray Data's scheduler, so that it does not take a whole core."""

        def __init__(self) -> None:
            self._stepped_at = 0.0

        def on_execution_step(self, executor: Any) -> None:
            """Wait until `POLL_INTERVAL_S` after the last step."""
            time.sleep(max(0.0, self._stepped_at + POLL_INTERVAL_S - time.monotonic()))
            self._stepped_at = time.monotonic()

    EXECUTION_CALLBACKS = [PacedScheduler]
