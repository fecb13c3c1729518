"""Join the Ray cluster of a job, or start a quiet local one. The only place that calls `ray.init`."""

import math
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ray_app.errors import ClusterError
from ray_app.scoring.config import ClusterConfig

LOCAL_OBJECT_STORE_BYTES = 512 * 2**20
# Ray scores in a thread of its own; with a heap of its own it would ignore what ray_app.detectors.allocator asks for.
WORKER_ENVIRONMENT = {"MALLOC_ARENA_MAX": "1"}


@contextmanager
def cluster(config: ClusterConfig) -> Iterator[None]:
    """Connected to Ray inside the block. Raises ClusterError when the address does not answer."""
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    if not (config.address or os.environ.get("RAY_ADDRESS")):
        os.environ.update(WORKER_ENVIRONMENT)  # inherited by the workers of a cluster that this process starts
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray

    if ray.is_initialized():
        yield
        return
    address = config.address or os.environ.get("RAY_ADDRESS")
    quiet: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}
    try:
        if address:
            with _unobtrusively():
                ray.init(address=address, runtime_env={"env_vars": WORKER_ENVIRONMENT}, **quiet)
        else:
            # A local cluster serves this process alone; token auth (on by default in 2.60) would leave a file in the home folder.
            os.environ.setdefault("RAY_AUTH_MODE", "disabled")
            with _unobtrusively():
                ray.init(address="local", include_dashboard=False, num_cpus=config.cpus, num_gpus=config.gpus,
                         object_store_memory=config.object_store_bytes or LOCAL_OBJECT_STORE_BYTES, **quiet)  # fmt: skip
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise ClusterError(
            f"cannot join the Ray cluster at {address or 'local'}: {str(error).splitlines()[0]}",
            hint="is it running, and is RAY_AUTH_MODE the same on both sides?",
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def has_other_nodes() -> bool:
    """Whether work may land on machines that do not share this one's disk."""
    import ray

    return len(ray.nodes()) > 1 or bool(os.environ.get("RAY_ADDRESS"))  # type: ignore[no-untyped-call]


@contextmanager
def _unobtrusively() -> Iterator[None]:
    """Joining Ray without its side effects: it remarks on file descriptor 2, and takes SIGTERM for itself."""
    sys.stderr.flush()
    handler = signal.getsignal(signal.SIGTERM)
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)


def resources(config: ClusterConfig) -> tuple[float, float, float]:
    """CPUs, GPUs and bytes of memory to plan for: what the config states (an autoscaler may add it), else what the cluster has now.

    Nodes that are yet to come are taken to have as much memory per core as those that are there.

    What is stated is asked of the autoscaler at once, so that all nodes start together rather than one after another.
    """
    import ray

    there: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    cpus = float(config.cpus or there.get("CPU", 0))
    gpus = float(there.get("GPU", 0) if config.gpus is None else config.gpus)
    if cpus > there.get("CPU", 0) or gpus > there.get("GPU", 0):
        from ray.autoscaler.sdk import request_resources

        request_resources(num_cpus=int(cpus), bundles=[{"GPU": 1}] * int(gpus))
    return cpus, gpus, there.get("memory", math.inf) * max(cpus / max(there.get("CPU", 0), 1), 1)
