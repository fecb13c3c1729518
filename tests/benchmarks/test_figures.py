import itertools

import pytest

from benchmarks.figures import DETAILS, OURS, PEERS, Measurement, disagreement, figures, table

NAMES = (
    "limit",
    OURS,
    "dataloader_tuned",
    "dataloader_plain_bf16",
    "ray_guide",
    "dataloader_plain_fp32",
    "dataloader_tuned_pillow",
    "daft_guide",
    "daft_model",
)
RATES = {
    "decode_bound": dict(
        zip(NAMES, (185.0, 170.0, 175.0, 100.0, 50.0, 90.0, 150.0, 110.0, 40.0), strict=True)
    ),
    "compute_bound": dict(
        zip(NAMES, (12.0, 11.4, 11.5, 11.0, 5.0, 6.0, 11.0, 7.0, 5.0), strict=True)
    ),
}
NOISE = (0.7, 1.0, 1.02)  # one round went badly: the median must not care


@pytest.fixture(scope="module")
def result():
    return figures(
        [
            Measurement(
                work,
                name,
                number,
                320,
                rate * noise,
                scores={"a.jpg": 0.5, "b.jpg": -2.0 - (0.01 if name == OURS else 0)},
            )
            for number, noise in enumerate(NOISE)
            for work, rates in RATES.items()
            for name, rate in rates.items()
        ]
    )


def test_ratios_are_of_medians_ours_over_theirs(result):
    for work, peer in itertools.product(RATES, [*PEERS, *DETAILS]):
        expected = RATES[work][OURS] / RATES[work][peer]
        assert result["ratios"][work][peer] == pytest.approx(expected), (work, peer)
        assert len(result["rates"][work][peer]["rounds"]) == len(NOISE)


def test_a_missed_target_says_by_how_much(result):
    (missed,) = [one for one in result["targets"] if not one["met"]]
    assert (missed["work"], missed["against"]) == ("decode_bound", "ray_guide")
    assert "short by 15%" in table(result)


def test_disagreement_is_relative_to_large_scores_only(result):
    assert result["score_disagreement"]["decode_bound"][OURS] == pytest.approx(0.005)
    assert disagreement([]) == {}


def test_a_contender_that_failed_leaves_a_gap():
    partial = figures(
        [
            Measurement("decode_bound", OURS, 0, 320, 170.0, scores={"a.jpg": 1.0}),
            Measurement("decode_bound", "limit", 0, 320, 200.0),
        ]
    )
    assert partial["ratios"] == {"decode_bound": {"limit": pytest.approx(0.85)}}
    assert "ray_guide" not in table(partial)
