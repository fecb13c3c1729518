"""The page's words on a profile: a name as the nearest known one, no name where there is none, words as text; nothing of a real image."""

import pytest

from ray_app.serving.http import schemas
from tests.images.factory import encoded, photo
from tests.reports import hostile
from tests.serving.page_browser import PHOTO, needs_browser, score_many, score_one

pytestmark = needs_browser
REAL = encoded(photo(320, 240, 3), "JPEG", quality=70)


def profile(name="sdxl_1.0/juggernaut-xl", words="a harbour at sunrise, <b>golden</b> light", **changes):
    generator = {
        "name": name, "title": name, "family": "sdxl_1.0" if name else None, "family_title": "Stable Diffusion XL" if name else None,
        "probability": 0.83, "confidence": 5.0, "known": name is not None, "ranking": ["sdxl", "flux.1-dev", "midjourney-6"],
        "nearest": "Stable Diffusion XL 1.0",
    }  # fmt: skip
    return schemas.Profile(generator=generator | changes, prompt={"text": words, "likelihood": -1.25} if words else None)


@pytest.fixture
def doubted(mood):
    """An image that is not called real."""
    mood.abstained = "outside its valid range"
    return mood


def shown(visitor, **view):
    page = visitor.visit(**view)
    score_one(page, "photo.jpg", PHOTO)
    return page


def test_a_known_generator_and_words_stand_beside_the_verdict(visitor, doubted):
    doubted.profile = profile()
    page = shown(visitor)
    section = page.text_content("section[aria-labelledby=profile]")
    assert page.text_content("#generator") == "sdxl_1.0/juggernaut-xl (Stable Diffusion XL)"
    assert "Among the generators that were learnt it has 83 % of the probability. Next: flux.1-dev, midjourney-6." in section
    assert page.text_content("#words") == "a harbour at sunrise, <b>golden</b> light"
    assert "Neither proves where the image came from" in section
    assert visitor.complaints == []


def test_an_image_like_no_known_one_gets_no_name(visitor, doubted):
    doubted.profile = profile(name=None, words=None)
    page = shown(visitor)
    assert page.text_content("#generator") == "Like no generator that was learnt"
    assert "Nearest of them: Stable Diffusion XL 1.0." in page.text_content("section[aria-labelledby=profile]")
    assert page.query_selector("#words") is None


def test_nothing_is_said_without_a_profile_and_of_no_image_called_real(visitor, mood):
    page = shown(visitor)
    assert page.query_selector("#profile") is None
    mood.profile = profile(words=None)
    page = visitor.visit()
    score_one(page, "real.jpg", REAL)
    assert '"verdict": "real"' in page.text_content("#json")
    assert page.query_selector("#profile") is None
    assert '"juggernaut' not in page.text_content(".finding")


@pytest.mark.parametrize("name", ["markup", "long", "reordered", "wide"])
def test_hostile_names_and_words_stay_text_and_fit_a_narrow_window(visitor, doubted, name):
    text = hostile.NAMES[name]
    doubted.profile = profile(text, text, ranking=[text, text], nearest=text)
    page = shown(visitor, width=390)
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    assert page.evaluate("document.querySelectorAll('#words *').length") == 0
    assert visitor.complaints == []


def test_a_table_of_many_has_generator_and_words_in_its_csv(visitor, doubted):
    doubted.profile = profile()
    page = visitor.visit()
    score_many(page, [("a.jpg", PHOTO), ("b.jpg", PHOTO)])
    with page.expect_download() as downloaded:
        page.click("text=Download CSV")
    text = downloaded.value.path().read_text()
    assert "predicted_generator,predicted_prompt" in text.splitlines()[0]
    assert text.count("sdxl_1.0/juggernaut-xl") == 2
