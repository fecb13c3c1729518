import re

import pytest

from ray_app.reports.compare import comparison_lines
from tests.reports.comparison_example import example_comparison


def test_lines_show_what_changed():
    document = example_comparison()
    lines = comparison_lines(document)
    flips, n = document["verdicts"]["flips"], document["verdicts"]["n"]
    assert lines[0] == "images: 2,400 in both runs, 0 only in A, 0 only in B (matched by image_id)"
    assert "not finished: run B" in lines
    assert (
        "made with different settings: precision.touchstone-tiny, precision.touchstone-tiny, precision.touchstone-tiny"
        in lines
    )
    assert "only in A: detector npr" in lines
    assert (
        f"statuses: {sum(count for *_, count in document['statuses']['pairs'])} of 2,400 changed"
        in lines
    )
    assert any(line.startswith(f"verdicts: {flips:,} of {n:,} changed; flagged ") for line in lines)
    assert any(
        re.match(r"touchstone-tiny +\+0\.\d{3} +\+0\.\d+ … \+0\.\d+ +\d", line) for line in lines
    )
    assert any(line.startswith("touchstone-tiny: AUC 0.") for line in lines)


def test_runs_without_a_shared_image_show_distributions():
    lines = comparison_lines(example_comparison(shared=False))
    assert (
        lines[0]
        == "no image is in both runs: only the distributions of their scores can be compared"
    )
    assert any(re.match(r"scores +median A +median B +KS +p +PSI +p", line) for line in lines)


@pytest.mark.parametrize(
    "how", [{}, {"shift": 0.0}, {"shared": False}, {"n": 0}, {"n": 1}], ids=str
)
def test_lines_have_no_missing_value(how):
    assert not [
        line for line in comparison_lines(example_comparison(**how)) if re.search(r"nan|None", line)
    ]


def test_empty_runs_have_nothing_to_compare():
    assert (
        comparison_lines(example_comparison(n=0))[0] == "nothing to compare: neither run has a row"
    )
