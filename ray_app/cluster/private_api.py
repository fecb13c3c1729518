"""Call private functions of Ray that have no public substitute.

Each docstring states why the private function is needed, and the fallback if a version of Ray does
not have it.
"""

import logging
from typing import Any

_log = logging.getLogger(__name__)


def draining_nodes() -> dict[str, int]:
    """Return by node id when nodes will be taken away, in milliseconds since 1970, or 0.

    Reason: Ray publishes notices of preemption to the workers of Ray Train only
    (`ray.train.get_preemption_info`). A scoring run needs these notices to start no new work on
    such nodes. Ray Data, Train, and Serve read the same state. Fallback: no node counts as
    draining, and work on a lost node is repeated on another node.
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


def find_current_cluster() -> str | None:
    """Return the address of the cluster that `ray.init(address="auto")` would join.

    Reason: Ray has no public function for the address that `auto` stands for. If the cluster has
    ended, `ray.init` waits for minutes, so its address is probed first. Fallback: None, and the
    cluster is not probed. Raises ConnectionError if Ray finds no cluster on this machine.
    """
    try:
        from ray._private.services import canonicalize_bootstrap_address

        address: str | None = canonicalize_bootstrap_address("auto")
    except (ImportError, AttributeError) as error:
        _log.warning("this version of Ray does not report its current cluster: %s", error)
        return None
    return address


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
