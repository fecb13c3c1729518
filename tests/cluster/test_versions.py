"""Driver and nodes of different versions: one line with the fix, before anything is scored."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import ray

from ray_app import __version__
from ray_app.cluster import versions
from ray_app.cluster.versions import NodeVersions
from ray_app.errors import ClusterError, ExitCode
from tests.make.nodes import Nodes
from tests.make.waiting import kill_family

ROOT = Path(__file__).resolve().parents[2]
# of Python, patches may differ
OWN = NodeVersions(ray.__version__, f"{sys.version_info[0]}.{sys.version_info[1]}", __version__)
JOINING = """
import sys
from ray_app.cluster import versions
from ray_app.cluster.config import ClusterConfig
from ray_app.cluster.ray_cluster import cluster

versions.ANSWER_S = 60.0  # A busy machine starts the process that answers late.
with cluster(ClusterConfig(address=sys.argv[1])):
    print("joined", file=sys.__stdout__)
"""

# Run by each Python process of the late node, which does not see the folder that the driver imports
# from, as another machine would not.
SITECUSTOMIZE = """
import sys
from importlib.util import spec_from_file_location
from pathlib import Path

class OwnTouchstone:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == "ray_app":
            return spec_from_file_location(name, Path(__file__).parent / "ray_app/__init__.py")

sys.meta_path.insert(0, OwnTouchstone)
"""


def told(monkeypatch, *nodes):
    found = [(f"10.0.0.{number}", node) for number, node in enumerate(nodes)]
    monkeypatch.setattr(versions, "_probe_nodes", lambda: found)
    with pytest.raises(ClusterError) as caught:
        versions.require_nodes("head:6379")
    assert caught.value.exit_code is ExitCode.CLUSTER
    return caught.value


def test_equal_nodes_and_none_are_accepted(monkeypatch):
    for nodes in ([], [("a", OWN), ("b", NodeVersions(*versions._version_probe()()))]):
        monkeypatch.setattr(versions, "_probe_nodes", lambda nodes=nodes: nodes)
        versions.require_nodes("head:6379")


def test_nodes_of_other_versions_are_named_with_the_fix(monkeypatch):
    error = told(monkeypatch, OWN, OWN._replace(touchstone="0.11.0"), OWN)
    assert error.message.endswith(
        f"head:6379: node 10.0.0.1 has Touchstone 0.11.0, but this process has Touchstone {__version__}"
    )
    assert "ray up cluster.yaml" in error.hint
    assert "ray job submit --working-dir ." in error.hint
    error = told(monkeypatch, *[OWN._replace(touchstone=None)] * 2, OWN)
    assert "2 of 3 nodes, 10.0.0.0 among them, have no Touchstone" in error.message
    for other, said in (
        (OWN._replace(ray="2.59.1"), "Ray 2.59.1"),
        (OWN._replace(python="3.9"), "Python 3.9"),
    ):
        error = told(monkeypatch, other)
        assert said in error.message
        assert "ray job submit" in error.hint


def test_worker_of_another_version_refuses_its_blocks():
    versions.require_same(__version__)
    with pytest.raises(ClusterError, match=r"the run's driver has 0\.11\.0") as caught:
        versions.require_same("0.11.0")
    assert "ray up cluster.yaml" in caught.value.hint


def joined(address, folder):
    """What a driver is told that has this checkout, and works in a folder without one: nodes import
    from where their driver works.
    """
    command, environment = (
        [sys.executable, "-c", JOINING, address],
        os.environ | {"PYTHONPATH": str(ROOT)},
    )
    options = {"cwd": folder, "env": environment, "timeout": 100}
    done = subprocess.run(command, capture_output=True, text=True, **options)
    return done.returncode, done.stdout.split(), done.stderr


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_late_node_of_another_version_is_named(tmp_path):
    nodes = Nodes()
    try:
        code, said, errors = joined(nodes.address, tmp_path)
        assert (code, said) == (0, ["joined"]), errors
        (tmp_path / "old/ray_app").mkdir(parents=True)
        (tmp_path / "old/ray_app/__init__.py").write_text('__version__ = "0.11.0"\n')
        (tmp_path / "old/sitecustomize.py").write_text(SITECUSTOMIZE)
        nodes.tell("add", tmp_path / "old")
        code, said, errors = joined(nodes.address, tmp_path)
    finally:
        kill_family(nodes.process)
    assert (code, said) == (1, [])
    assert "has Touchstone 0.11.0, but this process has Touchstone" in errors
