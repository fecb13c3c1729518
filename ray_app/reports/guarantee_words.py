"""What a card guarantees, and whether that holds for an archive, in words: the same on the page and on the terminal. Knows no HTML."""

from collections.abc import Mapping
from typing import Any

from ray_app.reports import wording
from ray_app.reports.run_summary import GuaranteeSummary

FEATURE_WORDS = {
    "score": "score",
    "format": "format",
    "megapixels": "megapixels",
    "short_side_px": "short side",
    "jpeg_quality": "JPEG quality",
}


def guarantee_sentences(found: GuaranteeSummary) -> list[str]:
    """The promise, and whether it holds; nothing where a run's card promises nothing."""
    if not found.stated:
        return []
    sentences = [promise(found.target_fpr, found.confidence, found.population)] if found.target_fpr else []
    why = f": {wording.shortened(found.why, 400)}" if found.why else ""
    if found.holds:
        sentences.append("this archive is like the images that the card was calibrated on")
    elif found.holds is None:
        sentences.append(f"not known to hold for this archive{why}")
    else:
        sentences.append(f"does not hold for this archive{why}")
    if found.unlike:
        sentences.append("so different that no verdict is given: all abstain (calibrate on labelled images of this archive)")
    elif found.waived:
        sentences.append("it was waived: verdicts stand that the card does not answer for")
    return sentences


def guarantee_lines(section: Mapping[str, Any] | None) -> list[str]:
    """The same for a terminal, from that section of a run's summary."""
    return [f"guarantee: {sentence}" for sentence in guarantee_sentences(GuaranteeSummary.model_validate(dict(section or {})))]


def promise(target_fpr: float, confidence: float | None, population: str | None) -> str:
    """What a card promises."""
    sure = f" (with {wording.stated(confidence)} confidence)" if confidence else ""
    of = f" like those of “{wording.shortened(population, 120)}”" if population else ""
    return f"of real images{of} at most {wording.stated(target_fpr)} are called fake{sure}"


def feature(name: str) -> str:
    """A property by its name in a card."""
    kind, _, detector = name.partition(":")
    if kind == "score" and detector:
        return f"score of {wording.shortened(detector, 60)}"
    return FEATURE_WORDS.get(name) or wording.shortened(name, 60)
