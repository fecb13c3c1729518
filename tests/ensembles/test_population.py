"""What a calibration saw: bins that count an archive as they counted it, and images that are none
of it.
"""

import numpy as np
import pytest

from ray_app.ensembles import (
    LabelledPart,
    Population,
    PopulationTally,
    population_of,
    properties_of,
)
from ray_app.ensembles.population import Feature, Seen

N = 1000
PART = LabelledPart(name="choose", n_real=600, n_fake=400, groups=9, sha256="0" * 64)


@pytest.fixture(scope="module")
def labelled():
    rng = np.random.default_rng(5)
    fake = np.arange(N) % 5 < 2
    side = rng.choice([512, 640, 1024], N)
    quality = np.where(rng.random(N) < 0.8, rng.choice([75, 90, 95], N), np.nan)
    formats = ["JPEG" if known else "PNG" for known in np.isfinite(quality)]
    score = rng.normal(np.where(fake, 3, -3), 2)
    return fake, properties_of(
        score=score,
        scores={"a": score + 1},
        formats=formats,
        width=side,
        height=side + 100,
        quality=quality,
    )


@pytest.fixture(scope="module")
def population(labelled):
    fake, properties = labelled
    return population_of(
        "the test's", fake, properties, parts=[PART], prevalence=0.1, generators=["g"]
    )


def test_a_population_counts_its_own_images_as_it_was_made(labelled, population):
    fake, properties = labelled
    names = [feature.name for feature in population.features]
    assert names == ["score", "score:a", "format", "megapixels", "short_side_px", "jpeg_quality"]
    tally = PopulationTally(population.features)
    for start in range(0, N, 300):
        tally.add({name: column[start : start + 300] for name, column in properties.items()})
    for feature in population.features:
        assert tally.counts[feature.name].tolist() == [
            r + f for r, f in zip(feature.real, feature.fake, strict=True)
        ]
    assert sum(population.features[0].real) == (~fake).sum()
    assert max(population.features[0].real) - min(population.features[0].real) <= 1, (
        "tenths of the reals"
    )


def test_a_value_that_many_share_has_a_bin_of_its_own_and_all_were_seen(population):
    by_name = {feature.name: feature for feature in population.features}
    assert by_name["jpeg_quality"].edges == (74.5, 75, 89.5, 90, 94.5, 95)
    assert by_name["jpeg_quality"].real[::2] == (0, 0, 0, 0)
    assert by_name["short_side_px"].counted(np.array([511, 512, 513, 640, 2000])).tolist() == [
        1,
        1,
        1,
        1,
        0,
        0,
        1,
    ]
    assert by_name["format"].words == ("JPEG", "PNG")
    assert by_name["format"].counted(["PNG", "WEBP", None, "JPEG", "JPEG"]).tolist() == [2, 1, 1]
    assert population.seen == Seen(
        formats=("JPEG", "PNG"),
        short_side_px=(512, 1024),
        megapixels=(512 * 612 / 1e6, 1024 * 1124 / 1e6),
    )


def test_a_property_that_no_real_has_is_left_out(labelled):
    fake, properties = labelled
    nothing = dict(properties) | {
        "jpeg_quality": np.full(N, np.nan),
        "score:a": np.where(fake, 1.0, np.nan),
    }
    assert [one.name for one in population_of("x", fake, nothing, parts=[PART], prevalence=0.1).features] == [
        "score", "format", "megapixels", "short_side_px",
    ]  # fmt: skip


def test_what_a_population_is_outlives_a_card(population):
    again = Population.model_validate(population.model_dump(mode="json"))
    assert again == population
    assert again.sha256 == population.sha256
    assert again.model_copy(update={"seen": None}).sha256 != population.sha256


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (("JPEG", 600, 800), None),
        ((None, None, None), None),
        ((None, 512, 612), None),
        (("WEBP", 600, 800), "outside what the calibration saw: format WEBP"),
        (("PNG", 500, 2000), "outside what the calibration saw: the short side has under 512 px"),
        (
            ("GIF", 3000, 4000),
            "outside what the calibration saw: format GIF, the short side has over 1024 px, the image has over 1.151 megapixels",
        ),
    ],
)  # fmt: skip
def test_an_image_outside_is_told_so(population, image, said):
    assert population.seen.doubt(*image) == said


def test_features_without_bins_for_their_counts_are_refused():
    with pytest.raises(ValueError, match="2 and 2 counts for 3 bins"):
        Feature(name="score", edges=(0.0, 1.0), real=(1, 2), fake=(1, 2))
