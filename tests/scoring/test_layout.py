import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ray_app.errors import ClusterError
from ray_app.inference import ResourceEstimate
from ray_app.scoring.layout import COMMIT_CPUS, HAND_OVER_SHARE, TENSOR_BYTES, plan_layout


def cost(*, tensor_bytes=0, pool_gmac=(0.0,), process_bytes=0):
    rest = {"worst_gmac": 0.0, "second_stage_share": 1.0, "share_described": 1.0}
    return ResourceEstimate(process_bytes, tensor_bytes, pool_gmac, **rest)


TENSOR = cost(tensor_bytes=384 * 384 * 3)


USUAL = {"slots": 4, "cpus": 2, "gpus": 0, "workers": None, "block_members": 1024}


def planned(work=TENSOR, **options):
    return plan_layout(work, **USUAL | options)


def asked(layout):
    """CPUs and GPUs that all processes of a layout ask for together."""
    scorers = sum(layout.scorers)
    if layout.kind == "fused":
        return scorers * layout.worker_cpus, 0.0
    return (
        layout.decoders * layout.worker_cpus + scorers * layout.scorer_cpus + COMMIT_CPUS,
        scorers * layout.scorer_gpus,
    )


def test_workers_fill_cores_and_decoders_what_gpus_leave():
    layout = planned()
    assert (layout.kind, layout.scorers, layout.decoders) == ("fused", (2,), 0)
    assert planned(cpus=8, workers=3).scorers == (3,), "as stated"
    layout = planned(cpus=16, gpus=1)
    assert (layout.kind, layout.scorers, layout.decoders) == ("split", (1,), 15)
    layout = planned(cpus=1, gpus=8)
    assert (layout.scorers, layout.decoders) == ((5,), 1), "as many as find room beside the decoder"
    with pytest.raises(ClusterError, match="0 CPUs"):
        planned(cpus=0)


@example(cpus=1, gpus=0, slots=1, side=64, members=1, pools=[2.2e-311])
@given(
    cpus=st.integers(1, 512), gpus=st.integers(0, 64), slots=st.integers(1, 128), side=st.integers(64, 1024), members=st.integers(1, 4096),
    pools=st.lists(st.floats(0, 3000), min_size=1, max_size=5),
)  # fmt: skip
def test_layout_fits_the_cluster_and_blocks_are_whole_batches(
    cpus, gpus, slots, side, members, pools
):
    work = cost(tensor_bytes=side * side * 3, pool_gmac=tuple(pools))
    layout = planned(work, slots=slots, cpus=cpus, gpus=gpus, block_members=members)
    cores, cards = asked(layout)
    assert cores <= cpus + 1e-9
    assert cards <= gpus + 1e-9
    assert layout.worker_cpus > 0
    assert len(layout.scorers) == len(pools)
    assert min(layout.scorers) >= 1
    assert layout.block_members % slots == 0
    if layout.kind == "split":
        assert layout.block_members * side * side * 3 <= max(TENSOR_BYTES, slots * side * side * 3)


def test_block_is_bounded_by_tensors_stores_and_time():
    assert planned(block_members=2048, cpus=16, gpus=1).block_members == 1212, "512 MiB of tensors"
    assert planned(block_members=2048, cpus=16, gpus=1, store_bytes=33 * 2**20).block_members == 4
    layout = planned(block_members=2048, gpus=1, store_bytes=2**29)
    assert (
        layout.block_members * TENSOR.tensor_bytes * layout.max_open_blocks
        <= HAND_OVER_SHARE * 2**29
    )
    slow = cost(pool_gmac=(98.0,))
    assert planned(slow, block_members=2048).block_members == 60, "a minute on a core"
    assert planned(block_members=2048).block_members == 2048


def test_memory_limits_the_workers():
    large = cost(process_bytes=4_000_000_000)
    layout = planned(large, cpus=64, memory_bytes=100e9)
    assert layout.scorers == (25,)
    assert "no memory for more" in layout.described
    assert planned(large, memory_bytes=1e9).scorers == (1,)
    assert "memory" not in planned(large, memory_bytes=100e9).described
    assert "memory" not in planned(large, cpus=64, workers=64, memory_bytes=1e9).described
