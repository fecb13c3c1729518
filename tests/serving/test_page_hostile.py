import re

import pytest

from ray_app.errors import Status
from ray_app.images.facts import FLAG_MEANING
from ray_app.serving.http.errors import MESSAGES
from tests.serving.page_app import Mood, serving
from tests.serving.page_browser import Visitor, chromium, needs_browser, score_many, score_one
from tests.serving.test_page import PHOTO, encoded

pytestmark = needs_browser

HOSTILE = {
    "markup": '"><script>document.title="owned"</script><img src=x onerror=alert(1)>',
    "bidi": "invoice\u202egpj.exe\u2066\u200b",
    "marks": "Z" + "\u0351" * 60 + "algo",
    "long": "a" * 5000 + ".jpg",
    "formula": '=cmd|" /C calc"!A0',
}


@pytest.fixture(scope="module")
def endpoint():
    mood = Mood()
    with serving(mood) as url, chromium() as browser:
        yield mood, Visitor(browser, url)


@pytest.fixture
def visitor(endpoint):
    mood, visitor = endpoint
    mood.__init__()
    yield visitor
    visitor.leave()


def test_hostile_names_and_metadata_stay_text(endpoint, visitor):
    mood, _ = endpoint
    mood.metadata = {value: value for value in HOSTILE.values()}
    page = visitor.visit(width=390)
    before = page.locator("script").count()
    score_many(page, [(name, encoded(seed)) for seed, name in enumerate(HOSTILE.values())])
    assert_fits(page)
    names = page.locator(".gallery .link").all_text_contents()
    assert names[0].startswith('"><script>')
    assert "\\u202e" in names[1]
    assert max(map(len, names)) <= 60
    for at in range(len(HOSTILE)):
        page.locator(".gallery .link").nth(at).click()
        page.click("details:has(#json) summary")
        assert_fits(page)
        assert page.locator("script").count() == before
        assert page.locator(".one img").count() == 1
        assert not re.search("[\u202e\u2066\u200b]", page.text_content("main"))
        page.click(".among >> text=All 5 images")
    assert page.title() == "Touchstone"
    assert visitor.complaints == []


def assert_fits(page):
    assert page.evaluate("document.documentElement.scrollWidth") <= page.viewport_size["width"]


def test_a_hostile_name_in_the_curl_line_is_one_word_of_the_shell(visitor):
    page = visitor.visit()
    score_one(page, "$(touch owned)'; rm \u202e*.jpg", PHOTO)
    line = page.text_content("#curl").splitlines()[0]
    assert line == r"""curl --data-binary $'@$(touch owned)\x27; rm \xe2\x80\xae*.jpg' \ """.rstrip()


def test_every_code_and_flag_of_the_endpoint_has_words(visitor):
    page = visitor.visit()
    codes, flags = page.evaluate(
        """async ([codes, flags]) => {
          const words = await import("./page/words.js");
          return [codes.filter(code => !(code in words.TROUBLES)), flags.filter(flag => words.flag(flag) === flag)];
        }""",
        [[*MESSAGES, *(str(status) for status in Status if status is not Status.OK)], list(FLAG_MEANING)],
    )
    assert (codes, flags) == ([], [])


def test_axe_finds_nothing_in_any_state_and_scheme(endpoint, visitor):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    mood, _ = endpoint
    mood.several = mood.masks = True

    def check(page, state):
        report = axe.run(page)
        assert report.violations_count == 0, f"{state}: {report.generate_report()}"
        page.emulate_media(color_scheme="dark")
        report = axe.run(page, options={"runOnly": ["color-contrast"]})  # all else is the same in the dark
        assert report.violations_count == 0, f"{state}, dark: {report.generate_report()}"
        page.emulate_media(color_scheme="light")

    page = visitor.visit(reduced_motion="reduce")
    check(page, "empty")
    score_one(page, "photo.jpg", PHOTO)
    page.wait_for_selector(".overlay")
    page.click("details:has(#json) summary")
    check(page, "one")
    score_many(page, [("a.jpg", encoded(1)), ("b.txt", b"words")])
    page.click(".sort >> text=Verdict")
    check(page, "many")
    page.click("text=b.txt")
    check(page, "refused")
    mood.token = "correct horse battery"
    page = visitor.visit(width=390, wait=False)
    page.wait_for_selector("#token:focus")
    check(page, "token")
