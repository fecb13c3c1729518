import pytest

from ray_app.archives import ListedMember
from ray_app.archives.containers.base import join_sidecars, printable, sidecar_column, why_unsafe


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


@pytest.mark.parametrize(
    "name", ["a.jpg", "./a.jpg", "a/b..jpg", "...", "a b/ä😀.jpg", '"><script>.jpg', "12:30.jpg"]
)
def test_what_is_only_odd(name):
    assert why_unsafe(name) is None
    assert printable(name) == name


def joined(*names: str) -> list[tuple[str, dict[str, str]]]:
    """Members and columns; the text of each sidecar is its name."""
    found = (
        (
            ListedMember("u", name, 0, "v", len(name)),
            name if sidecar_column(name, len(name)) else None,
        )
        for name in names
    )
    return [(item.member, item.input) for item in join_sidecars(found)]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        # Texts before and behind an image are its columns, and those of all images of their key,
        (
            ("1.cls", "1.jpg", "1.json", "2.jpg"),
            [("1.jpg", {"cls": "1.cls", "json": "1.json"}), ("2.jpg", {})],
        ),
        (
            ("1.a.jpg", "1.mask.png", "1.txt"),
            [("1.a.jpg", {"txt": "1.txt"}), ("1.mask.png", {"txt": "1.txt"})],
        ),
        # an orphan and a second text for one column stay members,
        (("readme.txt", "1.jpg", "2.json"), [("readme.txt", {}), ("1.jpg", {}), ("2.json", {})]),
        (
            ("1.jpg", "1.JSON", "1.json"),
            [("1.jpg", {"json": "1.JSON"}), ("1.json", {"json": "1.JSON"})],
        ),
        # and a key is bound to its folder and its neighbours.
        (
            ("a/1.jpg", "b/1.json", "2.jpg", "3.jpg", "2.json"),
            [(n, {}) for n in ("a/1.jpg", "b/1.json", "2.jpg", "3.jpg", "2.json")],
        ),
    ],
)
def test_texts_beside_images_become_their_columns(names, expected):
    assert joined(*names) == expected
    named = [("1.json", 65536), ("1.json", 65537), ("1.b.json", 9), (".json", 9), ("json", 9)]
    assert [sidecar_column(*item) for item in named] == ["json", None, None, None, None]
