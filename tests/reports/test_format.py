"""Numbers, names and reasons in words, as every page and every terminal shows them."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_app.errors import Status
from ray_app.reports import format as wording

any_text = st.text(alphabet=st.characters(), max_size=300)


@settings(deadline=None)
@given(any_text, st.integers(0, 80))
def test_visible_text_is_printable_and_fits(text, limit):
    shown = wording.escape_invisible(text)
    assert wording.escape_invisible(shown) == shown
    assert all(character.isprintable() or character.isspace() for character in shown)
    shown.encode("utf-8")
    assert not {"\n", "\u202e"} & set(shown)
    assert wording.columns(wording.truncate(text, limit)) <= limit


def test_shortened_text_keeps_both_ends_and_mostly_the_end():
    short = wording.truncate("s3://bucket/" + "x" * 500 + "/IMG_0001.jpg", 30)
    assert len(short) == 30
    assert short.startswith("s3://")
    assert short.endswith("/IMG_0001.jpg")
    assert wording.truncate("short.jpg", 30) == "short.jpg"


def test_stacked_marks_are_escaped():
    assert wording.escape_invisible("e\u0301\u0323") == "e\u0301\u0323"
    assert wording.escape_invisible("e" + "\u0301" * 6) == "e" + "\u0301" * 4 + "\\u0301" * 2
    assert len(wording.truncate("a" * 99 + "\u0301" * 4000, 20)) <= 20


@pytest.mark.parametrize(
    ("said", "value", "words"),
    [
        (wording.percent, 0, "0 %"),
        (wording.percent, 1e-7, "< 0.01 %"),
        (wording.percent, 1 - 1e-7, "> 99.99 %"),  # never rounded to certainty
        (wording.percent, None, "–"),
        (wording.number, 1234.5, "1,234"),
        (wording.number, 99.96, "100"),
        (wording.number, 2.0, "2"),
        (wording.number, 0.01234, "0.0123"),
        (wording.number, 1e-7, "< 0.0001"),
        (wording.number, -1e-7, "> −0.0001"),
        (wording.number, -2.5, "−2.5"),
        (wording.number, 0.99996, "> 0.999"),  # never rounded to a perfect score
        (lambda area: wording.number(area, decimals=4), 0.99996, "> 0.9999"),
        (lambda area: wording.number(area, decimals=3), 0.9, "0.900"),
        (lambda area: wording.number(area, decimals=3), 1, "1.000"),
        (lambda rate: wording.percent(rate, 3), 0.01, "1 %"),
        (lambda rate: wording.percent(rate, 3), 0.0005, "0.05 %"),
        (lambda rate: wording.percent(rate, 3), 0.99999, "> 99.9 %"),
        (lambda rate: wording.percent(rate, 0), 0.9153, "92 %"),
        (lambda rate: wording.percent(rate, 0), 0.996, "> 99 %"),
        (lambda rate: wording.percent(rate, 0), 1, "100 %"),
        (lambda rate: wording.percent(rate, 0), 0.001, "< 1 %"),
        (wording.signed, 2.345, "+2.35"),
        (wording.signed, -0.001, "+0.00"),
        (wording.signed, -2.5, "−2.50"),
        (wording.signed, None, "–"),
        (wording.number, float("nan"), "–"),
        (lambda amount: wording.number(amount, decimals=2), 1234.5, "1,234.50"),
        (lambda amount: wording.number(amount, decimals=2), 0.0123, "0.0123"),
        (lambda amount: wording.number(amount, decimals=2), 0, "0.00"),
        (wording.probability, 1.0, "> 0.9999"),
        (wording.probability, 0.0, "< 0.0001"),
        (wording.probability, 0.00021, "0.0002"),
        (wording.probability, float("nan"), "–"),
        (wording.duration, 3599.7, "1 h 00 min"),
        (wording.size, 999_999, "1.0 MB"),
        (wording.format_time, "2030-01-01T00:00:05Z", "2030-01-01 00:00:05 UTC"),
        (wording.format_time, "", "–"),
    ],
)
def test_number_or_time_in_words(said, value, words):
    assert said(value) == words


def test_interval_shows_its_unit_once():
    assert wording.interval((0.9012, 0.924), wording.percent) == "90.1 to 92.4 %"
    assert wording.interval((0.00001, 0.1), wording.percent) == "< 0.01 to 10.0 %"
    assert wording.interval((1.5, 1234.5), wording.number) == "1.5 to 1,234"


def test_finished_listing_in_words():
    assert wording.describe_listing(2086, 2086, 33) == "listed 2,086 files in 33 blocks"
    assert wording.describe_listing(61, 1, 1) == (
        "listed 61 files, 1 of them new or changed, in 1 block"
    )
    assert wording.describe_listing(1, 0, 0) == "listed 1 file, none of them new or changed"


def test_every_known_status_has_a_meaning():
    assert all(wording.describe_status(status) for status in Status)
    assert wording.describe_status("eaten_by_a_dog") == ""


def test_counts_are_ordered_and_a_long_rest_is_one_line():
    statuses = {"empty_file": 1, "corrupt_image": 9, "ok": 2, "unsafe_member": 0}
    assert wording.ordered_statuses(statuses) == [
        ("ok", 2),
        ("corrupt_image", 9),
        ("empty_file", 1),
    ]
    assert wording.largest({"a": 1, "b": 5, "c": 2, "d": 3}, 2) == [
        ("b", 5),
        ("d", 3),
        ("2 others", 3),
    ]
