"""What `touchstone check` says of some pictures and of many: reasons once, a page in pieces, links
that hold where page and files go.
"""

import tracemalloc
from pathlib import Path

import pytest

from ray_app.reports.check import check_lines, render_check
from ray_app.reports.html import file_link
from tests.make.page_reader import PageReader, read
from tests.reports.check_example import FACTS, check_row, check_rows, names_of
from tests.reports.example import thumbnail


def test_reason_of_many_files_is_one_line_with_its_count():
    small = {"why": "out_of_range", "detail": "40 px"}
    rows = [check_row(f"{number}.jpg", -5.0, "real") for number in range(9)]
    rows += [check_row(f"small-{number}.jpg", 0.0, "abstain", **small) for number in range(400)]
    rows.append(check_row("odd.jpg", 0.0, "abstain", why="inside_band"))
    rows.append(check_row("cut.jpg", None, None, detail="ends after 7 bytes"))
    lines = check_lines(rows, names_of(rows), FACTS, 100)
    assert len(lines) < 8
    assert lines[1].startswith("411 files: ")
    outside = "the image is outside the range for which a detector was made: 40 px"
    assert f"400 files, the first holiday/small-0.jpg: {outside}" in lines
    assert "holiday/odd.jpg: the score is between the two thresholds" in lines
    assert "holiday/cut.jpg: ends after 7 bytes" in lines


def test_grounds_of_many_files_are_said_once():
    said = [{"source": "exif", "says": "EXIF names a camera", "error": "anybody can write it"}]
    rows = [check_row(f"{number}.jpg", -5.0, "real", grounds=said) for number in range(30)]
    lines = check_lines(rows, names_of(rows), FACTS, 100)
    at = lines.index("30 files, the first holiday/0.jpg:")
    assert lines[at + 1] == "  EXIF names a camera (anybody can write it)"
    assert sum("EXIF" in line for line in lines) == 1


def page_text(rows):
    page = "".join(render_check(rows, names_of(rows), [None] * len(rows), FACTS, Path("/p.html")))
    return read(page).text


def test_verdict_is_shown_only_if_the_finding_differs():
    plain = [check_row("a.jpg", 4.0, "fake"), check_row("b.jpg", 0.0, "abstain", why="inside_band")]
    declared = check_row("c.jpg", -6.0, "real") | {"finding": "says that a model made it"}
    assert page_text(plain).count("flagged as fake") == 2  # The count, and the filter.
    assert "no evidence found, probability" in page_text([*plain, declared])
    without = check_row("d.jpg", 4.0, "fake") | {"finding": None}
    assert page_text([without, declared]).count("flagged as fake") == 3  # Also its heading.
    for row, has_verdict in ((plain[0], False), (declared, True), (without, False)):
        decided = (
            page_text([row])
            .partition("The decision")[2]
            .partition("The score and the thresholds")[0]
        )
        assert ("Verdict" in decided) == has_verdict


@pytest.mark.parametrize(("page", "file", "link"), [
    ("/home/me", "/home/me/holiday/a b.jpg", "holiday/a%20b.jpg"),
    ("/home/me/pages", "/home/me/holiday/a.jpg", "../holiday/a.jpg"),
    ("/tmp", "/home/me/a.jpg", "file:///home/me/a.jpg"),
    ("/home", "/home/javascript:alert(1).jpg", "javascript%3Aalert%281%29.jpg"),
    ("/home", "/home/a#b?c.jpg", "a%23b%3Fc.jpg"),
    ("/home", "-", None),
    ("/home", "s3://b/a.jpg", None),
    ("/home", "https://example.org/a.jpg", "https://example.org/a.jpg"),
    ("/home", "https://example.org/a.jpg?token=1", None),
])  # fmt: skip
def test_link_holds_if_page_and_file_are_moved_together(page, file, link):
    assert file_link(file, None, page) == link


def test_page_says_a_reason_once_and_links_each_file(tmp_path):
    rows = check_rows(12, f"{tmp_path}/holiday")
    pictures = [thumbnail()] * 11 + [None]
    text = "".join(render_check(rows, names_of(rows), pictures, FACTS, tmp_path / "page.html"))
    page = PageReader(text)
    links = [one["href"] for one in page.attributes("a")]
    assert links == [f"holiday/{number % 3}/{number}.jpg" for number in range(12)]
    assert str(tmp_path) not in text
    assert page.text.count("Why, like 2 others") == 6
    assert page.text.count("The score is between the two thresholds") == 1


def test_pictures_of_a_page_are_in_memory_once(tmp_path):
    rows = check_rows(90)
    pictures = [thumbnail() + bytes(200_000) for _ in rows]
    tracemalloc.start()
    written = sum(map(len, render_check(rows, names_of(rows), pictures, FACTS, Path("page.html"))))
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert written > 24_000_000
    assert most < 4_000_000


def test_page_of_one_image_shows_its_provenance():
    camera = {"make": "Canon", "model": "EOS 7D", "taken": "2024:05:06 07:08:09"}
    generator = {"tool": "Stable Diffusion web UI", "prompt": "a cat on a chair", "model": "xl"}
    c2pa = {"state": "intact", "claim_generator": "Adobe_Firefly", "ai_generated": True}
    said = {"camera": camera, "generator": generator, "c2pa": c2pa, "ai_declared": True}
    text = page_text([check_row("cat.jpg", 4.0, "fake") | {"provenance": said}])
    for words in (
        "camera, model EOS 7D",
        "prompt a cat on a chair",
        "signature unchanged since it was signed, by a signer unknown here",
        "declares itself generated yes",
    ):
        assert words in text
