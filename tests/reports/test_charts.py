"""What a reader may rely on in every chart: lines stay inside, the smallest count is seen, labels
do not overlap, and a bar changes its colour at the threshold.
"""

import re
import xml.etree.ElementTree as ET
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_app.reports.charts import (
    Spot,
    Trace,
    class_histogram,
    decade_axis,
    histogram,
    line_chart,
    number_axis,
    plane,
    probit_axis,
    share_axis,
)
from ray_app.reports.format import escape_invisible
from tests.reports import hostile

NAMED = {"ident": "i", "title": "t", "description": "d"}


def points_of(svg, kind):
    """The points of each path of a style class."""
    paths = [one.get("d") for one in ET.fromstring(svg).iter("path") if one.get("class") == kind]
    return [
        [tuple(map(float, pair.split())) for pair in re.split("[MLZ]", path) if pair]
        for path in paths
    ]


def bars_of(svg, kind):
    """The bars of a style class as left, top, width, and height in percent."""
    bars = [one for one in ET.fromstring(svg).iter("rect") if one.get("class") == kind]
    return [
        tuple(float(one.get(name).rstrip("%")) for name in ("x", "y", "width", "height"))
        for one in bars
    ]


@settings(deadline=None, max_examples=12)
@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=2, max_size=40))
def test_curve_stays_in_its_plane(points):
    for x, y in (
        (share_axis("x"), share_axis("y")),
        (decade_axis("x", 1e-4), share_axis("y")),
        (probit_axis("x"), probit_axis("y")),
    ):
        (drawn,) = points_of(plane([Trace(2, points)], x, y, **NAMED), "trace s2")
        assert all(0 <= place <= 100 for point in drawn for place in point)


@settings(deadline=None, max_examples=20)
@given(st.lists(st.floats(-1e9, 1e9) | st.just(float("nan")), max_size=20))
def test_line_chart_leaves_out_values_that_are_not_finite(values):
    svg = line_chart(list(enumerate(values)), (0, 20), chosen=3, **NAMED)
    assert (svg is None) == (not [value for value in values if value == value])
    for drawn in points_of(svg, "trace strong") + points_of(svg, "range") if svg else ():
        assert all(0 <= place <= 100 for point in drawn for place in point)


def test_line_chart_of_many_points_is_short():
    steps = [(step, float(step % 2)) for step in range(10_000)]
    assert len(line_chart(steps, (0, 10_000), **NAMED)) < 12_000
    shares = [(index / 50_000, index / 50_000) for index in range(50_001)]
    svg = plane([Trace(0, shares)], share_axis("x"), share_axis("y"), **NAMED)
    assert points_of(svg, "trace s0") == [[(0, 100), (100, 0)]]


def test_simplified_curve_is_nearly_equal():
    steps = [(share / 1000, (share / 1000) ** 0.2) for share in range(1001)]
    svg = plane([Trace(0, steps)], share_axis("x"), share_axis("y"), **NAMED)
    (drawn,) = points_of(svg, "trace s0")
    assert 10 < len(drawn) < 200
    for share, found in steps:
        after = next(place for place, (x, _) in enumerate(drawn) if x >= 100 * share - 1e-9)
        (left, start), (right, end) = drawn[max(after - 1, 0)], drawn[after]
        height = (
            end if right == left else start + (end - start) * (100 * share - left) / (right - left)
        )
        assert height == pytest.approx(100 - 100 * found, abs=0.5)


@pytest.mark.parametrize(("axis", "words"), [
    (number_axis("", 0, 1), ["0", "0.2", "0.4", "0.6", "0.8", "1"]),
    (number_axis("", 0, 5.3e-5, 3), ["0", "0.00002", "0.00004"]),
    (number_axis("", -7, 8, 9), ["−6", "−4", "−2", "0", "2", "4", "6", "8"]),
    (share_axis("", 0.95), ["95 %", "96 %", "97 %", "98 %", "99 %", "100 %"]),
    (decade_axis("", 1e-6), ["0.0001 %", "0.001 %", "0.01 %", "0.1 %", "1 %", "10 %", "100 %"]),
])  # fmt: skip
def test_ticks_are_round_numbers(axis, words):
    assert [said for _, said in axis.ticks] == words


def test_labels_of_an_axis_do_not_overlap_on_a_telephone():
    svg = plane([Trace(0, [(0, 0), (1, 1)])], decade_axis("x", 1e-6), share_axis("y"), **NAMED)
    labels = [
        (float(one.get("x").rstrip("%")), one.text)
        for one in ET.fromstring(svg).iter("text")
        if one.get("text-anchor") == "middle"
    ]
    ends = [(2.55 * at - 3.4 * len(said), 2.55 * at + 3.4 * len(said)) for at, said in labels]
    assert len(labels) >= 4
    assert all(end < start for (_, end), (start, _) in pairwise(ends))


def test_bar_changes_its_colour_at_a_threshold():
    svg = histogram([-2.0, -1.0, 0.0, 1.0, 2.0], (1, 4_000_000, 0, 2), zones=(-0.5, 0.5), **NAMED)
    real, abstain, fake = (bars_of(svg, f"fill-{kind}") for kind in ("real", "abstain", "fake"))
    assert [len(real), len(abstain), len(fake)] == [2, 1, 1]
    assert bars_of(svg, "band") == [(37.5, 0, 25, 100)]
    assert abstain == [(37.5, 0, 12.5, 100)]
    assert fake == [(75, 99.2, 25, 0.8)]
    assert svg.count("<title>1 to 2: 2</title>") == 1


def test_hostile_text_stays_text():
    tags = {"svg", "title", "desc", "path", "text", "g", "line"}
    for text in hostile.NAMES.values():
        named = {"ident": "i", "title": text, "description": text}
        trace = Trace(0, [(0, 0), (1, 1)], [Spot((0.5, 0.5), text)])
        drawn = ET.fromstring(plane([trace], share_axis(text), share_axis(text), **named))
        assert {one.tag for one in drawn.iter()} == tags
        assert (drawn.find("title").text or "") == escape_invisible(text)


def test_class_histogram_loads_nothing():
    svg = class_histogram([-1.0, 0.0, 1.0], (3, 5), (5, 3), 0.5, ident="i", title="t")
    assert not re.search(r"url\(|href|#[0-9a-f]{3}|font-family", svg)
    assert len(re.findall(r' id="', svg)) == 2
    assert [bar[1] for bar in bars_of(svg, "fill-real")] == [50, 50]
    assert "threshold 0.5" in svg
