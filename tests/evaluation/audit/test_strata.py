import numpy as np
import pyarrow as pa
import pytest

from ray_app.evaluation.audit.sample import RunVerdicts, allotted, plan_strata, strata_of, stratum_codes
from tests.evaluation.audit.made import archive, run_of


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    columns, _ = archive()
    return columns, RunVerdicts.of(run_of(tmp_path_factory.mktemp("run"), columns))


def test_every_image_with_a_verdict_is_in_one_stratum(made):
    columns, verdicts = made
    strata = strata_of(verdicts, 300)
    codes = stratum_codes(verdicts, strata)
    assert (codes >= 0).all()
    assert np.bincount(codes, minlength=len(strata)).tolist() == [one.size for one in strata]
    has_verdict = np.array([one is not None for one in columns["verdict"]])
    assert verdicts.ids.tolist() == columns["image_id"][has_verdict].tolist()
    assert verdicts.unscored == {"corrupt_image": int((~has_verdict).sum())}
    assert [one.verdict for one in strata] == ["fake"] * 2 + ["abstain"] * 2 + ["real"] * 4 + ["abstain"]
    assert not strata[-1].scored
    known = columns["score"].filter(pa.array(has_verdict)).to_pylist()
    for code, verdict, score in zip(codes.tolist(), (one for one in columns["verdict"] if one), known, strict=True):
        stratum = strata[code]
        assert verdict == stratum.verdict
        assert (score is not None) == stratum.scored
        assert score is None or ((stratum.low is None or stratum.low <= score) and (stratum.high is None or score < stratum.high))


def test_all_that_is_asked_for_is_allotted_and_never_more_than_there_is():
    rng = np.random.default_rng(0)
    for _ in range(200):
        sizes = rng.integers(1, 10 ** rng.integers(1, 6), rng.integers(1, 10))
        number = int(rng.integers(1, 1000))
        given = allotted(sizes.tolist(), rng.uniform(0.2, 0.5, len(sizes)).tolist(), number)
        assert given.sum() == min(number, sizes.sum())
        assert (given <= sizes).all()
        assert (given >= np.minimum(sizes, number // (2 * len(sizes)))).all()
    assert allotted([1000, 1000], [0.5, 0.1], 120).tolist() == [30 + 50, 30 + 10]


def test_doubtful_strata_are_asked_about_more(made):
    strata = plan_strata(made[1], 300)
    assert sum(one.drawn for one in strata) == 300
    share = {one.words: one.drawn / one.size for one in strata}
    lowest_reals = next(one for one in strata if one.verdict == "real" and one.low is None)
    highest_reals = next(one for one in strata if one.verdict == "real" and one.high is None)
    assert share[highest_reals.words] > 4 * share[lowest_reals.words]
    assert all(one.drawn >= 15 for one in strata)
