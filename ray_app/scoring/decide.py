"""Apply another rule or other thresholds to stored scores (`decide_run`); nothing is fetched,
decoded, or scored.
"""

from collections.abc import Mapping
from typing import Any

from ray_app.ensembles import (
    EnsembleCard,
    choose_operating_point,
    decision_facts,
    load_ensemble_card,
)
from ray_app.errors import ConfigError
from ray_app.images import ImageLimits
from ray_app.inference import ScoringSpec, make_spec
from ray_app.inference.spec import departures
from ray_app.runs import CurrentRows, RunDirectory, directory, schema
from ray_app.scoring import guarantee, report
from ray_app.scoring.compact import check_new, copy_rows, finish_copy
from ray_app.scoring.identity import has_guarantee
from ray_app.storage import Lease


def decide_run(
    url: str,
    ensemble: str,
    out: str,
    *,
    fpr: float | None = None,
    waive_guarantee: bool = False,
    unguarded: bool = False,
) -> dict[str, Any]:
    """Write the current rows of a finished run as a new run with verdicts of another ensemble card.

    The new run belongs to a `touchstone score` command with that ensemble, which scores no file
    again. Generators and prompts stay as they are: a file that only the new card flags has no
    prompt, and the summary's `profile` counts how many have one.

    Args:
        url: The run to read.
        ensemble: The name or the path of the card.
        out: The new run directory.
        fpr: The false-positive rate of the card's operating point that decides. If it is None, the
            thresholds of the card decide.
        waive_guarantee: Keep verdicts that the card's guarantee does not cover.
        unguarded: Accept a store without conditional writes.

    Returns:
        The content of the new `summary.json`.

    Raises:
        ConfigError: The run is not finished, lacks scores of a detector of the card, has another
            profile, or was scored otherwise than the card was calibrated; or the card lacks the
            operating point.
    """
    run, target = RunDirectory.open(url), RunDirectory.open(out)
    described = run.describe_finished()
    run.check_known()
    rows = CurrentRows.read(run)
    card = load_ensemble_card(ensemble)
    if fpr is not None:
        card = choose_operating_point(card, fpr)
    identity = directory.completed(described["identity"])
    spec = make_spec(card, limits=ImageLimits(**identity["limits"]))
    missing = [name for name in spec.cards if name not in described["detectors"]]
    if missing:
        raise ConfigError(
            f"{url}: the run has no scores of {', '.join(missing)}",
            hint=f"it has {', '.join(described['detectors'])}",
        )
    _check_settings(url, card, identity, waive_guarantee)
    _check_profile(url, spec, identity)
    changed = {
        guarantee.WAIVED: waive_guarantee and has_guarantee(card),
        "decision": decision_facts(card),
    }
    facts = card.model_dump(mode="json") | {"profile": described["ensemble"].get("profile")}
    check_new(target)
    with Lease(target.store, unguarded=unguarded):
        decided = {**described, "identity": {**identity, **changed}, "ensemble": facts}
        copy_rows(rows, target, decided, spec)
        before = {
            key: value
            for key, value in run.read_json("summary.json").items()
            if key not in ("guarantee", schema.SECOND_LOOK)
        }
        counts = report.count_current(target, spec, CurrentRows.at_end(target))
        return finish_copy(target, before | counts)


def _check_settings(
    url: str, card: EnsembleCard, identity: Mapping[str, Any], waived: bool
) -> None:
    differing = departures(card.settings, identity["precision"], identity["resize"])
    if differing and not waived:
        raise ConfigError(
            f"{url}: the calibration of {card.name} does not hold for scores made with {' and '.join(differing)}",
            hint="score the archive with that card, or give up its guarantee: --waive-guarantee",
        )


def _check_profile(url: str, spec: ScoringSpec, identity: Mapping[str, Any]) -> None:
    """A card without a profile leaves the run's alone; one with a profile must have the run's."""
    had = identity["profile"] or {}
    for kind, card in (("identifier", spec.identifier), ("describer", spec.describer)):
        before = had.get(kind, {}).get("name")
        if spec.ensemble.profile is not None and (card and card.name) != before:
            raise ConfigError(
                f"{url}: its {kind} is {before or 'none'}, that of {spec.ensemble.name} is {card.name if card else 'none'}",
                hint="new verdicts do not change generators and prompts: leave `profile` out of the card, or score the archive with it",
            )
