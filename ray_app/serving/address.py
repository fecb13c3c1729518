"""Where an endpoint listens: who may be let in there, whether it is free, and when somebody
answers.
"""

import errno
import os
import socket
import time

import httpx

from ray_app.errors import ClusterError, ConfigError
from ray_app.serving.config import ServeConfig
from ray_app.serving.http import auth

START_TIMEOUT_S = 600.0  # a fetch of weights may be part of it


def refuse_open_host(config: ServeConfig, host: str) -> None:
    """Without tokens only this machine may ask. Raises ConfigError."""
    if (
        auth.BearerTokens(config.access).configured
        or config.access.anonymous
        or host == "localhost"
        or auth.is_loopback(host)
    ):
        return
    raise ConfigError(
        f"--host {host} would let everybody in: no tokens are set",
        hint=f"set ${config.access.tokens_variable} or access.tokens_file; or access.anonymous=true where a proxy in front checks who asks",
    )


def url_of(host: str, port: int) -> str:
    """The address at which this machine reaches itself."""
    if host in ("0.0.0.0", "::"):  # noqa: S104 - compared, not bound
        host = "127.0.0.1"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def listening(host: str, port: int) -> socket.socket:
    """A socket of this place, to be closed. Raises ConfigError where it is taken, or not allowed."""
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise ConfigError(
                f"{host}:{port}: another program listens on this port already",
                hint="choose another one: --port",
            ) from None
        why = (
            os.strerror(error.errno).lower()
            if error.errno is not None and error.errno > 0
            else str(error)
        )
        raise ConfigError(
            f"cannot listen on {host}:{port}: {why}", hint="choose another --host or --port"
        ) from None
    return listener


def await_ready(url: str) -> None:
    """Return once /readyz says that images are scored. Raises ClusterError after START_TIMEOUT_S."""
    deadline = time.monotonic() + START_TIMEOUT_S
    with httpx.Client(timeout=15.0, trust_env=False) as client:
        while time.monotonic() < deadline:
            try:
                answer = client.get(f"{url}/readyz")
            except httpx.TransportError:
                time.sleep(0.1)
                continue
            if answer.status_code == httpx.codes.OK:
                return
            time.sleep(0.1)
    raise ClusterError(f"{url} is not ready after {START_TIMEOUT_S:.0f} s")
