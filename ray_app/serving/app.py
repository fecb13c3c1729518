"""Build the endpoint as a Ray Serve application (`build`), which `serve deploy` calls.

Each replica answers HTTP requests, and has a worker process with all detectors. Ray Serve does
autoscaling and rolling updates. Each replica counts its own requests (`RayMeter`), and Prometheus
collects the numbers from the metric agent of its node.
"""

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ray import serve
from ray.serve import Application
from ray.util.metrics import Counter, Gauge, Histogram

from ray_app.cluster.local_ray import WORKER_ENVIRONMENT
from ray_app.detectors.cpu import CPU_PRECISION_VARIABLE, cpu_precision
from ray_app.errors import ClusterError
from ray_app.import_path import SAFE_PATH
from ray_app.serving.config import Resources, ServeConfig
from ray_app.serving.ensembles import fetch_weights, plan_ensembles
from ray_app.serving.metrics import COUNTERS, GAUGES, HISTOGRAMS, Meter
from ray_app.serving.pool import WorkerPool, start_workers
from ray_app.storage import s3

if TYPE_CHECKING:
    from fastapi import FastAPI

NAME = "touchstone"
# A replica that shuts down has time for the longest request that it accepted.
SHUTDOWN_MARGIN_S = 10.0


def build(config: ServeConfig) -> Application:
    """Return the Ray Serve application of an endpoint.

    Bearer tokens come from the environment of the cluster's nodes, or from files.

    Raises:
        ConfigError: The settings contradict each other, or the ensembles cannot be served together.
        DetectorError: A licence is not accepted.
    """
    spec, max_requests = plan_ensembles(config).spec, config.limits.max_requests
    deployment: serve.Deployment = serve.deployment(serve.ingress()(Replica)).options(  # type: ignore[attr-defined]
        name="replica",
        # A replica must refuse requests before Serve's proxy does, so it admits more requests than
        # it scores. Some are still sending their bodies, and up to `2 * max_requests` refused
        # clients may still be sending (`http.app.install`). The rest is for health checks and
        # pages.
        max_ongoing_requests=6 * max_requests + 100,
        max_queued_requests=max_requests,
        # New replicas start before old ones stop, so that an update fails no request.
        max_surge_percent=100,
        graceful_shutdown_timeout_s=config.limits.deadline_s + SHUTDOWN_MARGIN_S,
        ray_actor_options=_actor_options(config.replica),
        **_scaling(config.replica, target_requests=2 * spec.slots),
    )
    return deployment.bind(config)


def _actor_options(resources: Resources) -> dict[str, Any]:
    options: dict[str, Any] = {
        "num_cpus": resources.num_cpus,
        "num_gpus": resources.num_gpus,
        # All replicas use one precision, also on nodes with other processors, since equal
        # fingerprints mean equal scores.
        "runtime_env": {
            "env_vars": {
                **WORKER_ENVIRONMENT,
                **s3.get_worker_variables(),
                SAFE_PATH: "1",
                CPU_PRECISION_VARIABLE: cpu_precision(),
            }
        },
    }
    if resources.memory_bytes:
        options["memory"] = resources.memory_bytes
    if resources.labels:
        options["label_selector"] = dict(resources.labels)
    return options


def _scaling(resources: Resources, target_requests: float) -> dict[str, Any]:
    """Return the options for the number of replicas, or for autoscaling.

    Args:
        resources: The replicas of the config.
        target_requests: Running requests of a replica before a new replica is started.
    """
    if resources.max_replicas is None:
        return {"num_replicas": resources.replicas}
    return {
        "autoscaling_config": {
            "min_replicas": resources.replicas,
            "max_replicas": resources.max_replicas,
            "target_ongoing_requests": target_requests,
        }
    }


class Replica:
    """A replica of the endpoint on Ray Serve.

    It answers HTTP requests, and starts one worker process, which loads all detectors.

    Args:
        config: The settings of the endpoint.

    Raises:
        ConfigError: The ensembles cannot be served together, for example because they were
            calibrated with different settings.
        DetectorError: A licence is not accepted, weights are missing, or a detector gives no score
            for the built-in test image.
    """

    def __init__(self, config: ServeConfig) -> None:
        _log_to_serve()
        self._config, self._meter = config, RayMeter()
        fetch_weights(config)
        workers, served = start_workers(config, 1)
        self._pool = WorkerPool(config, workers, served, self._meter)

    def __serve_build_asgi_app__(self) -> "FastAPI":
        from ray_app.serving.http.app import create_app

        return create_app(self._config, self._pool, self._meter, echo_request_id=False)

    async def check_health(self) -> None:
        """Raise ClusterError if the worker process has been down for over two minutes.

        Ray Serve calls this method, and replaces a replica for which it raises.
        """
        if not self._pool.is_healthy:
            raise ClusterError(
                "the worker process of this replica does not start",
                hint="read the replica's log in the Ray dashboard, or in logs/serve/ of the Ray session",
            )


class _ServeLogHandler(logging.Handler):
    """Pass records to Ray Serve's logger, whose level, file, and format may change later."""

    def emit(self, record: logging.LogRecord) -> None:
        """Pass on one record if Serve's level allows it."""
        serve_log = logging.getLogger("ray.serve")
        if serve_log.isEnabledFor(record.levelno):
            serve_log.handle(record)


def _log_to_serve() -> None:
    """Send the log of this package to the replica's own file, with Ray Serve's format and level."""
    package_log = logging.getLogger("ray_app")
    for handler in tuple(package_log.handlers):
        package_log.removeHandler(handler)
    package_log.addHandler(_ServeLogHandler())
    package_log.propagate = False
    package_log.setLevel(logging.DEBUG)


class RayMeter(Meter):
    """Count requests and images in a process of Ray, and export the counts as Ray metrics.

    The counts reach the metric agent of the node within about 10 s, and Prometheus reads them there.
    """

    def __init__(self) -> None:
        super().__init__()
        self._ray_counters = {
            name: Counter(f"touchstone_{name}", description=meaning, tag_keys=labels)
            for name, (meaning, labels) in COUNTERS.items()
        }
        self._ray_histograms = {
            name: Histogram(
                f"touchstone_{name}", description=meaning, boundaries=list(bounds), tag_keys=labels
            )
            for name, (meaning, labels, bounds) in HISTOGRAMS.items()
        }
        self._ray_in_flight = Gauge(
            "touchstone_images_in_flight", description=GAUGES["images_in_flight"]
        )

    def _add(self, name: str, amount: float, labels: Mapping[str, str]) -> None:
        super()._add(name, amount, labels)
        self._ray_counters[name].inc(amount, dict(labels))

    def _observe(self, name: str, value: float, labels: Mapping[str, str]) -> None:
        super()._observe(name, value, labels)
        self._ray_histograms[name].observe(value, dict(labels))

    def in_flight(self, n: int) -> None:
        """Set the number of images that this process has accepted and not yet answered."""
        super().in_flight(n)
        self._ray_in_flight.set(n)
