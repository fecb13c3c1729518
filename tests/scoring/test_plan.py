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
