"""Detector scores → verdicts: cards, rules, thresholds. Knows numbers and names; knows nothing of pixels, torch or Ray."""

from ray_app.ensembles.cards import (
    Cascade,
    EnsembleCard,
    Guarantee,
    Member,
    Profile,
    Rule,
    Settings,
    Stacking,
    Stage,
    Thresholds,
    decision_facts,
    ensemble_of,
    load_ensemble_card,
)
from ray_app.ensembles.deciding import (
    Decisions,
    calibrate,
    combine,
    decide,
    drawn_by_audit,
    early_scores,
    is_audited,
    is_calibrated,
    logit,
    second_looks,
    sigmoid,
)
from ray_app.ensembles.population import Feature, Part, Population, Seen, Tally, population_of, properties_of
from ray_app.ensembles.stacking import fit_stacking, out_of_fold_scores

__all__ = [
    "EnsembleCard", "Member", "Rule", "Stacking", "Thresholds", "Cascade", "Stage", "Guarantee", "Settings", "Profile",
    "Population", "Part", "Feature", "Seen", "Tally", "population_of", "properties_of",
    "load_ensemble_card", "ensemble_of", "decision_facts",
    "Decisions", "calibrate", "combine", "decide", "is_calibrated", "sigmoid", "logit",
    "early_scores", "second_looks", "is_audited", "drawn_by_audit",
    "fit_stacking", "out_of_fold_scores",
]  # fmt: skip
