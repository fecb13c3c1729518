import numpy as np
import pytest
from pydantic import TypeAdapter

from ray_app.config import validate
from ray_app.detectors.card import Calibration, Isotonic, Platt
from ray_app.ensembles import EnsembleCard
from ray_app.errors import ConfigError


@pytest.mark.parametrize(("beyond", "ends"), [({}, (-2, 4)), ({"beyond": 0.1}, (-3, 5))])
def test_isotonic_goes_straight_between_its_knots_and_beyond_them_level_or_on(beyond, ends):
    curve = Isotonic(knots=((-1, -2), (1, 0), (3, 4)), **beyond)
    assert curve(np.array([-11, -1, 0, 2, 3, 13, np.nan])) == pytest.approx([ends[0], -2, -1, 2, 4, ends[1], np.nan], nan_ok=True)


def test_a_card_of_before_stays_as_it_was():
    assert Isotonic(knots=((-1, -2), (1, 0))).model_dump() == {"knots": ((-1, -2), (1, 0))}, "what runs noted of it compares"
    rising = Isotonic(knots=((-1, -2), (1, 0)), beyond=0.5)
    assert Isotonic.model_validate(rising.model_dump()) == rising


def test_a_card_s_calibration_is_of_the_kind_that_its_keys_say():
    read = TypeAdapter(Calibration).validate_python
    assert read({"slope": 2, "intercept": 1}) == Platt(slope=2, intercept=1)
    assert read({"knots": [[0, 0], [1, 0]]}) == Isotonic(knots=((0, 0), (1, 0)))


@pytest.mark.parametrize("knots", [[[0, 0], [0, 1]], [[0, 1], [1, 0]]])
def test_knots_that_do_not_rise_are_refused_in_words(knots):
    card = {"name": "e", "title": "e", "members": [{"detector": "a"}], "calibration": {"knots": knots}}
    with pytest.raises(ConfigError, match=r"^e.yaml: calibration: knots must rise"):
        validate(card, EnsembleCard, where="e.yaml")
