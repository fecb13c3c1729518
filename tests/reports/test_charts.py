"""What a reader may rely on in every drawing: lines stay inside, the smallest count is seen, a bar
changes colour at the threshold.
"""

import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from concurrent.futures import ThreadPoolExecutor

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
    plane,
    probit_axis,
    share_axis,
)
from ray_app.reports.format import visible
from tests.reports import hostile

NAMED = {"ident": "i", "title": "t", "description": "d"}


def shapes(svg, colour):
    """Points of each path that is filled or drawn in a colour."""
    paths = [one.get("d") for one in ET.fromstring(svg).iter("path")
             if f": var(--{colour})" in one.get("style") and not one.get("transform")]  # fmt: skip
    return [
        [(float(x), float(y)) for x, y in re.findall(r"[ML] (\S+) (\S+)", path)] for path in paths
    ]


def box(points):
    xs, ys = zip(*points, strict=True)
    return min(xs), min(ys), max(xs), max(ys)


@settings(deadline=None, max_examples=8)
@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=2, max_size=40))
def test_no_curve_strays_from_its_plane(points):
    for x, y in (
        (share_axis("x"), share_axis("y")),
        (decade_axis("x", 1e-4), share_axis("y")),
        (probit_axis("x"), probit_axis("y")),
    ):
        for drawn in shapes(plane([Trace(2, points)], x, y, **NAMED), "s2"):
            left, top, right, bottom = box(drawn)
            assert (left >= 49.99, top >= 23.99, right <= 422.01, bottom <= 372.01) == (True,) * 4


@settings(deadline=None, max_examples=12)
@given(st.lists(st.floats(-1e9, 1e9) | st.just(float("nan")), max_size=20))
def test_a_line_stays_inside_its_drawing_and_leaves_out_what_is_not_finite(values):
    svg = line_chart(list(enumerate(values)), (0, 20), chosen=3, **NAMED)
    assert (svg is None) == (not [value for value in values if value == value])
    for drawn in shapes(svg, "strong") + shapes(svg, "plain") if svg else ():
        left, top, right, bottom = box(drawn)
        assert (left >= 0, top >= 0, right <= 520, bottom <= 250) == (True,) * 4


def test_very_many_points_stay_short_text():
    steps = [(step, float(step % 2)) for step in range(10_000)]
    assert len(line_chart(steps, (0, 10_000), **NAMED)) < 25_000
    shares = [(index / 50_000, index / 50_000) for index in range(50_001)]
    assert len(plane([Trace(0, shares)], share_axis("x"), share_axis("y"), **NAMED)) < 8_000


def test_a_bar_across_a_threshold_changes_colour_there_and_one_image_among_millions_is_seen():
    svg = histogram([-2.0, -1.0, 0.0, 1.0, 2.0], (1, 4_000_000, 0, 2), zones=(-0.5, 0.5), **NAMED)
    assert [len(shapes(svg, kind)) for kind in ("real", "abstain", "fake")] == [2, 1, 1]
    (band,), (between,), (fake,) = (
        list(map(box, shapes(svg, kind))) for kind in ("band", "abstain", "fake")
    )
    assert between[0] == pytest.approx(band[0])
    assert fake[3] - fake[1] > 1
    assert svg.count("<title>1 to 2: 2</title>") == 1


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "text",
    [*hostile.NAMES.values(), "tip99 #0000ff #000000"],
    ids=[*hostile.NAMES, "like our own marks"],
)
def test_a_hostile_text_stays_text(text):
    named = {"ident": "i", "title": text, "description": text}
    spot = [Spot((0.5, 0.5), text)]
    svg = plane([Trace(0, [(0, 0), (1, 1)], spot)], share_axis(text), share_axis(text), **named)
    assert {one.tag for one in ET.fromstring(svg).iter()} == {
        "svg",
        "title",
        "desc",
        "path",
        "text",
    }
    assert (ET.fromstring(svg).find("title").text or "") == visible(text)


def test_drawings_are_the_same_each_time_also_side_by_side_in_threads():
    edges, counts = [-1.0, 0.0, 1.0], (3, 5)
    once = class_histogram(edges, counts, counts, 0.5, ident="i", title="t")
    with ThreadPoolExecutor(4) as pool:
        drawn = list(
            pool.map(
                lambda _: class_histogram(edges, counts, counts, 0.5, ident="i", title="t"),
                range(12),
            )
        )
    assert set(drawn) == {once}
    assert not re.search(r"url\(|href|#0000|font-family", once)
    assert len(re.findall(r' id="', once)) == 2


def test_the_plotting_library_is_loaded_for_a_drawing_alone():
    code = "import sys, ray_app.reports.run, ray_app.reports.evaluation.page, ray_app.reports.check; assert 'matplotlib' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
