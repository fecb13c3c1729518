import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_app.archives.containers.names import Occurrences, printable, why_unsafe


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("/etc/passwd", "absolute"),
        ("\\\\server\\share", "absolute"),
        ("../a.jpg", "'..'"),
        ("a/../../b.jpg", "'..'"),
        ("a\\..\\b.jpg", "'..'"),
        ("C:\\a.jpg", "drive"),
        ("c:a.jpg", "drive"),
        ("a\0.jpg", "NUL"),
        ("", "no name"),
    ],
)
def test_what_is_unsafe_and_why(name, reason):
    assert reason in why_unsafe(name)


@pytest.mark.parametrize("name", ["a.jpg", "./a.jpg", "a/b..jpg", "...", "a b/ä😀.jpg", '"><script>.jpg', "12:30.jpg"])
def test_what_is_only_odd(name):
    assert why_unsafe(name) is None
    assert printable(name) == name


@given(st.binary(max_size=20))
def test_every_name_can_be_kept_in_a_table(raw):
    shown = printable(raw.decode("utf-8", "surrogateescape"))
    assert b"\0" not in shown.encode("utf-8")


def test_names_that_are_no_text_stay_apart():
    assert printable(b"\xff.jpg".decode("utf-8", "surrogateescape")) == r"\xff.jpg"
    assert printable(b"\xfe.jpg".decode("utf-8", "surrogateescape")) == r"\xfe.jpg"


@given(st.lists(st.sampled_from(["a", "b", "ä", "\udcff"])))
def test_occurrences(names):
    counted = Occurrences()
    assert [counted.count(name) for name in names] == [names[:place].count(name) for place, name in enumerate(names)]
