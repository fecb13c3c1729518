"""The page's texts: hostile names, troubles of endpoint and images, profiles, origins; everything foreign stays text."""

import re
import threading

from ray_app.images.provenance import Camera, ContentCredentials, Generator, Provenance
from ray_app.serving.http import schemas
from tests.images import factory
from tests.images.provenance.files import png_with
from tests.images.provenance.signing import signed, tampered
from tests.serving.page_browser import PHOTO, encoded, require_browser, score_many, score_one

require_browser()

HOSTILE = {
    "markup": '"><script>document.title="owned"</script><img src=x onerror=alert(1)>',
    "bidi": "invoice\u202egpj.exe\u2066\u200b",
    "marks": "Z" + "\u0351" * 60 + "algo",
    "long": "a" * 5000 + ".jpg",
    "formula": '=cmd|" /C calc"!A0',
}

REAL = factory.encoded(factory.photo(320, 240, 3), "JPEG", quality=70)


def profile(name="sdxl_1.0/juggernaut-xl", words="a harbour at sunrise, <b>golden</b> light", **changes):
    generator = {
        "name": name, "title": name, "family": "sdxl_1.0" if name else None, "family_title": "Stable Diffusion XL" if name else None,
        "probability": 0.83, "confidence": 5.0, "known": name is not None, "ranking": ["sdxl", "flux.1-dev", "midjourney-6"],
        "nearest": "Stable Diffusion XL 1.0",
    }  # fmt: skip
    return schemas.Profile(generator=generator | changes, prompt={"text": words, "likelihood": -1.25} if words else None)


def test_hostile_names_and_metadata_stay_text(visitor, mood):
    mood.provenance = Provenance.model_construct(
        camera=Camera.model_construct(make=HOSTILE["markup"], model=HOSTILE["bidi"]),
        software=HOSTILE["marks"],
        generator=Generator.model_construct(tool=HOSTILE["long"], prompt=HOSTILE["formula"], nodes=tuple(HOSTILE.values())),
        digital_source_type=tuple(HOSTILE.values()),
        c2pa=ContentCredentials.model_construct(state="intact", signer=HOSTILE["markup"], ai_generated=True, problems=(HOSTILE["bidi"],)),
        ai_declared=True,
    )  # as if nothing had been cleaned
    text = "\n".join(HOSTILE.values())
    mood.abstained, mood.profile = "outside its valid range", profile(text, text, ranking=[text, text], nearest=text)
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


def test_a_hostile_name_in_the_curl_line_is_one_word_of_the_shell(visitor):
    page = visitor.visit()
    score_one(page, "$(touch owned)'; rm \u202e*.jpg", PHOTO)
    line = page.text_content("#curl").splitlines()[0]
    assert line == r"""curl --data-binary $'@$(touch owned)\x27; rm \xe2\x80\xae*.jpg' \ """.rstrip()


def test_an_endpoint_that_is_busy_or_out_of_reach_is_told_in_words_and_asked_again(visitor, mood):
    mood.busy = 1
    page = visitor.visit()
    page.set_input_files("#files", {"name": "photo.jpg", "mimeType": "image/jpeg", "buffer": PHOTO})
    page.wait_for_selector("#state >> text=The endpoint is busy; trying again in 1 s.")
    page.wait_for_selector("#finding")
    assert len(mood.requests) == 2
    page = visitor.visit()
    page.route("**/v1/score*", lambda route: route.abort())
    page.set_input_files("#files", {"name": "photo.jpg", "mimeType": "image/jpeg", "buffer": PHOTO})
    page.wait_for_selector("[role=alert] >> text=The endpoint cannot be reached.")
    page.unroute("**/v1/score*")
    page.click("text=Go on")
    page.wait_for_selector("#finding")


def test_cancel_keeps_what_is_done_and_goes_on_when_asked(visitor, mood):
    page = visitor.visit()
    mood.held = threading.Event()
    page.set_input_files("#files", [{"name": f"{seed}.jpg", "mimeType": "image/jpeg", "buffer": encoded(seed)} for seed in range(6)])
    page.wait_for_selector("text=0 of 6 images scored.")
    page.click("#cancel")
    page.wait_for_selector("text=6 images not scored.")
    mood.held.set()
    assert page.is_hidden("#progress")
    page.click("text=Go on")
    page.wait_for_selector("tr:nth-child(6) .link:enabled")
    assert page.locator("text=not scored").count() == 0


def test_a_token_is_asked_for_and_kept_in_this_tab_only(visitor, mood):
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
    assert page.evaluate("[{...sessionStorage}, {...localStorage}, document.cookie]") == [{"touchstone-token": mood.token}, {}, ""]
    assert mood.token not in page.content()
    assert '"Authorization: Bearer $TOUCHSTONE_TOKEN"' in page.text_content("#curl")


def test_without_javascript_it_says_how_to_ask(visitor):
    page = visitor.visit(java_script_enabled=False, wait=False)
    assert "curl --data-binary @photo.jpg" in page.text_content("noscript pre")
    assert page.is_hidden("#drop")


def test_a_profile_stands_beside_the_verdict_and_never_of_an_image_called_real(visitor, mood):
    page = visitor.visit()
    mood.abstained, mood.profile = "outside its valid range", profile()
    score_one(page, "photo.jpg", PHOTO)
    section = page.text_content("section[aria-labelledby=profile]")
    assert page.text_content("#generator") == "sdxl_1.0/juggernaut-xl (Stable Diffusion XL)"
    assert "Among the generators that were learnt it has 83 % of the probability. Next: flux.1-dev, midjourney-6." in section
    assert page.text_content("#words") == "a harbour at sunrise, <b>golden</b> light"
    assert "Neither proves where the image came from" in section
    mood.profile, page = profile(name=None, words=None), visitor.visit()
    score_one(page, "photo.jpg", PHOTO)
    assert page.text_content("#generator") == "Like no generator that was learnt"
    assert "Nearest of them: Stable Diffusion XL 1.0." in page.text_content("section[aria-labelledby=profile]")
    assert page.query_selector("#words") is None
    mood.abstained, mood.profile, page = None, profile(words=None), visitor.visit()
    score_one(page, "real.jpg", REAL)
    assert '"verdict": "real"' in page.text_content("#json")
    assert page.query_selector("#profile") is None
    assert visitor.complaints == []


ORIGINS = {
    "intact": (
        signed(),
        ["Intact, signer unknown.", "calls itself Throwaway; anybody can", "made by a trained model (trainedAlgorithmicMedia)"],
    ),
    "invalid": (tampered(signed()), ["Invalid.", "What it says does not count", "Checks that failed", "assertion.dataHash.mismatch"]),
    "generator": (png_with(parameters="a cat\nSteps: 20, Sampler: Euler"), ["Stable Diffusion web UI", "a cat", "20 steps, Euler"]),
    "nothing": (encoded(3), ["says nothing of its origin"]),
}


def test_the_page_says_how_far_what_a_file_says_of_its_origin_can_be_believed(visitor):
    page = visitor.visit(width=390)
    score_many(page, [(name, data) for name, (data, _) in ORIGINS.items()])
    for name, (_, words) in ORIGINS.items():
        page.click(f".gallery .link >> text={name}")
        text = page.text_content("section:has(#origin)")
        assert [one for one in words if one not in text] == [], name
        assert page.locator(".declared").count() == (name in ("intact", "generator")), name
        assert_fits(page)
        page.click(".among >> text=All 4 images")
    assert visitor.complaints == []
