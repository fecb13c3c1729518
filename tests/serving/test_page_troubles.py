"""The page in trouble: hostile names, an endpoint that is busy or away, a token; everything foreign
stays text.
"""

import re
import threading

import pytest

from ray_app.images.provenance import AigcLabel, Camera, ContentCredentials, Generator, Provenance
from ray_app.serving.http import schemas
from tests.make.browser import only_with_chromium
from tests.make.page_browser import PHOTO, choose, encoded, score_many, score_one

only_with_chromium()

pytestmark = pytest.mark.slow

HOSTILE = {
    "markup": '"><script>document.title="owned"</script><img src=x onerror=alert(1)>',
    "bidi": "invoice\u202egpj.exe\u2066\u200b",
    "marks": "Z" + "\u0351" * 60 + "algo",
    "long": "a" * 1000 + ".jpg",
    "formula": '=cmd|" /C calc"!A0',
}


def test_hostile_names_and_metadata_stay_text(visitor, mood):
    # As if nothing had been cleaned.
    mood.provenance = Provenance.model_construct(
        camera=Camera.model_construct(make=HOSTILE["markup"], model=HOSTILE["bidi"]),
        software=HOSTILE["marks"],
        generator=Generator.model_construct(
            tool=HOSTILE["long"], prompt=HOSTILE["formula"], nodes=tuple(HOSTILE.values())
        ),
        digital_source_type=tuple(HOSTILE.values()),
        aigc_label=AigcLabel.model_construct(level="suspected", producer=HOSTILE["markup"]),
        c2pa=ContentCredentials.model_construct(
            state="intact", signer=HOSTILE["markup"], ai_generated=True, problems=(HOSTILE["bidi"],)
        ),
        ai_declared=True,
    )
    text = "\n".join(HOSTILE.values())
    generator = {
        "name": text, "title": text, "family": "sdxl_1.0", "family_title": "Stable Diffusion XL", "probability": 0.83, "confidence": 5.0,
        "known": True, "ranking": [text, text], "nearest": text,
    }  # fmt: skip
    mood.profile = schemas.Profile(generator=generator, prompt={"text": text, "likelihood": -1.25})
    mood.abstained = "outside its valid range"
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
        assert page.locator("#words *").count() == 0
        assert not re.search("[\u202e\u2066\u200b]", page.text_content("main"))
        page.click(".among >> text=All 5 images")
    assert page.title() == "Touchstone"
    assert visitor.complaints == []


def assert_fits(page):
    assert page.evaluate("document.documentElement.scrollWidth") <= page.viewport_size["width"]


def test_hostile_name_is_one_word_of_the_curl_line(visitor):
    page = visitor.visit()
    score_one(page, "$(touch owned)'; rm \u202e*.jpg", PHOTO)
    line = page.text_content("#curl").splitlines()[0]
    assert (
        line == r"""curl --data-binary $'@$(touch owned)\x27; rm \xe2\x80\xae*.jpg' \ """.rstrip()
    )


def test_busy_endpoint_is_asked_again(visitor, mood):
    mood.busy = 1
    page = visitor.visit()
    choose(page, [("photo.jpg", PHOTO)])
    page.wait_for_selector("#state >> text=The endpoint is busy; trying again in 1 s.")
    page.wait_for_selector("#finding")
    assert len(mood.requests) == 2


def test_unreachable_endpoint_is_named_and_asked_again(visitor):
    page = visitor.visit()
    page.route("**/v1/score*", lambda route: route.abort())
    choose(page, [("photo.jpg", PHOTO)])
    page.wait_for_selector("[role=alert] >> text=The endpoint cannot be reached.")
    page.unroute("**/v1/score*")
    page.click("text=Continue")
    page.wait_for_selector("#finding")


def test_cancelled_run_keeps_results_and_resumes(visitor, mood):
    page = visitor.visit()
    mood.held = threading.Event()
    choose(page, [(f"{seed}.jpg", encoded(seed)) for seed in range(6)])
    page.wait_for_selector("text=0 of 6 images scored.")
    page.click("#cancel")
    page.wait_for_selector("text=6 images not scored.")
    mood.held.set()
    assert page.is_hidden("#progress")
    page.click("text=Continue")
    page.wait_for_selector("tr:nth-child(6) .link:enabled")
    assert page.locator("text=not scored").count() == 0


def test_token_is_requested_and_kept_in_this_tab_only(visitor, mood):
    mood.token = "correct horse battery"
    page = visitor.visit(wait=False)
    page.wait_for_selector("#token:focus")
    page.keyboard.type("wrong")
    page.keyboard.press("Enter")
    page.wait_for_selector("text=This token is not valid.")
    page.keyboard.type(mood.token)
    page.keyboard.press("Enter")
    page.wait_for_selector("#entry", state="hidden")
    score_one(page, "photo.jpg", PHOTO)
    assert page.evaluate("[{...sessionStorage}, {...localStorage}, document.cookie]") == [
        {"touchstone-token": mood.token},
        {},
        "",
    ]
    assert mood.token not in page.content()
    assert '"Authorization: Bearer $TOUCHSTONE_TOKEN"' in page.text_content("#curl")
