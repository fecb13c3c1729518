"""Which URLs are asked at all, by their text; addresses and resolvers are tested with the endpoint's fetcher, which shares them."""

import pytest

from ray_app.storage.guarding import UrlRefused, checked_url, is_public_address


@pytest.mark.parametrize(
    ("text", "dialled"),
    [
        ("http://host.test/a.png#part", "http://host.test/a.png"),
        ("https://HOST.test.:8443/a?x=1", "https://host.test:8443/a?x=1"),
        ("http://8.8.8.8/a", "http://8.8.8.8/a"),
        ("http://[2606:4700:4700::1111]/a", "http://[2606:4700:4700::1111]/a"),
    ],
)
def test_what_is_asked(text, dialled):
    assert str(checked_url(text, schemes=("http", "https"), is_literal_allowed=is_public_address)) == dialled


@pytest.mark.parametrize(
    "text",
    [
        "ftp://host.test/a", "file:///etc/passwd", "http://me:secret@host.test/", "http://localhost/", "http://127.0.0.1/",
        "http://2130706433/",
        "http://0x7f.1/", "http://[::1]/", "http://[fe80::1%25eth0]/", "http://10.0.0.1/",
        "http:///a", "a b", "http://host.test/" + "a" * 3000,
        "http://host.test\\@other.test/", "http://host.test:99999/", "",
    ],
)  # fmt: skip
def test_what_is_not(text):
    with pytest.raises(UrlRefused):
        checked_url(text, schemes=("http", "https"), is_literal_allowed=is_public_address)


def test_by_default_only_names_and_https_and_a_port_where_one_is_said():
    assert checked_url("https://host.test/a", port=443).port == 443
    for text in ("http://host.test/", "https://8.8.8.8/", "https://host.test:8443/"):
        with pytest.raises(UrlRefused):
            checked_url(text, port=443)


def test_bare_names_where_they_are_wanted():
    assert checked_url("https://localhost/a", bare_names=True).host == "localhost"
    with pytest.raises(UrlRefused):
        checked_url("https://2130706433/", bare_names=True)
