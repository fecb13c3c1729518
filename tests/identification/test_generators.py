"""Names of generators: spellings, families, and an index that does not contradict itself."""

import pytest
from pydantic import ValidationError

from ray_app.evaluation.dflip import FAMILIES
from ray_app.identification.generators import (
    GeneratorIndex,
    ResolvedGenerator,
    family_title,
    find_family,
    find_generator,
    find_title,
    generator_index,
    matches,
)

DFLIP_V2 = [
    "aura_flow", "chroma", "flux.1_d", "flux.1_s", "flux2-dev", "gpt-image-1", "hidream", "hunyuan", "illustrious",
    "imagen4", "kolors", "nano_banana", "nano_banana_pro", "noobai", "pixart", "playground_v2", "pony", "pony_v7",
    "qwen", "sd_1.5", "sd_2.1", "sd_3.5_large", "sd_3.5_medium", "sdxl_1.0", "seedream", "stable_cascade", "z-image",
]  # fmt: skip


def test_spellings_of_one_generator_are_one():
    for spelling in ("SD15", "Stable Diffusion 1.5", "runwayml/stable-diffusion-v1-5"):
        assert find_generator(spelling) == ResolvedGenerator("sd-1.5", "sd_1.5"), spelling


def test_a_family_may_be_all_that_is_known():
    assert find_generator("Pony") == ResolvedGenerator(None, "pony")
    assert find_generator("sdxl_1.0/RealisticVision v5") == ResolvedGenerator(None, "sdxl_1.0")
    assert find_family("flux") == "flux.1_d"
    assert find_generator("my own net") is None
    assert find_generator("nobody/RealisticVision") is None


def test_index_has_the_generators_of_dflip_and_the_papers():
    assert set(DFLIP_V2) <= set(generator_index().families)
    papers = (
        "sd-3.5 flux.1-dev flux-1.1-pro ideogram-3.0 gpt-image-1 sd15 sd2 sdxl sd3 imagen parti"
    )
    names = (*FAMILIES, *papers.split())
    assert [name for name in names if find_generator(name) is None] == []


def test_index_that_contradicts_itself_is_refused():
    first, second = {"title": "A", "aliases": ["B-1"]}, {"family": "f", "title": "B"}
    for generators, told in (
        ({"a": {**first, "family": "none"}}, "unknown family 'none'"),
        ({"a": {**first, "family": "f"}, "b1": second}, "'b1' means both a and b1"),
    ):
        index = {"families": {"f": {"title": "F"}}, "generators": generators}
        with pytest.raises(ValidationError, match=told):
            GeneratorIndex.model_validate(index)


def test_titles_are_found_by_any_spelling():
    assert find_title("SDXL") == "Stable Diffusion XL 1.0"
    assert [find_title(name) for name in ("sdxl_1.0/mine", "nobody")] == ["sdxl_1.0/mine", "nobody"]
    assert (family_title("midjourney"), family_title("nobody")) == ("Midjourney", "nobody")
    assert matches("mj 6", "midjourney-6", "midjourney")
    assert matches("Midjourney", "midjourney-6", "midjourney")
    assert not matches("midjourney-5", "midjourney-6", "midjourney")
    assert not matches("sdxl_1.0/mine", "sdxl", "sdxl_1.0")
    assert not matches("midjourney", None, None)
