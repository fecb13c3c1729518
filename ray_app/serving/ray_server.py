"""Run an endpoint on a local Ray, which this process starts (`touchstone serve --ray`).

`endpoint` starts Ray, Serve, and the application, and stops them at the end. On a cluster, use
`serve deploy` instead. For an endpoint without Ray, use `serving.server`.
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

# Serve reads these variables when it is first imported, here and in the workers of a Ray that this
# process starts. The first gives a third more requests per second, measured on two cores. The second
# writes each log line immediately. The third is a third of the time that Serve waits for a new proxy.
# On a slow machine the imports of a proxy take longer than the default of 5 s.
SERVE_VARIABLES = {
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    "RAY_SERVE_REQUEST_PATH_LOG_BUFFER_SIZE": "1",
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "20",
}
# HAProxy would listen on every address for its statistics, and outlive a killed command. With
# direct ingress, which throughput optimization enables, replicas would listen on ports of their
# own.
_PYTHON_PROXY = {auth.HAPROXY_ENABLED: "0", "RAY_SERVE_ENABLE_DIRECT_INGRESS": "0"}
# Serve's own timeout answers 408 with another body. The timeout of Touchstone comes first.
REQUEST_TIMEOUT_MARGIN_S = 10.0


@contextmanager
def endpoint(
    config: ServeConfig,
    host: str,
    port: int,
    at_cluster: ClusterConfig,
    logs: Mapping[str, Any] = QUIET,
) -> Iterator[str]:
    """Run an endpoint on a local Ray for the `with` block. Its URL is yielded when it is ready.

    Args:
        config: The settings of the endpoint.
        host: Address to listen on.
        port: Port to listen on.
        at_cluster: The settings of the Ray that is started.
        logs: A `logging_config` of Serve, for all its processes.

    Yields:
        The URL of the endpoint.

    Raises:
        ConfigError: The host, the port, or `logs` is not allowed, `at_cluster` names a running
            cluster, or the ensembles cannot be served together.
        DetectorError: A licence is not accepted, or weights are missing.
        ClusterError: The endpoint does not start.
    """
    address.require_tokens_or_loopback(config, host)
    _require_no_cluster(at_cluster)
    address.bind_socket(host, port).close()
    # Fetch weights once. Missing weights are an error before Ray starts.
    fetch_weights(config)
    config = _with_absolute_paths(
        config.model_copy(update={"access": auth.with_token_digests(config.access)})
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
                    f"the endpoint did not start: {lines[-1] if lines else type(error).__name__}",
                    hint="read the logs in logs/serve/ of the Ray session, such as /tmp/ray/session_latest/logs/serve/",
                ) from error
            url = address.make_url(host, port)
            address.await_ready(url)
            yield url
        finally:
            _drain(NAME, config.limits.deadline_s + SHUTDOWN_MARGIN_S)
            serve.shutdown()  # type: ignore[no-untyped-call]


def _with_absolute_paths(config: ServeConfig) -> ServeConfig:
    """Make all file names of a config absolute, since replicas run in another folder."""
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
    """Delete the application, and wait until its replicas have finished their requests.

    `serve.shutdown` alone would stop the proxy first.
    """
    # `serve.delete` has no deadline. A daemon thread does not keep this process alive if Serve never
    # answers.
    deleting = threading.Thread(target=_delete, args=(name,), daemon=True)
    deleting.start()
    deleting.join(limit_s)
    if deleting.is_alive():
        _log.warning("forcing the shutdown: the endpoint did not end within %.0f s", limit_s)


def _delete(name: str) -> None:
    from ray import serve

    while True:
        try:
            serve.delete(name)
            return
        except TimeoutError:  # Serve waits for 60 s. Requests may take longer.
            continue
        except Exception as error:  # The shutdown then ends the application.
            _log.warning("forcing the shutdown: %s", describe_error(error))
            return


def _require_no_cluster(at_cluster: ClusterConfig) -> None:
    """Check that no cluster is named, since this process stops the Ray that it uses.

    An application of `serve deploy` must not be stopped.

    Raises:
        ConfigError: A cluster is named or connected.
    """
    is_connected = "ray" in sys.modules and sys.modules["ray"].is_initialized()
    if named_cluster(at_cluster.address) or is_connected:
        raise ConfigError(
            "touchstone serve --ray starts its own Ray, but RAY_ADDRESS or cluster.address names a cluster, or this process is connected to one",
            hint="run serve deploy configs/serve/ensemble.yaml on the cluster, or unset RAY_ADDRESS and cluster.address",
        )
