"""Let a local Ray accept requests only from the process that starts it (`private_ray`).

A local Ray gets a random token, loopback addresses, and a folder that only this user may enter.
Without these, Ray 2.60 listens on every address of the machine and makes the folder of its sockets,
logs, and packages writable by every user. docs/security.md has the measurements.
"""

import ipaddress
import os
import secrets
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from ray_app.child_process import SECRETS
from ray_app.cluster.ray_folder import private_folder
from ray_app.errors import ClusterError
from ray_app.import_path import UTF8_MODE

# Ray scores in a thread. With a heap of its own the thread would ignore what
# ray_app.detectors.private_api sets. Workers on a node with another locale must decode file names
# as this process does.
WORKER_ENVIRONMENT = {"MALLOC_ARENA_MAX": "1", UTF8_MODE: "1"}

# Ray's switch for operating systems whose firewall would ask. With 0, all processes of a local Ray
# bind to loopback.
_LOOPBACK_ONLY = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
# The network interface on which the processes of torch.distributed talk to each other.
_LOOPBACK = "lo0" if sys.platform == "darwin" else "lo"
_TORCH = {"GLOO_SOCKET_IFNAME": _LOOPBACK, "NCCL_SOCKET_IFNAME": _LOOPBACK}
# Ray starts workers at niceness 15, below its own daemons. A user who wants a run to yield starts
# it under `nice`, which they inherit.
_NICENESS = {"RAY_worker_niceness": "0"}
# Under `uv run` Ray uploads the current folder and puts it first on the module search path of its
# workers. Read when Ray is imported.
_NO_UPLOAD = {"RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"}

# The variables with which this process imported Ray. Ray reads them once per process.
_access: dict[str, str] = {}


@contextmanager
def private_ray(hidden: Iterable[str]) -> Iterator[Path]:
    """Let a Ray that starts inside the `with` block accept requests from this process only.

    Requests need a random token. It is only in the environment of this process and of Ray's
    processes. The environment of this process is restored after the block. It yields the folder for
    Ray's files. Ray's processes do not inherit the variables `hidden`, nor those with the tokens of
    `touchstone serve` (`SECRETS`). Raises ClusterError if Ray was imported before it could be
    restricted.
    """
    access = _restricted_access()
    left_out = ("RAY_AUTH_TOKEN_PATH", *SECRETS, *hidden)
    with private_folder() as folder:
        inherited = {**access, **_TORCH, **_NICENESS, **_NO_UPLOAD}
        with override_environment(inherited, left_out):
            yield folder / "ray"


def _restricted_access() -> dict[str, str]:
    """Return the variables that restrict a local Ray.

    They are new before the first import of Ray, and those of that import afterwards.
    """
    if "ray" not in sys.modules:
        _access.update(
            {**_LOOPBACK_ONLY, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        )
    elif not _access:
        current = {
            name: os.environ.get(name, "")
            for name in (*_LOOPBACK_ONLY, "RAY_AUTH_MODE", "RAY_AUTH_TOKEN")
        }
        if current != {
            **_LOOPBACK_ONLY,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": current["RAY_AUTH_TOKEN"] or None,
        }:
            raise ClusterError(
                "Ray was imported before Touchstone could restrict a local Ray to this machine and this process",
                hint="start Ray through Touchstone before you import ray, or call ray.init() yourself first; "
                "or set RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0, RAY_AUTH_MODE=token, and a random RAY_AUTH_TOKEN for this process",
            )
        _access.update(current)
    return dict(_access)


def require_loopback() -> None:
    """Check that the local Ray listens only on loopback addresses.

    Otherwise it is shut down, and ClusterError is raised.
    """
    import ray

    nodes = {str(node["NodeManagerAddress"]) for node in ray.nodes()}  # type: ignore[no-untyped-call]
    head = ray.get_runtime_context().gcs_address.rpartition(":")[0].strip("[]")
    open_addresses = sorted(
        address for address in {head, *nodes} if not ipaddress.ip_address(address).is_loopback
    )
    if open_addresses:
        ray.shutdown()
        raise ClusterError(
            f"the local Ray listens on {', '.join(open_addresses)}, which other machines can reach",
            hint="report this with your version of Ray; Touchstone starts a local Ray on loopback only",
        )


@contextmanager
def override_environment(changes: Mapping[str, str], removed: Iterable[str]) -> Iterator[None]:
    """Change the environment variables of this process for the `with` block."""
    previous = {name: os.environ.pop(name, None) for name in {*changes, *removed}}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in previous.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
