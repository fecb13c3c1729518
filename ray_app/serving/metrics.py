"""Count requests and images of the endpoint, and serve the counts at /metrics (`Meter`).

On Ray, `serving.app.RayMeter` also exports the counts to the metric pages of Ray's nodes.
"""

from collections.abc import Mapping
from typing import Any

# Ray adds this prefix to each series. With it, dashboards and alerts are the same for both servers.
PREFIX = "ray_touchstone_"
# The value of the label `group` of batches, which dashboards of earlier versions read.
GROUP = "detectors"

SECONDS = (
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
    20.0,
    30.0,
    60.0,
)
BATCH_SIZES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0)

# Each metric has a description and labels. Ray exports it as `ray_touchstone_<name>`, with the suffix
# `_total` for a counter.
COUNTERS: dict[str, tuple[str, tuple[str, ...]]] = {
    "requests": ("requests answered", ("route", "status")),
    "refusals": ("requests and images refused", ("code",)),
    "verdicts": ("images decided on", ("ensemble", "verdict")),
    "batched_images": ("images that went through batches", ("group",)),
}
HISTOGRAMS: dict[str, tuple[str, tuple[str, ...], tuple[float, ...]]] = {
    "request_seconds": ("time from the first byte of a request to its answer", ("route",), SECONDS),
    "stage_seconds": (
        "time of one image in one stage: decode, wait, score, total",
        ("stage",),
        SECONDS,
    ),
    "batch_images": ("images in one batch", ("group",), BATCH_SIZES),
    "batch_wait_seconds": (
        "time from the arrival of the first image of a batch to the start of the batch",
        ("group",),
        SECONDS,
    ),
}
GAUGES: dict[str, str] = {"images_in_flight": "images of requests in progress"}


class Meter:
    """Count requests and images in this process. `app.RayMeter` also exports the counts to Ray.

    No method blocks. Data that a client sent never makes a method raise an exception.
    """

    def __init__(self) -> None:
        from prometheus_client import (
            CollectorRegistry,
            Counter,
            Gauge,
            Histogram,
            disable_created_metrics,
        )

        disable_created_metrics()  # type: ignore[no-untyped-call]
        registry = self._registry = CollectorRegistry()
        self._counters: dict[str, Any] = {
            name: Counter(PREFIX + name, meaning, keys, registry=registry)
            for name, (meaning, keys) in COUNTERS.items()
        }
        self._histograms: dict[str, Any] = {
            name: Histogram(PREFIX + name, meaning, keys, buckets=bounds, registry=registry)
            for name, (meaning, keys, bounds) in HISTOGRAMS.items()
        }
        (gauge,) = GAUGES.items()
        self._in_flight: Any = Gauge(PREFIX + gauge[0], gauge[1], registry=registry)

    def request(self, route: str, status: int, seconds: float) -> None:
        """Count one answered request.

        Args:
            route: The template of the route, such as `/page/{name}`. Never pass the path, because
                each new value creates a permanent time series.
            status: The HTTP status.
            seconds: The time from the first byte of the request to the answer.
        """
        self._add("requests", 1, {"route": route, "status": str(status)})
        self._observe("request_seconds", seconds, {"route": route})

    def stage(self, name: str, seconds: float) -> None:
        """Record the seconds that one image spent in a stage.

        Args:
            name: `decode`, `wait`, `score`, or `total`.
            seconds: The time in this stage.
        """
        self._observe("stage_seconds", seconds, {"stage": name})

    def refused(self, code: str) -> None:
        """Count one refused request or image. `code` is the reason, such as `overloaded`."""
        self._add("refusals", 1, {"code": code})

    def verdict(self, ensemble: str, verdict: str) -> None:
        """Count one image that has a verdict."""
        self._add("verdicts", 1, {"ensemble": ensemble, "verdict": verdict})

    def batch(self, size: int, waited_s: float) -> None:
        """Count one batch of images that a worker has scored.

        The size is counted in a histogram and in a counter of images. The counter is needed because
        Ray derives the sum of a histogram from its buckets.

        Args:
            size: The number of images in the batch.
            waited_s: The seconds that the first image of the batch had waited.
        """
        self._observe("batch_images", size, {"group": GROUP})
        self._add("batched_images", size, {"group": GROUP})
        self._observe("batch_wait_seconds", waited_s, {"group": GROUP})

    def _add(self, name: str, amount: float, labels: Mapping[str, str]) -> None:
        self._counters[name].labels(**labels).inc(amount)

    def _observe(self, name: str, value: float, labels: Mapping[str, str]) -> None:
        self._histograms[name].labels(**labels).observe(value)

    def in_flight(self, n: int) -> None:
        """Set the number of images that this process has accepted and not yet answered."""
        self._in_flight.set(n)

    def exposition(self) -> str:
        """Return the counts in the text format of Prometheus."""
        from prometheus_client import generate_latest

        return generate_latest(self._registry).decode()
