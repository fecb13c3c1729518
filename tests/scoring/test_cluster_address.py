"""What a command says about an address at which it cannot join a Ray. It starts no Ray instead."""

import socket
import time

import pytest
import ray

from ray_app.archives import map_serial
from ray_app.cluster import ray_cluster
from ray_app.cluster.config import ClusterConfig
from ray_app.datajobs.shards.config import PackConfig
from ray_app.datajobs.shards.run import _workers as workers
from ray_app.errors import ClusterError, ConfigError, ExitCode
from ray_app.serving.ray_server import _require_no_cluster as refuse_a_cluster


@pytest.fixture(autouse=True)
def no_address(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return listening.getsockname()[1]


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_unreachable_head_is_reported_within_seconds(scheme):
    address, began = f"{scheme}127.0.0.1:{free_port()}", time.monotonic()
    with pytest.raises(ClusterError, match=f"cannot join the Ray cluster at {address}") as caught:
        ray_cluster.require_head(address)
    assert time.monotonic() - began < ray_cluster.PROBE_S
    assert caught.value.exit_code is ExitCode.CLUSTER
    assert "6379" in caught.value.hint


def test_listening_head_is_left_to_ray():
    with socket.create_server(("127.0.0.1", 0)) as listening:
        ray_cluster.require_head(f"127.0.0.1:{listening.getsockname()[1]}")


@pytest.fixture
def current_cluster(monkeypatch, tmp_path):
    """The file in which `ray start` records the address of its cluster. Clusters that run on this
    machine, such as those of other tests, are not seen.
    """
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.setattr("ray._private.services.find_gcs_addresses", set)
    (tmp_path / "ray").mkdir()
    return tmp_path / "ray" / "ray_current_cluster"


def test_auto_names_the_dead_cluster_within_seconds(current_cluster):
    for head, reason in (
        (f"127.0.0.1:{free_port()}", r"auto \({}\): ConnectionRefusedError"),
        ("nonsense", "auto: ValueError"),
        (None, "auto: ConnectionError"),
    ):
        current_cluster.unlink(missing_ok=True)
        if head is not None:
            current_cluster.write_text(head)
        began = time.monotonic()
        with pytest.raises(ClusterError, match=reason.format(head)) as caught:
            ray_cluster.require_head("auto")
        assert time.monotonic() - began < ray_cluster.PROBE_S
        assert caught.value.exit_code is ExitCode.CLUSTER
        assert "run `ray stop`" in caught.value.hint


def test_auto_probes_the_current_cluster(current_cluster):
    with socket.create_server(("127.0.0.1", 0)) as listening:
        current_cluster.write_text(f"127.0.0.1:{listening.getsockname()[1]}")
        ray_cluster.require_head("auto")
        listening.settimeout(5)
        listening.accept()[0].close()


def test_local_names_no_cluster(monkeypatch):
    monkeypatch.setattr(ray, "nodes", lambda: [{}])
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    for said in ("", "local"):
        monkeypatch.setenv("RAY_ADDRESS", said)
        assert (ray_cluster.named_cluster(), ray_cluster.has_other_nodes()) == (None, False)
        with workers(PackConfig(source=("a",), out="b"), ray_cluster.map_on_ray) as each:
            assert each is map_serial
        refuse_a_cluster(ClusterConfig())
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    assert [ray_cluster.named_cluster(said) for said in (None, "other:6379", "local")] == [
        "head:6379",
        "other:6379",
        None,
    ]
    assert ray_cluster.has_other_nodes()
    with pytest.raises(ConfigError, match="names a cluster"):
        refuse_a_cluster(ClusterConfig())
