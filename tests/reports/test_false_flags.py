import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_app.errors import ConfigError
from ray_app.reports.false_flags import false_flags, measured_rate, share_right
from ray_app.reports.run_summary import Thresholds

rates = st.floats(0, 1)


def thresholds(**changes):
    stated = {"false_positive_rate": 0.01, "true_positive_rate": 0.8, "n_real": 1500, "n_fake": 1500}
    return Thresholds(real_below=-1, fake_above=2, **(stated | changes))


def test_expected_false_flags_are_the_rate_times_what_was_scored():
    flags = false_flags(thresholds(), scored=2990, raised=150)
    assert flags.expected.value == pytest.approx(29.9)
    assert flags.expected.low < 29.9 < flags.expected.high
    assert not flags.is_explained_by_rate
    assert false_flags(thresholds(), scored=2990, raised=31).is_explained_by_rate


def test_three_priors_by_default_and_the_given_one_otherwise():
    shares = false_flags(thresholds(), scored=1000, raised=0).shares
    assert [share.prior for share in shares] == [0.001, 0.01, 0.1]
    assert [share.right for share in shares] == pytest.approx([0.0741, 0.4469, 0.8989], abs=1e-4)
    (only,) = false_flags(thresholds(), scored=1000, raised=0, prior=0.02).shares
    assert only.right == pytest.approx(0.02 * 0.8 / (0.02 * 0.8 + 0.98 * 0.01))
    assert only.flags == pytest.approx(1000 * (0.02 * 0.8 + 0.98 * 0.01))
    assert only.missed == pytest.approx(1000 * 0.02 * 0.2)


def test_nothing_is_said_without_a_rate():
    assert false_flags(thresholds(false_positive_rate=None), scored=10, raised=1) is None
    assert false_flags(thresholds(true_positive_rate=None), scored=10, raised=1).shares == ()


def test_no_interval_is_invented_where_n_is_not_known():
    flags = false_flags(thresholds(n_real=None, n_fake=None), scored=100, raised=1)
    assert not flags.has_interval
    assert flags.expected.low == flags.expected.value == flags.expected.high


def test_no_false_flag_among_few_images_is_not_a_rate_of_zero():
    assert measured_rate(0.0, 100).high == pytest.approx(0.0370, abs=1e-4)  # Wilson: z² / (n + z²)


def test_a_share_of_no_flags_is_undefined():
    assert share_right(0.5, 0.0, 0.0) is None


@pytest.mark.parametrize("prior", [0, 1, -0.1, 1.5, float("nan")])
def test_a_prior_that_is_no_share_is_refused(prior):
    with pytest.raises(ConfigError, match="prior"):
        false_flags(thresholds(), scored=1, raised=1, prior=prior)


@given(rates, st.integers(1, 10**7))
def test_an_interval_holds_its_rate(rate, n):
    measured = measured_rate(rate, n)
    assert 0 <= measured.low <= rate <= measured.high <= 1


@given(st.floats(0.001, 0.999), st.floats(0.01, 1), st.floats(0.0001, 1))
def test_the_share_range_holds_the_share(prior, found, wrong):
    (share,) = false_flags(
        thresholds(true_positive_rate=found, false_positive_rate=wrong, n_real=50, n_fake=50), scored=1, raised=0, prior=prior
    ).shares
    assert share.right_low <= share.right <= share.right_high
