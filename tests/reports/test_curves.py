import math
import xml.etree.ElementTree as ET
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_app.reports.evaluation.charts import series_of
from ray_app.reports.svg import STYLES, Spot, Trace, decade_axis, order_axis, plane, probit_axis, sample, score_classes, share_axis

STEPS = [(0.0, 0.0), (0.0, 0.4), (0.1, 0.4), (0.1, 0.9), (1.0, 1.0)]


def drawn(traces, x=None, y=None, **options):
    axes = x or share_axis("flagged"), y or share_axis("found")
    return ET.fromstring(plane(traces, *axes, ident="p", title="ROC", description="Two systems", **options))


def path(svg, kind):
    (found,) = [one for one in svg.iter("path") if one.get("class") == kind]
    return [tuple(map(float, pair.split())) for pair in found.get("d").removeprefix("M").split("L")]


def test_a_linear_line_goes_through_its_points():
    assert path(drawn([Trace(0, STEPS)]), "trace s0") == [(0, 100), (0, 60), (10, 60), (10, 10), (100, 0)]


def test_a_decade_takes_as_much_room_as_every_other():
    axis = decade_axis("flagged", 1e-4)
    assert [axis.at(10.0**power) for power in range(-4, 1)] == pytest.approx([0, 25, 50, 75, 100])
    assert [words for _, words in axis.ticks] == ["0.01 %", "0.1 %", "1 %", "10 %", "100 %"]
    assert axis.at(0.0) < 0


def test_two_normal_distributions_make_a_straight_det_curve():
    axis = probit_axis("missed")
    places = [(axis.at(0.5 * math.erfc(z / math.sqrt(2))), axis.at(0.5 * math.erfc((1.5 - z) / math.sqrt(2)))) for z in (0.2, 0.5, 1, 1.4)]
    slopes = [(b[1] - a[1]) / (b[0] - a[0]) for a, b in pairwise(places)]
    assert slopes == pytest.approx([slopes[0]] * 3)


def test_what_is_straight_on_shares_is_bent_on_decades():
    bent = path(drawn([Trace(0, [(0.0, 0.0), (1.0, 1.0)])], x=decade_axis("flagged", 1e-3)), "trace s0")
    axis = decade_axis("flagged", 1e-3)
    for across, up in bent[1:]:
        share = 1 - up / 100
        assert axis.at(share) == pytest.approx(across, abs=0.5)
    assert len(bent) > 4


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=40))
def test_no_line_strays_from_its_plane(points):
    for x, y in ((share_axis("x"), share_axis("y")), (decade_axis("x", 1e-4), share_axis("y")), (probit_axis("x"), probit_axis("y"))):
        assert all(-1 <= across <= 101 and -1 <= up <= 101 for across, up in path(drawn([Trace(2, points)], x=x, y=y), "trace s2"))


def test_a_mark_beyond_the_axes_is_left_out_and_its_whisker_ends_at_them():
    spots = [Spot((0.5, 0.5), "inside", (0.3, 0.7)), Spot((1e-9, 0.5), "outside")]
    svg = drawn([Trace(1, STEPS, spots)], x=probit_axis("x"), y=probit_axis("y"))
    assert [one.find("title").text for one in svg.iter("path") if "spot" in one.get("class")] == ["inside"]
    (whisker,) = [one for one in svg.iter("line") if one.get("class") == "reach s1"]
    assert whisker.get("x1") == whisker.get("x2")


def test_a_very_long_line_stays_short_text():
    points = [(index / 50_000, index / 50_000) for index in range(50_001)]
    assert len(path(drawn([Trace(0, points)]), "trace s0")) < 700


def test_every_style_has_a_mark_of_its_own():
    marks = {ET.fromstring(sample(style)).find(".//path").get("d") for style in range(STYLES)}
    assert len(marks) == STYLES


def test_names_and_words_are_escaped():
    svg = plane(
        [Trace(0, STEPS, [Spot((0.5, 0.5), "<script>")])], share_axis("<b>"), share_axis("y"), ident="p", title="<i>", description="&"
    )
    assert "<script" not in svg
    assert "<b>" not in svg


def test_an_empty_order_of_one_place_has_room():
    assert order_axis("jpeg", ["clean"]).at(0) == pytest.approx(50)


def test_fakes_stand_above_the_axis_and_reals_hang_below():
    svg = ET.fromstring(score_classes([-1.0, 0.0, 1.0], [0, 8], [4, 0], 0.0, ident="s", title="Scores"))
    bars = {one.get("class"): one for one in svg.iter("rect")}
    assert (bars["fill-fake"].get("y"), bars["fill-fake"].get("height")) == ("0%", "50%")
    assert (bars["fill-real"].get("y"), bars["fill-real"].get("height")) == ("50%", "50%")
    assert [one.find("title").text for one in bars.values()] == ["fake, 0 to 1: 8", "real, −1 to 0: 4"]


@pytest.mark.parametrize(
    ("views", "family", "order"),
    [
        (["jpeg:30", "jpeg:95", "jpeg:75"], "jpeg", ["95", "75", "30"]),
        (["openfake-v2-jpeg-25", "openfake-v2-jpeg-90", "openfake-v2-jpeg-50"], "openfake-v2-jpeg", ["90", "50", "25"]),
        (["blur-σ4", "blur-σ0.5", "blur-σ2"], "blur", ["0.5", "2", "4"]),
        (["noise 20", "noise 5", "noise 10", "screenshot"], "noise", ["5", "10", "20"]),
        (["webp_q50", "webp_q90", "webp_q70"], "webp", ["90", "70", "50"]),
    ],
)
def test_views_that_differ_by_a_number_are_a_series_the_mildest_first(views, family, order):
    (series,) = series_of(views)
    assert (series.family, series.amounts) == (family, order)


def test_two_of_a_kind_are_no_series():
    assert series_of(["jpeg:50", "jpeg:90", "social", "blur:1", ""]) == []
