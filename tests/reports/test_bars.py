"""Bars of AUCs and shares on an axis that says where it begins."""

import pytest

from ray_app.reports.bars import IntervalBar, axis_start, interval_bars, interval_meter
from ray_app.reports.svg import number_axis
from tests.reports.page_reader import PageReader


def widths(drawn):
    return [float(one["width"].rstrip("%")) for one in PageReader(str(drawn)).attributes("rect")]


@pytest.mark.parametrize(
    ("lows", "start"), [([0.97, 0.99], 0.95), ([0.993], 0.99), ([0.94, 1.0], 0.9), ([0.55, 0.99], 0.5), ([0.03], 0.0), ([], 0.0)]
)
def test_an_axis_begins_at_the_least_rounded_down(lows, start):
    assert axis_start(lows) == start


def test_bars_of_0_97_and_0_99_differ_to_the_eye():
    values = (0.97, 0.99)
    start = axis_start(values)
    drawn = [IntervalBar(str(one), f"{one:.3f}", one, (one - 0.005, one + 0.005)) for one in values]
    chart = interval_bars(drawn, number_axis("ROC AUC", start, 1.0), ident="i", title="t", description="d")
    assert widths(chart) == pytest.approx([40, 80])
    assert widths(interval_meter(0.97, None, start)) == pytest.approx([40])
    assert chart.count('class="whisker"') == 6
    assert "0.95</text>" in chart, "the axis says where it begins"


def test_a_value_below_the_start_and_one_without_an_interval_stay_inside():
    chart = interval_bars([IntervalBar("a", "0.2", 0.2, (0.1, 0.3))], number_axis("x", 0.5, 1.0), ident="i", title="t", description="d")
    assert 0 < widths(chart)[0] <= 1
    assert widths(interval_meter(0.2, (0.1, 0.3), 0.5)) == [0]
    assert "whisker" not in interval_meter(0.9, None, 0.5)
