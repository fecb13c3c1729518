"""The arena as people play it, in a real Chromium: by keyboard, by touch, with a token, in troubles."""

import shutil

import pytest

from tests.reports.browser import chromium, only_with_chromium
from tests.serving.arena_app import application, pictures
from tests.serving.http.live import serving
from tests.serving.page_browser import Visitor

only_with_chromium()


@pytest.fixture(scope="module")
def browser():
    with chromium() as running:
        yield running


@pytest.fixture
def at(scorer, browser, tmp_path):
    """A person who comes to an arena that an endpoint of some settings has."""
    folder, ending = pictures(tmp_path / "photos"), []

    def come(*, folder=folder, **settings):
        serves = serving(application(scorer, folder, **settings))
        visitor = Visitor(browser, f"http://127.0.0.1:{serves.__enter__()}/arena")
        ending.append((serves, visitor))
        return visitor

    yield come
    for serves, visitor in ending:
        visitor.leave()
        serves.__exit__(None, None, None)


def focused(page):
    return page.evaluate("document.activeElement.textContent")


def check_axe(page, state):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    report = axe.run(page, options={"resultTypes": ["violations"]})
    assert report.violations_count == 0, f"{state}: {report.generate_report()}"
    page.emulate_media(color_scheme="dark")
    report = axe.run(page, options={"resultTypes": ["violations"], "runOnly": ["color-contrast"]})
    assert report.violations_count == 0, f"{state}, dark: {report.generate_report()}"
    page.emulate_media(color_scheme="light")


def test_a_round_by_keyboard_alone(at):
    visitor = at()
    page = visitor.visit(wait=False)
    right = seen = place = 0
    while place < 8:
        place += 1
        page.wait_for_selector(f"h2:text('Picture {place} of 8'), [role=alert]")
        if page.locator("[role=alert]").count():  # the broken one
            check_axe(page, "trouble")
            assert focused(page) == "Try again"
            page.keyboard.press("Tab")
            page.keyboard.press("Enter")
            page.wait_for_selector("[role=alert]", state="detached")
            continue
        assert focused(page) == f"Picture {place} of 8"
        if seen == 1:
            check_axe(page, "asked")
        page.keyboard.press("Enter")  # does nothing: no guess by mistake
        page.keyboard.press("Control+ArrowLeft")
        page.keyboard.press(("ArrowLeft", "r", "ArrowRight", "m")[place % 4])
        page.wait_for_selector("h2:text-matches('^(Right|No|Nobody)')")
        told = page.text_content("h2")
        assert page.text_content("#live").startswith(told)
        assert "The detectors: " in page.text_content("#live")
        assert told.startswith("Nobody") or (told.startswith("Right")) == (("real." in told) == (place % 4 < 2))
        right, seen = right + told.startswith("Right"), seen + (not told.startswith("Nobody"))
        assert focused(page) == "Next picture"
        page.keyboard.press("m")  # one guess of a picture
        page.keyboard.press("Enter")
    page.wait_for_selector(".standings")
    check_axe(page, "standings")
    assert f"This round you were right {right} of {seen} times." in page.text_content("#game")
    rows = page.locator(".standings tbody tr")
    assert [rows.nth(number).locator("th").text_content() for number in range(rows.count())] == ["all", "gen-a", "gen-b", "real:cam"]
    assert rows.nth(0).locator("td").nth(1).text_content() == "5"
    assert f"{20 * right} %" in rows.nth(0).locator("td").nth(2).text_content()
    assert focused(page) == "People against tiny"
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.wait_for_selector("h2:text('Picture 1 of 7')")
    assert {url.split("/")[2] for url in visitor.requests if not url.startswith("blob:")} == {visitor.url.split("/")[2]}
    assert page.context.cookies() == []
    assert page.evaluate("[localStorage.length, sessionStorage.length]") == [0, 0]
    assert [said for said in visitor.complaints if "415" not in said and "422" not in said] == []


def test_by_touch_on_a_small_screen_the_buttons_are_large_and_in_view(at, tmp_path):
    shutil.rmtree(tmp_path / "photos" / "unsorted")
    page = at().visit(width=360, height=640, wait=False, has_touch=True, is_mobile=True, reduced_motion="reduce")
    for place in range(1, 6):
        page.wait_for_selector(f"h2:text('Picture {place} of 5')")
        boxes = [page.get_by_role("button", name=name).bounding_box() for name in ("Real", "Made")]
        assert all(box["height"] >= 48 and box["width"] >= 120 and box["y"] + box["height"] <= 640 for box in boxes)
        page.get_by_role("button", name=("Real", "Made")[place % 2]).tap()
        page.get_by_role("button", name="Next picture").tap()
    page.wait_for_selector(".standings")
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    check_axe(page, "standings, small")


def test_a_token_is_asked_for_once(at, tmp_path):
    shutil.rmtree(tmp_path / "photos" / "unsorted")
    (tmp_path / "tokens").write_text("correct horse battery staple\n")
    page = at(access={"tokens_file": str(tmp_path / "tokens")}).visit(wait=False)
    page.wait_for_selector("[aria-label='Access token']:focus")
    check_axe(page, "token")
    page.keyboard.type("correct horse battery staple")
    page.keyboard.press("Enter")
    page.wait_for_selector("h2:text('Picture 1 of 5')")


def test_a_double_click_is_one_guess(at, tmp_path):
    shutil.rmtree(tmp_path / "photos" / "unsorted")
    page = at().visit(wait=False)
    page.get_by_role("button", name="Real").dblclick()
    page.wait_for_selector("h2:text-matches('^(Right|No|Picture 2)')")
    assert len(list((tmp_path / "photos.arena" / "guesses").iterdir())) == 1
