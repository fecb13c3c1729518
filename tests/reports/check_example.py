"""Rows as `touchstone check` has them, for pages and lines."""

from ray_app.ensembles import Thresholds
from ray_app.errors import DETECTOR_FINDINGS
from ray_app.reports.check import CheckFacts

FACTS = CheckFacts(
    "example",
    "Example ensemble",
    False,
    ("It judges whole pictures.",),
    Thresholds(real_below=-2.0, fake_above=2.0),
    {"example": "Example"},
)
_VERDICTS = (("real", -6.0), ("fake", 4.0), ("abstain", 0.5), (None, None))
_FINDINGS = {**DETECTOR_FINDINGS, None: None}


def check_row(name, score, verdict, *, why=None, detail=None, grounds=None, folder="/holiday"):
    """One row; without a verdict one of a file that is cut off."""
    is_scored = verdict is not None
    return {
        "uri": f"{folder}/{name}", "status": "ok" if is_scored else "truncated_image", "detail": None if is_scored else detail,
        "finding": _FINDINGS[verdict], "grounds": grounds, "verdict": verdict, "verdict_reason": why,
        "verdict_detail": detail if is_scored else None, "probability": 0.5 if is_scored else None, "calibrated": True, "score": score,
        "scores": {"example": score} if is_scored else {}, "width": 64, "height": 48, "format": "JPEG", "sha256": "0" * 64,
        "provenance": None,
    }  # fmt: skip


def check_rows(count, folder="/holiday"):
    """Rows of all verdicts in three folders, by name."""
    rows = []
    for number in range(count):
        verdict, score = _VERDICTS[number % 4]
        detail = f"the file ends after {number} bytes" if verdict is None else None
        why = "inside_band" if verdict == "abstain" else None
        rows.append(
            check_row(
                f"{number % 3}/{number}.jpg",
                score and score + number / 1000,
                verdict,
                why=why,
                detail=detail,
                folder=folder,
            )
        )
    return rows


def names_of(rows):
    """As the command shows them."""
    return ["holiday/" + row["uri"].rpartition("holiday/")[2] for row in rows]
