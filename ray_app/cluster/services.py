"""What a head on one machine does without (`without_services`).

Ray 2.60 does not begin before its two agents have said their ports, for which they take two seconds of a core. So this file, run by
`python -S` with an agent's command behind it, stands in for one: for that of the dashboard, which has nothing to do where nobody reads
statistics, and for that of runtime environments until the raylet calls, which then calls again.
"""

import os
import select
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any


@contextmanager
def without_services(*, agents: bool) -> Iterator[None]:
    """Starting a head without what only a cluster is asked for: dashboard, autoscaler, log monitor; each takes a core for half a second.

    `agents`: with them. Without, workers are those of `warm_workers`.
    """
    from unittest import mock

    from ray._private import services
    from ray._private.node import Node

    from ray_app.cluster import warm_workers

    start_raylet = Node.start_raylet

    def none_at(node: Any, **given: Any) -> None:
        node._webui_url = ""

    def with_forks(node: Any, *given: Any, **named: Any) -> None:
        node._ray_params.worker_path = warm_workers.__file__
        start_raylet(node, *given, **named)

    nothing = lambda node: None  # noqa: E731
    with ExitStack() as left_out:
        left_out.enter_context(mock.patch.multiple(Node, start_api_server=none_at, start_monitor=nothing, start_log_monitor=nothing))
        if not agents:
            instead = [sys.executable, "-S", "-E", __file__]  # in front of the command of each
            left_out.enter_context(mock.patch.object(Node, "start_raylet", with_forks))
            left_out.enter_context(mock.patch.object(services, "_build_python_executable_command_memory_profileable", return_value=instead))
        yield


def main(command: list[str]) -> None:
    """`command`: the agent's program and its arguments. Ends with the raylet, whose child this is."""
    raylet, given = os.getppid(), dict(word[2:].split("=", 1) for word in command if word.startswith("--") and "=" in word)
    asked, ports = [], dict.fromkeys(("dashboard_agent_listen_port", "metrics_agent_port", "metrics_export_port"), -1)  # not in use
    if "runtime-env-agent-port" in given:
        asked = [socket.create_server((given["node-ip-address"], int(given["runtime-env-agent-port"])))]
        ports = {"runtime_env_agent_port": asked[0].getsockname()[1]}
    for name, port in ports.items():
        place = os.path.join(given["session-dir"], f"{name}_{given['node-id']}")
        with open(f"{place}.half", "w", encoding="ascii") as file:  # pathlib takes longer to load than all of this
            file.write(str(port))
        os.replace(f"{place}.half", place)
    while os.getppid() == raylet:
        if select.select(asked, (), (), 1.0)[0]:
            port = ports["runtime_env_agent_port"]
            os.execv(sys.executable, [sys.executable, "-u", *command, f"--runtime-env-agent-port={port}"])  # noqa: S606 - no shell


if __name__ == "__main__":
    main(sys.argv[1:])
