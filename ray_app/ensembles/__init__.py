"""Detector scores → verdicts: cards, rules, thresholds. Knows numbers and names; knows nothing of pixels, torch or Ray."""

from ray_app.ensembles.cards import EnsembleCard, Member, Thresholds, ensemble_of, load_ensemble_card
from ray_app.ensembles.deciding import Decisions, combine, decide, sigmoid

__all__ = [
    "EnsembleCard",
    "Member",
    "Thresholds",
    "load_ensemble_card",
    "ensemble_of",
    "Decisions",
    "combine",
    "decide",
    "sigmoid",
]
