import base64
import csv
import hashlib
import io
import json
import re

import pytest
from PIL import Image

from ray_app.reports.audit import AuditImage, audit_lines, render_audit
from tests.reports import hostile
from tests.reports.page_reader import read

FACTS = {"made_at": "2026-11-21T19:00:00+00:00", "run": "/data/run", "version": "0.7.0", "scored": 12345}


def jpeg():
    buffer = io.BytesIO()
    Image.new("RGB", (48, 32), (120, 90, 60)).save(buffer, "JPEG")
    return buffer.getvalue()


def images(names=("one, two.jpg", 'say "hi".jpg', "three.jpg", "four.jpg", "five.jpg"), members=None):
    return [
        AuditImage(2**62 + place, f"/archive/{name}", (members or {}).get(place), place % 3, None if place == 3 else jpeg())
        for place, name in enumerate(names)
    ]


@pytest.fixture(scope="module", params=["example", "hostile", "empty"])
def page(request):
    if request.param == "hostile":
        names = list(hostile.NAMES.values())
        return render_audit(FACTS | {"run": hostile.NAMES["markup"]}, images(names, {0: hostile.NAMES["attribute"]}))
    return render_audit(FACTS, images() if request.param == "example" else [])


def test_it_runs_its_own_script_alone_and_loads_nothing(page):
    policy = next(one for one in read(page).attributes("meta") if one.get("http-equiv"))["content"]
    [script] = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy == (
        f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    )
    for tag, attributes in read(page).tags:
        assert not [name for name in attributes if name.startswith("on")], tag
        assert (attributes.get("src") or attributes.get("href") or "data:").startswith("data:")
    for word in ("fetch(", "XMLHttpRequest", "WebSocket", "sendBeacon", "import(", "eval("):
        assert word not in script


def test_it_tells_nobody_what_detectors_said(page):
    words = re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL)
    assert "score" not in re.sub(r"<style>.*?</style>", "", words, flags=re.DOTALL).lower().replace("touchstone", "")


def test_every_choice_has_a_name_and_a_state(page):
    found = read(page)
    buttons = [one for one in found.attributes("button") if "data-label" in one]
    assert len(buttons) == 3 * len([one for one in found.attributes("li") if "data-id" in one])
    assert all(one["aria-pressed"] == "false" and one["type"] == "button" for one in buttons)
    assert all(one.get("aria-labelledby") for one in found.attributes("li"))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("audit")
    many = images([f"{number}.jpg" for number in range(40)])
    wide = images([hostile.NAMES[name] for name in ("long", "wide", "stacked", "deep", "markup")])
    for name, shown in {"example": images(members={1: "in.zip"}), "many": many, "wide": wide}.items():
        (folder / f"{name}.html").write_text(render_audit(FACTS, shown), encoding="utf-8")
    return folder


def press(browser, *keys):
    for key in keys:
        browser.call("Input.dispatchKeyEvent", type="keyDown", key=key, text=key if len(key) == 1 else "")
        browser.call("Input.dispatchKeyEvent", type="keyUp", key=key)


def said(browser):
    return browser.ask("document.getElementById('said').textContent")


@pytest.mark.parametrize("width", [390, 1440])
@pytest.mark.parametrize("name", ["example", "many", "wide"])
def test_it_fits_its_window_and_asks_for_nothing(browser, files, name, width):
    browser.show(files / f"{name}.html", width=width)
    browser.ask("document.querySelectorAll('details').forEach(one => one.open = true)")
    assert browser.ask("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    asked = [event["request"]["url"].split(":")[0] for event in browser.called("Network.requestWillBeSent")]
    assert asked.count("file") == 1
    assert set(asked) <= {"file", "data"}
    assert browser.called("Log.entryAdded") == browser.called("Runtime.consoleAPICalled") == []
    assert browser.called("Runtime.exceptionThrown") == browser.called("Page.javascriptDialogOpening") == []
    sizes = browser.ask("[...document.querySelectorAll('button')].map(one => one.getBoundingClientRect().height)")
    assert min(sizes) >= 24  # WCAG 2.2, target size


def test_labels_by_keys_and_buttons_stay_and_are_saved_as_a_file(browser, files):
    page = files / "example.html"
    browser.show(page, width=1000)
    browser.ask("localStorage.clear()")
    browser.show(page, width=1000)
    assert said(browser) == "0 of 5 labelled"
    press(browser, "r", "F")
    assert said(browser) == "2 of 5 labelled: 1 real, 1 fake"
    assert browser.ask("document.activeElement.dataset.id") == str(2**62 + 2)
    press(browser, "ArrowLeft", "u")
    assert said(browser) == "2 of 5 labelled: 1 real, 1 unsure"
    browser.ask("document.querySelectorAll('.card')[4].querySelector('[data-label=fake]').click()")
    assert browser.ask("document.querySelectorAll('[aria-pressed=true]').length") == 3
    browser.ask("document.querySelectorAll('.card')[4].querySelector('[data-label=fake]').click()")
    assert said(browser) == "2 of 5 labelled: 1 real, 1 unsure"
    press(browser, "f")
    assert browser.ask("document.querySelector('.current').dataset.id") == str(2**62 + 2), "back to the first without a label"
    browser.show(page, width=1000)
    assert said(browser) == "3 of 5 labelled: 1 real, 1 fake, 1 unsure"
    rows = list(csv.DictReader(io.StringIO(saved(browser))))
    assert [row["label"] for row in rows] == ["real", "unsure", "", "", "fake"]
    assert [(row["image_id"], row["uri"], row["member"], row["stratum"]) for row in rows] == [
        (str(one.image_id), one.uri, one.member or "", str(one.stratum)) for one in images(members={1: "in.zip"})
    ]
    assert browser.called("Runtime.exceptionThrown") == []


def saved(browser):
    """The file that a click on the button saves."""
    with browser.page.expect_download(timeout=20_000) as saving:
        browser.ask("document.getElementById('save').click()")
    assert saving.value.suggested_filename == "labels.csv"
    return saving.value.path().read_text(encoding="utf-8")


def test_shortcuts_of_the_browser_are_left_alone(browser, files):
    browser.show(files / "many.html", width=1000)
    browser.call("Input.dispatchKeyEvent", type="keyDown", key="r", modifiers=2)
    assert said(browser) == "0 of 40 labelled"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_what_is_chosen_can_be_read_in_either_scheme(browser, files, scheme):
    browser.show(files / "many.html", width=1000, scheme=scheme)
    for word in ("real", "fake", "unsure"):
        browser.ask(f"document.querySelectorAll('.card')[9].querySelector('[data-label={word}]').click()")
        colours = browser.ask(
            "(style => [style.color, style.backgroundColor])(getComputedStyle(document.querySelectorAll('.card')[9]"
            ".querySelector('[aria-pressed=true]')))"
        )
        lighter, darker = sorted((luminance(colour) for colour in colours), reverse=True)
        assert (lighter + 0.05) / (darker + 0.05) >= 4.5, (word, colours)


def luminance(colour):
    parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def figure(value, low=None, high=None, why=None):
    return {"value": value, "interval": None if low is None else [low, high], "method": "m", "n": 9, "why": why}


def test_an_answer_in_lines():
    document = {
        "labelled": 297, "drawn": 300, "scored": 80_000, "unsure": 3, "audit": {"ensemble": "calibrated"},
        "figures": {"prevalence": figure(0.0121, 0.0093, 0.0182), "precision": figure(0.91, 0.85, 0.95),
                    "recall": figure(None, why="no labelled image is fake")},
        "if_unsure_were_either": {"prevalence": [0.009, 0.02], "precision": [0.8, 0.96]},
        "strata": [{"name": "fake, score below 3.10", "size": 400, "fakes": 50, "reals": 9, "unsure": 2}],
        "notes": ["3 images are unsure"],
    }  # fmt: skip
    text = "\n".join(audit_lines(json.loads(json.dumps(document)), 120))
    assert "297 of 300 drawn images labelled, of 80,000 with a verdict (ensemble calibrated)" in text
    assert re.search(r"prevalence: the share of fakes +1\.2 % +0\.93 % to 1\.8 % +0\.90 % to 2\.0 %", text)
    assert re.search(r"recall: flagged among the fakes +– +no labelled image is fake +–", text)
    assert re.search(r"fake, score below 3\.10 +400 +59 +50 +2", text)
    assert text.endswith("! 3 images are unsure")
    assert all(len(line) <= 60 for line in audit_lines(document, 60))
