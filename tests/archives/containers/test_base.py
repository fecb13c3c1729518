import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_app.archives import ListedMember
from ray_app.archives.containers.base import Occurrences, join_sidecars, printable, sidecar_column, why_unsafe


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


def joined(*names: str) -> list[tuple[str, dict[str, str]]]:
    """Members and columns; the text of each sidecar is its name."""
    found = ((ListedMember("u", name, 0, "v", len(name)), name if sidecar_column(name, len(name)) else None) for name in names)
    return [(item.member, item.input) for item in join_sidecars(found)]


def test_text_before_and_behind_an_image_becomes_its_columns():
    assert joined("1.cls", "1.jpg", "1.json", "2.jpg") == [("1.jpg", {"cls": "1.cls", "json": "1.json"}), ("2.jpg", {})]


def test_all_images_of_a_key_get_them():
    assert joined("1.a.jpg", "1.mask.png", "1.txt") == [("1.a.jpg", {"txt": "1.txt"}), ("1.mask.png", {"txt": "1.txt"})]


def test_an_orphan_stays_a_member():
    assert joined("readme.txt", "1.jpg", "1.json", "2.json") == [("readme.txt", {}), ("1.jpg", {"json": "1.json"}), ("2.json", {})]


def test_a_key_is_bound_to_its_folder_and_its_neighbours():
    assert [name for name, _ in joined("a/1.jpg", "b/1.json", "2.jpg", "3.jpg", "2.json")] == [
        "a/1.jpg",
        "b/1.json",
        "2.jpg",
        "3.jpg",
        "2.json",
    ]


def test_a_second_text_for_one_column_stays_a_member():
    assert joined("1.jpg", "1.JSON", "1.json") == [("1.jpg", {"json": "1.JSON"}), ("1.json", {"json": "1.JSON"})]


def test_what_is_no_sidecar():
    assert [sidecar_column(*item) for item in [("1.json", 65536), ("1.json", 65537), ("1.b.json", 9), (".json", 9), ("json", 9)]] == [
        "json", None, None, None, None
    ]  # fmt: skip


@given(st.lists(st.sampled_from(["a.jpg", "a.json", "a.cls", "b.txt", "b.png", "c/a.txt", "_.jpg"]), max_size=200))
def test_nothing_is_lost_or_moved(names):
    kept = joined(*names)
    rest = iter(names)
    assert all(name in rest for name, _ in kept)
    images = [name for name in names if name.endswith(("jpg", "png"))]
    assert [name for name, _ in kept if name.endswith(("jpg", "png"))] == images
