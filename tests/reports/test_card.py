import re

import pytest
import yaml

from ray_app.config import named_configs
from ray_app.detectors import DetectorCard, load_card
from ray_app.reports.card import Here, card_page

NAMES = list(named_configs("detectors"))
WIDE = 100_000


# What no shipped card says of itself.
RARE = {
    "process": {
        "python": "python-a",
        "folder": "folder-a",
        "limit_s": 9061.5,
        "start_limit_s": 9062.5,
        "peak_bytes": 9063,
        "seconds": 9.064,
    },
    "own_pool": True,
    "valid_range": {"min_side_px": 9018, "max_side_px": 9019, "max_megapixels": 90.2, "note": "range-note"},
    "fragility": {
        "measured": [
            {"perturbation": "view-a", "steps": "steps-a", "auc": 0.931, "fpr": 0.032, "tpr": 0.733, "threshold": 9.034, "n_real": 9035}
            | {"n_fake": 9036, "source": "fragility-source", "note": "fragility-note"}
        ],
        "abstains": {"jpeg_quality": {"below": 37.5}, "graphics": {"above": 0.38, "what": "what-a"}},
    },
    "terms": "research-only",
    "variants": {"variant-a": {"preprocessing": {"center_crop": 9025}}},
}


def rare_card(**changes):
    data = load_card("touchstone-tiny").model_dump(mode="json")
    resize = {"resize": {"mode": "short_side", "size": 9004, "thumbnail_first": 9005}}
    return DetectorCard.model_validate(data | RARE | {"preprocessing": data["preprocessing"] | resize} | changes)


def leaves(value):
    if isinstance(value, dict | list | tuple):
        for item in value.values() if isinstance(value, dict) else value:
            yield from leaves(item)
    elif value is not None and not isinstance(value, bool) and value != "":
        yield value


def page_of(card, width=WIDE):
    return card_page(card, Here(False, {}), width)


def without_what_is_not_used(card):
    """A filter says nothing where nothing is resized, a padding nothing where nothing is cropped."""
    data = card.model_dump(mode="json")
    preprocessing = data["preprocessing"]
    if preprocessing["resize"]["mode"] == "none":
        del preprocessing["resize"]["mode"], preprocessing["filter"], preprocessing["resampler"]
    if preprocessing["center_crop"] is None:
        del preprocessing["pad"]
    return data


def missing_from(page, card):
    said = " ".join(page.split()).casefold().replace("− ", "-")  # a formula's minus is the number's
    absent = []
    for leaf in leaves(without_what_is_not_used(card)):
        if isinstance(leaf, str):
            ways = [" ".join(leaf.split()), leaf.replace("_", " ")]
        else:
            ways = [str(leaf), f"{leaf:,}", f"{leaf:g}", yaml.safe_dump(leaf).split()[0]]
        if not any(way.casefold() in said for way in ways):
            absent.append(leaf)
    return absent


def test_nothing_that_is_rare_is_left_out():
    page = page_of(rare_card())
    assert missing_from(page, rare_card()) == []
    for words in ("do not act on its verdicts", "touchstone-tiny:variant-a"):
        assert words in page


@pytest.mark.parametrize("name", NAMES)
def test_nothing_of_a_shipped_card_is_left_out_and_a_narrow_page_says_the_same(name):
    card = load_card(name)
    page, narrow = page_of(card), page_of(card, 80)
    assert missing_from(page, card) == []
    assert sorted(narrow.split()) == sorted(page.split())
    for line in narrow.splitlines():
        long_word = any(len(word) > 80 - 40 for word in line.split())
        assert len(line) <= 80 or long_word or re.match(r"  \S.*(yes|no) ", line), line
