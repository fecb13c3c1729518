"""What the run report and the terminal say of a profile: where a run has one, and in words that
promise no more than there is.
"""

from ray_app.reports import render_run_report, summary_lines
from ray_app.reports.run import profile_lines
from ray_app.runs.document import ProfileSummary
from tests.make.page_reader import read
from tests.reports.example import example_summary
from tests.reports.pages import page_of
from tests.reports.profile_example import LONG, example_profile


def test_generators_are_counted_by_family():
    lines = profile_lines(ProfileSummary.model_validate(example_profile()))
    assert lines == [
        "flagged images are nearest to: Stable Diffusion XL 53, FLUX.1 dev and its relatives 30, Midjourney 22, gaudi 3, "
        "like no known generator 38, not identified 4",
        "prompts: predicted for 146 of 150 flagged images",
    ]
    assert lines[0] in summary_lines(example_summary(profile=example_profile()))


def test_run_without_a_profile_names_no_generator():
    assert "Where the flagged images" not in page_of("run")
    assert not [line for line in summary_lines(example_summary()) if "nearest" in line]
    empty = render_run_report(example_summary(profile=example_profile(flagged=0, told=[])))
    assert "No image was flagged." in read(empty).text


def test_page_shows_what_names_and_words_are_worth():
    words = read(page_of("run", "profile")).text
    assert (
        "A name is the nearest of the generators that the identifier knows; it does not prove the origin of an image."
        in words
    )
    assert "Prompts were predicted for 146 of 150 flagged images." in words
    assert "Stable Diffusion XL 1.0 41" in words
    assert "like no known generator; nearest: FLUX.1 dev" in words
    assert LONG not in words
