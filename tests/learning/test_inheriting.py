import pytest

from ray_app.learning.inheriting import STRICTNESS, inherited, terms_of
from ray_app.learning.networks import training_card
from tests.learning.small_recipes import recipe


@pytest.mark.parametrize(
    ("licence", "terms"),
    [
        ("MIT", "permissive"),
        ("Apache-2.0", "permissive"),
        ("CC BY 4.0", "permissive"),
        ("CC BY-SA 4.0", "permissive"),
        ("CC BY-NC 4.0", "non-commercial"),
        ("CC-BY-NC-SA-4.0", "non-commercial"),
        ("CC BY 4.0 (full set); CC BY-NC-SA 4.0 (Small)", "non-commercial"),
        ("Research use only", "research-only"),
        ("none stated", "none-stated"),
        ("not stated", "none-stated"),
        ("unknown", "none-stated"),
        ("", "none-stated"),
        ("Terms of the agency", "restricted"),
        ("Synchrotron licence", "restricted"),
    ],
)
def test_terms_are_told_by_the_licences_name(licence, terms):
    assert terms_of(licence) == terms


@pytest.mark.parametrize(
    ("start", "weights_licence", "data_licence", "licence", "terms"),
    [
        ("card", None, "CC BY 4.0", "MIT", "permissive"),
        ("card", None, "CC BY-NC 4.0", "CC BY-NC 4.0", "non-commercial"),
        ("card", None, "none stated", "none stated", "none-stated"),
        ("random", None, "CC BY 4.0", "CC BY 4.0", "permissive"),
        ("random", None, None, "not stated", "permissive"),
        ("pretrained", "CC BY-NC 4.0", "MIT", "CC BY-NC 4.0", "non-commercial"),
        ("pretrained", None, "MIT", "MIT", "permissive"),
    ],
)
def test_the_stricter_of_weights_and_data_is_inherited(start, weights_licence, data_licence, licence, terms):
    weights = {"network": {"uri": "x.safetensors", "unverified": "a test"}} if start == "pretrained" else {}
    given = recipe("vit", initial={"start": start, "weights": weights, "licence": weights_licence}, data={"licence": data_licence})
    found = inherited(given, training_card(given))
    assert (found.licence, found.terms) == (licence, terms)
    assert data_licence is not None or "not stated" in found.note


def test_what_is_not_permissive_is_never_made_so():
    for terms, licence in [("non-commercial", "CC-BY-NC-4.0"), ("none-stated", "none stated")]:
        kind = {"non-commercial": "swin", "none-stated": "maskclip"}[terms]
        given = recipe(kind, initial={"start": "card"}, data={"licence": "MIT"})
        found = inherited(given, training_card(given))
        assert (found.licence, found.terms) == (licence, terms)
        assert "MIT" in found.note
    assert list(STRICTNESS) == ["permissive", "restricted", "non-commercial", "research-only", "none-stated"]


def test_a_licence_that_the_recipe_states_stands_with_what_it_replaces():
    given = recipe("swin", initial={"start": "card"}, export={"licence": "Research use only"})
    found = inherited(given, training_card(given))
    assert (found.licence, found.terms) == ("Research use only", "research-only")
    assert "CC-BY-NC-4.0" in found.note
