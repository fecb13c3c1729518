"""Which processes a training has on a cluster of any size."""

from itertools import product

import pytest

from ray_app.errors import ClusterError, ConfigError
from ray_app.training.config import Workers
from ray_app.training.job import plan_workers


def test_planned_workers_fit_on_the_cluster():
    for cpus, count, gpus in product((1, 2, 3, 16, 96), (1, 4), (0, 1)):
        layout = plan_workers(Workers(count=count), cpus=cpus, gpus=gpus * count)
        case = f"{count} workers on {cpus} cores and {gpus * count} GPUs"
        of_worker = layout.worker_cpus + layout.loaders * layout.loader_cpus
        assert layout.workers * of_worker <= cpus, case
        assert layout.workers * layout.worker_gpus <= gpus * count, case
        assert min(layout.worker_cpus, layout.loader_cpus) > 0, case
        assert min(layout.threads, layout.loaders) >= 1, case


def test_most_cores_train_and_cores_next_to_a_gpu_load():
    two, gpu = plan_workers(Workers(), cpus=2, gpus=0), plan_workers(Workers(), cpus=16, gpus=1)
    assert (two.worker_cpus, two.loaders, two.loader_cpus, two.device) == (1.75, 1, 0.25, "cpu")
    assert (gpu.loaders, gpu.device, gpu.worker_gpus) == (15, "cuda", 1)
    stated = plan_workers(Workers(count=2, cpus=1.0, loaders=3), cpus=8, gpus=0)
    assert (stated.workers, stated.worker_cpus, stated.loaders) == (2, 1.0, 3)


def test_worker_fits_on_a_node():
    layout = plan_workers(Workers(), cpus=3, gpus=0, node_cpus=1)
    assert layout.worker_cpus + layout.loaders * layout.loader_cpus <= 1


@pytest.mark.parametrize(
    ("workers", "cluster", "error", "said"),
    [
        ({"cpus": 2.0}, {"cpus": 3, "gpus": 0, "node_cpus": 1}, ClusterError, "do not fit"),
        ({"count": 2, "cpus": 2.0}, {"cpus": 2, "gpus": 0}, ClusterError, "do not fit"),
        ({"count": 2}, {"cpus": 8, "gpus": 1}, ClusterError, "2 workers need 1 GPU each"),
        ({"count": 2, "least": 3}, {"cpus": 8, "gpus": 0}, ConfigError, r"workers\.least is 3"),
    ],
)
def test_workers_that_never_fit_are_rejected(workers, cluster, error, said):
    with pytest.raises(error, match=said):
        plan_workers(Workers(**workers), **cluster)


def test_elastic_training_starts_with_the_minimum():
    assert plan_workers(Workers(count=4, least=2), cpus=8, gpus=2).least == 2
