"""A trained predictor of prompts, and the dry run of one, in words for the terminal. Knows the content of `metrics.json` alone."""

from collections.abc import Mapping
from typing import Any

_SYSTEMS = {"describer": "predicted", "retrieval": "nearest image's", "random": "any prompt", "most_frequent": "the commonest"}
_FIGURES = {"exact": "word for word", "token_f1": "token F1", "bleu4": "BLEU-4", "rouge_l": "ROUGE-L"}


def describer_lines(facts: Mapping[str, Any]) -> list[str]:
    """What came out: figures of each split beside what costs nothing, and where the card lies."""
    lines = [f"{facts['name']}: {facts['tier']}, {facts['steps']:,} steps, {facts['out']}/describer.yaml"]
    for split, systems in facts["figures"].items():
        lines.append(f"{split}: {facts['n'][split]:,} images with prompts that training has not")
        lines += [f"  {title:<16}{_told(systems[system])}" for system, title in _SYSTEMS.items()]
    return [*lines, "touchstone score ARCHIVE --out RUN with an ensemble whose profile names this card as its describer"]


def describer_plan_lines(planned: Mapping[str, Any]) -> list[str]:
    """The dry run."""
    counts = ", ".join(f"{split} {count:,}" for split, count in planned["images"].items())
    lines = [f"{planned['name']}: {planned['tier']} by {planned['detector']}; images with prompts: {counts}"]
    if planned["steps"]:
        lines.append(f"{planned['steps']:,} steps of {planned['batch']:,} images")
    left_out = planned["data"].get("prompts_in_training", {})
    return lines + [f"{split}: {count:,} images left out, since training has their prompt" for split, count in left_out.items() if count]


def _told(figures: Mapping[str, Any]) -> str:
    if all(figures[name]["value"] is None for name in _FIGURES):
        return f"not known: {figures['exact']['why']}"
    return "  ".join(f"{title} {figures[name]['value']:.3f}" for name, title in _FIGURES.items() if figures[name]["value"] is not None)
