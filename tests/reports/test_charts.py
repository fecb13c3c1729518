"""What a reader may rely on in every drawing: lines stay inside, the smallest count is seen, a bar changes colour at the threshold."""

import xml.etree.ElementTree as ET

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_app.reports.svg import (
    BarSegment,
    Trace,
    Zones,
    decade_axis,
    element,
    histogram,
    line_chart,
    plane,
    probit_axis,
    share_axis,
    stacked_bar,
)

NAMED = {"ident": "i", "title": "t", "description": "d"}


def bars(svg, kind):
    found = [one for one in ET.fromstring(svg).iter("rect") if one.get("class") == kind]
    return [{key: float(one.get(key).rstrip("%")) for key in ("x", "y", "width", "height")} for one in found]


def line(svg, kind):
    (found,) = [one for one in ET.fromstring(svg).iter("path") if one.get("class") == kind]
    return [tuple(map(float, pair.split())) for pair in found.get("d").strip("M Z").split("L")]


def test_text_and_attributes_are_escaped():
    assert element("text", "<b>", class_='"x"', text_anchor="end") == '<text class="&#34;x&#34;" text-anchor="end">&lt;b&gt;</text>'


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=40))
def test_no_curve_strays_from_its_plane(points):
    for x, y in ((share_axis("x"), share_axis("y")), (decade_axis("x", 1e-4), share_axis("y")), (probit_axis("x"), probit_axis("y"))):
        places = line(plane([Trace(2, points)], x, y, **NAMED), "trace s2")
        assert all(-1 <= across <= 101 and -1 <= up <= 101 for across, up in places)


@settings(deadline=None)
@given(st.lists(st.floats(-1e9, 1e9) | st.just(float("nan")), max_size=20))
def test_a_line_stays_inside_its_drawing_and_leaves_out_what_is_not_finite(values):
    svg = line_chart(list(enumerate(values)), (0, 20), chosen=3, **NAMED)
    finite = [value for value in values if value == value]
    assert (svg is None) == (not finite)
    if svg:
        assert len(line(svg, "line")) == len(finite)
        assert all(0 <= x <= 100 and 0 <= y <= 100 for x, y in line(svg, "line"))


def test_very_many_points_stay_short_text():
    steps = [(step, float(step % 2)) for step in range(10_000)]
    assert len(line(line_chart(steps, (0, 10_000), **NAMED), "line")) <= 240
    shares = [(index / 50_000, index / 50_000) for index in range(50_001)]
    assert len(line(plane([Trace(0, shares)], share_axis("x"), share_axis("y"), **NAMED), "trace s0")) < 700


def test_a_bar_across_a_threshold_changes_colour_there_and_one_image_among_millions_is_seen():
    svg = histogram([-2.0, -1.0, 0.0, 1.0, 2.0], (1, 4_000_000, 0, 2), zones=Zones(-0.5, 0.5), **NAMED)
    assert [len(bars(svg, f"fill-{kind}")) for kind in ("real", "abstain", "fake")] == [2, 1, 1]
    assert bars(svg, "fill-abstain")[0]["x"] == pytest.approx(100 * 1.5 / 4)
    assert (bars(svg, "band")[0]["x"], bars(svg, "band")[0]["width"]) == (37.5, 25)
    assert bars(svg, "fill-fake")[0]["height"] > 0.5
    shares = stacked_bar([BarSegment("fake", "fake", 1), BarSegment("real", "real", 9_999_999)], **NAMED)
    assert bars(shares, "fill-fake")[0]["width"] > 0.3
