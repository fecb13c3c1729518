import json
import re

import pytest

from ray_app.reports.compare import comparison_lines
from tests.reports.comparison_example import example_comparison


def test_lines_show_what_changed():
    text = "\n".join(comparison_lines(example_comparison()))
    for pattern in (
        r"^images: 2,400 in both runs, 2,400 in A, 2,400 in B \(matched by image_id\)",
        r"\ndifferent settings: .* and 2 more\n",
        r"\nonly in A: detector npr\n",
        r"\nstatuses: 12 of 2,400 changed\n",
        r"\nflagged as fake: 25\.0 % in A, 25\.0 % in B\n",
        r"\nverdicts: 240 of 2,400 changed\n",
        r"\nno evidence +240 +0 +0 +0\n",
        r"\ntouchstone-tiny +2,400 +−0\.300 +−0\.900 +\+0\.200",
        r"ROC AUC +0\.9000 +0\.8000 +−0\.1000 +−0\.2000 to −0\.0500 +0\.0004",
        r"further generators like these 12 and reals",
    ):
        assert re.search(pattern, text), pattern


@pytest.mark.parametrize("how", [{}, {"shared": False}, {"n": 0}, {"n": 1}], ids=str)
def test_lines_have_no_missing_value(how):
    comparison = example_comparison(**how)
    assert not [line for line in comparison_lines(comparison) if re.search(r"nan|None", line)]
    json.dumps(comparison.to_dict(), allow_nan=False)


def test_empty_runs_have_nothing_to_compare():
    lines = comparison_lines(example_comparison(n=0))
    assert lines[0] == "nothing to compare: a run has no rows"
