import os

import pytest
from hypothesis import given
from hypothesis import strategies as st
from s3fs import S3FileSystem

from ray_app.errors import ConfigError
from ray_app.storage.urls import (
    canonicalize,
    has_magic,
    local_path,
    local_uri,
    make_folder_matcher,
    make_full_matcher,
    make_matcher,
    make_subtree_matcher,
    split_at_magic,
    split_bucket,
    strip_secrets,
)

CASES = [
    ("*.jpg", "a.jpg", True),
    ("*.jpg", "a/b.jpg", True),
    ("*.jpg", "a.JPG", False),
    ("/*.jpg", "a.jpg", True),
    ("/*.jpg", "a/b.jpg", False),
    ("a/*.jpg", "a/b.jpg", True),
    ("a/*.jpg", "a/b/c.jpg", False),
    ("a/**", "a/b/c.jpg", True),
    ("**/c.jpg", "c.jpg", True),
    ("**/c.jpg", "a/b/c.jpg", True),
    ("a/**/c.jpg", "a/x/y/c.jpg", True),
    ("?.png", "a.png", True),
    ("[0-9].png", "7.png", True),
    ("a[", "a[", True),
    ("(a|b).png", "a.png", False),
]


@pytest.mark.parametrize(("pattern", "path", "expected"), CASES)
def test_pattern_matches_paths(pattern, path, expected):
    assert make_matcher([pattern])(path) is expected


def test_pattern_of_a_source_is_the_whole_path():
    assert not make_full_matcher("*.jpg")("a/b.jpg")
    assert make_full_matcher("*/b.jpg")("a/b.jpg")
    assert split_at_magic("s3://b/2024/*/x") == ("s3://b/2024", "*/x")


@given(st.text(alphabet=st.characters(exclude_characters="*?[/"), max_size=20))
def test_text_without_pattern_letters_matches_itself(text):
    assert not has_magic(text)
    assert make_full_matcher(text)(text)


@pytest.mark.parametrize(
    ("pattern", "folder", "may"),
    [("*.jpg", "a/b.zip", True), ("b/*", "b.zip", False), ("b/*", "b", True), ("b/*", "b/x.zip", False), ("b/*/*", "b/x.zip", True),
     ("**/a.jpg", "b/x.zip", True), ("b/**", "b/x.zip", True), ("c/**", "b/x.zip", False), ("b/?.zip/c/*", "b/x.zip", True)],
)  # fmt: skip
def test_pattern_may_match_below_a_folder(pattern, folder, may):
    assert make_folder_matcher([pattern])(folder) is may


@pytest.mark.parametrize(
    ("pattern", "folder", "covers"),
    [("a/**", "a", True), ("a/**", "a/b", True), ("a/**", "b/a", False),
     ("**/a/**", "b/a", True), ("**", "a", True), ("*", "a", True),
     ("*.jpg", "a", False), ("a/*", "a", False), ("a", "a", False), ("a/**/*", "a", True), ("a/**/*.jpg", "a", False),
     ("*.d/**", "x.d", True)],
)  # fmt: skip
def test_pattern_may_cover_a_folder(pattern, folder, covers):
    assert make_subtree_matcher([pattern])(folder) is covers
    if covers:
        assert all(map(make_matcher([pattern]), (f"{folder}/x.jpg", f"{folder}/x/y.tar")))


@pytest.mark.parametrize(
    "url", ["file:///a b", "file://localhost/a b", "FILE://LOCALHOST/a%20b", "file:/a b"]
)
def test_file_url_names_a_path_of_this_machine(url):
    assert local_path(url) == "/a b"


def test_file_url_of_a_relative_path_is_in_the_folder(tmp_path):
    (tmp_path / "a%20b").touch()
    assert local_path("file:a%20b") == "a b"
    assert local_path("file:a%20b", str(tmp_path)) == f"{tmp_path}/a%20b"
    assert local_path("file:/a b", str(tmp_path)) == "/a b"


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("file://elsewhere/x", "the host is 'elsewhere'"),
        ("file://x", "the host is 'x'"),
        ("file://", "no path"),
    ],
)
def test_file_url_of_another_host_is_rejected(url, words):
    for read in (local_path, canonicalize):
        with pytest.raises(ConfigError, match=words):
            read(url)


AWS = "https://b.s3.amazonaws.com/a.jpg"
PRESIGNED = f"{AWS}?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=AK%2F1&X-Amz-Signature=abc"
GOOGLE = "https://storage.googleapis.com/b/a.jpg"
AZURE = "https://acc.blob.core.windows.net/c/a.jpg"
DATA_LAKE = "abfss://container@account.dfs.core.windows.net/run"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        (f"{PRESIGNED}&X-Amz-Expires=60", AWS),
        (f"{PRESIGNED}&X-Amz-Expires=60&versionId=7", f"{AWS}?versionId=7"),
        (f"{GOOGLE}?X-Goog-Signature=abc", GOOGLE),
        (f"{AZURE}?sv=2024&se=x&sr=b&sp=r&sig=abc", AZURE),
        ("https://me:pw@host/a.jpg?page=2", "https://host/a.jpg?page=2"),
        ("https://host/a.jpg?access_token=x&w=10", "https://host/a.jpg?w=10"),
        ("s3://key:secret@bucket/a.jpg", "s3://bucket/a.jpg"),
        ("s3://bucket/me@home.jpg", "s3://bucket/me@home.jpg"),
        (DATA_LAKE, DATA_LAKE),
        ("abfss://user:secret@host/run", "abfss://host/run"),
        ("/data/me:you@home/a.jpg?sig=1", "/data/me:you@home/a.jpg?sig=1"),
        ("list::https://me:pw@host/a.csv?sig=1", "list::https://host/a.csv"),
        ("list::/data/a.csv?sig=1", "list::/data/a.csv?sig=1"),
        ("https://[::1]/a.jpg?sig=1", "https://[::1]/a.jpg"),
        (f"{GOOGLE}?GoogleAccessId=me&Expires=1&Signature=abc", GOOGLE),
        ("https://cdn/a.jpg?Policy=x&Key-Pair-Id=k&Signature=s&w=1", "https://cdn/a.jpg?w=1"),
        (f"{AWS}?X%2DAmz%2DSignature=abc&X%2DAmz%2DDate=1", AWS),
        (f"{AWS}?X-Amz-Security-Token=abc", AWS),
        ("https://host/a.jpg?auth[token]=x&accessToken=y&token_2=z", "https://host/a.jpg"),
    ],
)
def test_url_is_shown_without_secrets(url, shown):
    assert strip_secrets(url) == shown
    assert strip_secrets(shown) == shown


@pytest.mark.parametrize(
    "query",
    [*(f"{key}=1" for key in ("st", "se", "sp", "sv", "sr", "policy", "expires", "key-pair-id", "X-Amz-Date",
                              "pagetoken", "page_token", "nextPageToken", "tokenizer", "tokens", "tokenId")),
     "sp=1&expires=2", "", "w=1&", "w=1&&h=2"],
)  # fmt: skip
def test_url_without_secret_keeps_its_query(query):
    assert strip_secrets(f"https://host/a.jpg?{query}") == f"https://host/a.jpg?{query}"


ACCOUNT = "us-east-1:123456789012"
POINT = f"arn:aws:s3:{ACCOUNT}:accesspoint/my-ap"


@pytest.mark.parametrize(
    "bucket",
    [
        "bucket",
        POINT,
        f"arn:aws-cn:s3:{ACCOUNT}:accesspoint:my-ap",
        "arn:aws:s3::123456789012:accesspoint/mfzwi23gnjvgw.mrap",
        f"arn:aws:s3-object-lambda:{ACCOUNT}:accesspoint/my-ol",
        f"arn:aws:s3-outposts:{ACCOUNT}:outpost/op-0123456789abcdef0/accesspoint/my-ap",
        f"arn:aws:s3-outposts:{ACCOUNT}:outpost:op-0123456789abcdef0:bucket:my-bucket",
    ],
)
def test_s3_url_is_split_as_s3fs_splits_it(bucket):
    for key in ("", "a", "photos/2024/a b#?.jpg", "a//b/"):
        url = f"s3://{bucket}/{key}"
        assert split_bucket(url) == (bucket, key)
        if key:
            assert S3FileSystem().split_path(f"{bucket}/{key}")[:2] == (bucket, key)
    assert split_bucket(f"s3://{bucket}") == (bucket, "")
    assert canonicalize(f"s3://{bucket}/a/") == f"s3://{bucket}/a"


@pytest.mark.parametrize("address", ["", "a b/c", POINT.removesuffix("/my-ap"), "arn:aws:s3:::b/a"])
def test_s3_url_without_a_bucket_is_rejected(address):
    with pytest.raises(ConfigError, match="is not the name of a bucket"):
        split_bucket(f"s3://{address}")


def test_url_has_one_canonical_form(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert canonicalize("a/../b/") == canonicalize(f"file://{tmp_path}/b") == f"{tmp_path}/b"
    assert canonicalize("s3://bucket/a//") == "s3://bucket/a"
    assert canonicalize("s3a://bucket/a") == canonicalize("S3N://bucket/a") == "s3://bucket/a"
    assert canonicalize("s3://bucket/") == "s3://bucket"
    assert canonicalize("https://host/a/?b") == "https://host/a/?b"


@given(
    st.binary(min_size=1, max_size=30).filter(lambda name: b"\0" not in name and b"/" not in name)
)
def test_every_file_name_has_a_uri_that_leads_back(name):
    path = "/data/" + os.fsdecode(name)
    uri = local_uri(path)
    uri.encode("utf-8")
    assert local_path(uri) == path
