"""Check the address on which an endpoint listens, and wait until the endpoint is ready.

An endpoint is the scoring server of `touchstone serve`.
"""

import errno
import os
import socket
import time

import httpx

from ray_app.errors import ClusterError, ConfigError
from ray_app.serving.config import ServeConfig
from ray_app.serving.http import auth
from ray_app.storage.urls import is_loopback

START_TIMEOUT_S = 600.0  # The start may include a download of weights.


def require_tokens_or_loopback(config: ServeConfig, host: str) -> None:
    """Check that an endpoint that other machines can reach requires a token from its clients.

    The check passes without a token if `access.anonymous` is set. Raises ConfigError if a required
    token is not set.
    """
    if (
        auth.BearerTokens(config.access).configured
        or config.access.anonymous
        or host == "localhost"
        or is_loopback(host)
    ):
        return
    raise ConfigError(
        f"--host {host} would accept requests from any machine: no tokens are set",
        hint=f"set ${config.access.tokens_variable} or access.tokens_file, or access.anonymous=true if a proxy in front authenticates clients",
    )


def make_url(host: str, port: int) -> str:
    """Return the URL at which this machine reaches an endpoint that listens on a host and port."""
    if host in ("0.0.0.0", "::"):  # noqa: S104 - It is compared, not bound.
        host = "127.0.0.1"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def bind_socket(host: str, port: int) -> socket.socket:
    """Return a socket that is bound to a host and port. The caller closes it.

    Raises ConfigError if the address is in use or not allowed.
    """
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise ConfigError(
                f"{host}:{port}: another program already listens on this port",
                hint="choose another port with --port",
            ) from None
        reason = (
            os.strerror(error.errno).lower()
            if error.errno is not None and error.errno > 0
            else str(error)
        )
        raise ConfigError(
            f"cannot listen on {host}:{port}: {reason}", hint="choose another --host or --port"
        ) from None
    return listener


def await_ready(url: str) -> None:
    """Wait until an endpoint is ready to score images, according to its path /readyz.

    Raises ClusterError after START_TIMEOUT_S.
    """
    deadline = time.monotonic() + START_TIMEOUT_S
    with httpx.Client(timeout=15.0, trust_env=False) as client:
        while time.monotonic() < deadline:
            try:
                response = client.get(f"{url}/readyz")
            except httpx.TransportError:
                time.sleep(0.1)
                continue
            if response.status_code == httpx.codes.OK:
                return
            time.sleep(0.1)
    raise ClusterError(
        f"the endpoint {url} is not ready after {START_TIMEOUT_S:.0f} s",
        hint="read the logs of Ray Serve, in /tmp/ray/session_latest/logs/serve on each node unless Ray has another temporary folder",
    )
