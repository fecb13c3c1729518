import xml.etree.ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_app.reports.svg import BarSegment, Zones, element, histogram, line_chart, meter, range_meter, round_ticks, stacked_bar

EDGES = [-2.0, -1.0, 0.0, 1.0, 2.0]


def rectangles(svg, kind):
    found = [rect for rect in ET.fromstring(svg).iter("rect") if rect.get("class") == kind]
    return [{key: float(rect.get(key).rstrip("%")) for key in ("x", "y", "width", "height")} for rect in found]


def drawn(counts=(1, 4, 0, 2), **options):
    return histogram(EDGES, counts, ident="h", title="Scores", description="Seven scores", **options)


def test_text_and_attributes_are_escaped():
    assert element("text", "<b>", class_='"x"', text_anchor="end") == '<text class="&#34;x&#34;" text-anchor="end">&lt;b&gt;</text>'


def test_a_drawing_has_a_role_a_title_and_a_description():
    svg = ET.fromstring(drawn())
    assert svg.get("role") == "img"
    assert svg.get("aria-labelledby").split() == [svg.find("title").get("id"), svg.find("desc").get("id")]
    assert svg.find("desc").text == "Seven scores"


def test_bars_are_as_high_as_their_counts_and_stand_on_the_axis():
    bars = rectangles(drawn(), "fill-plain")
    assert [bar["height"] for bar in bars] == [25, 100, 50]
    assert all(bar["y"] + bar["height"] == 100 for bar in bars)


def test_one_image_among_millions_is_seen():
    assert min(bar["height"] for bar in rectangles(drawn((3_000_000, 0, 0, 1)), "fill-plain")) > 0.5


def test_a_bar_across_a_threshold_changes_colour_there():
    svg = drawn(zones=Zones(-0.5, 0.5))
    assert len(rectangles(svg, "fill-real")) == 2
    (middle,) = rectangles(svg, "fill-abstain")
    assert middle["x"] == pytest.approx(100 * 1.5 / 4)
    assert len(rectangles(svg, "fill-fake")) == 1
    (band,) = rectangles(svg, "band")
    assert (band["x"], band["width"]) == (37.5, 25)


@pytest.mark.parametrize("zones", [Zones(0, 0), Zones(-50, 50), Zones(50, 60), Zones(-60, -50)])
def test_thresholds_may_meet_or_lie_outside(zones):
    svg = drawn(zones=zones)
    lines = [line for line in ET.fromstring(svg).iter("line") if line.get("class") == "cut"]
    assert len(lines) == (1 if zones == Zones(0, 0) else 0)
    assert all(0 <= band["x"] <= 100 and band["width"] <= 100 for band in rectangles(svg, "band"))


def test_segments_fill_the_bar_and_the_smallest_is_seen():
    svg = stacked_bar(
        [BarSegment("fake", "fake", 1), BarSegment("real", "real", 9_999_999), BarSegment("none", "none", 0)],
        ident="b",
        title="t",
        description="d",
    )
    (fake,), (real,) = rectangles(svg, "fill-fake"), rectangles(svg, "fill-real")
    assert fake["width"] > 0.3
    assert fake["width"] + real["width"] == pytest.approx(100, abs=0.01)
    assert not rectangles(svg, "fill-none")


def test_meters_are_hidden_from_screen_readers_and_end_at_the_full_width():
    assert ET.fromstring(meter(1.7)).get("aria-hidden") == "true"
    assert rectangles(meter(1.7), "fill-plain")[0]["width"] == 100
    assert rectangles(meter(0), "fill-plain")[0]["width"] == 0
    assert "whisker" in range_meter(5, 2, 9, 10)
    assert "whisker" not in range_meter(5, 5, 5, 10)
    assert rectangles(range_meter(0, 0, 0, 0), "fill-plain")[0]["width"] == 0


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6), st.integers(1, 10))
def test_ticks_are_few_even_and_inside(low, span, steps):
    high = low + span
    ticks = round_ticks(low, high, steps)
    assert len(ticks) <= steps + 2
    assert all(low - 1e-6 * span <= tick <= high + 1e-6 * span for tick in ticks)


def test_ticks_are_round():
    assert round_ticks(-8, 8, 9) == [-8, -6, -4, -2, 0, 2, 4, 6, 8]
    assert round_ticks(0, 362, 4) == [0, 100, 200, 300]


def line(points, span=(0, 10), **options):
    return line_chart(points, span, ident="l", title="Loss", description="Of each step", **options)


def drawn_path(svg, kind):
    (path,) = [path for path in ET.fromstring(svg).iter("path") if path.get("class") == kind]
    return [tuple(map(float, pair.split())) for pair in path.get("d").strip("MZ").split(" L")]


def test_a_line_goes_through_its_points():
    points = drawn_path(line([(0, 0.0), (5, 1.0), (10, 0.5)], from_zero=True), "line")
    assert [x for x, _ in points] == [0, 50, 100]
    top = 1.06
    assert [y for _, y in points] == pytest.approx([100, 100 - 100 / top, 100 - 50 / top], abs=0.01)


def test_many_points_become_a_mean_with_a_shade():
    points = [(step, float(step % 2)) for step in range(10_000)]
    svg = line(points, (0, 10_000))
    assert {y for _, y in drawn_path(svg, "line")} == {50.0}
    assert len(drawn_path(svg, "line")) <= 240
    assert {y for _, y in drawn_path(svg, "shade")} == {0.0, 100.0}
    assert "<circle" not in svg


def test_the_chosen_step_is_marked_among_few_and_among_many():
    few = ET.fromstring(line([(2, 1.0), (4, 3.0)], chosen=4))
    assert [dot.get("class") for dot in few.iter("circle")] == ["dot", "chosen"]
    assert [dot.find("title").text for dot in few.iter("circle")] == ["step 2: 1", "step 4, chosen: 3"]
    many = ET.fromstring(line([(step, 1.0) for step in range(11)] * 10, chosen=4))
    assert {dot.get("cx") for dot in many.iter("circle")} == {"40%"}


def test_what_is_not_finite_is_left_out():
    nan = float("nan")
    assert line([(0, nan), (1, float("inf"))]) is None
    assert line([]) is None
    assert len(drawn_path(line([(0, 1.0), (1, nan), (2, 2.0)]), "line")) == 2


@given(st.lists(st.floats(-1e9, 1e9), min_size=1, max_size=20))
def test_every_line_stays_inside_its_drawing(values):
    svg = line(list(enumerate(values)), (0, 20), chosen=3)
    assert all(0 <= x <= 100 and 0 <= y <= 100 for x, y in drawn_path(svg, "line"))
    assert "nan" not in svg
