import numpy as np
import pytest
from scipy.stats import beta

from ray_app.calibration.banding import choose_band, share_at
from ray_app.errors import ConfigError


def two_stages(n, seed=0):
    """Scores of a coarse and of a fine detector; half of the images are fake."""
    rng = np.random.default_rng(seed)
    fake = np.arange(n) % 2 == 1
    return rng.normal(np.where(fake, 1.5, -1.5), 1), rng.normal(np.where(fake, 4, -4), 1), fake


def threshold_at(reals, share):
    return np.sort(reals)[len(reals) - 1 - int(share * len(reals))]


@pytest.mark.parametrize("share", [0.1, 0.3])
@pytest.mark.parametrize("prevalence", [0.5, 0.01])
def test_the_share_is_kept_by_its_exact_bound_and_used_up(share, prevalence):
    early, late, fake = two_stages(4_000)
    band = choose_band(early, late, fake, share=share, prevalence=prevalence, target=0.01)
    inside = (early >= band.low) & (early <= band.high)
    counts = [int(inside[fake == kind].sum()) for kind in (False, True)]
    assert band.share == pytest.approx((1 - prevalence) * counts[0] / 2_000 + prevalence * counts[1] / 2_000)
    assert band.share == pytest.approx(share_at(inside, fake, prevalence))
    bounds = [beta.ppf(0.975, count + 1, 2_000 - count) for count in counts]
    assert band.upper_bound == pytest.approx((1 - prevalence) * bounds[0] + prevalence * bounds[1])
    assert band.upper_bound <= share
    assert band.share > share - 0.03


def test_other_images_of_the_same_kind_keep_the_share_nearly_always():
    over = 0
    for seed in range(40):
        early, late, fake = two_stages(2_000, seed)
        band = choose_band(early, late, fake, share=0.2, prevalence=0.5, target=0.01)
        fresh, _, is_fake = two_stages(200_000, 1_000 + seed)
        over += share_at((fresh >= band.low) & (fresh <= band.high), is_fake, 0.5) > 0.2
    assert over <= 3


def test_no_band_of_that_width_finds_more_fakes_on_these_images():
    early, late, fake = two_stages(1_500)
    band = choose_band(early, late, fake, share=0.25, prevalence=0.5, target=0.01)

    def found(low, high):
        scores = np.where((early >= low) & (early <= high), late, early)
        return (scores[fake] > threshold_at(scores[~fake], 0.01)).mean()

    ordered = np.sort(early)
    others = [found(ordered[start], ordered[start + int(0.2 * len(early))]) for start in range(0, int(0.79 * len(early)), 20)]
    assert found(band.low, band.high) > max(others) - 0.01
    assert found(band.low, band.high) > found(np.inf, np.inf) + 0.1, "more than the coarse one finds alone"


def test_so_few_images_bound_no_small_share():
    early, late, fake = two_stages(40)
    with pytest.raises(ConfigError, match="no band of at most 5 % of the images can be told from 40 images"):
        choose_band(early, late, fake, share=0.05, prevalence=0.5, target=0.01)
