import pytest

from ray_app.config import named_configs
from ray_app.errors import ConfigError
from ray_app.scoring.config import Prices, ScoreConfig
from ray_app.scoring.machines import ClusterDescription, Nodes, load_cluster, planned_for

POOL = ClusterDescription(
    nodes=(Nodes(count=1, cpus=0, price_per_hour=0.2), Nodes(count=4, cpus=16, gpus=1, memory_gb=64, price_per_hour=0.6)),
)


@pytest.mark.parametrize("name", named_configs("clusters"))
def test_shipped_descriptions_load(name):
    described = load_cluster(name)
    assert described.name == name
    assert described.cpus


def test_sums_are_over_all_machines():
    assert (POOL.cpus, POOL.gpus) == (64, 4)
    assert POOL.price_per_hour == pytest.approx(0.2 + 4 * 0.6)
    assert POOL.memory_bytes == pytest.approx(0.7 * 4 * 64e9)


def test_a_working_node_of_unknown_memory_leaves_it_unknown():
    assert ClusterDescription(nodes=(Nodes(cpus=4, price_per_hour=0),)).memory_bytes is None


def test_the_description_takes_the_place_of_what_the_config_says():
    config = ScoreConfig(prices=Prices(get_per_1000=7, per_hour=1))
    planned = planned_for(config, POOL, None)
    assert (planned.cluster.cpus, planned.cluster.gpus) == (64, 4)
    assert planned.prices == Prices(get_per_1000=7, per_hour=POOL.price_per_hour)
    assert planned_for(config, POOL, 9.0).prices.per_hour == 9.0


def test_machines_without_cores_are_refused(tmp_path):
    file = tmp_path / "none.yaml"
    file.write_text("nodes: [{count: 2, cpus: 0, price_per_hour: 1}]\n")
    with pytest.raises(ConfigError, match="no cores"):
        load_cluster(file)


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'laptop'"):
        load_cluster("latop")
