import numpy as np
import pyarrow as pa
import pytest

from ray_app.evaluation.audit.sample import RunVerdicts, draw, lowest_per_stratum, plan_strata, seeded
from tests.evaluation.audit.made import archive, run_of


def columns_in(columns, order):
    return {
        name: column.take(pa.array(order)) if isinstance(column, pa.Array) else np.asarray(column, dtype=object)[order].tolist()
        for name, column in columns.items()
    }


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    columns, _ = archive()
    run = run_of(tmp_path_factory.mktemp("run"), columns, places=(100, 2500))
    return columns, run, RunVerdicts.of(run)


def drawn(run, verdicts, number, seed=0):
    """The strata, and the images of each that are drawn."""
    strata = plan_strata(verdicts, number)
    return strata, draw(run, verdicts, strata, seed)


def test_the_sample_is_the_same_whatever_order_rows_lie_in(made, tmp_path):
    columns, run, verdicts = made
    order = np.random.default_rng(1).permutation(len(columns["image_id"]))
    other = run_of(tmp_path / "other", columns_in(columns, order), places=(4000,))
    assert len(RunVerdicts.of(other).ids) == len(verdicts.ids)
    first, second = drawn(run, verdicts, 250, seed=4), drawn(other, RunVerdicts.of(other), 250, seed=4)
    assert first == second
    assert [row["image_id"] for row in first[1]] != [row["image_id"] for row in drawn(run, verdicts, 250, seed=5)[1]]


def test_every_stratum_has_what_it_was_allotted_and_members_keep_their_names(made):
    columns, run, verdicts = made
    strata, images = drawn(run, verdicts, 250)
    counts = np.bincount([row["stratum"] for row in images], minlength=len(strata))
    assert counts.tolist() == [one.drawn for one in strata]
    assert len({row["image_id"] for row in images}) == 250
    named = {row: (uri, member) for row, uri, member in zip(columns["image_id"].tolist(), columns["uri"], columns["member"], strict=True)}
    assert all(named[row["image_id"]] == (row["uri"], row["member"]) for row in images)
    assert len(drawn(run, verdicts, 10**6)[1]) == len(verdicts.ids)


def test_the_order_tells_nothing_of_the_stratum(made):
    planned, images = drawn(made[1], made[2], 300)
    strata, places = np.array([row["stratum"] for row in images]), np.arange(300)
    ranks = [places[strata == one].mean() for one in range(len(planned)) if (strata == one).sum() >= 15]
    assert all(abs(rank - 149.5) < 4 * 87 / np.sqrt(15) for rank in ranks)
    assert len(np.unique(strata[:30])) >= 5


def test_within_a_stratum_every_image_is_as_likely_as_any():
    ids, codes = np.arange(200, dtype=np.int64) * 977 - 90_000, (np.arange(200) % 2).astype(np.int32)
    times = np.zeros(200)
    for seed in range(1000):
        times[lowest_per_stratum(codes, seeded(ids, seed), np.array([10, 30]))] += 1
    for code, expected in ((0, 100), (1, 300)):
        seen, p = times[codes == code], expected / 1000
        chi_square = ((seen - expected) ** 2 / (expected * (1 - p))).sum() * (99 / 100)
        assert 99 - 4 * np.sqrt(2 * 99) < chi_square < 99 + 4 * np.sqrt(2 * 99)
