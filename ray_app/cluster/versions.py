"""Check that the driver, the head and the nodes run the same Ray, Python and Touchstone.

A difference raises ClusterError with one line and a fix. Ray itself rejects a different Ray or Python
with a long text, and does not check other packages. Without this check, one run could contain rows
from two versions of Touchstone.
"""

import platform
from collections.abc import Callable
from typing import Any, NamedTuple

from ray_app import __version__
from ray_app.errors import ClusterError

ANSWER_S = 10.0  # Nodes that do not report their versions in this time are skipped.
_ON_THE_CLUSTER = "run the command on the cluster: ray job submit"
_ONE_TOUCHSTONE = (
    "give all nodes one version (`ray up cluster.yaml` again installs the checkout it is called from), "
    "or let the job bring its own: `ray job submit --working-dir .` from its checkout"
)


class NodeVersions(NamedTuple):
    """The versions of software on a node of the cluster.

    Attributes:
        ray: The version of Ray.
        python: The first two numbers of the version of Python.
        touchstone: The version of Touchstone, or None if it cannot be imported.
    """

    ray: str
    python: str
    touchstone: str | None


def require_nodes(address: str) -> None:
    """Raise ClusterError if a node of the joined cluster runs other versions than this process.

    One small task runs on each node, in parallel. Workers on nodes that join later check their own
    version (`require_same`).

    Args:
        address: The address of the cluster, for the message.
    """
    local, nodes = NodeVersions(*_version_probe()()), _probe_nodes()
    for kind, local_version, versions in zip(
        ("Ray", "Python", "Touchstone"),
        local,
        zip(*(node for _, node in nodes), strict=True),
        strict=False,
    ):
        others = [
            (node, version)
            for (node, _), version in zip(nodes, versions, strict=True)
            if version != local_version
        ]
        if not others:
            continue
        node, version = others[0]
        subject = (
            f"{len(others)} of {len(nodes)} nodes, {node} among them, have"
            if len(others) > 1
            else f"node {node} has"
        )
        raise ClusterError(
            f"cannot use the Ray cluster at {address}: {subject} {f'{kind} {version}' if version else f'no {kind}'}, "
            f"but this process has {kind} {local_version}",
            hint=_ONE_TOUCHSTONE
            if kind == "Touchstone"
            else f"give all nodes one version, or {_ON_THE_CLUSTER}",
        )


def require_same(driver_version: str) -> None:
    """Raise ClusterError if this process has another version of Touchstone than the run's driver.

    Every worker calls this before it starts to work.
    """
    if driver_version != __version__:
        raise ClusterError(
            f"node {platform.node()} has Touchstone {__version__}, but the run's driver has {driver_version}",
            hint=_ONE_TOUCHSTONE,
        )


def _probe_nodes() -> list[tuple[str, NodeVersions]]:
    """Return the addresses and versions of the nodes that have cores.

    Nodes that do not answer are skipped: the run will notice them.
    """
    import ray
    from ray.exceptions import RayError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    probe = ray.remote(num_cpus=0, max_retries=0)(_version_probe())
    addresses = {
        probe.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        ).remote(): node["NodeManagerAddress"]
        for node in nodes
        if node["Alive"] and node["Resources"].get("CPU")
    }
    result = []
    for reference in (
        ray.wait(list(addresses), num_returns=len(addresses), timeout=ANSWER_S)[0]
        if addresses
        else []
    ):
        try:
            result.append((addresses[reference], NodeVersions(*ray.get(reference))))
        except RayError:
            continue
    return result


def _version_probe() -> Callable[[], tuple[str, str, str | None]]:
    """Return the function that runs on each node.

    Ray sends an inner function as code, so it runs on nodes with no Touchstone or another one.
    """

    def versions() -> tuple[str, str, str | None]:
        import sys

        import ray

        try:
            import ray_app

            touchstone: str | None = ray_app.__version__
        except ImportError:
            touchstone = None
        return ray.__version__, f"{sys.version_info[0]}.{sys.version_info[1]}", touchstone

    return versions
