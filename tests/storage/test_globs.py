import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_app.storage.globs import _regex, full_matcher, has_magic, matcher, matcher_below, split_at_magic

CASES = [
    ("*.jpg", "a.jpg", True),
    ("*.jpg", "a/b.jpg", True),
    ("*.jpg", "a.JPG", False),
    ("./*.jpg", "a.jpg", False),
    ("/*.jpg", "a.jpg", True),
    ("/*.jpg", "a/b.jpg", False),
    ("a/*.jpg", "a/b.jpg", True),
    ("a/*.jpg", "a/b/c.jpg", False),
    ("a/**", "a/b/c.jpg", True),
    ("a/**", "b/a/c.jpg", False),
    ("**/c.jpg", "c.jpg", True),
    ("**/c.jpg", "a/b/c.jpg", True),
    ("a/**/c.jpg", "a/c.jpg", True),
    ("a/**/c.jpg", "a/x/y/c.jpg", True),
    ("a/**/c.jpg", "a/x/yc.jpg", False),
    ("?.png", "a.png", True),
    ("[ab].png", "b.png", True),
    ("[!ab].png", "b.png", False),
    ("[!ab].png", "c.png", True),
    ("[0-9].png", "7.png", True),
    ("[]].png", "].png", True),
    ("a[", "a[", True),
    ("(a|b).png", "a.png", False),
    ("**", "a/b", True),
]


@pytest.mark.parametrize(("pattern", "path", "expected"), CASES)
def test_matcher(pattern, path, expected):
    assert matcher([pattern])(path) is expected


def test_any_of_several():
    matches = matcher(["*.png", "b/*"])
    assert [path for path in ("a.png", "b/x", "c/x") if matches(path)] == ["a.png", "b/x"]
    assert not matcher([])("a")


def test_a_source_pattern_is_the_whole_path():
    assert not full_matcher("*.jpg")("a/b.jpg")
    assert full_matcher("*/b.jpg")("a/b.jpg")


def test_split():
    assert split_at_magic("s3://b/2024/*/x") == ("s3://b/2024", "*/x")


@given(st.text(max_size=20))
def test_every_text_is_a_pattern(text):
    re.compile(_regex(text))


@given(st.text(alphabet=st.characters(exclude_characters="*?[/"), max_size=20))
def test_a_text_without_magic_is_itself(text):
    assert not has_magic(text)
    assert full_matcher(text)(text)


@pytest.mark.parametrize(
    ("pattern", "folder", "may"),
    [("*.jpg", "a/b.zip", True), ("b/*", "b.zip", False), ("b/*", "b", True), ("b/*", "b/x.zip", False), ("b/*/*", "b/x.zip", True),
     ("**/a.jpg", "b/x.zip", True), ("b/**", "b/x.zip", True), ("c/**", "b/x.zip", False), ("b/?.zip/c/*", "b/x.zip", True)],
)  # fmt: skip
def test_what_could_match_below_a_folder(pattern, folder, may):
    assert matcher_below([pattern])(folder) is may
