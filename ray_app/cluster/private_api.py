"""Import private names of Ray that have no public substitute.

For each name, a docstring has the reason, and the fallback for a version of Ray without the name.
"""

import logging
from typing import Any

_log = logging.getLogger(__name__)


def draining_nodes() -> dict[str, int]:
    """Return the nodes that will be taken away, with the time at which this happens.

    Reason: Ray publishes notices of preemption to the workers of Ray Train only
    (`ray.train.get_preemption_info`). A scoring run needs these notices, to start no further block
    on such nodes. Ray Data, Train, and Serve read the same state. Fallback: no node counts as
    draining, and a block of a lost node is repeated on another node.

    Returns:
        The deadline of each node in milliseconds since 1970, or 0 if it has none.
    """
    from ray.exceptions import RayError

    try:
        from ray._private.state import state

        notices: dict[str, int] = state.get_draining_nodes()
    except (ImportError, AttributeError) as error:
        _log.warning("this version of Ray does not report nodes that will be taken away: %s", error)
        return {}
    # A head that does not answer ends the run elsewhere, with a better message.
    except (RayError, RuntimeError):
        return {}
    return notices


def memory_seen_by_ray() -> tuple[int, int] | None:
    """Return the free memory and the free shared memory, in bytes, that Ray detects on this machine.

    Reason: only Ray's own functions show which limits of a container Ray takes into account, and
    `touchstone doctor` prints the two numbers. Fallback: None, and `touchstone doctor` prints only
    the memory of the node.
    """
    try:
        from ray._private import utils

        untyped: Any = utils
        return untyped.estimate_available_memory(), untyped.get_shared_memory_bytes()
    except (ImportError, AttributeError) as error:
        _log.warning("this version of Ray does not report the memory it sees: %s", error)
        return None
