import json

import pytest

from benchmarks.figures import DETAILS, OURS, PEERS, TARGETS, Measurement, disagreement, figures, table

NAMES = ("limit", OURS, "dataloader_tuned", "dataloader_plain_bf16", "ray_guide", "dataloader_plain_fp32", "daft_guide")
RATES = {
    "decode_bound": dict(zip(NAMES, (185.0, 170.0, 175.0, 100.0, 50.0, 90.0, 110.0), strict=True)),
    "compute_bound": dict(zip(NAMES, (12.0, 11.4, 11.5, 11.0, 5.0, 6.0, 7.0), strict=True)),
}
NOISE = (0.7, 1.0, 1.02)  # one round went badly: the median must not care


@pytest.fixture(scope="module")
def result():
    return figures(
        [
            Measurement(
                work, name, number, 320, rate * noise,
                startup={} if name == "limit" else {"imported": 2.0, "first result": 12.0 + number},
                peak_memory_bytes=2**30 + number, store_bytes=4.7e6 if name == "ray_guide" else 0.0 if name == OURS else None,
                detail={"decode_s": 0.004}, processor={} if name == "limit" else {"own": 0.0125, "gcs": 1e-4 * number, "raylet": 2e-4},
                scores={"a.jpg": 0.5, "b.jpg": -2.0 - (0.01 if name == OURS else 0)},
            )
            for number, noise in enumerate(NOISE) for work, rates in RATES.items() for name, rate in rates.items()
        ],
        first_result_default_s=18.5,
    )  # fmt: skip


@pytest.mark.parametrize("work", RATES)
@pytest.mark.parametrize("peer", [*PEERS, *DETAILS])
def test_ratios_are_of_medians_ours_over_theirs(result, work, peer):
    assert result["ratios"][work][peer] == pytest.approx(RATES[work][OURS] / RATES[work][peer])
    assert len(result["rates"][work][peer]["rounds"]) == len(NOISE)


@pytest.mark.parametrize("target", TARGETS)
def test_every_target_is_judged(result, target):
    (found,) = [one for one in result["targets"] if (one["work"], one["against"]) == target]
    assert found["met"] == (found["measured"] >= TARGETS[target])


def test_a_missed_target_says_by_how_much(result):
    (missed,) = [one for one in result["targets"] if not one["met"]]
    assert (missed["work"], missed["against"]) == ("decode_bound", "ray_guide")
    assert "short by 15%" in table(result)


def test_shape_is_what_checks_read(result):
    assert json.loads(json.dumps(result)) == result
    assert set(PEERS) <= set(result["ratios"]["compute_bound"]) == set(result["ratios"]["decode_bound"])
    assert result["startup"]["decode_bound"][OURS]["first result"] == 13.0
    assert "limit" not in result["startup"]["decode_bound"]
    assert result["peak_memory_bytes"]["decode_bound"][OURS] == 2**30 + 2
    assert result["object_store_bytes_per_image"]["decode_bound"] == {OURS: 0.0, "ray_guide": 4.7e6}
    assert result["stages"]["compute_bound"]["limit"] == {"decode_s": 0.004}


def test_processor_time_is_told_by_kind_the_dearest_daemon_first(result):
    assert result["processor_s_per_image"]["decode_bound"][OURS] == {"own": 0.0125, "gcs": pytest.approx(1e-4), "raylet": 2e-4}
    assert "limit" not in result["processor_s_per_image"]["decode_bound"]
    (line,) = {line for line in table(result).splitlines() if line.startswith(f"  {OURS} ") and "raylet" in line}
    assert line.split() == [OURS, "12.50", "0.30", "(raylet", "0.20,", "gcs", "0.10)"]


def test_disagreement_is_relative_to_large_scores_only(result):
    assert result["score_disagreement"]["decode_bound"][OURS] == pytest.approx(0.005)
    assert disagreement([]) == {}


def test_a_contender_that_failed_leaves_a_gap():
    partial = figures(
        [Measurement("decode_bound", OURS, 0, 320, 170.0, scores={"a.jpg": 1.0}), Measurement("decode_bound", "limit", 0, 320, 200.0)]
    )
    assert partial["ratios"] == {"decode_bound": {"limit": pytest.approx(0.85)}}
    assert "ray_guide" not in table(partial)
