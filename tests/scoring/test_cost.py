"""Bills, checked by hand."""

import time

import pytest

from ray_app.archives import BlockRef
from ray_app.config import named_configs
from ray_app.errors import ConfigError
from ray_app.runs import RunDirectory
from ray_app.scoring.config import (
    ClusterDescription,
    Nodes,
    Prices,
    ScoreConfig,
    apply_cluster,
    load_cluster,
)
from ray_app.scoring.session import ScoringSession, compute_cost, require_prices
from ray_app.scoring.stages import BlockReport, BlockWork


def test_bill_is_amounts_times_prices():
    bill = compute_cost(
        Prices(per_hour=4.0, egress_per_gb=0.09), 2.5, {"requests": 1_000_000, "bytes_read": 500e9}
    )
    assert bill.compute == pytest.approx(10.0)
    assert bill.egress == pytest.approx(45.0)
    assert bill.total == pytest.approx(55.0)
    assert bill.compute_share == pytest.approx(10 / 55)
    bill = compute_cost(Prices(egress_per_gb=0.09), 1.0, {"requests": 0, "bytes_read": 500e9})
    assert (bill.total, bill.compute_share) == (0, None)


def test_cost_limit_without_prices_is_refused():
    with pytest.raises(ConfigError, match="max-cost 5") as refused:
        require_prices(ScoreConfig(max_cost=5))
    assert "prices.per_hour=" in refused.value.hint
    for prices in (Prices(per_hour=1.0), Prices(egress_per_gb=0.09)):
        require_prices(ScoreConfig(max_cost=5, prices=prices))
    require_prices(ScoreConfig())


def test_session_states_what_it_cost_so_far(tmp_path):
    settings = ScoreConfig(prices=Prices(per_hour=6.0)).model_dump(mode="json")
    session = ScoringSession(RunDirectory.open(str(tmp_path)), settings, time.monotonic() - 1800)
    work = BlockWork({"score": 1.0}, {"bytes_read": 800, "requests": 500_000}, peak_bytes=1)
    session.add_block(BlockReport(BlockRef(0, 0, 8, 800, "", 0), 0, work))
    assert session.cost().compute == pytest.approx(3.0, abs=0.01)
    assert session.facts().cost.total == pytest.approx(3.0, abs=0.01)
    assert session.facts().requests == 500_000


POOL = ClusterDescription(
    nodes=(
        Nodes(count=1, cpus=0, price_per_hour=0.2),
        Nodes(count=4, cpus=16, gpus=1, memory_gb=64, price_per_hour=0.6),
    ),
)


def test_shipped_descriptions_load():
    for name in named_configs("clusters"):
        described = load_cluster(name)
        assert described.name == name
        assert described.cpus


def test_description_of_a_cluster_replaces_the_config():
    assert (POOL.cpus, POOL.gpus) == (64, 4)
    assert POOL.price_per_hour == pytest.approx(0.2 + 4 * 0.6)
    assert POOL.memory_bytes == pytest.approx(0.7 * 4 * 64e9)
    config = ScoreConfig(prices=Prices(egress_per_gb=7, per_hour=1))
    planned = apply_cluster(config, POOL, None)
    assert (planned.cluster.cpus, planned.cluster.gpus) == (64, 4)
    assert planned.prices == Prices(egress_per_gb=7, per_hour=POOL.price_per_hour)
    assert apply_cluster(config, POOL, 9.0).prices.per_hour == 9.0


def test_machines_without_cores_and_unknown_names_are_refused(tmp_path):
    file = tmp_path / "none.yaml"
    file.write_text("nodes: [{count: 2, cpus: 0, price_per_hour: 1}]\n")
    with pytest.raises(ConfigError, match="no cores"):
        load_cluster(file)
    with pytest.raises(ConfigError, match="did you mean 'laptop'"):
        load_cluster("latop")
