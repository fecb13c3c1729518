import csv
import io
import json
import math
import re
import shlex
import subprocess

import pytest
from PIL import Image

from ray_app.serving.answers import NOT_REQUESTED
from tests.make.browser import only_with_chromium
from tests.make.page_browser import PHOTO, Visitor, encoded, score_many, score_one
from tests.reports.real_pages import FITS
from tests.serving.page_app import ERROR_RATES, POINTS, TINY, error_rates_at, shipped_ensemble

only_with_chromium()

pytestmark = pytest.mark.slow

WORDS = {"fake": "Flagged by detectors", "real": "No evidence found", "abstain": "Left open"}
NAMES = ['=HYPERLINK("x").jpg', "+1.jpg", "-1.jpg", "@a.jpg", 'say "hi", you.jpg', "plain.jpg"]


def test_one_image_gets_its_finding_and_answer(visitor, mood, tmp_path):
    page = visitor.visit()
    score_one(page, "it's a photo.jpg", PHOTO)
    expected = shipped_ensemble().score([PHOTO])[0]
    answer = json.loads(page.text_content("#json"))
    assert math.isclose(answer["score"], expected.score, rel_tol=1e-6)
    shown_digest = page.text_content("#file ~ * .code, section[aria-labelledby=file] .code")
    assert answer["sha256"] == expected.facts.sha256 == shown_digest
    assert page.text_content("#finding") == WORDS[expected.verdict]
    assert page.evaluate("document.activeElement.id") == "finding"
    assert page.title().startswith(WORDS[expected.verdict])
    shown = page.text_content(".one")
    assert f"{expected.probability:.3f} not calibrated" in shown
    assert "Demonstration ensemble" in shown
    assert "What this does not mean" in shown
    terms = page.locator(".figures dt").all_text_contents()
    assert terms == ["Probability of fake", "Score"]  # The finding contains the verdict.
    assert not page.is_visible("#point")
    assert page.text_content(".finding").count(ERROR_RATES) == 1
    sign = "−" if expected.score < 0 else "+"
    assert page.get_attribute(".bar-scale", "data-score") == f"{sign}{abs(expected.score):.2f}"
    assert page.evaluate("getComputedStyle(document.querySelector('.band')).fill") != "rgb(0, 0, 0)"

    (tmp_path / "it's a photo.jpg").write_bytes(PHOTO)
    command = shlex.split(page.text_content("#curl").replace("\\\n", " "))
    done = subprocess.run([*command, "-s"], cwd=tmp_path, check=True, capture_output=True)
    assert json.loads(done.stdout)["score"] == answer["score"]
    assert mood.requests == [("", 1), ("", 1)]
    hosts = {url.split("/")[2] for url in visitor.requests if not url.startswith("blob:")}
    assert hosts == {visitor.url.split("/")[2]}
    assert visitor.complaints == []


def test_whole_application_answers_its_page(page_and_mood, local):
    visitor = Visitor(page_and_mood[1].browser, local[0])
    try:
        page = visitor.visit()
        score_one(page, "photo.jpg", PHOTO)
        answer = json.loads(page.text_content("#json"))
        expected = shipped_ensemble().score([PHOTO])[0]
        assert math.isclose(answer["score"], expected.score, rel_tol=1e-5, abs_tol=1e-5)
        assert page.text_content("#finding") == WORDS[expected.verdict]
        assert visitor.complaints == []
    finally:
        visitor.leave()


def test_mask_is_turned_as_its_picture_and_fades(visitor, mood):
    mood.masks = True
    page = visitor.visit()
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying: its upper left corner is shown at the upper right
    score_one(page, "turned.jpg", encoded(2, exif=exif))
    page.wait_for_selector(".overlay")
    assert mood.requests == [("masks=true", 1)]
    assert page.evaluate(
        "(({naturalWidth: w, naturalHeight: h}) => w < h)(document.querySelector('.frame img'))"
    )
    alphas = """() => {
      const { width, height } = document.querySelector(".overlay");
      const pixels = document.querySelector(".overlay").getContext("2d").getImageData(0, 0, width, height).data;
      return [[0.72, 0.28], [0.28, 0.72]].map(([x, y]) => pixels[4 * (Math.floor(y * height) * width + Math.floor(x * width)) + 3]);
    }"""
    marked, unmarked = page.evaluate(alphas)
    assert (marked > 240, unmarked) == (True, 0)
    boxes = [page.locator(selector).bounding_box() for selector in (".frame img", ".overlay")]
    assert boxes[0] == boxes[1]

    page.focus("#opacity")
    page.keyboard.press("Home")
    assert page.evaluate("getComputedStyle(document.querySelector('.overlay')).opacity") == "0"
    assert visitor.complaints == []


def test_many_images_become_a_table_and_csv(visitor, mood):
    page = visitor.visit()
    named = [(name, encoded(seed)) for seed, name in enumerate(NAMES)]
    score_many(page, [*named, ("notes.txt", b"hello"), ("large.jpg", bytes(2**20 + 1))])
    assert [files for _, files in mood.requests] == [4, 3], "the large file is not sent"
    assert page.locator(".gallery tbody tr").count() == 8
    for words in ("8 images", "2 could not be scored"):
        assert words in page.text_content(".tally")
    assert page.evaluate("document.activeElement.className") == "tally"

    with page.expect_download() as download:
        page.click("text=Download CSV")
    text = download.value.path().read_bytes().decode("utf-8-sig")
    table = list(csv.DictReader(io.StringIO(text)))
    guarded = [f"'{name}" if name[0] in "=+-@" else name for name in NAMES]
    assert [row["name"] for row in table] == [*guarded, "notes.txt", "large.jpg"]
    assert [row["status"] for row in table[-2:]] == ["unsupported_format", "file_too_large"]
    notices = page.locator(".many .notice").all_text_contents()
    heads = [text.partition(":")[0] for text in notices]
    assert heads == ["Demonstration ensemble", ERROR_RATES, "Not calibrated"]
    assert [row["notice"] for row in table] == [" ".join(notices)] * len(named) + [""] * 2
    for row, result in zip(
        table, shipped_ensemble().score([data for _, data in named]), strict=False
    ):
        assert math.isclose(float(row[f"score {TINY}"]), result.score, rel_tol=1e-6)

    page.click(".sort >> text=Probability")
    cells = page.locator(".gallery tbody td:nth-child(4)").all_text_contents()
    shown = [float(text) for text in cells if text[0].isdigit()]
    assert shown == sorted(shown, reverse=True)
    head = page.locator("thead th", has_text="Probability")
    assert head.get_attribute("aria-sort") == "descending"

    page.click("text=plain.jpg")
    assert page.text_content(".finding .name") == "plain.jpg"
    page.go_back()
    assert page.evaluate("document.activeElement.textContent") == "plain.jpg"
    page.click("text=Clear all")
    assert page.locator(".gallery").count() == 0


def test_keyboard_alone_is_enough(visitor):
    page = visitor.visit()
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.labels[0].textContent") == "Choose images"
        page.keyboard.press("Enter")
    kind = "image/jpeg"
    chooser.value.set_files(
        [{"name": f"{seed}.jpg", "mimeType": kind, "buffer": encoded(seed)} for seed in range(3)]
    )
    page.wait_for_selector(".tally:focus")
    for _ in range(4):  # CSV, clear, and the head of the first column before the next
        page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert page.locator("thead th", has_text="Finding").get_attribute("aria-sort") == "ascending"
    for _ in range(3):
        page.keyboard.press("Tab")
    name = page.evaluate("document.activeElement.textContent")
    page.keyboard.press("Enter")
    page.wait_for_selector("#finding:focus")
    assert page.text_content(".finding .name") == name
    for _ in range(2):  # past Next to All; Previous is off on the first
        page.keyboard.press("Shift+Tab")
    page.keyboard.press("Enter")
    assert page.text_content(".gallery .link:focus") == name


def test_limits_of_a_verdict_are_shown_with_it(visitor, mood):
    mood.abstained, mood.calibrated, mood.several = "the image is 64 px wide, below 128", True, True
    mood.blind_to = ("It judges whole pictures; edits of <b>a part</b> may pass.",)
    page = visitor.visit()
    page.select_option("#ensemble", "second")
    score_one(page, "photo.jpg", PHOTO)
    assert mood.requests == [("ensemble=second", 1)]
    assert page.text_content("#finding") == WORDS["abstain"]
    said = "The image is outside the range for which a detector was made"
    assert page.text_content(".statement") == f"{said}: {TINY}: the image is 64 px wide, below 128."
    assert "Abstained: The image is 64 px wide, below 128." in page.text_content(".detector")
    assert mood.blind_to[0] in page.text_content(".caveats")
    assert "Demonstration" not in page.text_content(".one")
    assert "not calibrated" not in page.text_content(".one").lower()
    assert page.locator(".notice").count() == 0


def test_detector_that_was_not_needed_does_not_abstain(visitor, mood):
    mood.abstained = NOT_REQUESTED
    page = visitor.visit()
    score_one(page, "photo.jpg", PHOTO)
    assert "Not used: the image needed no second look." in page.text_content(".detector")
    assert "Abstained" not in page.text_content(".detector")


def test_operating_point_decides_the_verdict(visitor, mood):
    mood.points = True
    page = visitor.visit()
    assert page.locator("#point option").all_text_contents() == [
        "1 %: finds 40 % of generated images (default)",
        "0.1 % of real images",
        "5 %: finds 74 % of generated images",
    ]
    assert visitor.visit(width=390).evaluate(FITS)
    page = visitor.visit()
    score_one(page, "photo.jpg", PHOTO)
    assert page.text_content("#finding") == WORDS["real"]
    assert error_rates_at(POINTS[0.01]) in page.text_content(".finding")
    assert "+7.00" in page.text_content(".statement")
    assert "fpr" not in page.text_content("#curl")

    page.select_option("#point", "0.05")
    page.click("text=Score this image again")
    page.wait_for_selector("#curl:has-text('fpr=0.05')")
    assert mood.requests == [("", 1), ("fpr=0.05", 1)]
    assert page.text_content("#finding") == WORDS["fake"]
    assert error_rates_at(POINTS[0.05]) in page.text_content(".finding")
    assert "above −20.00" in page.text_content(".statement")
    promise = r"At most 10 % of real images[^.]* are called fake \(measured"
    assert re.search(promise, page.text_content(".finding"))
    assert "fingerprint 0.05" in page.text_content(".source")
    assert visitor.complaints == []


@pytest.mark.parametrize("way", ["drop", "paste"])
def test_dropped_and_pasted_images_are_scored(visitor, way):
    page = visitor.visit()
    send = """([way, bytes]) => {
      const transfer = new DataTransfer();
      transfer.items.add(new File([new Uint8Array(bytes)], "given.jpg", {type: "image/jpeg"}));
      const event = way === "drop" ? new DragEvent("drop", {dataTransfer: transfer, bubbles: true, cancelable: true})
        : new ClipboardEvent("paste", {clipboardData: transfer, bubbles: true});
      document.body.dispatchEvent(event);
    }"""
    page.evaluate(send, [way, list(PHOTO)])
    page.wait_for_selector("#finding")
    assert ("came from the clipboard" in page.text_content(".finding")) is (way == "paste")


def test_axe_finds_nothing_in_any_state_and_scheme(visitor, mood):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    mood.several = mood.masks = True

    def check(page, state, **options):
        report = axe.run(page, options={"resultTypes": ["violations"], **options})
        assert report.violations_count == 0, f"{state}: {report.generate_report()}"

    def check_in_the_dark(page, state):
        page.emulate_media(color_scheme="dark")
        check(page, f"{state}, dark", runOnly=["color-contrast"])
        page.emulate_media(color_scheme="light")

    page = visitor.visit(reduced_motion="reduce")
    score_one(page, "photo.jpg", PHOTO)
    page.wait_for_selector(".overlay")
    page.click("details:has(#json) summary")
    check(page, "one")
    check_in_the_dark(page, "one")
    score_many(page, [("a.jpg", encoded(1)), ("b.txt", b"words")])
    page.click(".sort >> text=Finding")
    check(page, "many")
    check_in_the_dark(page, "many")
    page.click("text=b.txt")
    check(page, "refused")
    mood.token = "correct horse battery"
    page = visitor.visit(width=390, wait=False, reduced_motion="reduce")
    page.wait_for_selector("#token:focus")
    check(page, "token")
