"""An endpoint on this machine's own Ray (`touchstone serve --ray`): Ray, Serve and the application
up, waited for, and down again.

For clusters there is `serve deploy`; without Ray there is `serving.server`.
"""

import logging
import os
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from ray_app.cluster.config import ClusterConfig
from ray_app.cluster.ray_cluster import cluster, named_cluster
from ray_app.config import absolute_name, validate
from ray_app.detectors.card import split_variant
from ray_app.errors import ClusterError, ConfigError, describe_error
from ray_app.serving import address
from ray_app.serving.config import QUIET, ServeConfig
from ray_app.serving.ensembles import fetch_weights
from ray_app.serving.http import auth

_log = logging.getLogger(__name__)

# Serve reads these when it is first imported, here and in the workers of a Ray that this process
# starts. The first gives a third more requests per second, measured on two cores. The second writes
# each log line at once. The third is a third of the seconds that Serve waits for a new proxy: the
# imports of a proxy on a slow machine take longer than the default of 5 s.
SERVE_VARIABLES = {
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    "RAY_SERVE_REQUEST_PATH_LOG_BUFFER_SIZE": "1",
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "20",
}
# HAProxy would listen on every address for its statistics, and outlive a killed command. With
# direct ingress, which throughput optimization enables, replicas would listen on ports of their
# own.
_PYTHON_PROXY = {auth.HAPROXY_ENABLED: "0", "RAY_SERVE_ENABLE_DIRECT_INGRESS": "0"}
# Serve's own time-out answers 408 in its own words: ours comes first
REQUEST_TIMEOUT_MARGIN_S = 10.0


@contextmanager
def endpoint(
    config: ServeConfig,
    host: str,
    port: int,
    at_cluster: ClusterConfig,
    logs: Mapping[str, Any] = QUIET,
) -> Iterator[str]:
    """The endpoint's URL while it runs, ready to score. `logs`: a `logging_config` of Serve, for
    all its processes.

    Raises ConfigError for a host, port, cluster or `logs` that it must not take, DetectorError for
    licences and weights, and ClusterError if it does not start.
    """
    address.refuse_open_host(config, host)
    _refuse_a_cluster(at_cluster)
    address.listening(host, port).close()
    # Weights are fetched once, and missing ones are an error before Ray starts.
    fetch_weights(config)
    config = _with_absolute_paths(
        config.model_copy(update={"access": auth.by_digests(config.access)})
    )
    for name, value in SERVE_VARIABLES.items():
        os.environ.setdefault(name, value)
    os.environ.update(_PYTHON_PROXY)
    with cluster(at_cluster, hidden=(config.access.tokens_variable,)):
        # Serve reads its variables when it is imported, and Ray those that `cluster` sets.
        from ray import serve
        from ray.serve.schema import LoggingConfig

        from ray_app.serving.app import NAME, SHUTDOWN_MARGIN_S, build

        logging_config = validate(logs, LoggingConfig, where="logging_config")
        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        bound = build(config)
        serve.start(
            proxy_location="HeadOnly",
            http_options={
                "host": host,
                "port": port,
                "request_timeout_s": config.limits.deadline_s + REQUEST_TIMEOUT_MARGIN_S,
            },
            logging_config=logging_config,
        )
        try:
            try:
                serve.run(bound, name=NAME, route_prefix="/", logging_config=logging_config)
            except RuntimeError as error:
                lines = [line.strip() for line in str(error).splitlines() if line.strip()]
                raise ClusterError(
                    f"the endpoint did not start: {lines[-1] if lines else type(error).__name__}"
                ) from error
            url = address.url_of(host, port)
            address.await_ready(url)
            yield url
        finally:
            _drain(NAME, config.limits.deadline_s + SHUTDOWN_MARGIN_S)
            serve.shutdown()  # type: ignore[no-untyped-call]


def _with_absolute_paths(config: ServeConfig) -> ServeConfig:
    """Name all files of a config by absolute paths: replicas are in another folder than this
    command.
    """
    access, provenance = config.access, config.provenance
    tokens, trusted = access.tokens_file, provenance.trust_list
    changes = {
        "ensembles": tuple(absolute_name("ensembles", name) for name in config.ensembles),
        "optional_detectors": tuple(map(_absolute_detector, config.optional_detectors)),
        "access": access.model_copy(update={"tokens_file": tokens and os.path.abspath(tokens)}),
        "provenance": provenance.model_copy(
            update={
                "trust_list": trusted
                if trusted in (None, "none")
                else absolute_name("trust", trusted)
            }
        ),
    }
    return config.model_copy(update=changes)


def _absolute_detector(name_or_path: str) -> str:
    base, variant = split_variant(name_or_path)
    path = absolute_name("detectors", str(base))
    return path if variant is None else f"{path}:{variant}"


def _drain(name: str, limit_s: float) -> None:
    """Delete the application and wait until its replicas have finished their requests. A shutdown
    would begin with the proxy.
    """
    # `serve.delete` takes no deadline. A daemon thread does not keep this process alive if Serve
    # never answers.
    deleting = threading.Thread(target=_delete, args=(name,), daemon=True)
    deleting.start()
    deleting.join(limit_s)
    if deleting.is_alive():
        _log.warning("the endpoint did not end by itself within %.0f s", limit_s)


def _delete(name: str) -> None:
    from ray import serve

    while True:
        try:
            serve.delete(name)
            return
        except TimeoutError:  # Serve waits for 60 s. Requests may take longer.
            continue
        except Exception as error:  # The shutdown ends what is left.
            _log.warning("the endpoint did not end by itself: %s", describe_error(error))
            return


def _refuse_a_cluster(at_cluster: ClusterConfig) -> None:
    """What this process starts it also ends: it must not be what `serve deploy` made. Raises
    ConfigError.
    """
    is_connected = "ray" in sys.modules and sys.modules["ray"].is_initialized()
    if named_cluster(at_cluster.address) or is_connected:
        raise ConfigError(
            "this command starts a Ray of its own, but RAY_ADDRESS names a cluster",
            hint="on the cluster: serve deploy configs/serve/ensemble.yaml; for a Ray of its own, unset RAY_ADDRESS",
        )
