"""Rates of a layout from seconds per image, checked by hand."""

import pytest

from ray_app.scoring.forecast.rates import ImagePace, forecast_rates
from ray_app.scoring.layout import ScoringLayout

FUSED = ScoringLayout("fused", (4,), 0, 256)
SPLIT = ScoringLayout("split", (1,), 4, 256, scorer_cpus=0.1, scorer_gpus=1.0)


def pace(**changes):
    known = {
        "fetch": 0.001,
        "fetch_cpu": 0.0,
        "decode": 0.06,
        "prepare": 0.02,
        "score": (0.1,),
        "write": 0.02,
    }
    return ImagePace(**known | changes)


def rates(layout, at, *, cpus=4, gpus=0, gmac=0.0, pools=(("one",),)):
    return forecast_rates(layout, at, pools, cpus=cpus, gpus=gpus, gmac=gmac)


def by_name(found):
    return {stage.stage: stage for stage in found.stages}


def test_a_fused_worker_does_one_stage_after_another_and_reads_ahead():
    found = rates(FUSED, pace())
    assert found.images_per_s == pytest.approx(4 / 0.2)
    assert found.bottleneck.stage == "score"
    assert by_name(found)["decode"].images_per_s == pytest.approx(4 / 0.06)
    assert rates(FUSED, pace(), cpus=2).images_per_s == pytest.approx(2 / 0.2), (
        "processes beyond the cores bring nothing"
    )
    assert rates(FUSED, pace(fetch=0.19)).images_per_s == pytest.approx(4 / 0.2)
    slow = rates(FUSED, pace(fetch=0.4))
    assert slow.images_per_s == pytest.approx(4 / 0.4)
    assert slow.bottleneck.stage == "fetch"


def test_a_gpu_that_waits_for_decoding_is_told_how_many_cores_it_wants():
    found = rates(SPLIT, pace(write=0.002, score=(0.005,)), cpus=5, gpus=1)
    assert found.images_per_s == pytest.approx(4 / 0.08)
    assert found.bottleneck.stage == "decode"
    assert found.bottleneck.scorers_busy == pytest.approx(50 / 200)
    assert "raise cores from 5 to 17 to keep the GPU busy" in found.bottleneck.advice


def test_the_slowest_pool_sets_the_pace():
    layout = ScoringLayout("split", (1, 1), 4, 256, scorer_cpus=0.1, scorer_gpus=0.5)
    found = rates(
        layout,
        pace(write=0.002, score=(0.01, 0.1)),
        cpus=6,
        gpus=1,
        pools=(("small",), ("large", "other")),
    )
    assert found.images_per_s == pytest.approx(0.5 / 0.1)
    slowest = min(found.stages, key=lambda stage: stage.images_per_s)
    assert (slowest.stage, slowest.detectors) == (found.bottleneck.stage, ("large", "other"))
