"""Names of generators are equal by any spelling, through the index and an identifier's own classes."""

import pytest

from ray_app.evaluation.generator_names import Names


@pytest.mark.parametrize(
    ("one", "other", "alike"),
    [
        ("SDXL", "stabilityai/stable-diffusion-xl-base-1.0", True),
        ("sd_1.5/DreamShaper", "SD 1.5/dream shaper", True),
        ("sd_1.5/DreamShaper", "sd-1.5", False),
        ("sd_1.5", "sd-1.5", True),  # the family's name is its base model's
        ("illustrious", "illustrious-xl", False),  # a family is not one of its generators
        ("real", "real:coco", True),
        ("realistic vision", "real", False),
    ],
)
def test_keys(one, other, alike):
    names = Names()
    assert (names.label(one) == names.label(other)) is alike


def test_families_are_of_the_identifier_the_index_or_the_name():
    names = Names(["mine", "sdxl", "real"], {"mine": "sd_1.5"})
    found = [names.family(names.label(one)) for one in ("Mine", "SDXL", "pony/xyz", "stranger")]
    assert found == ["sd_1.5", "sdxl_1.0", "pony", "stranger"]
    assert (names.classes, names.class_families) == ({"mine", "sdxl"}, {"sd_1.5", "sdxl_1.0"})
    assert Names().classes is None


def test_an_identifier_of_families_names_families():
    names = Names(["sd_1.5", "pony", "real"])
    assert names.label("sd-1.4") == names.label("sd_1.5/DreamShaper") == names.predicted("sd_1.5")
    assert names.label("sdxl") != names.label("sd-1.4")
    assert names.classes == names.class_families == {"sd_1.5", "pony"}
