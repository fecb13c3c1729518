"""Joins the Ray cluster of a job or starts a quiet local one (`cluster`); its nodes and resources (`resources`, `working_nodes`).

`on_ray` applies a function to many items as Ray tasks.

Keeps a local Ray to the process that starts it (`private_ray`): a token, loopback addresses, and a folder of this user alone.
"""

import json
import math
import os
import pickle
import secrets
import signal
import sys
import threading
import time
import traceback
from collections import defaultdict, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar
from unittest import mock

from ray_app.cluster import services, versions, warm_workers
from ray_app.cluster.config import RAY_SHARE, ClusterConfig
from ray_app.cluster.ray_folder import private_folder
from ray_app.cluster.warm_workers import SECRETS, WORKER_ENVIRONMENT
from ray_app.errors import ClusterError, TouchstoneError, describe_error
from ray_app.import_path import PACKAGE, SAFE_PATH, SEARCH_PATH, safe_variables, working_in
from ray_app.storage import s3
from ray_app.storage.node_budget import node_memory, usable_cores

# Where PyTorch's processes talk to each other, by itself on any address that the machine's name has.
_LOOPBACK = "lo0" if sys.platform == "darwin" else "lo"
_TORCH = {"GLOO_SOCKET_IFNAME": _LOOPBACK, "NCCL_SOCKET_IFNAME": _LOOPBACK}

# By itself Ray starts workers at niceness 15, below its own daemons; who wants a run to yield starts it under `nice`, which they inherit.
_NICENESS = {"RAY_worker_niceness": "0"}

# Under `uv run` Ray uploads the current folder and puts it first on the module search path of its workers. Read when Ray is imported.
_NO_UPLOAD = {"RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"}

# Workers have another current folder than this process, so the paths in these variables have to be absolute.
_PATH_VARIABLES = (
    "TOUCHSTONE_CACHE", "TOUCHSTONE_CONFIG", "TOUCHSTONE_WEIGHTS_MIRROR", "TMPDIR", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "HF_HOME",
    "HF_HUB_CACHE", "TORCH_HOME", "AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CA_BUNDLE",
    "GOOGLE_APPLICATION_CREDENTIALS", "AZURE_FEDERATED_TOKEN_FILE", "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE", "HF_TOKEN_PATH", "FSSPEC_CONFIG_DIR", "RAY_TLS_SERVER_CERT", "RAY_TLS_SERVER_KEY", "RAY_TLS_CA_CERT",
    "RAY_AUTH_TOKEN_PATH",
)  # fmt: skip

# For a Ray whose statistics are not read: collecting them costs 1 % of a core. And its driver need not wait for the first workers.
_SHORT_START = {"RAY_enable_metrics_collection": "0", "RAY_prestart_worker_first_driver": "0"}


@contextmanager
def private_ray(hidden: Iterable[str], *, quick: bool = False) -> Iterator[Path]:
    """A Ray that is started inside the block obeys this process alone; yields the folder for its files.

    Without it Ray 2.60 listens on every address of the machine, and makes the folder of its sockets, logs and packages writable by every
    user (docs/security.md has what was measured).

    The secret stands in the environment, which the processes of Ray inherit, and nowhere else; the environment's own RAY_AUTH_* are for
    clusters. SECRETS and `hidden` are not inherited. All is as before after the block. `quick`: a short start.
    """
    access = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    mine = {**access, **_TORCH, **_NICENESS, **_NO_UPLOAD, **(_SHORT_START if quick else {})}
    left_out = ("RAY_AUTH_TOKEN_PATH", *SECRETS, *hidden)
    try:
        with private_folder() as folder, _environment(mine, left_out):
            from ray._private import ray_constants

            # Ray's switch for machines whose firewall would ask, macOS and Windows: all that it starts binds to loopback.
            with mock.patch.object(ray_constants, "ENABLE_RAY_CLUSTER", False):
                _read_anew()
                yield folder / "ray"
    finally:
        _read_anew()


def _read_anew() -> None:
    """Make Ray read the environment again: it may have cached its mode and token in this process."""
    from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]

    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()


@contextmanager
def _module_folder(folder: Path) -> Iterator[None]:
    """Work in a folder that contains this package alone, and let child processes search no other current folder for modules.

    `ray.init` puts the current folder first on the module search path of all workers, and the processes that it starts stay there.
    """
    modules = folder / "modules"
    modules.mkdir(parents=True)
    (modules / PACKAGE.name).symlink_to(PACKAGE)  # It may not be installed: the current folder may be its checkout.
    paths = {name: os.path.abspath(path) for name in _PATH_VARIABLES if (path := os.environ.get(name)) and "://" not in path}
    with _environment({**paths, **safe_variables()}, (SEARCH_PATH,)), working_in(modules):
        yield


@contextmanager
def _environment(given: Mapping[str, str], without: Iterable[str]) -> Iterator[None]:
    """The environment of this process with some variables set and others taken out."""
    before = {name: os.environ.pop(name, None) for name in {*given, *without}}
    os.environ.update(given)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


HEAD_WAIT_S = 20.0
_POLL_S = 0.5
_NO_GRPC = "Failed parsing HTTP/2"  # gRPC's message about a server of another protocol
_AUTH_HINT = "set RAY_AUTH_MODE=token and the head's own RAY_AUTH_TOKEN (or RAY_AUTH_TOKEN_PATH)"
_MESSAGE_LETTERS = 400  # of Ray's own message
LOCAL_OBJECT_STORE_BYTES = 512 * 2**20

T = TypeVar("T")
R = TypeVar("R")

# Small, so that tasks find room beside scoring processes however small the machine is.
TASK_CPUS = 0.5
_PRIVATE = b"touchstone_private"  # a key in the store of a Ray of our own
_BESIDE_CPUS = 4  # cores for each task that runs beside processes which have taken them all
MOST_AT_ONCE = 256


@contextmanager
def cluster(
    config: ClusterConfig,
    *,
    hidden: Iterable[str] = (),
    warm: Sequence[str] = (),
) -> Iterator[None]:
    """Connected to Ray inside the block: the one that this process has joined before, that of an address, or one that it starts.

    What it starts obeys this process alone (see `private_ray`). The names in `hidden` are taken out of its
    environment. `warm`: for a short start: modules that its workers find imported; it has neither statistics nor agents then, and its
    processes are of one core each. Raises ClusterError when the address does not answer.
    """
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    address = named_cluster(config.address)
    if address is None:
        os.environ.update(WORKER_ENVIRONMENT)  # inherited by the workers of a cluster that this process starts
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # A job that is submitted with a variable of `worker_variables` has the same value here; Ray refuses equal names otherwise.
    os.environ.setdefault("RAY_OVERRIDE_JOB_RUNTIME_ENV", "1")
    if "ray" in sys.modules and sys.modules["ray"].is_initialized():
        yield
        return
    quiet: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}
    with ExitStack() as ending:
        if address:
            warm_workers.end()
            require_head(address)
        try:
            if address:
                import ray

                folder = ending.enter_context(private_folder())
                variables_of_workers = {**WORKER_ENVIRONMENT, **s3.worker_variables(), SAFE_PATH: "1"}
                with without_side_effects(), _module_folder(folder):
                    ray.init(address=address, runtime_env={"env_vars": variables_of_workers}, **quiet)
            else:
                warm_workers.begin(warm)
                ending.callback(warm_workers.end)
                folder = ending.enter_context(private_ray(hidden, quick=bool(warm)))
                import ray

                with without_side_effects(), services.without_services(agents=not warm), _module_folder(folder.parent):
                    ray.init(address="local", include_dashboard=False, num_cpus=config.cpus or usable_cores(), num_gpus=config.gpus,
                             _temp_dir=str(folder), object_store_memory=config.object_store_bytes or LOCAL_OBJECT_STORE_BYTES,
                             **quiet)  # fmt: skip
                    ray.experimental.internal_kv._internal_kv_put(_PRIVATE, b"1")
                if warm:
                    ray.remote(num_cpus=0)(int).remote()  # the first worker begins now, and its mould with what needs a raylet
        except Exception as error:  # Ray raises bare ones, too, such as for a node that does not start in time
            why = " ".join(str(error).split())[:_MESSAGE_LETTERS]
            raise ClusterError(
                f"cannot join the Ray cluster at {address}: {why}" if address else f"the Ray of this command did not start: {why}",
                hint="check that it runs, and that RAY_AUTH_MODE and RAY_AUTH_TOKEN are those of its head"
                if address
                else "a machine that is very busy or short of memory does that: give the same command again",
            ) from error
        ending.callback(ray.shutdown)
        if address:
            versions.require_nodes(address)
        yield


def named_cluster(address: str | None = None) -> str | None:
    """The address of the cluster that a config's `address`, or else RAY_ADDRESS, names; None for a Ray of this machine's own."""
    address = address or os.environ.get("RAY_ADDRESS")
    return None if address in (None, "", "local") else address


def memory_seen_by_ray() -> tuple[int, int]:
    """Return the free bytes of memory and of shared memory that Ray counts on if it starts here."""
    from ray._private import utils

    untyped: Any = utils
    return untyped.estimate_available_memory(), untyped.get_shared_memory_bytes()


def resources(config: ClusterConfig) -> tuple[float, float, float]:
    """CPUs, GPUs and bytes of memory to plan for: what the config states (an autoscaler may add it), else what the cluster has now.

    Nodes that are yet to come are taken to have as much memory per core as those that are there.
    """
    there = _resources_there(config.labels)
    cpus = float(config.cpus or there["CPU"])
    gpus = float(there["GPU"] if config.gpus is None else config.gpus)
    return cpus, gpus, (there["memory"] or math.inf) * max(cpus / max(there["CPU"], 1), 1)


def working_nodes(labels: Mapping[str, str]) -> tuple[int, int]:
    """How many of the living nodes with these labels have cores, and bytes of memory of the smallest of them."""
    import ray

    nodes = [node for node in _living(labels) if node["Resources"].get("CPU")]
    own = ray.get_runtime_context().get_node_id()
    found = (node_memory() if node["NodeID"] == own else int(node["Resources"].get("memory", 0) / RAY_SHARE) for node in nodes)
    return max(len(nodes), 1), min(found, default=node_memory())


def planned_nodes(labels: Mapping[str, str], cpus: float) -> tuple[int, int | None]:
    """How many nodes so many cores will be on, if those that are yet to come are like those that are there; and bytes of memory of the
    smallest. None where no working node is there yet, whose memory is not known.
    """
    there = _resources_there(labels)["CPU"]
    count, smallest = working_nodes(labels)
    return max(math.ceil(count * cpus / there), 1) if there else 1, smallest if there else None


def on_ray(function: Callable[[T], R], items: Iterable[T], /) -> Generator[R, None, None]:
    """The results in the order of the items; as many tasks at once as the cluster has room for, and results wait for their turn.

    A task that dies with its machine runs again, so `function` must bear that. When no more results are requested, the tasks that run
    end by themselves: `ray.cancel` of a task that is just ending aborts the driver (Ray 2.60, "Tried to complete task that was not
    pending"). Raises the TouchstoneError that a task raised, any other exception as a TouchstoneError with its traceback, ClusterError
    when Ray gives a task up.
    """
    return _in_tasks(function, items, TASK_CPUS, TASK_CPUS)


def beside_others(function: Callable[[T], R], items: Iterable[T], /) -> Generator[R, None, None]:
    """The same, in few tasks that wait for no core: beside processes that have them all, and do not give them back before they get more.

    Raises as `on_ray`.
    """
    return _in_tasks(function, items, 0, _BESIDE_CPUS)


def at_once(cpus_each: float = TASK_CPUS) -> int:
    """How many tasks, or processes, of so many cores each the cluster of now is to have at work."""
    import ray

    return max(1, min(MOST_AT_ONCE, int(ray.cluster_resources().get("CPU", 1.0) / cpus_each)))  # type: ignore[no-untyped-call]


def _in_tasks(function: Callable[[T], R], items: Iterable[T], cpus: float, cpus_each: float) -> Generator[R, None, None]:
    rest = iter(items)
    first = next(rest, rest)
    if first is rest:
        return
    import ray

    task = ray.remote(num_cpus=cpus, max_retries=3)(_called)
    shared = ray.put(function)
    running, waiting = deque[Any](), chain([first], rest)
    while True:
        most = at_once(cpus_each)
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
def without_side_effects() -> Iterator[None]:
    """Joining Ray without its side effects: it writes to file descriptor 2, takes SIGTERM for itself, and prints to stdout what happens to
    processes of its own, such as one that was lost and is made again.
    """
    from ray._private import worker

    sys.stderr.flush()
    handler = signal.getsignal(signal.SIGTERM)
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        with mock.patch.object(worker, "listen_error_messages", return_value=None):
            yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)


def leaving_nodes() -> dict[str, float]:
    """The nodes that will be taken away (spot notice, scale-down), each with the seconds it has left; inf where that is not known."""
    from ray._private.state import state  # what Ray Train and Ray Data poll for the same; there is no public way
    from ray.exceptions import RayError

    try:
        notices: dict[str, int] = state.get_draining_nodes()
    except (RayError, RuntimeError):  # a head that does not answer ends the run elsewhere, in better words
        return {}
    return {node: deadline_ms / 1000 - time.time() if deadline_ms else math.inf for node, deadline_ms in notices.items()}


def is_private() -> bool:
    """Whether the Ray that this process is connected to is one that a command started for itself: one node, no dashboard."""
    from ray.experimental.internal_kv import _internal_kv_exists

    return bool(_internal_kv_exists(_PRIVATE))


def own_node() -> str:
    """The node that this process runs on."""
    import ray

    node: str = ray.get_runtime_context().get_node_id()
    return node


def on_own_node() -> dict[str, str]:
    """The label of this process's node: for what has to stand there, and goes with it."""
    return {"ray.io/node-id": own_node()}


def require_head(address: str, wait_s: float | None = None) -> None:
    """Whether a head of this very Ray answers at an address, and takes our token. Raises ClusterError after `wait_s` (HEAD_WAIT_S).

    `ray.init` would wait for minutes for a head that is gone, and says nothing of a token that is another.
    """
    import grpc
    from ray._private.gcs_utils import create_gcs_channel
    from ray._private.services import canonicalize_bootstrap_address
    from ray.core.generated.gcs_service_pb2 import CheckAliveRequest  # type: ignore[attr-defined]
    from ray.core.generated.gcs_service_pb2_grpc import NodeInfoGcsServiceStub
    from ray.exceptions import AuthenticationError

    is_client = address.startswith("ray://")  # whose server need only answer: it offers another service
    try:
        place = address.removeprefix("ray://") if is_client else canonicalize_bootstrap_address(address)
    except (ValueError, OSError):
        return  # ray.init says best what is wrong with an address that is none, or that no Ray here runs for `auto` to find
    if place is None:
        return
    wait_s = HEAD_WAIT_S if wait_s is None else wait_s
    until = time.monotonic() + wait_s
    with create_gcs_channel(place) as channel:
        check_alive = NodeInfoGcsServiceStub(channel).CheckAlive  # type: ignore[no-untyped-call]
        while True:
            try:
                answer = check_alive(CheckAliveRequest(), timeout=max(until - time.monotonic(), _POLL_S))
                break
            except AuthenticationError:  # Ray's own, before a request is sent
                raise _not_joined(address, "RAY_AUTH_MODE is token, but this process has no token", _AUTH_HINT) from None
            except grpc.RpcError as error:
                code, detail = error.code(), str(error.details())
            if is_client and code is grpc.StatusCode.UNIMPLEMENTED:
                return
            if code is not grpc.StatusCode.UNAVAILABLE or _NO_GRPC in detail or time.monotonic() > until:
                raise _no_head(address, code, detail, wait_s)
            time.sleep(_POLL_S)  # a head that starts again is there in a moment
        versions.require_head(address, answer.ray_version, None if is_client else _python_of(channel))


def _python_of(channel: Any) -> str | None:
    """The Python of the head, as Ray keeps it for its own comparison; None where it does not say."""
    import grpc
    from ray._common.usage.usage_constants import CLUSTER_METADATA_KEY
    from ray._private.ray_constants import KV_NAMESPACE_CLUSTER
    from ray.core.generated.gcs_service_pb2 import InternalKVGetRequest  # type: ignore[attr-defined]
    from ray.core.generated.gcs_service_pb2_grpc import InternalKVGcsServiceStub

    request, version = InternalKVGetRequest(key=CLUSTER_METADATA_KEY, namespace=KV_NAMESPACE_CLUSTER), None
    with suppress(grpc.RpcError, ValueError):
        answer = InternalKVGcsServiceStub(channel).InternalKVGet(request, timeout=HEAD_WAIT_S)  # type: ignore[no-untyped-call]
        version = json.loads(answer.value).get("python_version")
    return version


def _no_head(address: str, code: Any, detail: str, wait_s: float) -> ClusterError:
    """The error for an address where no head accepted us; `code` and `detail` are gRPC's."""
    if code.name == "UNAUTHENTICATED":
        why, hint = "its head does not accept this token", _AUTH_HINT
    elif code.name == "UNIMPLEMENTED" or _NO_GRPC in detail:
        why = "what answers there is not a Ray head"
        hint = "give HOST:PORT of the head itself, usually port 6379; 8265 is its dashboard"
    elif code.name == "DEADLINE_EXCEEDED":
        why, hint = f"no answer in {wait_s:g} s", "check whether the head hangs (`ray status` there), or a firewall is in between"
    else:
        why, hint = f"no head there in {wait_s:g} s ({detail})", "check that the cluster is up, and that this is its head's address"
    return _not_joined(address, why, hint)


def _not_joined(address: str, why: str, hint: str) -> ClusterError:
    return ClusterError(
        f"cannot join the Ray cluster at {address}: {why}", hint=f"{hint}; without RAY_ADDRESS and cluster.address a local Ray is started"
    )


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
        if node["Alive"] and node["NodeID"] not in leaving and all(_has(node["Labels"].get(key), wanted) for key, wanted in labels.items()):
            yield node


def _has(value: str | None, wanted: str) -> bool:
    """Whether a node's label matches Ray's selector syntax: `a`, `!a`, `in(a,b)` or `!in(a,b)`."""
    listed = wanted.removeprefix("!")
    found = value in [one.strip() for one in listed[3:-1].split(",")] if listed.startswith("in(") else value == listed
    return found != wanted.startswith("!")


def _called(function: Callable[[Any], Any], item: Any) -> tuple[Any, bytes | None]:
    # Ray keeps only the text of an exception; as a value it arrives whole.
    try:
        return function(item), None
    except TouchstoneError as error:
        return None, pickle.dumps(error)
    except Exception:
        failure = TouchstoneError(
            f"{type(function).__name__} failed:\n{traceback.format_exc()}", hint="this looks like a bug in Touchstone; please report it"
        )
        return None, pickle.dumps(failure)


def _result(task: Any) -> Any:
    import ray

    try:
        value, error = ray.get(task)
    except ray.exceptions.RayError as lost:
        raise ClusterError(f"a task was lost: {describe_error(lost)}", hint="run the same command again: it goes on") from lost
    if error is not None:
        raise pickle.loads(error)  # noqa: S301  (made by a task of this run)
    return value
