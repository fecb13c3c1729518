"""What a calibration saw: bins that count an archive as they counted it, and images that are none
of it.
"""

import numpy as np
import pytest

from ray_app.ensembles import (
    LabelledPart,
    Population,
    PopulationTally,
    compute_properties,
    measure_population,
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
    sizes = {"width": side, "height": side + 100, "quality": quality}
    return fake, compute_properties(score=score, scores={"a": score + 1}, formats=formats, **sizes)


@pytest.fixture(scope="module")
def population(labelled):
    fake, properties = labelled
    return measure_population(
        "the test's", fake, properties, parts=[PART], prevalence=0.1, generators=["g"]
    )


def test_population_counts_its_own_images(labelled, population):
    fake, properties = labelled
    names = [feature.name for feature in population.features]
    assert names == ["score", "score:a", "format", "megapixels", "short_side_px", "jpeg_quality"]
    tally = PopulationTally(population.features)
    for start in range(0, N, 300):
        tally.add({name: column[start : start + 300] for name, column in properties.items()})
    for feature in population.features:
        assert tally.counts[feature.name].tolist() == np.add(feature.real, feature.fake).tolist()
    reals = population.features[0].real  # in tenths
    assert sum(reals) == (~fake).sum()
    assert max(reals) - min(reals) <= 1


def test_frequent_value_has_a_bin_of_its_own(population):
    by_name = {feature.name: feature for feature in population.features}
    assert by_name["jpeg_quality"].edges == (74.5, 75, 89.5, 90, 94.5, 95)
    assert by_name["jpeg_quality"].real[::2] == (0, 0, 0, 0)
    counts = by_name["short_side_px"].count(np.array([511, 512, 513, 640, 2000]))
    assert counts.tolist() == [1, 1, 1, 1, 0, 0, 1]
    assert by_name["format"].words == ("JPEG", "PNG")
    assert by_name["format"].count(["PNG", "WEBP", None, "JPEG", "JPEG"]).tolist() == [2, 1, 1]
    sizes = {"short_side_px": (512, 1024), "megapixels": (512 * 612 / 1e6, 1024 * 1124 / 1e6)}
    assert population.seen == Seen(formats=("JPEG", "PNG"), **sizes)


def test_a_property_that_no_real_has_is_left_out(labelled):
    fake, properties = labelled
    nothing = dict(properties) | {
        "jpeg_quality": np.full(N, np.nan),
        "score:a": np.where(fake, 1.0, np.nan),
    }
    assert [one.name for one in measure_population("x", fake, nothing, parts=[PART], prevalence=0.1).features] == [
        "score", "format", "megapixels", "short_side_px",
    ]  # fmt: skip


def test_population_survives_serialisation(population):
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
        (("WEBP", 600, 800), "format WEBP"),
        (("PNG", 500, 2000), "the short side has under 512 px"),
        (
            ("GIF", 3000, 4000),
            "format GIF, the short side has over 1024 px, the image has over 1.151 megapixels",
        ),
    ],
)
def test_image_outside_the_population_is_reported(population, image, said):
    doubt = population.seen.describe_mismatch(*image)
    assert doubt == (said and f"outside what the calibration saw: {said}")


def test_features_without_bins_for_their_counts_are_refused():
    with pytest.raises(ValueError, match="must have 3 counts each, one per bin, got 2 and 2"):
        Feature(name="score", edges=(0.0, 1.0), real=(1, 2), fake=(1, 2))
