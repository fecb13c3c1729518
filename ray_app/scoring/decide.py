"""Other rules or thresholds on stored scores: `decide_run` writes verdict columns anew; nothing is
fetched, decoded or scored.
"""

from collections.abc import Mapping
from typing import Any

from ray_app.archives import manifests
from ray_app.ensembles import EnsembleCard, decision_facts, load_ensemble_card
from ray_app.errors import ConfigError
from ray_app.images import ImageLimits
from ray_app.inference import ScoringSpec, make_spec
from ray_app.inference.spec import departures
from ray_app.runs import RunDirectory, directory, document, schema, settled_state
from ray_app.runs.retry import begun_retry
from ray_app.scoring import guarantee, report
from ray_app.scoring.identity import has_guarantee
from ray_app.storage import Lease


def decide_run(
    url: str, ensemble: str, *, waive_guarantee: bool = False, unguarded: bool = False
) -> dict[str, Any]:
    """Apply an ensemble card to a finished run; returns the new summary.

    The directory then belongs to a `score` command with that ensemble. Interrupted, the same
    command finishes it; until then the run says that its verdicts are mixed. Names of generators
    and words stay as they are: what the new card calls fake and the old one did not has no words,
    and the summary's `profile` counts how many have. Raises ConfigError when a detector of the card
    was not run, the card has another profile, the run is unfinished, or it scored otherwise than
    the card was calibrated, unless `waive_guarantee`: then verdicts stand that the card does not
    answer for.
    """
    run = RunDirectory.open(url)
    run.describe_finished()  # a lease would make a directory of a misspelt name
    with Lease(run.store, unguarded=unguarded):
        described = run.describe_finished()
        run.check_known()
        if run.read_json("summary.json")["listing"] != max(manifests(run.store)):
            raise ConfigError(
                f"{url}: a newer listing is still being scored",
                hint="finish it with its `touchstone score` command first",
            )
        if begun_retry(run) is not None:
            raise ConfigError(
                f"{url}: a retry is not finished",
                hint="finish it with its `touchstone score` command first",
            )
        card = load_ensemble_card(ensemble)
        identity = described["identity"]
        spec = make_spec(card, limits=ImageLimits(**identity["limits"]))
        missing = [name for name in spec.cards if name not in described["detectors"]]
        if missing:
            raise ConfigError(
                f"{url}: the run has no scores of {', '.join(missing)}",
                hint=f"it has {', '.join(described['detectors'])}",
            )
        _check_settings(url, card, identity, waive_guarantee)
        _check_profile(url, spec, identity)
        references = guarantee.references_beside(ensemble, card)
        facts = card.model_dump(mode="json") | {"profile": described["ensemble"].get("profile")}
        changed = described | {
            "identity": _identity(identity, spec, waive_guarantee),
            "ensemble": facts,
        }
        run.write_json("run.json", changed | {"deciding": True})
        guarantee.keep_references(run, references)
        was_settled = settled_state.read_settled(run, manifests(run.store)) is not None
        run.store.delete(directory.SETTLED)
        run.remove_replaced()
        run.rewrite_all(lambda rows: guarantee.decided(rows, spec))
        rows = settled_state.NewRows.all_of(run)
        found = guarantee.compare(run, spec, rows)
        if (unlike := found.unlike if found else None) is not None:
            run.rewrite_all(lambda rows: guarantee.unlike_rows(rows, unlike, card.thresholds))
        run.write_json("run.json", guarantee.noted(changed, unlike))
        summary = _summary(run, spec, found, rows)
        if was_settled:
            settled_state.settle(run, rows.found)  # no row came or went
        return summary


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
    had = identity.get("profile", {})
    for kind, card in (("identifier", spec.identifier), ("describer", spec.describer)):
        before = had.get(kind, {}).get("name")
        if spec.ensemble.profile is not None and (card and card.name) != before:
            raise ConfigError(
                f"{url}: its {kind} is {before or 'none'}, that of {spec.ensemble.name} is {card.name if card else 'none'}",
                hint="new verdicts do not change generators and prompts: leave `profile` out of the card, or score the archive with it",
            )


def _identity(identity: Mapping[str, Any], spec: ScoringSpec, waived: bool) -> dict[str, Any]:
    kept = {key: value for key, value in identity.items() if key != guarantee.WAIVED}
    return kept | {
        guarantee.WAIVED: waived and has_guarantee(spec.ensemble),
        "decision": decision_facts(spec.ensemble),
    }


def _summary(
    run: RunDirectory,
    spec: ScoringSpec,
    promised: document.GuaranteeSummary | None,
    rows: settled_state.NewRows,
) -> dict[str, Any]:
    before = {
        key: value
        for key, value in run.read_json("summary.json").items()
        if key not in ("guarantee", schema.SECOND_LOOK)
    }
    summary = document.RunSummary.model_validate(
        before | report.counted(run, spec, promised, rows) | {"run": run.store.url}
    ).written()
    run.write_json("summary.json", summary)
    report.write_report(run, thumbnails=False)  # which would fetch images
    return summary
