"""Whether driver, head and nodes run the same Ray, Python and Touchstone. A difference is one line
that names the fix, a ClusterError.

Ray itself refuses another Ray or Python with a wall of text, and never looks at what its users have
installed: two versions of Touchstone would mix their rows in one run.
"""

import platform
from collections.abc import Callable
from typing import Any, NamedTuple

from ray_app import __version__
from ray_app.errors import ClusterError

ANSWER_S = 10.0  # nodes that do not say in so long what they have are not waited for
_ON_THE_CLUSTER = "run the command on the cluster: ray job submit"
_ONE_TOUCHSTONE = (
    "give all nodes one version (`ray up cluster.yaml` again installs the checkout it is called from), "
    "or let the job bring its own: `ray job submit --working-dir .` from its checkout"
)


class NodeVersions(NamedTuple):
    """What a node runs: of Python its first two numbers; `touchstone` is None where it cannot be
    imported.
    """

    ray: str
    python: str
    touchstone: str | None


def require_nodes(address: str) -> None:
    """Whether all nodes of the cluster that this process has joined run what it runs: one small
    task each, all at once.

    Nodes that come later are asked by the workers that start on them (`require_same`).
    """
    own, found = NodeVersions(*_version_probe()()), _found()
    for kind, here, versions in zip(
        ("Ray", "Python", "Touchstone"),
        own,
        zip(*(node for _, node in found), strict=True),
        strict=False,
    ):
        others = [
            (place, version)
            for (place, _), version in zip(found, versions, strict=True)
            if version != here
        ]
        if not others:
            continue
        place, version = others[0]
        some = (
            f"{len(others)} of {len(found)} nodes, {place} among them, have"
            if len(others) > 1
            else f"node {place} has"
        )
        raise ClusterError(
            f"cannot use the Ray cluster at {address}: {some} {f'{kind} {version}' if version else f'no {kind}'}, this is {kind} {here}",
            hint=_ONE_TOUCHSTONE
            if kind == "Touchstone"
            else f"give all nodes one version, or {_ON_THE_CLUSTER}",
        )


def require_same(driver_version: str) -> None:
    """Whether this process has the Touchstone of the run's driver; asked by every worker before it
    begins.
    """
    if driver_version != __version__:
        raise ClusterError(
            f"node {platform.node()} has Touchstone {__version__}, the run's driver {driver_version}",
            hint=_ONE_TOUCHSTONE,
        )


def _found() -> list[tuple[str, NodeVersions]]:
    """The addresses of the nodes that have cores, and what they run. Those that do not answer are
    left out: the run will meet them.
    """
    import ray
    from ray.exceptions import RayError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    ask = ray.remote(num_cpus=0, max_retries=0)(_version_probe())
    asked = {
        ask.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        ).remote(): node["NodeManagerAddress"]
        for node in nodes
        if node["Alive"] and node["Resources"].get("CPU")
    }
    found = []
    for answer in (
        ray.wait(list(asked), num_returns=len(asked), timeout=ANSWER_S)[0] if asked else []
    ):
        try:
            found.append((asked[answer], NodeVersions(*ray.get(answer))))
        except RayError:
            continue
    return found


def _version_probe() -> Callable[[], tuple[str, str, str | None]]:
    """What a node is asked. A function inside of one is sent as code, so that it runs where there
    is no Touchstone, or another one.
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
