"""`simulated`, by which tests state what they found; at the end of a run all of it is one table."""

from pathlib import Path

import numpy as np
import pytest

from tests.statistics.promises import HEAD, Simulated

DOCS = Path(__file__).resolve().parents[2] / "docs" / "calibration.md"
_ROW = "promise"


@pytest.fixture
def simulated(record_property):
    """Call it with a claim, its data in words, what is promised, and whether it was wrong on each
    seed (n,) bool; it must hold.

    `said` (n,) bool: on which seeds it was said at all; the others count neither way.
    """

    def check(claim, setting, promised, wrong, said=None):
        wrong = np.asarray(wrong, bool)
        said = np.ones(len(wrong), bool) if said is None else np.asarray(said, bool)
        found = Simulated(
            claim, setting, promised, int(wrong[said].sum()), int(said.sum()), int((~said).sum())
        )
        record_property(_ROW, found.row)
        assert found.holds, found.row
        assert f"| {claim} |" in DOCS.read_text(), f"docs/calibration.md lacks {found.row}"

    return check


def pytest_terminal_summary(terminalreporter):
    """Every setting by its claim; docs/calibration.md has the worst of each."""
    properties = [
        (name, value)
        for reports in terminalreporter.stats.values()
        for report in reports
        if isinstance(report, pytest.TestReport) and report.when == "call"
        for name, value in report.user_properties
    ]
    if rows := sorted({value for name, value in properties if name == _ROW}):
        terminalreporter.section("claims and simulations")
        terminalreporter.write_line("\n".join([HEAD, *rows]))
    if coverage := dict(value for name, value in properties if name in ("coverage", "level")):
        terminalreporter.section("coverage of 95 % intervals, and level of tests")
        for words, found in coverage.items():
            terminalreporter.write_line(f"{words}: {found}")
