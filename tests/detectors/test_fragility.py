"""What a card knows of its limits: bounds on facts of an image, figures under perturbations, and
what a run notes of them.
"""

import pytest
import yaml

from ray_app.config import config_root
from ray_app.detectors import load_card
from ray_app.detectors.card import apply_run_settings
from ray_app.detectors.card_sections import Fragility
from ray_app.errors import ConfigError

BOUNDS = {"jpeg_quality": {"below": 50}, "graphics": {"above": 0.55, "what": "a drawing"}}


def card_with(folder, **changes):
    tiny = yaml.safe_load((config_root() / "detectors" / "touchstone-tiny.yaml").read_text())
    path = folder / "card.yaml"
    path.write_text(yaml.safe_dump(tiny | changes))
    return load_card(path)


def test_value_beyond_a_bound_has_a_reason():
    known = Fragility.model_validate({"abstains": BOUNDS})
    facts = {"jpeg_quality": [30, 50, None, 90], "graphics": [0.1, 0.2, None, 0.8]}
    assert known.describe_mismatches(facts) == {
        0: "JPEG quality 30, below the valid range (50)",
        3: "share of graphics 0.8, above the valid range (0.55): a drawing",
    }
    assert known.describe_mismatches({}) == {}
    assert Fragility().describe_mismatches(facts) == {}


@pytest.mark.parametrize(
    ("bounds", "told"),
    [
        ({"jpeg_quality": {}}, "set below, above, or both"),
        ({"texture": {"below": 9, "above": 2}}, "no image would get a verdict"),
        ({"sharpness": {"below": 9}}, "sharpness"),
    ],
)
def test_bounds_without_meaning_are_refused(bounds, told, tmp_path):
    with pytest.raises(ConfigError, match=told):
        card_with(tmp_path, fragility={"abstains": bounds})


def test_card_without_bounds_keeps_its_facts(tmp_path):
    card = load_card("touchstone-tiny")
    assert "abstains" not in card.scoring_facts
    assert not {"fragility", "blind_to"} & card.model_dump(mode="json").keys()
    measured = [{"perturbation": "jpeg-50", "auc": 0.7, "source": "here"}]
    said = card_with(tmp_path, fragility={"measured": measured}, blind_to=["No eyes."])
    assert said.scoring_facts == card.scoring_facts, "figures and words decide nothing"
    assert {"fragility", "blind_to"} <= said.model_dump(mode="json").keys()


def test_run_resumes_with_the_bounds_that_it_began_with(tmp_path):
    plain = load_card("touchstone-tiny")
    bounded = card_with(tmp_path, fragility={"abstains": BOUNDS})
    without, within = plain.scoring_facts, bounded.scoring_facts
    assert within["abstains"] == {"jpeg_quality": {"below": 50.0}, "graphics": {"above": 0.55}}
    assert apply_run_settings(bounded, {"weights": "0", **within}) is bounded
    assert apply_run_settings(bounded, {"weights": "0", **without}).scoring_facts == without
    assert apply_run_settings(plain, {"weights": "0", **within}).scoring_facts == within
    other = BOUNDS | {"graphics": {"above": 0.9, "what": "a drawing"}}
    moved = card_with(tmp_path, fragility={"abstains": other})
    back = apply_run_settings(moved, {"weights": "0", **within}).fragility.abstains["graphics"]
    assert (back.below, back.above, back.what) == (None, 0.55, "a drawing")
    assert apply_run_settings(bounded, {}) is bounded
