import pytest

from ray_app.metrics.significance import holm


def test_holm_by_hand():
    found = holm([0.01, None, 0.04, 0.03, 0.005])
    assert found.pop(1) is None
    assert found == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []
