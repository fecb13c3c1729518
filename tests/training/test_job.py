"""Which processes a training has: every request fits, together, however small the machine."""

import pytest

from ray_app.errors import ClusterError, ConfigError
from ray_app.training.config import Workers
from ray_app.training.job import plan_workers


@pytest.mark.parametrize("cpus", [1, 2, 3, 16, 96])
@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.parametrize("gpus_each", [0, 1])
def test_what_is_asked_for_is_there(cpus, count, gpus_each):
    layout = plan_workers(Workers(count=count), cpus=cpus, gpus=gpus_each * count)
    assert layout.workers * (layout.worker_cpus + layout.loaders * layout.loader_cpus) <= cpus
    assert layout.workers * layout.worker_gpus <= gpus_each * count
    assert min(layout.worker_cpus, layout.loader_cpus) > 0
    assert min(layout.threads, layout.loaders) >= 1


def test_two_cores_train_with_most_of_them_and_the_cores_beside_a_gpu_load():
    two, gpu = plan_workers(Workers(), cpus=2, gpus=0), plan_workers(Workers(), cpus=16, gpus=1)
    assert (two.worker_cpus, two.loaders, two.loader_cpus, two.device) == (1.75, 1, 0.25, "cpu")
    assert (gpu.loaders, gpu.device, gpu.worker_gpus) == (15, "cuda", 1)
    stated = plan_workers(Workers(count=2, cpus=1.0, loaders=3), cpus=8, gpus=0)
    assert (stated.workers, stated.worker_cpus, stated.loaders) == (2, 1.0, 3)


def test_a_worker_fits_on_a_node():
    layout = plan_workers(Workers(), cpus=3, gpus=0, node_cpus=1)
    assert layout.worker_cpus + layout.loaders * layout.loader_cpus <= 1
    with pytest.raises(ClusterError, match="do not fit"):
        plan_workers(Workers(cpus=2.0), cpus=3, gpus=0, node_cpus=1)


def test_too_much_is_refused_before_it_waits_for_ever():
    with pytest.raises(ClusterError, match="do not fit"):
        plan_workers(Workers(count=2, cpus=2.0), cpus=2, gpus=0)
    with pytest.raises(ClusterError, match="2 workers with 1 GPU each, but the cluster has 1"):
        plan_workers(Workers(count=2), cpus=8, gpus=1)


def test_elastic_training_starts_with_the_fewest():
    assert plan_workers(Workers(count=4, least=2), cpus=8, gpus=2).least == 2
    with pytest.raises(ConfigError, match=r"workers\.least is 3"):
        plan_workers(Workers(count=2, least=3), cpus=8, gpus=0)
