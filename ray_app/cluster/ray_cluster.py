"""Join the Ray cluster of a job or start a local Ray (`cluster`); report its nodes and resources
(`resources`, `working_nodes`).

`on_ray` applies a function to many items as Ray tasks. `local_ray.py` keeps a local Ray to the
process that starts it.
"""

import logging
import math
import os
import pickle
import shutil
import signal
import socket
import sys
import threading
import time
import traceback
from collections import defaultdict, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, redirect_stdout
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

from ray_app.cluster import gpu_check, private_api, versions
from ray_app.cluster.config import RAY_SHARE, ClusterConfig
from ray_app.cluster.local_ray import (
    WORKER_ENVIRONMENT,
    changed_environment,
    private_ray,
    require_loopback,
)
from ray_app.cluster.ray_folder import private_folder
from ray_app.errors import ClusterError, TouchstoneError, describe_error
from ray_app.import_path import PACKAGE, SAFE_PATH, SEARCH_PATH, safe_variables, working_in
from ray_app.storage import s3
from ray_app.storage.node_budget import node_memory, usable_cores

# Workers have another current folder than this process, so the paths in these variables have to be
# absolute.
_PATH_VARIABLES = (
    "TOUCHSTONE_CACHE", "TOUCHSTONE_CONFIG", "TOUCHSTONE_WEIGHTS_MIRROR", "TMPDIR", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "HF_HOME",
    "HF_HUB_CACHE", "TORCH_HOME", "AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CA_BUNDLE",
    "GOOGLE_APPLICATION_CREDENTIALS", "AZURE_FEDERATED_TOKEN_FILE", "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE", "HF_TOKEN_PATH", "FSSPEC_CONFIG_DIR", "RAY_TLS_SERVER_CERT", "RAY_TLS_SERVER_KEY", "RAY_TLS_CA_CERT",
    "RAY_AUTH_TOKEN_PATH",
)  # fmt: skip


@contextmanager
def _module_folder(folder: Path) -> Iterator[None]:
    """Work in a folder that contains this package alone, and let child processes search no other
    current folder for modules.

    `ray.init` puts the current folder first on the module search path of all workers, and the
    processes that it starts stay there.
    """
    modules = folder / "modules"
    modules.mkdir(parents=True)
    # It may not be installed: the current folder may be its checkout.
    (modules / PACKAGE.name).symlink_to(PACKAGE)
    paths = {
        name: os.path.abspath(path)
        for name in _PATH_VARIABLES
        if (path := os.environ.get(name)) and "://" not in path
    }
    with changed_environment({**paths, **safe_variables()}, (SEARCH_PATH,)), working_in(modules):
        yield


PROBE_S = 5.0
_MESSAGE_LETTERS = 400  # Of Ray's own message.
# A local Ray without a GPU: only files and results pass through the object store.
LOCAL_OBJECT_STORE_BYTES = 512 * 2**20
# With a GPU all prepared images pass through it. The first fraction is Ray's own default.
_FRACTION_OF_MEMORY, _FRACTION_OF_SHARED_MEMORY = 0.3, 0.9
_SHARED_MEMORY = "/dev/shm"  # noqa: S108 (its size is read, nothing is written)

T = TypeVar("T")
R = TypeVar("R")

# Small, so that tasks find room beside scoring processes however small the machine is.
TASK_CPUS = 0.5
MOST_AT_ONCE = 256


@contextmanager
def cluster(config: ClusterConfig, *, hidden: Iterable[str] = ()) -> Iterator[None]:
    """Connect to Ray inside the block: to the Ray that this process has joined before, to a named
    cluster, or to a Ray started here.

    Args:
        config: Says which cluster to join, or how large the local Ray is.
        hidden: Names of environment variables that a local Ray does not inherit.

    Raises:
        ClusterError: The address does not answer, or the local Ray did not start or listens on
            other addresses than loopback.
    """
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    # Without this, Ray prints an error about each pool of actors (ray-project/ray#53727). With it,
    # Ray prints one line, which says that it has read the variable.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    address = named_cluster(config.address)
    if address is None:
        os.environ.update(WORKER_ENVIRONMENT)  # The workers of a local Ray inherit them.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # A job that is submitted with a variable of `worker_variables` has the same value here; Ray
    # refuses equal names otherwise.
    os.environ.setdefault("RAY_OVERRIDE_JOB_RUNTIME_ENV", "1")
    if "ray" in sys.modules and sys.modules["ray"].is_initialized():
        yield
        return
    with ExitStack() as ending:
        # Ray prints to stdout that it lost a process; stdout is for results.
        ending.enter_context(redirect_stdout(sys.stderr))
        if address:
            _join(address, ending)
        else:
            _start(config, hidden, ending)
        yield


def local_store_bytes(config: ClusterConfig) -> int:
    """Return the bytes of the object store of a local Ray."""
    if config.object_store_bytes is not None:
        return config.object_store_bytes
    has_gpu = gpu_check.DEVICE.exists() if config.gpus is None else config.gpus > 0
    if not has_gpu:
        return LOCAL_OBJECT_STORE_BYTES
    try:
        shared_bytes = shutil.disk_usage(_SHARED_MEMORY).free
    except OSError:
        shared_bytes = 0
    store_bytes = min(
        _FRACTION_OF_MEMORY * node_memory(), _FRACTION_OF_SHARED_MEMORY * shared_bytes
    )
    return max(int(store_bytes), LOCAL_OBJECT_STORE_BYTES)


def _join(address: str, ending: ExitStack) -> None:
    """Connect to a named cluster until `ending` closes."""
    require_head(address)
    folder = ending.enter_context(private_folder())
    variables_of_workers = {**WORKER_ENVIRONMENT, **s3.worker_variables(), SAFE_PATH: "1"}
    try:
        import ray

        with _kept_sigterm_handler(), _module_folder(folder):
            ray.init(
                address=address,
                runtime_env={"env_vars": variables_of_workers},
                logging_level=logging.ERROR,
                log_to_driver=False,
            )
    except Exception as error:  # Ray raises bare exceptions, too.
        raise ClusterError(
            f"cannot join the Ray cluster at {address}: {_shortened(error)}",
            hint="check that it runs Ray of this version, and that RAY_AUTH_MODE and RAY_AUTH_TOKEN are those of its head; "
            "without RAY_ADDRESS and cluster.address a local Ray is started",
        ) from error
    ending.callback(ray.shutdown)
    versions.require_nodes(address)


def _start(config: ClusterConfig, hidden: Iterable[str], ending: ExitStack) -> None:
    """Start a local Ray that runs until `ending` closes."""
    folder = ending.enter_context(private_ray(hidden))
    try:
        import ray

        with _kept_sigterm_handler(), _module_folder(folder.parent):
            ray.init(
                address="local",
                include_dashboard=False,
                num_cpus=config.cpus or usable_cores(),
                num_gpus=config.gpus,
                object_store_memory=local_store_bytes(config),
                logging_level=logging.ERROR,
                log_to_driver=False,
                _temp_dir=str(folder),
            )
    # Ray raises bare exceptions, too, for example if a node does not start in time.
    except Exception as error:
        raise ClusterError(
            f"the local Ray did not start: {_shortened(error)}",
            hint="run the same command again; a machine that is very busy or short of memory starts no Ray",
        ) from error
    ending.callback(ray.shutdown)
    require_loopback()


def _shortened(error: Exception) -> str:
    return " ".join(str(error).split())[:_MESSAGE_LETTERS]


def named_cluster(address: str | None = None) -> str | None:
    """The address of the cluster that a config's `address`, or else RAY_ADDRESS, names; None for a
    Ray of this machine's own.
    """
    address = address or os.environ.get("RAY_ADDRESS")
    return None if address in (None, "", "local") else address


def resources(config: ClusterConfig) -> tuple[float, float, float]:
    """CPUs, GPUs and bytes of memory to plan for: what the config states (an autoscaler may add
    it), else what the cluster has now.

    Nodes that are yet to come are taken to have as much memory per core as those that are there.
    """
    there = _resources_there(config.labels)
    cpus = float(config.cpus or there["CPU"])
    gpus = float(there["GPU"] if config.gpus is None else config.gpus)
    return cpus, gpus, (there["memory"] or math.inf) * max(cpus / max(there["CPU"], 1), 1)


def working_nodes(labels: Mapping[str, str]) -> tuple[int, int]:
    """How many of the living nodes with these labels have cores, and bytes of memory of the
    smallest of them.
    """
    import ray

    nodes = [node for node in _living(labels) if node["Resources"].get("CPU")]
    own = ray.get_runtime_context().get_node_id()
    found = (
        node_memory()
        if node["NodeID"] == own
        else int(node["Resources"].get("memory", 0) / RAY_SHARE)
        for node in nodes
    )
    return max(len(nodes), 1), min(found, default=node_memory())


def planned_nodes(labels: Mapping[str, str], cpus: float) -> tuple[int, int | None]:
    """How many nodes so many cores will be on, if those that are yet to come are like those that
    are there; and bytes of memory of the smallest. None where no working node is there yet, whose
    memory is not known.
    """
    there = _resources_there(labels)["CPU"]
    count, smallest = working_nodes(labels)
    return max(math.ceil(count * cpus / there), 1) if there else 1, smallest if there else None


def on_ray(function: Callable[[T], R], items: Iterable[T], /) -> Generator[R, None, None]:
    """The results in the order of the items; as many tasks at once as the cluster has room for, and
    results wait for their turn.

    A task that dies with its machine runs again, so `function` must bear that. When no more results
    are requested, the tasks that run end by themselves: `ray.cancel` of a task that is just ending
    aborts the driver (Ray 2.60, "Tried to complete task that was not pending"). Raises the
    TouchstoneError that a task raised, any other exception as a TouchstoneError with its traceback,
    ClusterError when Ray gives a task up.
    """
    return _in_tasks(function, items)


def at_once(cpus_each: float = TASK_CPUS) -> int:
    """How many tasks, or processes, of so many cores each the cluster of now is to have at work."""
    import ray

    return max(1, min(MOST_AT_ONCE, int(ray.cluster_resources().get("CPU", 1.0) / cpus_each)))  # type: ignore[no-untyped-call]


def _in_tasks(function: Callable[[T], R], items: Iterable[T]) -> Generator[R, None, None]:
    rest = iter(items)
    first = next(rest, rest)
    if first is rest:
        return
    import ray

    task = ray.remote(num_cpus=TASK_CPUS, max_retries=3)(_called)
    shared = ray.put(function)
    running, waiting = deque[Any](), chain([first], rest)
    while True:
        most = at_once()
        while len(running) < most and (item := next(waiting, waiting)) is not waiting:
            running.append(task.remote(shared, item))
        if not running:
            return
        yield _result(running.popleft())


def has_other_nodes() -> bool:
    """Whether work may land on machines that do not share this one's disk."""
    import ray

    return len(ray.nodes()) > 1 or named_cluster() is not None  # type: ignore[no-untyped-call]


@contextmanager
def _kept_sigterm_handler() -> Iterator[None]:
    """Restore this process's handler of SIGTERM, which `ray.init` replaces."""
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)


def leaving_nodes() -> dict[str, float]:
    """Return the nodes that will be taken away (spot notice, scale-down), each with the seconds it
    has left; inf if that is unknown.
    """
    notices = private_api.draining_nodes()
    return {
        node: deadline_ms / 1000 - time.time() if deadline_ms else math.inf
        for node, deadline_ms in notices.items()
    }


def own_node() -> str:
    """The node that this process runs on."""
    import ray

    node: str = ray.get_runtime_context().get_node_id()
    return node


def on_own_node() -> dict[str, str]:
    """The label of this process's node: for what has to stand there, and goes with it."""
    return {"ray.io/node-id": own_node()}


def require_head(address: str, wait_s: float = PROBE_S) -> None:
    """Raise ClusterError if nothing listens at the address of a head. `ray.init` would try for
    minutes.

    Args:
        address: `HOST:PORT`, `ray://HOST:PORT`, or `auto`, which is not probed.
        wait_s: Seconds to wait for a connection.
    """
    host, separator, port = address.removeprefix("ray://").rpartition(":")
    if not separator or not port.isdecimal():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), wait_s).close()
    except (OSError, OverflowError) as error:
        raise ClusterError(
            f"cannot join the Ray cluster at {address}: {describe_error(error)}",
            hint="check that the cluster is up, and that this is its head's address (HOST:PORT, usually port 6379); "
            "without RAY_ADDRESS and cluster.address a local Ray is started",
        ) from error


def _resources_there(labels: Mapping[str, str]) -> Mapping[str, float]:
    """The resources of the living nodes that have these labels."""
    total: defaultdict[str, float] = defaultdict(float)
    for node in _living(labels):
        for name, amount in node["Resources"].items():
            total[name] += amount
    return total


def _living(labels: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    """The nodes that have these labels, and are not about to be taken away."""
    import ray

    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    leaving = leaving_nodes()
    for node in nodes:
        if (
            node["Alive"]
            and node["NodeID"] not in leaving
            and all(_has(node["Labels"].get(key), wanted) for key, wanted in labels.items())
        ):
            yield node


def _has(value: str | None, wanted: str) -> bool:
    """Whether a node's label matches Ray's selector syntax: `a`, `!a`, `in(a,b)` or `!in(a,b)`."""
    listed = wanted.removeprefix("!")
    found = (
        value in [one.strip() for one in listed[3:-1].split(",")]
        if listed.startswith("in(")
        else value == listed
    )
    return found != wanted.startswith("!")


def _called(function: Callable[[Any], Any], item: Any) -> tuple[Any, bytes | None]:
    # Ray keeps only the text of an exception; as a value it arrives whole.
    try:
        return function(item), None
    except TouchstoneError as error:
        return None, pickle.dumps(error)
    except Exception:
        failure = TouchstoneError(
            f"{type(function).__name__} failed:\n{traceback.format_exc()}",
            hint="this looks like a bug in Touchstone; please report it",
        )
        return None, pickle.dumps(failure)


def _result(task: Any) -> Any:
    import ray

    try:
        value, error = ray.get(task)
    except ray.exceptions.RayError as lost:
        raise ClusterError(
            f"a task was lost: {describe_error(lost)}",
            hint="run the same command again: it goes on",
        ) from lost
    if error is not None:
        raise pickle.loads(error)  # noqa: S301  (made by a task of this run)
    return value
