import pytest

from ray_app.metrics import averages, proportion_interval


def test_the_two_averages_of_generators_have_two_names():
    found = averages({"sd15": (90, 100), "flux": (1, 2), "none left": (0, 0)})
    assert found["tpr_mean"].value == pytest.approx(0.7)
    assert found["tpr_weighted"].value == pytest.approx(91 / 102)
    assert found["tpr_weighted"].interval == proportion_interval(91, 102)
    assert (found["tpr_mean"].n, found["tpr_weighted"].n) == (102, 102)


@pytest.mark.parametrize("rates", [{}, {"sd15": (0, 0)}])
def test_without_fakes_there_is_no_average(rates):
    assert {name: figure.why for name, figure in averages(rates).items()} == dict.fromkeys(
        ("tpr_mean", "tpr_weighted"), "there are no fakes"
    )
