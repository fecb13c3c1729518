from collections import Counter

import numpy as np
import pyarrow as pa
import pytest

from ray_app.evaluation.audit.sample import (
    RunVerdicts,
    allocate,
    build_strata,
    draw,
    plan_strata,
    stratum_codes,
)
from tests.evaluation.audit.made import archive, run_of


def columns_in(columns, order):
    return {
        name: column.take(pa.array(order))
        if isinstance(column, pa.Array)
        else np.asarray(column, dtype=object)[order].tolist()
        for name, column in columns.items()
    }


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    columns, _ = archive()
    run = run_of(tmp_path_factory.mktemp("run"), columns, places=(100, 2500))
    return columns, run, RunVerdicts.from_run(run)


def drawn(run, verdicts, number, seed=0):
    """The strata, and the images of each that are drawn."""
    strata = plan_strata(verdicts, number)
    return strata, draw(run, verdicts, strata, seed)


def test_sample_does_not_depend_on_the_order_of_rows(made, tmp_path):
    columns, run, verdicts = made
    order = np.random.default_rng(1).permutation(len(columns["image_id"]))
    other = run_of(tmp_path / "other", columns_in(columns, order), places=(4000,))
    found = drawn(run, verdicts, 250, seed=4)
    assert found == drawn(other, RunVerdicts.from_run(other), 250, seed=4)
    ids, of_another_seed = (
        [row["image_id"] for row in images]
        for _, images in (found, drawn(run, verdicts, 250, seed=5))
    )
    assert ids != of_another_seed


def test_strata_have_their_allotment_and_members_their_names(made):
    columns, run, verdicts = made
    strata, images = drawn(run, verdicts, 250)
    counts = np.bincount([row["stratum"] for row in images], minlength=len(strata))
    assert counts.tolist() == [one.drawn for one in strata]
    assert len({row["image_id"] for row in images}) == 250
    names = zip(columns["uri"], columns["member"], strict=True)
    named = dict(zip(columns["image_id"].tolist(), names, strict=True))
    assert all(named[row["image_id"]] == (row["uri"], row["member"]) for row in images)
    assert len(drawn(run, verdicts, 10**6)[1]) == len(verdicts.ids)


def test_the_order_tells_nothing_of_the_stratum(made):
    planned, images = drawn(made[1], made[2], 300)
    strata, places = np.array([row["stratum"] for row in images]), np.arange(300)
    ranks = [
        places[strata == one].mean() for one in range(len(planned)) if (strata == one).sum() >= 15
    ]
    assert all(abs(rank - 149.5) < 4 * 87 / np.sqrt(15) for rank in ranks)
    assert len(np.unique(strata[:30])) >= 5


def test_every_image_with_a_verdict_is_in_one_stratum(made):
    columns, _, verdicts = made
    strata = build_strata(verdicts, 300)
    codes = stratum_codes(verdicts, strata)
    assert (codes >= 0).all()
    assert np.bincount(codes, minlength=len(strata)).tolist() == [one.size for one in strata]
    has_verdict = np.array([one is not None for one in columns["verdict"]])
    assert verdicts.ids.tolist() == columns["image_id"][has_verdict].tolist()
    assert verdicts.unscored == {"corrupt_image": int((~has_verdict).sum())}
    counted = Counter(one.verdict for one in strata[:-1])
    assert counted == {"fake": 2, "abstain": 2, "real": 4}
    assert (strata[-1].verdict, strata[-1].scored) == ("abstain", False)
    known = columns["score"].filter(pa.array(has_verdict)).to_pylist()
    verdicts_of_run = [one for one in columns["verdict"] if one]
    for code, verdict, score in zip(codes.tolist(), verdicts_of_run, known, strict=True):
        stratum = strata[code]
        assert verdict == stratum.verdict
        assert (score is not None) == stratum.scored
        if score is not None:
            assert stratum.low is None or stratum.low <= score
            assert stratum.high is None or score < stratum.high


def test_allotment_is_complete_and_within_sizes():
    rng = np.random.default_rng(0)
    for _ in range(200):
        sizes = rng.integers(1, 10 ** rng.integers(1, 6), rng.integers(1, 10))
        number = int(rng.integers(1, 1000))
        given = allocate(sizes.tolist(), rng.uniform(0.2, 0.5, len(sizes)).tolist(), number)
        assert given.sum() == min(number, sizes.sum())
        assert (given <= sizes).all()
        assert (given >= np.minimum(sizes, number // (2 * len(sizes)))).all()
    assert allocate([1000, 1000], [0.5, 0.1], 120).tolist() == [30 + 50, 30 + 10]


def test_doubtful_strata_are_asked_about_more(made):
    strata = plan_strata(made[2], 300)
    assert sum(one.drawn for one in strata) == 300
    share = {one.description: one.drawn / one.size for one in strata}
    lowest_reals = next(one for one in strata if one.verdict == "real" and one.low is None)
    highest_reals = next(one for one in strata if one.verdict == "real" and one.high is None)
    assert share[highest_reals.description] > 4 * share[lowest_reals.description]
    assert all(one.drawn >= 15 for one in strata)
