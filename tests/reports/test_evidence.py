import pytest

from ray_app.reports.evidence import evidence_lines, render_evidence
from tests.reports.evidence_example import KINDS, example_evidence
from tests.reports.page_reader import PageReader
from tests.reports.pages import page_of


def text_of(kind):
    return PageReader(page_of("evidence", kind)).text


def test_the_page_says_what_was_decided_and_on_which_grounds():
    text, told = text_of("promised"), example_evidence(**KINDS["promised"])
    record = told["record"]
    hashes = [value for value in record["hashes"].values() if isinstance(value, str)]
    for said in (
        "cat-on-a-chair.jpg: flagged by detectors.",
        *(*record["guarantee"]["words"], *record["limits"], *record["verify"]),
        *(told["sha256"], *hashes, "weights.sha256"),
        "Verdict fake Score +2.20",
        "If this share is fake The chance that this one is 0.1 %",
        "87 (estimated from its tables)",
        "The file says nothing of its own origin",
    ):
        assert said in text


@pytest.mark.parametrize(
    ("kind", "words", "elsewhere"),
    [
        ("shifted", "The guarantee does not hold here. images differ in jpeg_quality (PSI 0.15).", "promised"),
        ("stable", "Stability: the image recompressed and resized View Score Verdict 1 +2.00 fake", "plain"),
        ("unscored", "not scored, truncated_image.", "plain"),
        ("said", "unchanged since it was signed, by a signer unknown here", "plain"),
    ],
)
def test_what_is_special_about_an_image_is_told_there_alone(kind, words, elsewhere):
    assert words in text_of(kind)
    assert words not in text_of(elsewhere)


def test_a_decision_that_is_not_given_again_is_told_loudly():
    told = example_evidence()
    told["record"]["decision"]["rederived"] = False
    assert "The decision is not reproduced." in PageReader(render_evidence(told)).text
    assert any("do not give this decision again" in line for line in evidence_lines(told))


@pytest.mark.parametrize("kind", KINDS)
def test_the_terminal_says_the_same(kind):
    told = example_evidence(**KINDS[kind])
    lines = evidence_lines(told)
    assert lines[0].startswith("cat-on-a-chair.jpg: ")
    assert lines[-1] == f"digest: {told['sha256']}"
    assert not [line for line in lines if "nan" in line or "None" in line]
