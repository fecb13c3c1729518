import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_app.errors import ClusterError
from ray_app.scoring.plan import COMMIT_CPUS, GPU_SCORER_CPUS, HAND_OVER_BYTES, WORKER_CPUS, plan_layout

PLAIN = {"workers": None, "block_members": 1024, "slots": 4, "tensor_bytes": 384 * 384 * 3}


def test_without_gpus_one_fused_worker_per_core():
    layout = plan_layout(cpus=2, gpus=0, **PLAIN)
    assert (layout.kind, layout.scorers, layout.decoders) == ("fused", 2, 0)


def test_workers_can_be_stated():
    assert plan_layout(cpus=8, gpus=0, **{**PLAIN, "workers": 3}).scorers == 3


def test_too_many_gpus_for_the_cores_are_refused():
    with pytest.raises(ClusterError, match="CPUs, the cluster has 1"):
        plan_layout(cpus=1, gpus=4, **PLAIN)


def test_with_gpus_decoders_take_the_cores_that_remain():
    layout = plan_layout(cpus=16, gpus=1, **PLAIN)
    assert (layout.kind, layout.scorers, layout.decoders) == ("split", 1, 15)


def test_nothing_to_schedule_on_is_said():
    with pytest.raises(ClusterError, match="0 CPUs"):
        plan_layout(cpus=0, gpus=0, **PLAIN)


@given(
    cpus=st.integers(1, 512), gpus=st.integers(0, 64), slots=st.integers(1, 128), side=st.integers(64, 1024), members=st.integers(1, 4096)
)
def test_requests_never_exceed_what_is_there(cpus, gpus, slots, side, members):
    try:
        layout = plan_layout(cpus=cpus, gpus=gpus, workers=None, block_members=members, slots=slots, tensor_bytes=side * side * 3)
    except ClusterError:
        assert gpus > cpus
        return
    if layout.kind == "fused":
        assert layout.scorers * WORKER_CPUS <= cpus
    else:
        assert layout.decoders * WORKER_CPUS + layout.scorers * GPU_SCORER_CPUS + COMMIT_CPUS <= cpus
        assert layout.scorers <= gpus
    assert layout.block_members % slots == 0
    if layout.kind == "split":
        assert layout.block_members * side * side * 3 <= max(HAND_OVER_BYTES, slots * side * side * 3)


def test_slow_detectors_get_small_blocks():
    # 1,337 GMAC is Corvi's megapixel: 13 s on a core
    assert plan_layout(cpus=2, gpus=0, **PLAIN, gmac=1337).block_members == 4
    assert plan_layout(cpus=2, gpus=0, **PLAIN, gmac=15.5).block_members == 384
    assert plan_layout(cpus=16, gpus=1, **{**PLAIN, "tensor_bytes": 1}, gmac=1337).block_members == 1024


def test_a_block_of_the_largest_images_is_waited_for():
    layout = plan_layout(cpus=2, gpus=0, **PLAIN, gmac=1337)
    assert layout.slowest_block_s(25 * 1337) >= 4 * 25 * 1337 / 100


@given(cpus=st.integers(2, 64), gpus=st.integers(0, 16), pools=st.integers(2, 5))
def test_pools_never_ask_for_more_than_is_there(cpus, gpus, pools):
    try:
        layout = plan_layout(cpus=cpus, gpus=gpus, pools=pools, **PLAIN)
    except ClusterError:
        assert gpus > cpus or (gpus and pools > cpus - 1)
        return
    assert layout.pools == pools
    scorers = layout.scorers * pools
    assert layout.decoders * layout.worker_cpus + scorers * layout.scorer_cpus + COMMIT_CPUS <= cpus + 1e-9
    assert layout.worker_cpus > 0
    assert scorers * layout.scorer_gpus <= gpus + 1e-9


def test_memory_limits_the_workers_and_the_plan_says_so():
    layout = plan_layout(cpus=64, gpus=0, **PLAIN, memory_bytes=100e9, process_bytes=4_000_000_000)
    assert layout.scorers == 25
    assert "want of memory" in layout.described
    assert plan_layout(cpus=2, gpus=0, **PLAIN, memory_bytes=1e9, process_bytes=4_000_000_000).scorers == 1
    assert "memory" not in plan_layout(cpus=2, gpus=0, **PLAIN, memory_bytes=100e9, process_bytes=4_000_000_000).described
