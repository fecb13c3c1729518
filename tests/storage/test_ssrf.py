"""Which addresses are dialled, and which URLs asked at all, by their text; resolvers are tested
with `GuardedClient`.
"""

import pytest

from ray_app.errors import SourceError
from ray_app.storage.ssrf import UrlRefused, check_public_url, check_url, is_public_address

REFUSED = """
    0.0.0.0 0.1.2.3 10.0.0.1 10.255.255.255 100.64.0.1 100.100.100.200 100.127.255.255 127.0.0.1 127.255.255.254 168.63.129.16
    169.254.0.1 169.254.169.254 172.16.0.1 172.31.255.255 192.0.0.192 192.0.2.1 192.88.99.1 192.168.0.1 198.18.0.1 198.19.255.255
    198.51.100.7 203.0.113.9 224.0.0.1 239.255.255.255 240.0.0.1 255.255.255.255
    :: ::1 ::ffff:127.0.0.1 ::ffff:a9fe:a9fe ::ffff:10.0.0.1 ::127.0.0.1 ::8.8.8.8 ::ffff:0:127.0.0.1
    64:ff9b::127.0.0.1 64:ff9b::a00:1 64:ff9b::169.254.169.254 64:ff9b:1::1 64:ff9b:1::8.8.8.8 64:ff9b:1:ffff::10.0.0.1
    2002:7f00:1:: 2002:a00:1::1 2002:c0a8:101::1 2002:808:808::1 2001:0:4136:e378:8000:63bf:f5ff:fffe 2001::1
    2607:f8b0::5efe:10.0.0.1 2607:f8b0::200:5efe:7f00:1 2607:f8b0::100:5efe:808:808
    fe80::1 fe80::1%eth0 febf::1 fec0::1 feff::1 fc00::1 fd00:ec2::254 fdff::1 ff02::1 ff0e::1
    2001:2::1 2001:10::1 2001:20::1 2001:db8::1 3fff::1 100::1 5f00::1 4000::1 2607:f8b0::1%2
    2130706433 0x7f000001 0x7f.1 0177.0.0.1 127.1 1.1.1.1%1 localhost example.org 8.8.8.8/32
"""
ALLOWED = """
    1.1.1.1 8.8.8.8 9.255.255.255 11.0.0.1 100.63.255.255 100.128.0.1 126.255.255.255 128.0.0.1 169.253.255.255 169.255.0.1 172.15.255.255
    172.32.0.1 192.0.1.1 192.167.255.255 192.169.0.1 198.17.255.255 198.20.0.1 223.255.255.255 168.63.129.17
    ::ffff:8.8.8.8 64:ff9b::8.8.8.8 2606:4700:4700::1111 2a00:1450:4001:80e::200e 2001:4860:4860::8888 2001:200::1 2003::1
    2607:f8b0::5eff:a00:1
"""


NO_ADDRESS = ["", " 8.8.8.8", "8.8.8.8\n", "[::1]"]


@pytest.mark.parametrize(
    ("addresses", "is_allowed"),
    [(ALLOWED.split(), True), (REFUSED.split(), False), (NO_ADDRESS, False)],
    ids=["public", "private", "text"],
)
def test_address_is_allowed_only_if_public(addresses, is_allowed):
    wrong = [address for address in addresses if is_public_address(address) is not is_allowed]
    assert wrong == []


HTTP = {"schemes": ("http", "https"), "is_literal_allowed": is_public_address}


@pytest.mark.parametrize(
    ("text", "dialled"),
    [
        ("http://host.test/a.png#part", "http://host.test/a.png"),
        ("https://HOST.test.:8443/a?x=1", "https://host.test:8443/a?x=1"),
        ("http://8.8.8.8/a", "http://8.8.8.8/a"),
        ("http://[2606:4700:4700::1111]/a", "http://[2606:4700:4700::1111]/a"),
    ],
)
def test_url_that_is_public_is_requested_in_its_plain_form(text, dialled):
    assert str(check_url(text, **HTTP)) == dialled


PRIVATE = r"""
    ftp://host.test/a file:///etc/passwd http://me:secret@host.test/ http://localhost/
    http://127.0.0.1/ http://2130706433/ http://0x7f.1/ http://[::1]/ http://[fe80::1%25eth0]/
    http://10.0.0.1/ http:///a http://host.test\@other.test/ http://host.test:99999/
"""


@pytest.mark.parametrize("text", [*PRIVATE.split(), "a b", "", "http://host.test/" + "a" * 3000])
def test_url_that_is_not_public_is_refused(text):
    with pytest.raises(UrlRefused):
        check_url(text, **HTTP)


def test_url_is_by_default_https_with_a_name():
    assert check_url("https://host.test/a", port=443).port == 443
    assert check_url("https://localhost/a", bare_names=True).host == "localhost"
    for text, how in (
        ("http://host.test/", {"port": 443}),
        ("https://8.8.8.8/", {"port": 443}),
        ("https://host.test:8443/", {"port": 443}),
        ("https://2130706433/", {"bare_names": True}),
    ):
        with pytest.raises(UrlRefused):
            check_url(text, **how)


def test_url_in_a_list_may_have_spaces_and_a_long_signature():
    assert (
        str(check_public_url("https://host.test/a b.jpg?c d"))
        == "https://host.test/a%20b.jpg?c%20d"
    )
    signed = f"https://host.test/a.jpg?X-Amz-Signature={'s' * 5000}"
    assert str(check_public_url(signed)) == signed
    odd = ["https://ex ample.test/", "https://host.test/a\nb", "https://me you@host.test/"]
    for text in (signed * 2, *odd):
        with pytest.raises(SourceError, match="source_denied"):
            check_public_url(text)
