"""cluster.yaml is checked by Ray's own code, offline."""

import copy
import re
from pathlib import Path

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

PATH = Path(__file__).resolve().parent.parent / "cluster.yaml"
CONFIG = yaml.safe_load(PATH.read_text())


def check(config):
    validate_config(prepare_config(copy.deepcopy(config)))


def test_ray_accepts_it():
    check(CONFIG)


@pytest.mark.parametrize("damage", [{"head_node_type": "haed"}, {"max_worker": 3}])
def test_ray_would_refuse_a_mistake(damage):
    with pytest.raises(Exception, match=r"head_node_type|max_worker"):
        check(CONFIG | damage)


def test_nothing_is_scheduled_on_the_head_and_workers_are_spot_in_one_zone():
    nodes = CONFIG["available_node_types"]
    assert nodes["head"]["resources"] == {"CPU": 0}
    assert "," not in CONFIG["provider"]["availability_zone"]
    for name, node in nodes.items():
        assert node["node_config"]["IamInstanceProfile"] == {"Name": "touchstone-s3"}
        assert ("InstanceMarketOptions" in node["node_config"]) == (name != "head")
        assert node["min_workers"] == 0
    assert any("GPU" in node["resources"] for node in nodes.values())
    assert CONFIG["idle_timeout_minutes"] > 0


def test_it_holds_no_secret():
    assert not re.search(r"AKIA|aws_secret|ssh_private_key|password", PATH.read_text(), re.IGNORECASE)


def test_every_node_starts_with_the_token_and_cannot_start_without():
    starts = [one for key in ("head_start_ray_commands", "worker_start_ray_commands") for one in CONFIG[key] if "ray start" in one]
    assert len(starts) == 2
    assert all(one.startswith("RAY_AUTH_MODE=token ray start ") for one in starts)
    assert CONFIG["file_mounts"]["/home/ray/.ray/auth_token"] == "~/.ray/auth_token"
