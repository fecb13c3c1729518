"""Detector scores → verdicts: cards, rules, thresholds. Knows numbers and names; knows nothing of pixels, torch or Ray."""

from ray_app.ensembles.cards import EnsembleCard, Member, Rule, Stacking, Thresholds, decision_facts, ensemble_of, load_ensemble_card
from ray_app.ensembles.deciding import Decisions, calibrate, combine, decide, is_calibrated, sigmoid
from ray_app.ensembles.stacking import fit_stacking, out_of_fold_scores

__all__ = [
    "EnsembleCard", "Member", "Rule", "Stacking", "Thresholds",
    "load_ensemble_card", "ensemble_of", "decision_facts",
    "Decisions", "calibrate", "combine", "decide", "is_calibrated", "sigmoid",
    "fit_stacking", "out_of_fold_scores",
]  # fmt: skip
