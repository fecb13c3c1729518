"""Join the Ray cluster of a job or start a local Ray (`cluster`).

`resources` and `working_nodes` return the resources and nodes of the cluster. `map_on_ray` applies a
function to many items as Ray tasks. `local_ray.py` restricts a local Ray to the process that starts it.
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
    override_environment,
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
    """Work in a folder that contains only this package.

    Child processes search no other current folder for modules. `ray.init` puts the current folder
    first on the module search path of all workers, and the processes that it starts stay there.
    """
    modules = folder / "modules"
    modules.mkdir(parents=True)
    # The package may not be installed: the current folder may be its checkout.
    (modules / PACKAGE.name).symlink_to(PACKAGE)
    paths = {
        name: os.path.abspath(path)
        for name in _PATH_VARIABLES
        if (path := os.environ.get(name)) and "://" not in path
    }
    with override_environment({**paths, **safe_variables()}, (SEARCH_PATH,)), working_in(modules):
        yield


PROBE_S = 5.0
_MAX_MESSAGE_CHARACTERS = 400  # Of Ray's own message.
_TIMED_OUT = "timed out during startup"  # Ray 2.60 raises a bare exception with this text.
# A local Ray without a GPU: only files and results pass through the object store.
LOCAL_OBJECT_STORE_BYTES = 512 * 2**20
# With a GPU all prepared images pass through it. The first fraction is Ray's own default.
_FRACTION_OF_MEMORY, _FRACTION_OF_SHARED_MEMORY = 0.3, 0.9
_SHARED_MEMORY = "/dev/shm"  # noqa: S108 (its size is read, nothing is written)

_log = logging.getLogger(__name__)

T = TypeVar("T")
R = TypeVar("R")

# Small, so that tasks find room next to scoring processes even on a small machine.
TASK_CPUS = 0.5
MAX_TASKS = 256


@contextmanager
def cluster(config: ClusterConfig, *, hidden: Iterable[str] = ()) -> Iterator[None]:
    """Connect this process to Ray for the `with` block.

    If the process is already connected to Ray, that connection is used. Otherwise it joins the
    cluster that the config or RAY_ADDRESS names, or starts a local Ray if none is named. A local
    Ray does not inherit the variables `hidden`. Raises ClusterError if the address does not answer,
    nodes run other versions than this process, or the local Ray did not start or listens on
    addresses other than loopback.
    """
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    # Without this, Ray prints an error about each pool of actors (ray-project/ray#53727). With it,
    # Ray prints one line, which says that it has read the variable.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    address = named_cluster(config.address)
    if address is None:
        os.environ.update(WORKER_ENVIRONMENT)  # The workers of a local Ray inherit them.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # A job that is submitted with a variable of `get_worker_variables` has the same value here; Ray
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
    """Return the size of the object store of a local Ray in bytes."""
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
    variables_of_workers = {**WORKER_ENVIRONMENT, **s3.get_worker_variables(), SAFE_PATH: "1"}
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
            f"cannot join the Ray cluster at {address}: {_truncate(error)}",
            hint="check that the cluster runs the same version of Ray, and that RAY_AUTH_MODE and RAY_AUTH_TOKEN are those of its head; "
            "unset RAY_ADDRESS and cluster.address to start a local Ray",
        ) from error
    ending.callback(ray.shutdown)
    versions.require_nodes(address)


def _start(config: ClusterConfig, hidden: Iterable[str], ending: ExitStack) -> None:
    """Start a local Ray that runs until `ending` closes.

    Ray waits 30 s for its processes, and no setting changes that (Ray 2.60). They take longer if the
    machine is busy for a moment, so a start that timed out is repeated once. The processes of the
    first start end with this process.
    """
    folder = ending.enter_context(private_ray(hidden))
    try:
        import ray

        with _kept_sigterm_handler(), _module_folder(folder.parent):
            try:
                _init_local_ray(config, folder)
            except Exception as error:
                if _TIMED_OUT not in str(error):
                    raise
                _log.warning("the local Ray did not start within 30 s; starting it again")
                _init_local_ray(config, folder)
    # Ray raises bare exceptions, too, for example if a node does not start in time.
    except Exception as error:
        raise ClusterError(
            f"the local Ray did not start: {_truncate(error)}",
            hint="run the same command again when the machine is less busy and has more free memory",
        ) from error
    ending.callback(ray.shutdown)
    require_loopback()


def _init_local_ray(config: ClusterConfig, folder: Path) -> None:
    import ray

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


def _truncate(error: Exception) -> str:
    return " ".join(str(error).split())[:_MAX_MESSAGE_CHARACTERS]


def named_cluster(address: str | None = None) -> str | None:
    """Return the address of the cluster to join, or None to start a local Ray.

    `address` is the address in the config. If it is None or empty, the environment variable
    RAY_ADDRESS is used. The address `local` also starts a local Ray.
    """
    address = address or os.environ.get("RAY_ADDRESS")
    return None if address in (None, "", "local") else address


def resources(config: ClusterConfig) -> tuple[float, float, float]:
    """Return the CPUs, the GPUs, and the bytes of memory for which a run is planned.

    Numbers in the config are used first, because an autoscaler may add nodes later. Otherwise the
    resources that the cluster has now are used. Nodes that are added later are assumed to have as
    much memory per core as the present nodes. If no node reports its memory, the memory is infinite.
    """
    present = _present_resources(config.labels)
    cpus = float(config.cpus or present["CPU"])
    gpus = float(present["GPU"] if config.gpus is None else config.gpus)
    return cpus, gpus, (present["memory"] or math.inf) * max(cpus / max(present["CPU"], 1), 1)


def working_nodes(labels: Mapping[str, str]) -> tuple[int, int]:
    """Return the number of living nodes with cores, and the memory of the smallest node in bytes.

    Only nodes that match all label selectors count. If no matching node has cores, the result is 1
    and the memory of this machine.
    """
    import ray

    nodes = [node for node in _living(labels) if node["Resources"].get("CPU")]
    current_id = ray.get_runtime_context().get_node_id()
    sizes = (
        node_memory()
        if node["NodeID"] == current_id
        else int(node["Resources"].get("memory", 0) / RAY_SHARE)
        for node in nodes
    )
    return max(len(nodes), 1), min(sizes, default=node_memory())


def planned_nodes(labels: Mapping[str, str], cpus: float) -> tuple[int, int | None]:
    """Estimate how many nodes a run on a number of cores will use, and the memory of the smallest.

    An autoscaler may add nodes later. They are assumed to be like the present nodes. Only nodes
    that match all label selectors count. The memory is in bytes. If no matching node has started,
    the result is 1 and None.
    """
    present = _present_resources(labels)["CPU"]
    count, smallest = working_nodes(labels)
    return max(
        math.ceil(count * cpus / present), 1
    ) if present else 1, smallest if present else None


def map_on_ray(function: Callable[[T], R], items: Iterable[T], /) -> Generator[R, None, None]:
    """Apply a function to each item in Ray tasks, and yield the results in the order of the items.

    As many tasks run at the same time as the cluster has cores for (see `max_concurrency`). A
    result waits until the results before it are consumed. If the generator is closed early, running
    tasks are not cancelled but end by themselves: `ray.cancel` of a task that is just ending aborts
    the driver (Ray 2.60, "Tried to complete task that was not pending"). The function is called
    again for an item whose machine died, so it must be safe to repeat. Items are iterated as tasks
    become free. An exception of a task that is not a TouchstoneError becomes one whose message
    contains the traceback. Raises ClusterError if Ray could not complete a task.
    """
    return _in_tasks(function, items)


def max_concurrency(cpus_each: float = TASK_CPUS) -> int:
    """Return how many tasks of `cpus_each` cores may run on the present cluster at the same time.

    The number is at least 1, and at most `MAX_TASKS`.
    """
    import ray

    return max(1, min(MAX_TASKS, int(ray.cluster_resources().get("CPU", 1.0) / cpus_each)))  # type: ignore[no-untyped-call]


def _in_tasks(function: Callable[[T], R], items: Iterable[T]) -> Generator[R, None, None]:
    remaining = iter(items)
    first = next(remaining, remaining)
    if first is remaining:
        return
    import ray

    task = ray.remote(num_cpus=TASK_CPUS, max_retries=3)(_call)
    shared = ray.put(function)
    running, waiting = deque[Any](), chain([first], remaining)
    while True:
        limit = max_concurrency()
        while len(running) < limit and (item := next(waiting, waiting)) is not waiting:
            running.append(task.remote(shared, item))
        if not running:
            return
        yield _get_result(running.popleft())


def has_other_nodes() -> bool:
    """Return whether tasks may run on machines that do not share the disk of this machine."""
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


def get_draining_nodes() -> dict[str, float]:
    """Return the seconds until nodes are taken away, for example after a spot notice, by node id.

    It converts the deadlines of `private_api.draining_nodes` to seconds from now, inf if unknown.
    """
    notices = private_api.draining_nodes()
    return {
        node: deadline_ms / 1000 - time.time() if deadline_ms else math.inf
        for node, deadline_ms in notices.items()
    }


def current_node_id() -> str:
    """Return the id of the Ray node on which this process runs."""
    import ray

    node_id: str = ray.get_runtime_context().get_node_id()
    return node_id


def select_current_node() -> dict[str, str]:
    """Return a label selector that keeps an actor or a task on the node of this process.

    Use it for an actor that must run on this node, and must end with the node.
    """
    return {"ray.io/node-id": current_node_id()}


def require_head(address: str, wait_s: float = PROBE_S) -> None:
    """Raise ClusterError if no process listens at the address of a Ray head.

    Without this check, `ray.init` would try to connect for minutes. The address is `HOST:PORT`,
    `ray://HOST:PORT`, or `auto`, the cluster that Ray finds on this machine.
    """
    hint = (
        "check that the cluster is running, and that the address is that of its head (HOST:PORT, usually port 6379); "
        "unset RAY_ADDRESS and cluster.address to start a local Ray"
    )
    name, head = address, address
    try:
        if address == "auto":
            hint = "run `ray stop` to forget a cluster that has ended; unset RAY_ADDRESS and cluster.address to start a local Ray"
            head = private_api.find_current_cluster() or ""
            name = f"auto ({head})" if head else name
        host, separator, port = head.removeprefix("ray://").rpartition(":")
        if separator and port.isdecimal():
            socket.create_connection((host.strip("[]"), int(port)), wait_s).close()
    # Ray raises ValueError if its record has an invalid address.
    except (OSError, OverflowError, ValueError) as error:
        raise ClusterError(
            f"cannot join the Ray cluster at {name}: {describe_error(error)}", hint=hint
        ) from error


def _present_resources(labels: Mapping[str, str]) -> Mapping[str, float]:
    """Return the total resources of the living nodes with these labels."""
    total: defaultdict[str, float] = defaultdict(float)
    for node in _living(labels):
        for name, amount in node["Resources"].items():
            total[name] += amount
    return total


def _living(labels: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    """Yield the nodes with these labels that are alive and will not be taken away."""
    import ray

    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    leaving = get_draining_nodes()
    for node in nodes:
        if (
            node["Alive"]
            and node["NodeID"] not in leaving
            and all(_matches(node["Labels"].get(key), selector) for key, selector in labels.items())
        ):
            yield node


def _matches(value: str | None, selector: str) -> bool:
    """Return whether a label matches Ray's selector syntax: `a`, `!a`, `in(a,b)` or `!in(a,b)`."""
    operand = selector.removeprefix("!")
    is_match = (
        value in [option.strip() for option in operand[3:-1].split(",")]
        if operand.startswith("in(")
        else value == operand
    )
    return is_match != selector.startswith("!")


def _call(function: Callable[[Any], Any], item: Any) -> tuple[Any, bytes | None]:
    # Ray keeps only the text of an exception. As a value, the exception arrives complete.
    try:
        return function(item), None
    except TouchstoneError as error:
        return None, pickle.dumps(error)
    except Exception:
        failure = TouchstoneError(
            f"{type(function).__name__} failed:\n{traceback.format_exc()}",
            hint="report this as a bug in Touchstone",
        )
        return None, pickle.dumps(failure)


def _get_result(task: Any) -> Any:
    import ray

    try:
        value, error = ray.get(task)
    except ray.exceptions.RayError as lost:
        raise ClusterError(
            f"a task was lost: {describe_error(lost)}",
            hint="run the same command again to resume",
        ) from lost
    if error is not None:
        raise pickle.loads(error)  # noqa: S301  (pickled by a task of this run)
    return value
