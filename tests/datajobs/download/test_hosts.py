"""When the next request to a host may start, and names of files."""

import asyncio

import pytest

from ray_app.datajobs.download.config import Politeness
from ray_app.datajobs.download.fetch import Host
from ray_app.datajobs.download.sink import (
    append_hash,
    choose_extension,
    get_host,
    make_file_stems,
    make_safe_name,
)
from ray_app.storage.guarded_http import FetchFailed


def visit(host):
    async def inside():
        async with host.visit():
            return True

    return asyncio.run(inside())


def test_a_long_wait_closes_the_host_and_a_short_one_does_not():
    host = Host("a", Politeness(longest_wait_s=10), lambda: 0.0)
    host.slow_down(None)
    assert visit(host)
    host.slow_down(11)
    with pytest.raises(FetchFailed, match="asks to wait 11 s") as caught:
        visit(host)
    assert (caught.value.asked, caught.value.status) == (False, "source_throttled")


def test_a_host_is_not_asked_sooner_than_the_rules_say():
    now = [0.0]

    async def waits(host):
        async with host.visit():
            pass
        now[0] += 29
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05), host.visit():
                pass
        return True

    host = Host("a", Politeness(per_host=1, pause_s=30), lambda: now[0])
    host.slow_down(None)
    assert asyncio.run(waits(host))


def test_silence_counts_only_in_a_row():
    host = Host("a", Politeness(give_up_after=2))
    for _ in range(3):
        host.count_silence()
        host.count_answer()
    assert visit(host)
    host.count_silence()
    host.count_silence()
    with pytest.raises(FetchFailed, match="2 consecutive urls"):
        visit(host)


HARMFUL = ["COM¹", "", ".", "..", "../x", "/etc/passwd", "a\\b", "a\0b", "C:x", ".x", "x."]
HARMFUL += ["NUL", "com1.png", "é" * 200, "a\nb"]


def test_harmful_ids_are_marked_and_others_keep_their_names():
    for name in ("0012345", "a.b.c", "x-1_2", "ünïcode", "a=b,c@d+e"):
        assert make_safe_name(name) == name
    for name in HARMFUL:
        safe = make_safe_name(name)
        assert safe != name
        assert not {"/", "\\", "\0", ":", "\n"} & set(safe)
        assert safe[0] != "."
        assert len(safe.encode()) < 200
        assert safe.count("~") == 1


def test_names_that_differ_only_in_case_are_told_apart():
    chosen, cases = make_file_stems(["A", "a", "b", "a/b", "a_b", "B", append_hash("a", "a")])
    assert len({name.casefold() for name in chosen}) == 7
    assert (chosen[0], chosen[2], cases) == ("A", "b", 2)


@pytest.mark.parametrize(
    "url", ["http://ａ.test/x", "http://A.test:80/x", "https://a.test./y", "http://a.test:8080/"]
)
def test_one_host_is_counted_once_however_it_is_spelt(url):
    assert get_host(url) == "a.test"


@pytest.mark.parametrize(
    ("content_type", "image_format", "expected"),
    [
        ("image/jpeg", "JPEG", "jpeg"), ("image/jpg; charset=utf-8", "JPEG", "jpg"), ("image/png", "WEBP", "webp"), (None, "PNG", "png"),
        ("application/octet-stream", "JPEG", "jpeg"), ("IMAGE/WEBP", "WEBP", "webp"), ("image/../../x", "PNG", "png"),
    ],
)  # fmt: skip
def test_ending_is_the_content_type_if_the_bytes_agree(content_type, image_format, expected):
    assert choose_extension(content_type, image_format) == expected
