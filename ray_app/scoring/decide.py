"""Compute new verdicts from the stored scores of a run, by another ensemble card (`decide_run`).

The card can have another rule or other thresholds. No file is fetched, decoded, or scored.
"""

from collections.abc import Mapping
from typing import Any

from ray_app.ensembles import (
    EnsembleCard,
    choose_operating_point,
    get_decision_settings,
    load_ensemble_card,
)
from ray_app.errors import ConfigError
from ray_app.images import ImageLimits
from ray_app.inference import ScoringSpec, make_spec
from ray_app.inference.spec import departures
from ray_app.runs import CurrentRows, RunDirectory, directory, schema
from ray_app.scoring import guarantee, report
from ray_app.scoring.compact import claim_copy, copy_rows, finish_copy
from ray_app.scoring.identity import has_guarantee


def decide_run(
    url: str,
    ensemble: str,
    out: str,
    *,
    fpr: float | None = None,
    waive_guarantee: bool = False,
    unguarded: bool = False,
) -> dict[str, Any]:
    """Copy a finished run to a new run, with the verdicts of another ensemble card.

    `touchstone score` with that ensemble can continue the new run, and scores no file again.
    Predicted generators and prompts are copied unchanged. A file that only the new card flags has
    no prompt. The summary's section `profile` counts how many files have a prompt. The verdicts are
    those of the operating point for `fpr`, by default of the card's thresholds. `waive_guarantee`
    keeps verdicts that the card's maximum false-positive rate does not cover. The result is the new
    `summary.json`. Raises ConfigError if the run is not finished or lacks scores of a detector of
    the card, or the card lacks the operating point, has another `profile`, or was not calibrated
    for the run's settings.
    """
    run, target = RunDirectory.open(url), RunDirectory.open(out)
    run_info = run.describe_finished()
    run.check_known()
    rows = CurrentRows.read(run)
    card = load_ensemble_card(ensemble)
    if fpr is not None:
        card = choose_operating_point(card, fpr)
    identity = directory.add_defaults(run_info["identity"])
    spec = make_spec(card, limits=ImageLimits(**identity["limits"]))
    missing = [name for name in spec.cards if name not in run_info["detectors"]]
    if missing:
        raise ConfigError(
            f"{url}: the run has no scores of {', '.join(missing)}",
            hint=f"use an ensemble of these detectors: {', '.join(run_info['detectors'])}",
        )
    _check_settings(url, card, identity, waive_guarantee)
    _check_profile(url, spec, identity)
    changed = {
        guarantee.WAIVED: waive_guarantee and has_guarantee(card),
        "decision": get_decision_settings(card),
    }
    facts = card.model_dump(mode="json") | {"profile": run_info["ensemble"].get("profile")}
    decided = {**run_info, "identity": {**identity, **changed}, "ensemble": facts}
    with claim_copy(target, decided, url, unguarded=unguarded) as new_info:
        copy_rows(rows, target, spec)
        before = {
            key: value
            for key, value in run.read_json("summary.json").items()
            if key not in ("guarantee", schema.SECOND_LOOK)
        }
        counts = report.count_current(target, spec, CurrentRows.at_end(target))
        return finish_copy(target, new_info, before | counts)


def _check_settings(
    url: str, card: EnsembleCard, identity: Mapping[str, Any], waived: bool
) -> None:
    differing = departures(card.settings, identity["precision"], identity["resize"])
    if differing and not waived:
        raise ConfigError(
            f"{url}: the calibration of {card.name} is not valid for scores with {' and '.join(differing)}",
            hint=f"score the archive with {card.name}, or add --waive-guarantee to give up its guarantee",
        )


def _check_profile(url: str, spec: ScoringSpec, identity: Mapping[str, Any]) -> None:
    """Check that a card with a profile has the profile of the run.

    A card without a profile keeps the run's profile.
    """
    profile = identity["profile"] or {}
    for kind, card in (("identifier", spec.identifier), ("describer", spec.describer)):
        stored = profile.get(kind, {}).get("name")
        if spec.ensemble.profile is not None and (card and card.name) != stored:
            raise ConfigError(
                f"{url}: the run has the {kind} {stored or 'none'}, but the card {spec.ensemble.name} has {card.name if card else 'none'}",
                hint="remove `profile` from the card, because new verdicts keep the run's generators and prompts, or score the archive again with it",
            )
