import json
import re

import pytest

from ray_app.reports.audit import audit_lines, render_audit
from tests.make.page_reader import read
from tests.reports import hostile
from tests.reports.audit_example import FACTS, NAMES, images

POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; "
    "form-action 'none'"
)
HOSTILE_FACTS = FACTS | {"run": hostile.NAMES["markup"]}
HOSTILE_IMAGES = images(hostile.NAMES.values(), {0: hostile.NAMES["attribute"]})
PAGES = {
    "example": render_audit(FACTS, *images()),
    "only flagged": render_audit(FACTS | {"only_flagged": True}, *images()),
    "hostile": render_audit(HOSTILE_FACTS, *HOSTILE_IMAGES),
    "empty": render_audit(FACTS, [], {}),
}


@pytest.mark.parametrize("kind", PAGES)
def test_audit_page_is_safe_and_hides_scores(kind):
    page = PAGES[kind]
    metas = read(page).attributes("meta")
    assert next(one for one in metas if one.get("http-equiv"))["content"] == POLICY
    for tag, attributes in read(page).tags:
        assert tag != "script"
        assert not [name for name in attributes if name.startswith("on")], tag
        assert (attributes.get("src") or attributes.get("href") or "data:").startswith("data:")
    said = re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL).lower()
    assert "score" not in said.replace("touchstone", "")
    assert kind != "only flagged" or "flag" not in said


def test_audit_page_numbers_images_in_sample_order():
    page = PAGES["example"]
    entry = r"Image (\d+) <small>of 5</small>.*?<details class=\"small\">(.*?)</details>"
    shown = re.findall(entry, page, re.DOTALL)
    assert [int(number) for number, _ in shown] == [1, 2, 3, 4, 5]
    for (_, details), name in zip(shown, NAMES, strict=True):
        assert name.partition(" ")[0] in details
    assert page.count("data:image/jpeg;base64") == 4
    assert page.count("The file cannot be read any more.") == 1


def figure(value, low=None, high=None, why=""):
    return {"value": value, "low": low, "high": high, "n": 9, "method": "m", "why": why}


def test_lines_of_an_audit_have_figures_and_reasons():
    document = {
        "labelled": 297, "drawn": 300, "scored": 80_000, "unsure": 3, "audit": {"ensemble": "calibrated"},
        "figures": {"prevalence": figure(0.0121, 0.0093, 0.0182), "precision": figure(0.91, 0.85, 0.95),
                    "recall": figure(None, why="no labelled image is fake"), "false_positive_rate": figure(0.003, 0.001, 0.012)},
        "findings": ["the card promises that at most 1 % of the reals are flagged"],
        "strata": [{"name": "fake, score below 3.10", "size": 400, "fakes": 50, "reals": 9, "unsure": 2}],
        "notes": ["3 images are unsure"],
    }  # fmt: skip
    text = "\n".join(audit_lines(json.loads(json.dumps(document)), 140))
    for pattern in (
        r"297 of 300 drawn images labelled, of 80,000 with a verdict \(ensemble calibrated\)",
        r"prevalence: fraction of fakes +1\.2 % +0\.93 to 1\.8 %",
        r"recall: flagged images among fakes +– +not available: no labelled image is fake",
        r"at most 1 % of the reals are flagged\n! 3 images are unsure$",
    ):
        assert re.search(pattern, text), pattern
    assert all(len(line) <= 60 for line in audit_lines(document, 60))
