import pytest

from ray_app.config import validate
from ray_app.ensembles import EnsembleCard
from ray_app.errors import ConfigError


def test_card_rejects_isotonic_calibration():
    card = {
        "name": "e",
        "title": "e",
        "members": [{"detector": "a"}],
        "calibration": {"knots": [[0, 0], [1, 0]]},
    }
    with pytest.raises(
        ConfigError, match=r"isotonic calibration .* was removed in 0\.24"
    ) as refused:
        validate(card, EnsembleCard, where="e.yaml")
    assert "touchstone detectors calibrate" in refused.value.hint
