import json
import re

import pytest

from ray_app.reports.compare import comparison_lines
from tests.reports.comparison_example import example_comparison


def test_lines_show_what_changed():
    lines = comparison_lines(example_comparison())
    assert lines[0] == "images: 2,400 in both runs, 2,400 in A, 2,400 in B (matched by image_id)"
    assert any(
        line.startswith("different settings: ") and line.endswith(" and 2 more") for line in lines
    )
    assert "only in A: detector npr" in lines
    assert "statuses: 12 of 2,400 changed" in lines
    assert "flagged as fake: 25.0 % in A, 25.0 % in B" in lines
    assert "verdicts: 240 of 2,400 changed" in lines
    assert any(re.match(r"no evidence +240 +0 +0 +0$", line) for line in lines)
    assert any(
        re.match(r"touchstone-tiny +2,400 +−0\.300 +−0\.900 +\+0\.200", line) for line in lines
    )
    assert any(
        re.search(r"ROC AUC +0\.9000 +0\.8000 +−0\.1000 +−0\.2000 to −0\.0500 +0\.0004", line)
        for line in lines
    )
    assert any("further generators like these 12 and reals" in line for line in lines)


@pytest.mark.parametrize("how", [{}, {"shared": False}, {"n": 0}, {"n": 1}], ids=str)
def test_lines_have_no_missing_value(how):
    comparison = example_comparison(**how)
    assert not [line for line in comparison_lines(comparison) if re.search(r"nan|None", line)]
    json.dumps(comparison.to_dict(), allow_nan=False)


def test_empty_runs_have_nothing_to_compare():
    lines = comparison_lines(example_comparison(n=0))
    assert lines[0] == "nothing to compare: a run has no rows"
