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
    assert "cat-on-a-chair.jpg: flagged as fake." in text
    for words in (*record["guarantee"]["words"], *record["limits"], *record["verify"]):
        assert words in text
    for digest in (told["sha256"], *(value for value in record["hashes"].values() if isinstance(value, str))):
        assert digest in text
    assert "Verdict fake Score +2.20" in text
    assert "If this share is fake The chance that this one is 0.1 %" in text
    assert "touchstone- tiny" in text or "touchstone-tiny" in text
    assert "87 (estimated from its tables)" in text
    assert "weights.sha256" in text


def test_a_promise_that_does_not_hold_stands_first():
    words = "The guarantee does not hold here. images differ in jpeg_quality (PSI 0.15)."
    assert words in text_of("shifted")
    assert "The guarantee does not hold here." not in text_of("promised")


def test_second_looks_and_views_are_told_where_there_are_any():
    assert "The first detectors were uncertain, so all of them looked." in text_of("cascade")
    assert "Stability: the image recompressed and resized View Score Verdict 1 +2.00 fake" in text_of("stable")
    assert "Stability" not in text_of("plain")


def test_an_image_without_a_score_has_no_figures():
    text = text_of("unscored")
    assert "not scored, truncated_image." in text
    assert "No score and no verdict." in text
    assert "Probability" not in text.partition("What the detectors said")[0]


def test_what_a_file_says_of_itself_is_told():
    text = text_of("said")
    for words in (
        "Canon",
        "a cat on a chair",
        "unchanged since it was signed, by a signer who is not on the trust list",
        "declares itself generated yes",
    ):
        assert words in text
    assert "The file says nothing of its own origin" in text_of("plain")


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
