from xml.etree import ElementTree

from benchmarks.picture import WORDS, drawing, panels

SCORING = {"rates": {"decode_bound": {"touchstone": {"median": 300.0}, "limit": {"median": 400.0}, "daft_guide": {"median": 100.0}}}}
SERVING = {"figures": {"tiny": {"server": {"rate": 200.0}, "litserve": {"rate": 100.0}}}}


def test_every_bar_is_as_long_as_its_rate_and_has_its_name():
    picture = ElementTree.fromstring(drawing(panels(SCORING, SERVING)))
    lengths = [float(one.get("width")) for one in picture.iter("{http://www.w3.org/2000/svg}rect")]
    longest = max(lengths)
    assert [round(one / longest, 2) for one in lengths] == [1.0, 0.75, 0.25, 1.0, 0.5]
    words = [one.text for one in picture.iter("{http://www.w3.org/2000/svg}text")]
    assert words[0] == WORDS["decode_bound"]
    assert words[1:7] == [WORDS["limit"], "400", WORDS["touchstone"], "300", WORDS["daft_guide"], "100"]
    assert [one.get("class") for one in picture.iter("{http://www.w3.org/2000/svg}rect")] == ["theirs", "ours", "theirs", "ours", "theirs"]


def test_what_was_not_measured_is_not_drawn():
    assert panels(None, SERVING) == panels({"rates": {}}, SERVING)
    assert len(panels(None, SERVING)) == 1
