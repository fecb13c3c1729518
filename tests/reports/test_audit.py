import io
import json
import re

import pytest
from PIL import Image

from ray_app.reports.audit import audit_lines, render_audit
from tests.reports import hostile
from tests.reports.page_reader import read

FACTS = {
    "made_at": "2026-11-21T19:00:00+00:00",
    "run": "/data/run",
    "version": "0.7.0",
    "scored": 12345,
    "only_flagged": False,
}


def jpeg():
    buffer = io.BytesIO()
    Image.new("RGB", (48, 32), (120, 90, 60)).save(buffer, "JPEG")
    return buffer.getvalue()


def images(
    names=("one, two.jpg", 'say "hi".jpg', "three.jpg", "four.jpg", "five.jpg"), members=None
):
    """Images to label, and pictures of all but the fourth."""
    rows = [
        {
            "image_id": 2**62 + place,
            "uri": f"/archive/{name}",
            "member": (members or {}).get(place),
            "stratum": place % 3,
        }
        for place, name in enumerate(names)
    ]
    return rows, {row["image_id"]: jpeg() for place, row in enumerate(rows) if place != 3}


@pytest.fixture(scope="module", params=["example", "hostile", "empty"])
def page(request):
    if request.param == "hostile":
        names = list(hostile.NAMES.values())
        return render_audit(
            FACTS | {"run": hostile.NAMES["markup"]},
            *images(names, {0: hostile.NAMES["attribute"]}),
        )
    return render_audit(FACTS, *images() if request.param == "example" else ([], {}))


def test_page_runs_no_script_and_loads_nothing(page):
    policy = next(one for one in read(page).attributes("meta") if one.get("http-equiv"))["content"]
    assert (
        policy
        == "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
    )
    for tag, attributes in read(page).tags:
        assert tag != "script"
        assert not [name for name in attributes if name.startswith("on")], tag
        assert (attributes.get("src") or attributes.get("href") or "data:").startswith("data:")


def test_it_tells_nobody_what_detectors_said(page):
    said = (
        re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL).lower().replace("touchstone", "")
    )
    assert "score" not in said
    flagged = render_audit(FACTS | {"only_flagged": True}, *images())
    assert "flag" not in re.sub(r"<style>.*?</style>", "", flagged, flags=re.DOTALL)


def test_page_numbers_images_in_the_order_of_the_sample():
    rows, pictures = images()
    page = render_audit(FACTS, rows, pictures)
    shown = re.findall(
        r"Image (\d+) <small>of 5</small>.*?<details class=\"small\">(.*?)</details>",
        page,
        re.DOTALL,
    )
    assert [int(number) for number, _ in shown] == [1, 2, 3, 4, 5]
    for (_, details), name in zip(shown, ("one, two", "say", "three", "four", "five"), strict=True):
        assert name in details
    assert page.count("data:image/jpeg;base64") == 4
    assert page.count("It cannot be read any more.") == 1


def figure(value, low=None, high=None, why=""):
    return {"value": value, "low": low, "high": high, "n": 9, "method": "m", "why": why}


def test_an_answer_in_lines():
    document = {
        "labelled": 297, "drawn": 300, "scored": 80_000, "unsure": 3, "audit": {"ensemble": "calibrated"},
        "figures": {"prevalence": figure(0.0121, 0.0093, 0.0182), "precision": figure(0.91, 0.85, 0.95),
                    "recall": figure(None, why="no labelled image is fake"), "false_positive_rate": figure(0.003, 0.001, 0.012)},
        "findings": ["the card promises that at most 1 % of the reals are flagged"],
        "strata": [{"name": "fake, score below 3.10", "size": 400, "fakes": 50, "reals": 9, "unsure": 2}],
        "notes": ["3 images are unsure"],
    }  # fmt: skip
    text = "\n".join(audit_lines(json.loads(json.dumps(document)), 140))
    assert (
        "297 of 300 drawn images labelled, of 80,000 with a verdict (ensemble calibrated)" in text
    )
    assert re.search(r"prevalence: the share of fakes +1\.2 % +0\.93 to 1\.8 %", text)
    assert re.search(
        r"recall: flagged among the fakes +– +cannot be said: no labelled image is fake", text
    )
    assert text.endswith(
        "the card promises that at most 1 % of the reals are flagged\n! 3 images are unsure"
    )
    assert all(len(line) <= 60 for line in audit_lines(document, 60))
