import pytest

from ray_app.archives import ListedMember
from ray_app.archives.containers.base import (
    decode_text,
    escape_name,
    find_name_problem,
    join_sidecars,
    sidecar_column,
)


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
def test_member_name_that_is_unsafe_has_a_reason(name, reason):
    assert reason in find_name_problem(name)


@pytest.mark.parametrize(
    "name", ["a.jpg", "./a.jpg", "a/b..jpg", "...", "a b/ä😀.jpg", '"><script>.jpg', "12:30.jpg"]
)
def test_member_name_that_is_only_odd_is_kept(name):
    assert find_name_problem(name) is None
    assert escape_name(name) == name


# Files in their order → those that are members, each with the text files that become its columns.
SIDECARS = {
    "before and behind an image": ("1.cls 1.jpg 1.json 2.jpg", {"1.jpg": "1.cls 1.json"}),
    "of all images of their key": (
        "1.a.jpg 1.mask.png 1.txt",
        {"1.a.jpg": "1.txt", "1.mask.png": "1.txt"},
    ),
    "orphans": ("readme.txt 1.jpg 2.json", {}),
    "second text for a column": ("1.jpg 1.JSON 1.json", {"1.jpg": "1.JSON", "1.json": "1.JSON"}),
    "another folder, another neighbour": ("a/1.jpg b/1.json 2.jpg 3.jpg 2.json", {}),
}


@pytest.mark.parametrize("case", SIDECARS)
def test_texts_beside_images_become_their_columns(case):
    names, columns = SIDECARS[case][0].split(), SIDECARS[case][1]
    found = [
        (ListedMember("u", name, 0, "v", 9), name if sidecar_column(name, 9) else None)
        for name in names
    ]
    joined = {item.member: " ".join(item.input.values()) for item in join_sidecars(found)}
    taken = {text for texts in columns.values() for text in texts.split()} - set(columns)
    assert joined == {name: columns.get(name, "") for name in names if name not in taken}


def test_sidecar_column_is_the_ending_of_a_short_text():
    named = [("1.json", 65536), ("1.json", 65537), ("1.b.json", 9), (".json", 9), ("json", 9)]
    assert [sidecar_column(*item) for item in named] == ["json", None, None, None, None]


def test_sidecar_text_is_utf8_without_its_mark():
    assert decode_text('{"a": "ä"}'.encode("utf-8-sig")) == decode_text('{"a": "ä"}'.encode())
    assert decode_text(b"\xe4") is None
