"""Shipped cards."""

import pytest

from ray_app.attribution.generators import generator_index
from ray_app.config import named_configs
from ray_app.datajobs.generate import load_pipeline_card
from ray_app.datajobs.generate.pipelines import pipeline_class

OPENFAKE = [(1024, 1024), (1024, 1024), (1024, 512), (512, 1024), (1024, 768), (768, 1024), (1152, 768), (768, 1152)]


@pytest.mark.parametrize("name", named_configs("generate"))
def test_every_card_names_a_class_and_a_known_generator(name):
    card = load_pipeline_card(name)
    assert card.name == name
    assert card.label in generator_index().generators
    assert callable(pipeline_class(card))
    assert card.terms != "permissive"


@pytest.mark.parametrize("name", ["sd-3.5", "flux.1-dev"])
def test_openfakes_settings(name):
    card = load_pipeline_card(name)
    assert (card.steps, card.guidance, card.precision, card.batch) == (28, 3.5, "bf16", 4)
    assert sorted((height, width) for width, height in card.sizes) == sorted(OPENFAKE)
